"""Weights out and in: a safetensors file of parameters that says all there is to know of them.

Its tensors are the parameters, named by their path ("cond/dense0/kernel"); its
metadata holds, as JSON, the config, class names, image shape, step and average.
"""

import contextlib
import json

import numpy as np
import safetensors
import safetensors.numpy

from cfg.base import files, paths, trees, untrusted
from cfg.base.errors import UserError

FORMAT = "cfg-1"
NAME = "weights.safetensors"  # of the file in a work directory
# of these a file must tell: they make the network
NEEDED = ("config", "class_names", "image_shape", "data_name", "step", "ema")


def write(path, *, params, meta):
  """Write parameters (a tree of arrays) and `meta` (JSON-able, with all of NEEDED) to `path`."""
  missing = [name for name in NEEDED if name not in meta]
  if missing:
    raise ValueError(f"the metadata of {path} lacks {missing}")
  save(path, params, metadata={"format": FORMAT, "meta": json.dumps(meta)})


def save(path, params, *, metadata):
  """Write a tree of arrays, named by their paths, and {name: text} to a safetensors file."""
  arrays = {name: np.ascontiguousarray(a) for name, a in trees.flatten(params).items()}
  content = safetensors.numpy.save(arrays, metadata=metadata)
  with files.replacing(path) as temporary:
    temporary.write_bytes(content)


def read(path):
  """(params, meta) of a file that `write` made: bit-identical, but for float16, which is float32
  here.

  Raises:
    UserError: not such a file, or damaged.
  """
  with _opened(path) as (file, meta):
    arrays = {name: file.get_tensor(name) for name in file.keys()}
    whole = lambda a: a.astype(np.float32) if a.dtype == np.float16 else a
    return trees.unflatten({name: whole(a) for name, a in arrays.items()}), meta


def read_meta(path):
  """The metadata alone; raises as `read`."""
  with _opened(path) as (_, meta):
    return meta


@contextlib.contextmanager
def _opened(path):
  path = paths.as_path(path)
  try:
    with (
      untrusted.reading(),
      files.local(path) as local,
      safetensors.safe_open(local, framework="np") as file,
    ):
      about = file.metadata() or {}
      if about.get("format") != FORMAT:
        raise UserError(
          f"{str(path)!r} is a safetensors file of something else: its metadata has format "
          f"{about.get('format')!r}, "
          f"not {FORMAT!r}. Files of this project are made by --mode=export and python -m "
          f"cfg.interop.adm."
        )
      meta = untrusted.parse_json(about["meta"])
      if not isinstance(meta, dict):
        raise ValueError("its meta is no table")
      missing = [name for name in NEEDED if name not in meta]
      if missing:
        raise UserError(f"the weights file {str(path)!r} does not tell its {', '.join(missing)}.")
      _check_meta(meta)
      yield file, meta
  except (OSError, ValueError) as e:
    raise UserError(
      f"cannot read weights from {str(path)!r} ({e}): the file is missing or damaged."
    ) from e


def _check_meta(meta):
  """Raise ValueError for facts of other kinds than `write` is given."""
  shape, names = meta["image_shape"], meta["class_names"]
  if not isinstance(meta["config"], dict) or not isinstance(meta["data_name"], str):
    raise ValueError("its config or data_name is none")
  if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
    raise ValueError("its class_names are no list of names")
  if not isinstance(shape, list) or len(shape) != 3 or not all(type(n) is int for n in shape):
    raise ValueError("its image_shape is none")
  if min(shape) < 1 or type(meta["step"]) is not int or not 0 <= float(meta["ema"]) < 1:
    raise ValueError("its image_shape, step or ema is none")
