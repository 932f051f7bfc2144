"""Files that are either whole or not there: written under a temporary name, then renamed; in an
object store (base.paths), written here, then sent, which makes them whole there at once.

Of the processes of one run the writer alone writes (base.hosts): what the others write goes
nowhere.
"""

import contextlib
import json
import math
import os
import pathlib
import shutil
import tempfile
import zipfile

import numpy as np

from cfg.base import hosts, paths, untrusted
from cfg.base.errors import Unavailable


@contextlib.contextmanager
def replacing(path):
  """Yield a temporary path of this machine's file system; it becomes `path` if the block succeeds,
  and is removed if not.
  """
  path = paths.as_path(path)
  if paths.is_remote(path) or not hosts.is_writer():
    with tempfile.TemporaryDirectory() as folder:
      tmp = pathlib.Path(folder) / path.name
      yield tmp
      if hosts.is_writer():
        _send(tmp, path)
    return
  tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    yield tmp
    os.replace(tmp, path)
  finally:
    tmp.unlink(missing_ok=True)


def _send(path, target):
  """Put a file of this machine into an object store. Raises Unavailable if it cannot be."""
  try:
    target.fs.put_file(str(path), target.path)
  except Exception as e:  # libraries of several makers raise what they like
    raise Unavailable(
      f"{str(target)!r} cannot be written ({paths.said(e)}). What was finished before is as "
      "it was: run the same command again once it can be."
    ) from e


def write_text(path, text):
  """Write `text` as UTF-8."""
  with replacing(path) as tmp:
    tmp.write_text(text, encoding="utf-8")


def write_json(path, value):
  """Write JSON, indented, keys in the order given; not-a-number is refused."""
  write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def write_npz(path, arrays):
  """Write a dict of numeric arrays."""
  with replacing(path) as tmp, tmp.open("wb") as f:
    np.savez(f, **arrays)


def remove_tree(folder):
  """Remove a folder with all that is in it, as far as it is there and can be removed."""
  folder = paths.as_path(folder)
  if paths.is_remote(folder):
    with contextlib.suppress(FileNotFoundError):
      folder.fs.rm(folder.path, recursive=True)
  else:
    shutil.rmtree(folder, ignore_errors=True)


def modified(path):
  """The time of a file's last change, by the clock of its file system, in seconds."""
  if paths.is_remote(path):
    return path.fs.modified(path.path).timestamp()
  return path.stat().st_mtime


@contextlib.contextmanager
def local(path):
  """Yield a path of this machine's file system at which the file is while the block lasts: for
  libraries that open no others.
  """
  path = paths.as_path(path)
  if not paths.is_remote(path):
    yield path
    return
  with tempfile.TemporaryDirectory() as folder:
    copy = pathlib.Path(folder) / path.name
    path.fs.get_file(path.path, str(copy))
    yield copy


class Mirror:
  """A folder of this machine whose files may grow, for one of an object store, where they cannot.

  `folder` is that of this machine; `send` puts what was written since into the other. Where
  `target` is of this machine both are one, and nothing is to be sent.
  """

  def __init__(self, target):
    self._target = paths.as_path(target)
    self._temporary = tempfile.TemporaryDirectory() if paths.is_remote(self._target) else None
    self._sent = {}
    self.folder = pathlib.Path(self._temporary.name) if self._temporary else self._target

  def send(self):
    """Send each file that has grown since it was sent."""
    if self._temporary is None:
      return
    for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
      size = path.stat().st_size
      if self._sent.get(path) != size:
        target = self._target / path.relative_to(self.folder).as_posix()
        _send(path, target)
        self._sent[path] = size

  def close(self):
    """Send what is left, and remove the folder of this machine if it is a copy."""
    if self._temporary is not None:
      self.send()
      self._temporary.cleanup()


def read_npz(path):
  """Read what `write_npz` wrote; never unpickles. Raises OSError, or ValueError for what is no
  whole .npz.
  """
  with paths.as_path(path).open("rb") as file:
    size = file.seek(0, os.SEEK_END)
    try:
      with untrusted.reading(), zipfile.ZipFile(file) as archive:
        _check_sizes(archive, size)
        arrays = {}
        for info in archive.infolist():
          with archive.open(info) as member:
            arrays[info.filename.removesuffix(".npy")] = _read_array(member, info.file_size)
        return arrays
    except ValueError as e:
      raise ValueError(f"it is no whole .npz: {e}") from e


def _check_sizes(archive, size):
  """Raise ValueError if a zip of `size` bytes declares more content than it may have."""
  infos = archive.infolist()
  declared = sum(info.file_size for info in infos)
  stored = all(info.compress_type == zipfile.ZIP_STORED for info in infos)
  if declared > (size if stored else untrusted.most_unfolded(size)):
    raise ValueError(f"its {size:,} bytes declare arrays of {declared:,}")


def _read_array(member, size):
  """The array of a member of `size` bytes, whose header is held against them before it is read."""
  version = np.lib.format.read_magic(member)
  header = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
  }
  if version not in header:  # 3.0 is for names of fields that are not Latin
    raise ValueError(f"an array of it is of version {version}")
  shape, _, dtype = header[version](member)
  if dtype.hasobject:
    raise ValueError("an array of it holds Python objects (allow_pickle is off)")
  if dtype.names or dtype.subdtype or not dtype.itemsize or any(n < 0 for n in shape):
    raise ValueError(f"an array of it is of shape {shape} and type {dtype}")
  if math.prod(shape) * dtype.itemsize != size - member.tell():
    raise ValueError(f"an array of shape {shape} and type {dtype} does not have {size:,} bytes")
  member.seek(0)
  return np.lib.format.read_array(member, allow_pickle=False)


def read_json(path):
  """The value in a file of JSON. Raises OSError, or ValueError for what is no JSON."""
  return untrusted.parse_json(paths.as_path(path).read_bytes())
