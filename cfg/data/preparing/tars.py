"""The members of tars, also of those that are made to break a reader: whose headers lead back, or
declare more than there is.
"""

import functools
import gzip
import itertools
import pathlib
import tarfile
from collections.abc import Callable, Iterator
from typing import BinaryIO

from cfg.base import untrusted

COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0")  # how gzip, bzip2 and xz begin


class _Part:
  """A part of a file as a file: what is read of it is there before it is allocated."""

  def __init__(self, file, start, size):
    self._file, self._start, self._size, self._at = file, start, size, 0

  def tell(self):
    return self._at

  def seek(self, at):
    if at < 0:
      raise ValueError("its headers lead back before its beginning")
    self._at = at

  def read(self, count=-1):
    left = max(self._size - self._at, 0)
    self._file.seek(self._start + self._at)
    data = self._file.read(left if count < 0 else min(count, left))
    self._at += len(data)
    return data


def members(file: BinaryIO, *, size: int, start: int = 0) -> Iterator[tarfile.TarInfo]:
  """The members of the uncompressed tar that fills `size` bytes of a file from `start` on, at
  offsets relative to it; ValueError if it is none, or damaged.
  """
  with untrusted.reading(), tarfile.open(fileobj=_Part(file, start, size), mode="r:") as archive:
    yield from _onward(archive)


def gzipped(path: pathlib.Path, *, most: int) -> Iterator[tuple[tarfile.TarInfo, Callable]]:
  """(member, a function that reads it before the next one) of a .tar.gz; ValueError if it is none,
  damaged, or unfolds to more than `most` bytes.
  """
  with (
    untrusted.reading(),
    gzip.open(path) as unpacked,
    tarfile.open(fileobj=untrusted.Limited(unpacked, most), mode="r|") as archive,
  ):
    for member in _onward(archive):
      yield member, functools.partial(_read, archive, member)


def _read(archive, member):
  """The bytes of a member; called by who takes the members, whose errors are not seen above."""
  with untrusted.reading():
    return archive.extractfile(member).read()


def _onward(archive):
  """The members of a TarFile, each behind the one before; none is kept in memory."""
  last = -1
  while (member := archive.next()) is not None:
    archive.members.clear()
    if member.size < 0 or member.offset <= last:
      raise ValueError("its headers lead back to where it was read before")
    last = member.offset
    yield member


def is_tar(path: pathlib.Path) -> bool:
  """Whether a file begins as an uncompressed tar."""
  try:
    with path.open("rb") as file:
      list(itertools.islice(members(file, size=path.stat().st_size), 1))
  except (OSError, ValueError):
    return False
  return True


def is_compressed(path: pathlib.Path) -> bool:
  """Whether a file begins as one that gzip, bzip2 or xz wrote."""
  with path.open("rb") as file:
    return file.read(6).startswith(COMPRESSED)
