"""Paths as people write them."""

import pathlib
import re
from collections.abc import Callable

from cfg.base.errors import UserError

# gs://bucket, s3://bucket, file:///x, also as pathlib writes it, gs:/bucket
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


def user_path(text: str, *, name: str) -> pathlib.Path:
  """The path that `text`, the value of the flag or field `name`, means: `~` is the home folder.

  Raises:
    UserError: a `scheme://` address, or the home of a user that there is not.
  """
  text = str(text)
  if _SCHEME.match(text):
    raise UserError(
      f"{name} is {text!r}: it must be a path of this machine's file system. Mount the bucket and "
      f"give the folder where it is mounted, or copy the files here."
    )
  try:
    return pathlib.Path(text).expanduser()
  except RuntimeError as e:
    raise UserError(f"{name} is {text!r}: {e}. Write the path in full.") from e


def path_argument(name: str) -> Callable[[str], str]:
  """The type of an argparse argument that is a path: what `user_path` makes of it, as text."""
  return lambda text: str(user_path(text, name=name))
