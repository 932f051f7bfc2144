"""Reads the tensors of a .pt or .pth file, in the zip or the legacy format, without PyTorch and
without unpickling.

The formats are those of torch.save: a zip whose data.pkl refers to raw storages
data/<key> (since PyTorch 1.6), or a row of pickles followed by the storages.
"""

import dataclasses
import io
import math
import mmap
import os
import pathlib
import struct
import zipfile

import ml_dtypes
import numpy as np

from cfg.base import pickles, untrusted
from cfg.base.errors import UserError

MAX_BYTES = 64 * 2**30  # of all storages together
MAX_PICKLE_BYTES = 256 * 2**20
MAX_STORAGES = 100_000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001

DTYPES = {
  "FloatStorage": np.float32,
  "DoubleStorage": np.float64,
  "HalfStorage": np.float16,
  "BFloat16Storage": ml_dtypes.bfloat16,
  "ByteStorage": np.uint8,
  "CharStorage": np.int8,
  "ShortStorage": np.int16,
  "IntStorage": np.int32,
  "LongStorage": np.int64,
  "BoolStorage": np.bool_,
}


@dataclasses.dataclass
class Storage:
  """A flat array of a file; `data` comes when it is read."""

  dtype: np.dtype
  size: int
  data: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class Tensor:
  """A view of a storage."""

  storage: Storage
  offset: int
  shape: tuple[int, ...]
  strides: tuple[int, ...]

  def array(self):
    """The tensor as a read-only numpy view.

    Raises:
      pickles.Refused: it reaches outside its storage, or is larger than it.
    """
    counts = (self.offset, *self.shape, *self.strides)
    whole = all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**48 for n in counts)
    if not whole or len(self.shape) != len(self.strides) or len(self.shape) > 16:
      shape, strides = pickles.shown(self.shape), pickles.shown(self.strides)
      raise pickles.Refused(f"it has a tensor of shape {shape} and strides {strides}")
    size = math.prod(self.shape)
    last = (
      self.offset + sum((n - 1) * s for n, s in zip(self.shape, self.strides))
      if size
      else self.offset
    )
    if size > self.storage.size or last >= max(self.storage.size, 1):
      raise pickles.Refused(
        f"a tensor of shape {self.shape} reaches outside its storage of {self.storage.size} numbers"
      )
    item = self.storage.data.itemsize
    return np.lib.stride_tricks.as_strided(
      self.storage.data[self.offset :],
      self.shape,
      [s * item for s in self.strides],
      writeable=False,
    )


def _rebuild(storage, offset, size, stride, *_):
  if not isinstance(storage, Storage):
    raise pickles.Refused("it makes a tensor of something that is not a storage")
  return Tensor(storage, offset, tuple(size), tuple(stride))


GLOBALS = {
  ("torch._utils", "_rebuild_tensor_v2"): _rebuild,
  ("torch._utils", "_rebuild_tensor"): _rebuild,
  ("torch._utils", "_rebuild_parameter"): lambda data, *_: data,
  ("torch", "Size"): tuple,
}
# storage types are only named, never called
GLOBALS |= {("torch", name): name for name in DTYPES}


class _Storages:
  """The storages that a pickle refers to, by key; each is counted against the limits when it is
  named.
  """

  def __init__(self, *, max_bytes):
    self.by_key, self._bytes_left = {}, max_bytes

  def __call__(self, reference):
    if not isinstance(reference, tuple) or len(reference) < 5 or reference[0] != "storage":
      raise pickles.Refused("it refers to something that is not a storage")
    kind, key, size = getattr(reference[1], "function", None), reference[2], reference[4]
    if (
      not isinstance(kind, str) or not isinstance(key, str) or not isinstance(size, int) or size < 0
    ):
      raise pickles.Refused("it refers to a storage of an unknown kind")
    if len(reference) > 5 and reference[5] is not None:
      raise pickles.Refused("it has a view of a storage, as only very old files do")
    dtype = np.dtype(DTYPES[kind])
    if key not in self.by_key:
      self._bytes_left -= size * dtype.itemsize
      if self._bytes_left < 0 or len(self.by_key) >= MAX_STORAGES:
        raise pickles.Refused("it names more data than is accepted")
      self.by_key[key] = Storage(dtype, size)
    storage = self.by_key[key]
    if (storage.dtype, storage.size) != (dtype, size):
      raise pickles.Refused(f"it names storage {pickles.shown(key)} twice, differently")
    return storage


