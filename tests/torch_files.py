"""Files as torch.save writes them, made without torch."""

import collections
import pickle
import sys
import types
import zipfile

import numpy as np
import pytest


def write_torch(path, tree):
  """What torch.save makes of nested dicts of contiguous arrays, without torch: a zip of a pickle
  and of raw storages.
  """
  storages = {}

  class Pickler(pickle._Pickler):  # the one in Python, whose table takes arrays
    dispatch = dict(pickle._Pickler.dispatch)

    def persistent_id(self, value):
      return value.reference if isinstance(value, Storage) else None

    def save_array(self, array):
      kind, key = (
        {"float32": FloatStorage, "int64": LongStorage}[array.dtype.name],
        str(len(storages)),
      )
      storages[key] = array.tobytes()
      strides = tuple(s // array.itemsize for s in array.strides)
      storage = Storage(("storage", kind, key, "cuda:0", array.size))
      self.save_reduce(
        rebuild, (storage, 0, array.shape, strides, False, collections.OrderedDict()), obj=array
      )

    dispatch[np.ndarray] = save_array

  Storage = collections.namedtuple("Storage", "reference")
  torch, utils = types.ModuleType("torch"), types.ModuleType("torch._utils")
  FloatStorage, LongStorage = (
    type(name, (), {"__module__": "torch"}) for name in ("FloatStorage", "LongStorage")
  )
  rebuild = lambda *_: None
  rebuild.__module__, rebuild.__qualname__, rebuild.__name__ = (
    "torch._utils",
    *["_rebuild_tensor_v2"] * 2,
  )
  torch.FloatStorage, torch.LongStorage, torch._utils, utils._rebuild_tensor_v2 = (
    FloatStorage,
    LongStorage,
    utils,
    rebuild,
  )
  with pytest.MonkeyPatch.context() as patch, zipfile.ZipFile(path, "w") as archive:
    patch.setitem(sys.modules, "torch", torch)
    patch.setitem(sys.modules, "torch._utils", utils)
    with archive.open("archive/data.pkl", "w") as file:
      Pickler(file, protocol=2).dump(tree)
    archive.writestr("archive/version", "3\n")
    for key, content in storages.items():
      archive.writestr(f"archive/data/{key}", content)
