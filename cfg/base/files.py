"""Files that are either whole or not there: written under a temporary name, then renamed.

Of the processes of one run the writer alone writes (base.hosts): what the others write goes
nowhere.
"""

import contextlib
import json
import math
import os
import pathlib
import tempfile
import zipfile

import numpy as np

from cfg.base import hosts, untrusted


@contextlib.contextmanager
def replacing(path):
  """Yield a temporary path beside `path`; rename it to `path` if the block succeeds, else remove
  it.
  """
  path = pathlib.Path(path)
  if not hosts.is_writer():
    with tempfile.TemporaryDirectory() as folder:
      yield pathlib.Path(folder) / path.name
    return
  tmp = path.with_name(f".{path.name}.{os.getpid()}.tmp")
  try:
    yield tmp
    os.replace(tmp, path)
  finally:
    tmp.unlink(missing_ok=True)


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


def read_npz(path):
  """Read what `write_npz` wrote; never unpickles. Raises OSError, or ValueError for what is no
  whole .npz.
  """
  with pathlib.Path(path).open("rb") as file:
    try:
      with untrusted.reading(), zipfile.ZipFile(file) as archive:
        _check_sizes(archive, os.fstat(file.fileno()).st_size)
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
  return untrusted.parse_json(pathlib.Path(path).read_bytes())