def read(path, *, max_bytes=MAX_BYTES):
  """{"layer.weight": array} of a .pt or .pth file; dicts inside dicts are joined by dots, all else
  is left out.

  Raises:
    UserError: not such a file, damaged, too large, or asking for anything but tensors.
  """
  path = pathlib.Path(path)
  try:
    with untrusted.reading(), path.open("rb") as file:
      is_zip = file.read(4) == b"PK\x03\x04"
      max_bytes = min(max_bytes, os.fstat(file.fileno()).st_size)  # parts of a zip may overlap
      tree = _read_zip(path, max_bytes) if is_zip else _read_legacy(file, max_bytes)
      return {name: tensor.array() for name, tensor in pickles.find_arrays(tree, Tensor).items()}
  except OSError as e:
    raise UserError(f"cannot read {str(path)!r}: {e.strerror or e}.") from e
  except (pickles.Refused, ValueError) as e:
    raise UserError(
      f"cannot take tensors from {str(path)!r}: {e}. It must be what torch.save makes of a state "
      f"dict; it is read "
      "without being executed, so a file of other Python objects has to be saved again as one."
    ) from e


def _read_zip(path, max_bytes):
  with zipfile.ZipFile(path) as archive:
    entries = {}
    for info in archive.infolist():
      if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
        raise pickles.Refused(
          f"its part {info.filename} is compressed or encrypted, which torch.save never does"
        )
      entries[info.filename.partition("/")[2]] = info
    if "data.pkl" not in entries:
      raise pickles.Refused("the zip has no data.pkl (a TorchScript or other archive?)")
    if "byteorder" in entries and archive.read(entries["byteorder"])[:6] != b"little":
      raise pickles.Refused("it was written on a big-endian machine")
    if entries["data.pkl"].file_size > MAX_PICKLE_BYTES:
      raise pickles.Refused("its data.pkl is too large")
    storages = _Storages(max_bytes=max_bytes)
    tree = pickles.load(
      io.BytesIO(archive.read(entries["data.pkl"])), globals_=GLOBALS, persistent_load=storages
    )
    for key, storage in storages.by_key.items():
      info = entries.get(f"data/{key}")
      if info is None or info.file_size != storage.size * storage.dtype.itemsize:
        raise pickles.Refused(
          f"storage {pickles.shown(key)} is missing or not as long as it should be"
        )
      storage.data = np.frombuffer(
        archive.read(info), storage.dtype
      )  # the zip's CRC is checked here
  return tree


def _read_legacy(file, max_bytes):
  with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
    if pickles.load(content) != LEGACY_MAGIC:
      raise pickles.Refused("it is neither a zip nor a legacy file of torch.save")
    if pickles.load(content) != LEGACY_PROTOCOL:
      raise pickles.Refused("it is of another version of the legacy format")
    system = pickles.load(content)
    if not isinstance(system, dict) or not system.get("little_endian", False):
      raise pickles.Refused("it was written on a big-endian machine")
    storages = _Storages(max_bytes=max_bytes)
    tree = pickles.load(content, globals_=GLOBALS, persistent_load=storages)
    keys = pickles.load(content)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
      raise pickles.Refused("its list of storages is none")
    for key in keys:
      storage = storages.by_key.get(key)
      (size,) = struct.unpack("<q", content.read(8))
      if storage is None or size != storage.size:
        raise pickles.Refused(
          f"storage {pickles.shown(key)} is unknown or not as long as it should be"
        )
      raw = content.read(size * storage.dtype.itemsize)
      if len(raw) != size * storage.dtype.itemsize:
        raise pickles.Refused("it is cut short")
      storage.data = np.frombuffer(raw, storage.dtype)
    if any(storage.data is None for storage in storages.by_key.values()):
      raise pickles.Refused("it is cut short")
  return tree
