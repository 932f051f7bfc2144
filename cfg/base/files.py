"""Files that are either whole or not there: written under a temporary name, then renamed.

Of the processes of one run the writer alone writes (base.hosts): what the others write goes
nowhere.
"""

import contextlib
import json
import os
import pathlib
import tempfile
import zipfile
import zlib

import numpy as np

from cfg.base import hosts


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


def parse_json(text):
  """The value of JSON text or UTF-8 bytes. Raises ValueError, also where it is nested too deeply to
  be read.
  """
  try:
    return json.loads(text)
  except RecursionError as e:
    raise ValueError("it is nested too deeply") from e


def read_json(path):
  """The value of a JSON file. Raises OSError, or ValueError for what is no JSON."""
  return parse_json(pathlib.Path(path).read_bytes())


def write_npz(path, arrays):
  """Write a dict of numeric arrays."""
  with replacing(path) as tmp, tmp.open("wb") as f:
    np.savez(f, **arrays)


def read_npz(path):
  """Read what `write_npz` wrote; never unpickles. Raises OSError, or ValueError for what is no
  whole .npz.
  """
  # np.load leaves a file open that it cannot read
  with pathlib.Path(path).open("rb") as file:
    try:
      with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}
    except (
      zipfile.BadZipFile,
      zlib.error,
      EOFError,
      TypeError,
    ) as e:  # the last: a single array, .npy
      raise ValueError(f"it is no whole .npz: {e}") from e
