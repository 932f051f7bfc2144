"""Paths as users write them."""

import pathlib
import re

from cfg.base.errors import UserError


def user_path(text: str, *, name: str) -> pathlib.Path:
  """The path `text`, with ~ expanded; `name` is what it was given as, "data.path" or "--out".

  Raises:
    UserError: an address like gs://..., or ~ of a user who is not there.
  """
  if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(text)):
    raise UserError(
      f"{name} is {str(text)!r}: addresses are not read or written here. Copy it to a local disk, "
      f"or mount it, and give that path."
    )
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as e:
    raise UserError(f"{name} is {str(text)!r}, and there is no such user: give the path.") from e
