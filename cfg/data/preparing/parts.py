"""What prepare reads, in parts that can be handed to another process: labelled images in files, in
an archive, or in memory.
"""

import dataclasses
import functools
import hashlib
import io
import json
import os
import pathlib
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from cfg.data import decode


@dataclasses.dataclass(frozen=True)
class Files:
  """Labelled image files, named relative to a folder."""

  root: pathlib.Path
  names: Sequence[str]
  labels: np.ndarray

  def __len__(self):
    return len(self.names)

  def read(self, i):
    """uint8 [H,W,3]; UserError if it cannot be read."""
    return decode.read_rgb(self.root / self.names[i])

  def check(self):
    """Raise UserError unless each looks like an image; its pixels are not decoded."""
    for name in self.names:
      decode.check_header(self.root / name)

  def part(self, rows):
    """The examples of a slice."""
    return Files(self.root, self.names[rows], self.labels[rows])

  def fingerprint(self):
    """Of names, lengths and labels."""
    return _fingerprint(
      self.names, [(self.root / name).stat().st_size for name in self.names], self.labels
    )


@dataclasses.dataclass(frozen=True)
class Place:
  """Where the `size` bytes of a file begin in a tar."""

  offset: int
  size: int

  def read(self, path):
    """The file's bytes; ValueError if they are not all there."""
    return _pread(path, self.size, self.offset)


@dataclasses.dataclass(frozen=True)
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

  def read(self, path):
    """The file's bytes; ValueError if they are damaged."""
    # PKZIP APPNOTE 4.3.7: the local header's name and extra field may be of other lengths than the
    # directory's
    signature, *_, name_length, extra_length = struct.unpack(
      "<4s5H3L2H", _pread(path, 30, self.header)
    )
    data = _pread(path, self.stored, self.header + 30 + name_length + extra_length)
    if self.deflated:
      try:
        data = zlib.decompress(data, wbits=-15)
      except zlib.error as e:
        raise ValueError(str(e)) from e
    if signature != b"PK\3\4" or len(data) != self.size or zlib.crc32(data) != self.crc:
      raise ValueError("its bytes in the archive are damaged")
    return data


def _pread(path, count, offset):
  data = os.pread(_descriptor(path), count, offset)
  if len(data) != count:
    raise ValueError("the archive is cut short")
  return data


@functools.lru_cache(maxsize=8)
def _descriptor(path):
  return os.open(path, os.O_RDONLY)  # one for each archive and process, open until it ends


@dataclasses.dataclass(frozen=True)
class Members:
  """Labelled image files in an archive, read where they lie: nothing is extracted."""

  path: pathlib.Path
  names: Sequence[str]
  labels: np.ndarray
  places: Sequence[Place | ZipPlace]

  def __len__(self):
    return len(self.names)

  def read(self, i):
    """uint8 [H,W,3]; UserError if it cannot be read."""
    name = f"{self.path.name}: {self.names[i]}"
    try:
      return decode.read_rgb(io.BytesIO(self.places[i].read(self.path)), name=name)
    except (OSError, ValueError) as e:
      raise decode.unreadable(name, e) from e

  def check(self):
    """Nothing: only reading them tells."""

  def part(self, rows):
    """The examples of a slice."""
    return Members(self.path, self.names[rows], self.labels[rows], self.places[rows])

  def fingerprint(self):
    """Of names, lengths and labels: that of the extracted files."""
    return _fingerprint(self.names, [place.size for place in self.places], self.labels)


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Labelled images in memory, uint8 [N,H,W,3]; `names` tells them apart in reports."""

  images: np.ndarray
  names: Sequence[str]
  labels: np.ndarray

  def __len__(self):
    return len(self.names)

  def read(self, i):
    """uint8 [H,W,3]."""
    return self.images[i]

  def check(self):
    """Nothing: they are images."""

  def part(self, rows):
    """The examples of a slice."""
    return Arrays(self.images[rows], self.names[rows], self.labels[rows])

  def fingerprint(self):
    """Of pixels and labels."""
    return (
      hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest()
      + hashlib.sha256(np.ascontiguousarray(self.labels)).hexdigest()
    )


def _fingerprint(names, sizes, labels):
  return hashlib.sha256(json.dumps([list(names), sizes, labels.tolist()]).encode()).hexdigest()


@dataclasses.dataclass(frozen=True)
class Input:
  """Everything that is to be prepared: {"train": ..., maybe "val" or "test": ...}, and what was
  passed over, {name: reason}.
  """

  kind: str
  class_names: tuple[str, ...]
  splits: dict
  ignored: dict
  class_ids: tuple[str, ...] | None = None  # ImageNet's synsets, where the classes are such
