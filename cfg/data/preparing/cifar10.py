"""CIFAR-10 as published: the binary and the python archive, as they come or extracted."""

import io

import numpy as np

from cfg.base import pickles
from cfg.base.errors import UserError
from cfg.data.preparing import tars
from cfg.data.preparing.parts import Arrays, Input

BINARY, PYTHON = "batches.meta.txt", "batches.meta"
TRAIN, TEST = [f"data_batch_{i}" for i in range(1, 6)], ["test_batch"]
LARGEST = 2**28  # bytes unpacked; the archives have 185 million


def compressed(path):
  """{file name: bytes} of a small compressed tar with CIFAR-10 in it, else None."""
  if not path.name.endswith((".tar.gz", ".tgz")):
    return None
  found, size = {}, 0
  try:
    for member, read in tars.gzipped(path, most=2 * LARGEST):
      size += member.size
      if size > LARGEST:
        return None
      if member.isfile():
        found[member.name.split("/")[-1]] = read()
  except (OSError, ValueError) as e:
    raise UserError(
      f"the archive {str(path)!r} cannot be read ({e}): it may be cut short. Get it again."
    ) from e
  return found if {BINARY, PYTHON} & found.keys() else None


def from_files(names, read, *, where):
  """The Input of the files `names`, each read by `read(name)`, or None if they are not CIFAR-10's.

  Raises:
    UserError: a batch is missing or not whole.
  """
  if BINARY in names:
    suffix, class_names, batch = ".bin", lambda: read(BINARY).decode("ascii").split(), binary_batch
  elif PYTHON in names and TRAIN[0] in names:
    suffix, class_names, batch = (
      "",
      lambda: _names(unpickle(read(PYTHON))["label_names"]),
      python_batch,
    )
  else:
    return None
  name, splits = "its list of classes", {}
  try:
    classes = tuple(class_names())
    for split, batches in (("train", TRAIN), ("test", TEST)):
      images, labels = [], []
      for name in batches:
        pixels, numbers = batch(read(name + suffix))
        if len(set(classes)) < len(classes):
          raise ValueError("two classes have one name")
        if numbers.max() >= len(classes):
          raise ValueError(f"a label is {numbers.max()}, and there are {len(classes)} classes")
        images.append(pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
        labels.append(numbers.astype(np.int32))
      images, labels = np.concatenate(images), np.concatenate(labels)
      splits[split] = Arrays(images, labels)
  except (OSError, KeyError, ValueError, TypeError, pickles.Refused) as e:
    raise UserError(
      f"{name} of CIFAR-10 in {str(where)!r} is missing or not whole ({e}): unpack the archive "
      f"again."
    ) from e
  return Input("cifar10", classes, splits, {})


def binary_batch(raw):
  """(pixels uint8 [N,3072], labels [N]) of records of a label and three planes of 32x32."""
  rows = np.frombuffer(raw, np.uint8)
  if rows.size % 3073 or rows.size == 0:
    raise ValueError(f"it has {rows.size} bytes, not a multiple of 3073")
  rows = rows.reshape(-1, 3073)
  return rows[:, 1:], rows[:, 0]


def python_batch(raw):
  """(pixels uint8 [N,3072], labels [N]) of a pickled dict of them."""
  content = unpickle(raw)
  if not isinstance(content["data"], _Bytes):
    raise ValueError("its data are no array")
  labels = content["labels"]
  # before numpy enters what a list may hold
  if not isinstance(labels, list) or not all(type(n) is int and 0 <= n < 256 for n in labels):
    raise ValueError("its labels are no list of numbers from 0 to 255")
  pixels, labels = content["data"].array(), np.asarray(labels)
  if (
    pixels.ndim != 2
    or pixels.shape[1] != 3072
    or labels.shape != pixels.shape[:1]
    or not len(labels)
  ):
    raise ValueError(f"it has images {pixels.shape} and labels {labels.dtype}{list(labels.shape)}")
  return pixels, labels


def _names(value):
  """The names of classes in a pickle."""
  names = [text(name) for name in value] if isinstance(value, list) else []
  if not names or not all(isinstance(name, str) for name in names):
    raise ValueError("it has no list of names")
  return names


def text(value):
  """A string that may be bytes."""
  return value.decode("ascii") if isinstance(value, bytes) else value


def unpickle(raw):
  """The dict in a pickle, by the interpreter that executes nothing; its keys may have been pickled
  as bytes.
  """
  content = pickles.load(io.BytesIO(raw), globals_=GLOBALS)
  if not isinstance(content, dict):
    raise pickles.Refused("it is not a dict")
  try:
    return {text(key): value for key, value in content.items()}
  except UnicodeDecodeError as e:
    raise pickles.Refused(f"it has a key that is no text ({e})") from e


class _Dtype:
  """numpy.dtype, of bytes alone."""

  def __init__(self, name, *_):
    if text(name) not in ("u1", "|u1", "uint8"):
      raise pickles.Refused(f"it has an array of {pickles.shown(name)}, not of bytes")

  def set_state(self, state):
    """Byte order and the like: a byte has none."""


class _Bytes:
  """numpy.ndarray, of bytes alone."""

  def __init__(self, *_):
    self._shape, self._data = (0,), b""

  def set_state(self, state):
    """(version, shape, dtype, in Fortran's order, content)."""
    match state:
      case (_, tuple(shape), _Dtype(), 0 | False, bytes() | str() as data) if all(
        isinstance(n, int) and n >= 0 for n in shape
      ):
        self._shape, self._data = shape, data.encode("latin-1") if isinstance(data, str) else data
      case _:
        raise pickles.Refused("it has an array of a kind that CIFAR-10 has not")

  def array(self):
    """As numpy's; ValueError if its content does not fill its shape."""
    return np.frombuffer(self._data, np.uint8).reshape(self._shape)


GLOBALS = {
  **{(f"numpy.{core}.multiarray", "_reconstruct"): _Bytes for core in ("core", "_core")},
  ("numpy", "ndarray"): _Bytes,
  ("numpy", "dtype"): _Dtype,
  ("_codecs", "encode"): lambda s, encoding: s.encode(
    "latin-1"
  ),  # how Python 3 writes bytes for Python 2
}
