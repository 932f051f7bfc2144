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

from cfg.base import files, untrusted
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

    records = grain.sources.ArrayRecordDataSource(list(self.paths))
    if len(records) != len(self.labels):
      raise ValueError(f"{len(records)} records and {len(self.labels)} labels")
    object.__setattr__(self, "_records", records)

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    try:
      with untrusted.reading():
        example = decode(self._records[int(i)], self.shape)
        if example["label"] != self.labels[i]:
          raise ValueError(f"its label is {example['label']}, {LABELS} has {self.labels[i]}")
        return example
    except (OSError, ValueError) as e:
      raise UserError(
        f"record {int(i)} of {self.paths[0]!r} and those beside it is damaged ({e}): prepare the "
        f"data set again, or copy it again."
      ) from e


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
    _check_manifest(manifest)
    wrong = [
      shard["file"]
      for split in manifest["splits"].values()
      for shard in split["shards"]
      if not (folder / shard["file"]).is_file()
      or (folder / shard["file"]).stat().st_size != shard["bytes"]
    ]
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{str(path)!r} is not a manifest of a prepared data set ({e}): prepare it again."
    ) from e
  if wrong:
    raise UserError(
      f"the prepared data set {str(folder)!r} lacks {wrong[0]}, or it is cut short ({len(wrong)} "
      f"such files): prepare it again, or copy it again."
    )
  return manifest


def _check_manifest(manifest):
  """Raise ValueError, KeyError or TypeError for what `prepare` never writes."""
  shape, names = manifest["image_shape"], manifest["class_names"]
  texts = [manifest[name] for name in ("name", "plan_sha256", "labels_sha256")]
  if not all(isinstance(text, str) for text in [*texts, *names]) or not names:
    raise ValueError("its names or hashes are no text")
  if len(shape) != 3 or not all(type(n) is int and 0 < n < 2**16 for n in shape):
    raise ValueError(f"its image_shape is {shape}")
  if "train" not in manifest["splits"]:
    raise ValueError("it has no split train")
  for split in manifest["splits"].values():
    for shard in split["shards"]:
      name = shard["file"]
      if pathlib.PurePath(name).name != name or name in ("", ".."):
        raise ValueError(f"it names {name!r}, which is no file in its folder")
      if type(shard["count"]) is not int or not isinstance(shard["sha256"], str):
        raise ValueError(f"it does not tell the count and the hash of {name!r}")


def open_split(folder, manifest, split):
  """The RecordSource of a split.

  Raises:
    UserError: the labels are not those of the manifest, or the shards cannot be opened.
  """
  folder = pathlib.Path(folder).expanduser()
  shards = manifest["splits"][split]["shards"]
  damaged = "prepare the data set again, or copy it again."
  try:
    found = sha256(folder / LABELS)
    labels = files.read_npz(folder / LABELS)[split] if found == manifest["labels_sha256"] else None
  except (OSError, ValueError, KeyError) as e:
    raise UserError(f"{LABELS} in {str(folder)!r} cannot be read ({e}): {damaged}") from e
  if labels is None or labels.shape != (sum(shard["count"] for shard in shards),):
    raise UserError(f"{LABELS} in {str(folder)!r} is not what its manifest says: {damaged}")
  count = len(manifest["class_names"])
  if labels.dtype != np.int32 or not ((labels >= 0) & (labels < count)).all():
    raise UserError(f"{LABELS} in {str(folder)!r} has labels of no class: {damaged}")
  paths = tuple(str(folder / shard["file"]) for shard in shards)
  try:
    with untrusted.reading():
      return RecordSource(paths, labels, tuple(manifest["image_shape"]))
  except (OSError, ValueError) as e:
    raise UserError(f"a shard in {str(folder)!r} cannot be opened ({e}): {damaged}") from e


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
