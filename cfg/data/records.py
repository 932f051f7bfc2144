"""The prepared form of a data set: a folder of ArrayRecord shards, labels, and a manifest that
hashes them.

  manifest.json                    what it is: classes, counts, recipe, shards and their SHA-256,
  files left out labels.npz                       int32 [N] for each split, in the order of its
  records train-00000-of-00042.array_record  ...

A record is the label as a little-endian int32, then the pixels, uint8 in the order [H,W,C].
"""

import dataclasses
import hashlib
import pathlib
import struct

import numpy as np

from cfg.base import files
from cfg.base.errors import UserError
from cfg.base.progress import Progress

FORMAT = "cfg-records-1"
MANIFEST, LABELS = "manifest.json", "labels.npz"
# one record a chunk, so that a random read decodes one image
WRITER_OPTIONS = "group_size:1,zstd:1"


def encode(image, label):
  """The record of an example."""
  return struct.pack("<i", label) + np.ascontiguousarray(image, np.uint8).tobytes()


def decode(record, shape):
  """{"image": uint8 of `shape`, "label": int32} of a record."""
  (label,) = struct.unpack_from("<i", record)
  return {
    "image": np.frombuffer(record, np.uint8, offset=4).reshape(shape),
    "label": np.int32(label),
  }


def write_shard(path, records):
  """Write the bytes of `records` to an ArrayRecord file; equal records make equal files."""
  from array_record.python.array_record_module import ArrayRecordWriter

  with files.replacing(path) as temporary:
    writer = ArrayRecordWriter(str(temporary), WRITER_OPTIONS)
    try:
      for record in records:
        writer.write(record)
    finally:
      writer.close()


def sha256(path):
  """Of a file's content."""
  with path.open("rb") as file:
    return hashlib.file_digest(file, "sha256").hexdigest()


@dataclasses.dataclass(frozen=True)
class RecordSource:
  """Random access to a split of a prepared data set, in its order."""

  paths: tuple[str, ...]
  labels: np.ndarray
  shape: tuple[int, int, int]

  def __post_init__(self):
    import grain  # it imports JAX, which preparing does without

    object.__setattr__(self, "_records", grain.sources.ArrayRecordDataSource(list(self.paths)))

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    return decode(self._records[int(i)], self.shape)


def read_manifest(folder):
  """The manifest of a prepared data set, its shards seen to be there at their lengths.

  Raises:
    UserError: no such data set, or not a whole one.
  """
  folder = pathlib.Path(folder).expanduser()
  path = folder / MANIFEST
  if not path.is_file():
    raise UserError(
      f"{str(folder)!r} has no {MANIFEST}: it is not a prepared data set, or one that was not "
      f"finished. Make it with python -m cfg.data.prepare."
    )
  try:
    manifest = files.read_json(path)
    if manifest["format"] != FORMAT:
      raise UserError(
        f"{str(path)!r} is of format {manifest['format']!r}, not {FORMAT!r}: prepare the data set "
        f"again."
      )
    wrong = [
      shard["file"]
      for split in manifest["splits"].values()
      for shard in split["shards"]
      if not (folder / shard["file"]).is_file()
      or (folder / shard["file"]).stat().st_size != shard["bytes"]
    ]
  except (ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{str(path)!r} is not a manifest of a prepared data set ({e}): prepare it again."
    ) from e
  if wrong:
    raise UserError(
      f"the prepared data set {str(folder)!r} lacks {wrong[0]}, or it is cut short ({len(wrong)} "
      f"such files): prepare it again, or copy it again."
    )
  return manifest


def open_split(folder, manifest, split):
  """The RecordSource of a split."""
  folder = pathlib.Path(folder).expanduser()
  labels = files.read_npz(folder / LABELS)[split]
  paths = tuple(str(folder / shard["file"]) for shard in manifest["splits"][split]["shards"])
  return RecordSource(paths, labels, tuple(manifest["image_shape"]))


def verify(folder):
  """The files of a prepared data set whose content is not what the manifest says."""
  folder = pathlib.Path(folder).expanduser()
  manifest = read_manifest(folder)
  expected = {
    shard["file"]: shard["sha256"]
    for split in manifest["splits"].values()
    for shard in split["shards"]
  }
  expected[LABELS] = manifest["labels_sha256"]
  wrong = []
  with Progress("verify", total=len(expected), unit="files", passing=True) as progress:
    for i, (name, digest) in enumerate(expected.items()):
      if sha256(folder / name) != digest:
        wrong.append(name)
      progress.update(i + 1)
  return wrong
