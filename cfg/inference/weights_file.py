"""The averaged parameters of a work directory as one file."""

import jax
import numpy as np

from cfg.base import paths
from cfg.base.errors import UserError
from cfg.inference import network
from cfg.inference.network import Network
from cfg.interop import weights


def export(path, out, *, ema: float | None = None, half: bool = False) -> Network:
  """Write the averaged parameters of the work directory `path` to the .safetensors file `out`.

  Args:
    path: as of network.load_network.
    out: a file in a folder that is there.
    ema: which average, by decay; None for the first.
    half: in float16, in half the space; what is read from it is float32 again.

  Returns:
    The Network that the file holds.

  Raises:
    UserError: no network, no such file name, or parameters beyond what float16 can hold.
  """
  out = paths.as_path(out)
  if out.suffix != ".safetensors" or not out.parent.is_dir():
    raise UserError(
      f"--out={str(out)!r}: give a file name that ends in .safetensors, in a folder that is there."
    )
  opened = network.load_network(path, ema=ema)
  params = jax.device_get(opened.params)
  if half:
    largest = max(float(np.abs(a).max()) for a in jax.tree.leaves(params))
    if largest > float(np.finfo(np.float16).max):
      raise UserError(
        f"--half: a parameter of {str(path)!r} is {largest:g}, more than float16 can hold: leave "
        "--half out."
      )
    params = jax.tree.map(lambda a: a.astype(np.float16), params)
  weights.write(out, params=params, meta=opened.meta)
  return network.load_network(out) if half else opened
