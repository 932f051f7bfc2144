"""Labelled images that can be handed to another process: in files, in an archive, or in memory."""

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import stat
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import numpy as np

from cfg.base import untrusted
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.data import decode


@dataclasses.dataclass(frozen=True, slots=True)
class FilePlace:
  """A file by its path in a folder."""

  name: str

  def open(self, root: pathlib.Path) -> BinaryIO:
    """The file's bytes; OSError or ValueError if they cannot be read."""
    path = root / self.name
    # a pipe would be waited for
    if not stat.S_ISREG(path.stat().st_mode):
      raise ValueError("it is not a regular file")
    return path.open("rb")

  def length(self, root: pathlib.Path) -> int | None:
    """In bytes; None if it cannot be read."""
    try:
      status = (root / self.name).stat()
    except (OSError, ValueError):
      return None
    return status.st_size if stat.S_ISREG(status.st_mode) else None


@dataclasses.dataclass(frozen=True, slots=True)
class TarPlace:
  """Where the `size` bytes of a file begin in a tar."""

  offset: int
  size: int

  def open(self, path: pathlib.Path) -> BinaryIO:
    """The file's bytes; ValueError if they are not all there."""
    return io.BytesIO(_pread(path, self.size, self.offset))

  def length(self, path: pathlib.Path) -> int | None:
    """In bytes."""
    del path
    return self.size


@dataclasses.dataclass(frozen=True, slots=True)
class ZipPlace:
  """Where a file's local header begins in a zip, and its sizes as stored and as read.

  The header is read with the file, not when the zip is listed: that would be a seek for each of a
  million files.
  """

  header: int
  stored: int
  size: int
  deflated: bool
  crc: int

  def open(self, path: pathlib.Path) -> BinaryIO:
    """The file's bytes; ValueError if they are damaged."""
    # PKZIP APPNOTE 4.3.7: the local header's name and extra field may be of other lengths than the
    # directory's
    signature, *_, name_length, extra_length = struct.unpack(
      "<4s5H3L2H", _pread(path, 30, self.header)
    )
    data = _pread(path, self.stored, self.header + 30 + name_length + extra_length)
    if self.deflated:
      data = untrusted.inflate(data, size=self.size)
    if signature != b"PK\3\4" or len(data) != self.size or zlib.crc32(data) != self.crc:
      raise ValueError("its bytes in the archive are damaged")
    return io.BytesIO(data)

  def length(self, path: pathlib.Path) -> int | None:
    """In bytes, as read."""
    del path
    return self.size


@dataclasses.dataclass(frozen=True, slots=True)
class NoPlace:
  """A name in an archive behind which there is nothing to read."""

  reason: str

  def open(self, path: pathlib.Path) -> BinaryIO:
    """Raises ValueError."""
    del path
    raise ValueError(self.reason)

  def length(self, path: pathlib.Path) -> int | None:
    """None."""
    del path


# a label above this is an identifier of something else, not the number of a class
MOST_CLASSES = 10**6
Place = FilePlace | TarPlace | ZipPlace | NoPlace


def _pread(path, count, offset):
  descriptor = _descriptor(path)
  # before so much is allocated
  if not 0 <= offset <= offset + count <= os.fstat(descriptor).st_size:
    raise ValueError("the archive is cut short")
  data = os.pread(descriptor, count, offset)
  if len(data) != count:
    raise ValueError("the archive is cut short")
  return data


@functools.lru_cache(maxsize=8)
def _descriptor(path):
  return os.open(path, os.O_RDONLY)  # one for each archive and process, open until it ends


