"""What the readers of other people's networks share: an .npz read without pickle, and the check of
names and shapes.
"""

import numpy as np

from cfg.base import files
from cfg.base.errors import UserError


def read_npz(path):
  """{name: array} of an .npz.

  Raises:
    UserError: not such a file, damaged, or with Python objects in it.
  """
  try:
    return files.read_npz(path)
  except OSError as e:
    raise UserError(f"cannot read {str(path)!r}: {e.strerror or e}.") from e
  except ValueError as e:
    raise UserError(
      f"cannot take arrays from {str(path)!r}: {e}. It must be an .npz of the arrays of a state "
      f"dict."
    ) from e


def some(names):
  """The first few names, in order."""
  return f"{', '.join(sorted(names)[:4])}{', ...' if len(names) > 4 else ''}"


def check(arrays, shapes, *, optional=()):
  """Raise UserError unless there are arrays of just these names and shapes, of numbers; those of
  `optional` may be missing.
  """
  if missing := shapes.keys() - arrays.keys() - set(optional):
    raise UserError(f"it lacks {len(missing)} of its {len(shapes)} arrays: {some(missing)}.")
  if extra := arrays.keys() - shapes.keys():
    raise UserError(f"it has {len(extra)} arrays that the network does not: {some(extra)}.")
  for name, array in arrays.items():
    if array.shape != shapes[name]:
      raise UserError(f"{name} has shape {array.shape}, not {shapes[name]}.")
    if not np.can_cast(array.dtype, np.float32, "same_kind"):
      raise UserError(f"{name} is not of numbers but of {array.dtype}.")
