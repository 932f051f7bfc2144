"""Weights out and in: a safetensors file of parameters that says all there is to know of them.

Its tensors are the parameters, named by their path ("cond/dense0/kernel"); its
metadata holds, as JSON, the config, class names, image shape, step and average.
"""

import contextlib
import json
import pathlib

import numpy as np
import safetensors
import safetensors.numpy

from cfg.base import files, trees
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
  with files.replacing(pathlib.Path(path)) as temporary:
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
  path = pathlib.Path(path)
  try:
    with safetensors.safe_open(path, framework="np") as file:
      about = file.metadata() or {}
      if about.get("format") != FORMAT:
        raise UserError(
          f"{str(path)!r} is a safetensors file of something else: its metadata has format "
          f"{about.get('format')!r}, "
          f"not {FORMAT!r}. Files of this project are made by --mode=export and python -m "
          f"cfg.interop.adm."
        )
      meta = files.parse_json(about["meta"])
      missing = [name for name in NEEDED if name not in meta]
      if missing:
        raise UserError(f"the weights file {str(path)!r} does not tell its {', '.join(missing)}.")
      yield file, meta
  except (OSError, safetensors.SafetensorError, KeyError, ValueError) as e:
    raise UserError(
      f"cannot read weights from {str(path)!r} ({e}): the file is missing or damaged."
    ) from e