@dataclasses.dataclass(frozen=True)
class ImageFiles:
  """Labelled image files in a folder, or in an archive, where they are read in place.

  `path` is the folder or the archive, `names` are relative to the folder `inside` of it.
  """

  path: pathlib.Path
  inside: str
  names: Sequence[str]
  labels: np.ndarray
  places: Sequence[Place]

  def __len__(self):
    return len(self.names)

  def title(self, i: int) -> str:
    """What image i is called in reports: its name in the folder or archive."""
    return self.inside + self.names[i]

  def read(self, i: int) -> np.ndarray:
    """uint8 [H,W,3]; UserError if it cannot be read."""
    return self._with_file(i, decode.read_rgb)

  def _with_file(self, i, function):
    place = self.places[i]
    if isinstance(place, FilePlace):
      name = str(self.path / place.name)
    else:
      name = f"{self.path.name}: {self.title(i)}"
    try:
      with place.open(self.path) as file:
        return function(file, name=name)
    except (OSError, ValueError) as e:
      raise decode.unreadable(name, e) from e

  def check(self) -> None:
    """Raise UserError unless each file of a folder looks like an image; pixels are not decoded."""
    errors = []
    with Progress("looking at", total=len(self), unit="files", passing=True) as progress:
      for i, place in enumerate(self.places):
        if isinstance(place, FilePlace):
          try:
            self._with_file(i, decode.check_header)
          except UserError as e:
            errors.append(e)
        progress.update(i + 1)
    if len(errors) == 1:
      raise errors[0]
    if errors:
      raise UserError(
        f"{errors[0]} So it is with {len(errors)} of {len(self)} files: python -m cfg.data.prepare "
        f"leaves them out, and lists them."
      )

  def select(self, rows: slice) -> "ImageFiles":
    """The examples of a slice."""
    return dataclasses.replace(
      self, names=self.names[rows], labels=self.labels[rows], places=self.places[rows]
    )

  def fingerprint(self) -> str:
    """Of names, lengths and labels: the same of an archive and of its files extracted."""
    sizes = []
    with Progress("measuring", total=len(self), unit="files", passing=True) as progress:
      for place in self.places:
        sizes.append(place.length(self.path))
        progress.update(len(sizes))
    content = [list(self.names), sizes, self.labels.tolist()]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Labelled images in memory, uint8 [N,H,W,3]."""

  images: np.ndarray
  labels: np.ndarray
  first: int = 0  # the number of the first image, in the array that these are a slice of

  def __len__(self):
    return len(self.labels)

  def title(self, i: int) -> str:
    """What image i is called in reports: its number."""
    return str(self.first + i)

  def read(self, i: int) -> np.ndarray:
    """uint8 [H,W,3]."""
    return self.images[i]

  def check(self) -> None:
    """Nothing: they are images."""

  def select(self, rows: slice) -> "Arrays":
    """The examples of a slice."""
    first = self.first + rows.indices(len(self))[0]
    return Arrays(self.images[rows], self.labels[rows], first)

  def fingerprint(self) -> str:
    """Of pixels and labels."""
    return (
      hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()
      + hashlib.sha256(np.ascontiguousarray(self.labels)).hexdigest()
    )


@dataclasses.dataclass(frozen=True)
class Input:
  """Everything that is to be prepared: {"train": ..., maybe "val" or "test": ...}, and what was
  passed over, {name: reason}.
  """

  kind: str
  class_names: tuple[str, ...]
  splits: Mapping[str, ImageFiles | Arrays]
  ignored: Mapping[str, str]
  class_ids: tuple[str, ...] | None = None  # ImageNet's synsets, where the classes are such

  def __str__(self):
    """What was read as what, in one line."""
    counts = ", ".join(f"{split} {len(part):,}" for split, part in self.splits.items())
    return f"images: {counts}; {list_classes(self.class_names)}"


def list_classes(names: Sequence[str], *, most: int = 20) -> str:
  """`3 classes: cat, dog, emu`, the first `most` of them."""
  more = f", ... and {len(names) - most:,} more" if len(names) > most else ""
  noun = "class" if len(names) == 1 else "classes"
  return f"{len(names):,} {noun}: {', '.join(names[:most])}{more}"


def check_labels(labels: Sequence[int] | np.ndarray, *, where: str) -> np.ndarray:
  """int32 [N] of whole numbers from 0; `where` is whose they are, for messages.

  Raises:
    UserError: others, none, or numbers that cannot be those of classes.
  """
  try:
    labels = np.asarray(labels)
  except (OverflowError, ValueError) as e:
    raise UserError(f"{where} has labels that are no numbers of classes ({e}).") from e
  if labels.ndim != 1 or not len(labels) or not np.issubdtype(labels.dtype, np.integer):
    raise UserError(
      f"{where} has labels {labels.dtype}{list(labels.shape)}: they must be integers from 0, one "
      f"for each image."
    )
  if labels.min() < 0 or labels.max() >= MOST_CLASSES:
    raise UserError(
      f"{where} has labels from {labels.min()} to {labels.max()}: they must be integers from 0 to "
      f"the number of classes, less 1."
    )
  return labels.astype(np.int32)
