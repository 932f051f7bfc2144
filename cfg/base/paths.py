"""Paths as people write them: of this machine's file system, or, for work directories, in a bucket
of Google Cloud Storage.
"""

import os
import pathlib
import re
import uuid
from collections.abc import Callable
from typing import TypeGuard

from cfg.base.errors import Unavailable, UserError, is_of_store

# gs://bucket, s3://bucket, file:///x, also as pathlib writes it, gs:/bucket
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_BUCKET = re.compile(r"gs://[a-z0-9][a-z0-9._-]+(/.*)?", re.DOTALL)

# how a store says that asking again does not help, and how Google's libraries say so of themselves
REFUSED = (400, 401, 403, 404)
NO_CREDENTIALS = ("DefaultCredentialsError", "RefreshError")
MOST_SAID = 200  # characters of an object store's error

# a pathlib.Path, or a upath.UPath, which has its methods
Path = pathlib.Path


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


def workdir_path(text: str, *, name: str) -> Path:
  """As `user_path`, of a work directory: that may be `gs://bucket/folder` too.

  Raises:
    UserError: another address; a bucket, where the packages to use one are not installed.
  """
  text = str(text)
  if _BUCKET.fullmatch(text):
    return as_path(text)
  if _SCHEME.match(text):
    raise UserError(
      f"{name} is {text!r}: it must be a path of this machine's file system, or "
      f"gs://bucket/folder. Mount other buckets, and give the folder where they are mounted."
    )
  return user_path(text, name=name)


def as_path(path: "str | os.PathLike[str] | Path") -> Path:
  """The path object of a path or an address, whatever it was given as."""
  if is_remote(path):
    return path
  text = os.fspath(path)
  if "://" not in text:
    return pathlib.Path(text)
  # plain buckets' interface serves those with folders too, and asks for nothing else
  os.environ.setdefault("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
  try:
    import fsspec
    import upath
  except ImportError as e:
    raise UserError(
      f"{text!r} is in a bucket, and the packages for that are not installed: get them with "
      "pip install 'cfg[gcs]'."
    ) from e
  # what other processes, and Orbax by its own instance, write and remove must be seen
  fsspec.config.conf.setdefault("gs", {})["use_listings_cache"] = False
  return upath.UPath(text)  # type: ignore[return-value]


def check_reached(path: Path, *, name: str, write: bool) -> None:
  """Raise UserError if a path in an object store cannot be read, or, where it is to be, written;
  Unavailable if that may change by itself.
  """
  if not is_remote(path):
    return
  try:
    if write:
      probe = path / f".reached-{uuid.uuid4().hex}"
      probe.write_bytes(b"")
      probe.unlink()
    else:
      path.is_dir()
  except Exception as e:  # libraries of several makers raise what they like
    lasts = getattr(e, "code", None) in REFUSED or type(e).__name__ in NO_CREDENTIALS
    kind = Unavailable if is_of_store(e) and not lasts else UserError
    raise kind(
      f"{name} is {str(path)!r}, which cannot be {'written' if write else 'read'} ({said(e)}): "
      "see that the bucket is there, that this machine has credentials (gcloud auth "
      "application-default login, or a service account), and that they may use it."
    ) from e


def said(error: BaseException) -> str:
  """What an object store's error says, in a line."""
  text = " ".join(f"{type(error).__name__}: {error}".split())
  return text if len(text) <= MOST_SAID else f"{text[:MOST_SAID]}..."


def is_remote(path: object) -> TypeGuard[Path]:
  """Whether a path object is one in an object store: files there are whole or not there, and can
  neither be appended to nor renamed.
  """
  return getattr(path, "protocol", "") != ""


def path_argument(name: str, *, of: Callable[..., Path] = user_path) -> Callable[[str], str]:
  """The type of an argparse argument that is a path: what `of` makes of it, as text."""
  return lambda text: str(of(text, name=name))
