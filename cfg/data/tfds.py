"""Labelled image sets of TensorFlow Datasets (TFDS), read from its ArrayRecord files: no TensorFlow
is imported.

What is prepared on disk is read; preparing it is TFDS's own business, and needs TensorFlow (the
extra tfds_prepare).
"""

import dataclasses
import io
import logging
import os
import pathlib
import re

import numpy as np

from cfg.base.errors import UserError, nearest
from cfg.base.progress import Progress
from cfg.data import decode
from cfg.data.preparing import imagenet
from cfg.data.recipes import RECIPES

log = logging.getLogger(__name__)

PREFIX = "tfds:"
FORMS = f"Write {PREFIX}NAME or {PREFIX}NAME/CONFIG, and :VERSION behind it if there are several."
FORMAT = "array_record"
HELDOUT = ("validation", "test")  # in this order; those with labels
# its pictures and numbers are not those of other ImageNets: the name of the data, which is in every
# row, says so
SQUEEZED, MARK = "imagenet_resized", "squeezed-reordered"


@dataclasses.dataclass(frozen=True)
class TfdsSource:
  """Random access to a split, its images RGB and made `resolution` square by a recipe."""

  records: object  # TFDS's: {"image": an encoded file, "label": int, ...}
  name: str
  resolution: int
  recipe: str

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    row = self._read(i)
    if row["label"] < 0:
      raise UserError(
        f"example {i} of {self.name} has no label. Choose a data set, or a version of it, whose "
        f"training split is labelled throughout."
      )
    try:
      # as the files of a folder are read: TFDS itself takes OpenCV where it is installed, which
      # gives other pixels
      image = decode.read_rgb(io.BytesIO(row["image"]))
    except UserError as e:
      raise UserError(
        f"example {i} of {self.name} has no image that can be read ({e.__cause__}). Prepare the "
        f"data set again, without it."
      ) from e
    return {"image": RECIPES[self.recipe](image, self.resolution), "label": np.int32(row["label"])}

  @property
  def labelled(self):
    """Whether its first example has a label (TFDS writes -1 where there is none)."""
    return self._read(0)["label"] >= 0

  @property
  def labels(self):
    """int32 [N]: every record is read, no image decoded."""
    labels = np.empty(len(self), np.int32)
    what = f"reading the labels of {self.name}"
    with Progress(what, total=len(self), unit="examples", passing=True) as progress:
      for i in range(len(self)):
        labels[i] = self._read(i)["label"]
        progress.update(i + 1)
    return labels

  def _read(self, i):
    try:
      return self.records[int(i)]
    except (RuntimeError, OSError) as e:
      raise UserError(
        f"example {i} of {self.name} cannot be read ({e}): its files are damaged or gone. Prepare "
        f"the data set again."
      ) from e


def class_names(config):
  """The names of the classes, by label; the data set need not be prepared.

  Raises:
    UserError: as `splits`.
  """
  return _features(_builder(config), config)[1]


def splits(config):
  """(name, {"train": source, perhaps another of HELDOUT: source}, class names) of the data set that
  `config`, the section data, names.

  Raises:
    UserError: no TFDS, no such data set, one that is not prepared in data.path or not as
      ArrayRecord, or not one of labelled 8-bit images.
  """
  builder = _builder(config)
  images, names = _features(builder, config)
  _check_prepared(builder, config)
  title = builder.info.full_name

  def open_split(split):
    import tensorflow_datasets

    skip = dict.fromkeys(images, tensorflow_datasets.decode.SkipDecoding())
    records = builder.as_data_source(split, decoders=skip, file_format=FORMAT)
    return TfdsSource(
      records, f"the split {split} of TFDS {title}", config.resolution, config.recipe
    )

  there = [
    split
    for split in ("train", *HELDOUT)
    if split in builder.info.splits and builder.info.splits[split].num_examples
  ]
  if "train" not in there or not (train := open_split("train")).labelled:
    raise UserError(
      f"data.name is {config.name!r}: {title} has no training split with labels (splits: "
      f"{', '.join(builder.info.splits)})."
    )
  others = {split: source for split in there[1:] if (source := open_split(split)).labelled}
  name = f"tfds-{title.replace('/', '-')}"
  if builder.name == SQUEEZED:
    name = f"{name}-{MARK}"
    log.warning(
      "%s is not ImageNet as the paper has it: whole pictures are squeezed to a square, none is "
      "cropped, and labels are numbered in an order of "
      "its own. The data are called %s in every row; give classes by name.",
      title,
      name,
    )
  return name, {"train": train, **others}, names


def _builder(config):
  """TFDS's builder of data.name in data.path; reads no example and no network."""
  wanted = config.name.removeprefix(PREFIX)
  try:
    import tensorflow_datasets  # slow, and an extra
  except ImportError as e:
    raise UserError(
      f"data.name is {config.name!r}, but tensorflow-datasets cannot be imported ({e}): pip "
      f"install -e '.[tfds]'."
    ) from e
  try:
    return tensorflow_datasets.builder(wanted, data_dir=os.path.expanduser(config.path) or None)
  except tensorflow_datasets.core.DatasetNotFoundError as e:
    base = re.split("[/:]", wanted)[0]
    folder = pathlib.Path(config.path).expanduser() / base
    if config.path and folder.is_dir():
      there = ", ".join(sorted(path.name for path in folder.iterdir()))
      raise UserError(
        f"data.name is {config.name!r}, but {str(folder)!r} has only {there}. {FORMS}"
      ) from e
    close = nearest(base, tensorflow_datasets.list_builders(with_community_datasets=False))
    raise UserError(
      f"data.name is {config.name!r}, but neither TFDS nor data.path has such a data set: {close}"
    ) from e
  except ImportError as e:
    raise UserError(
      f"data.name is {config.name!r}, and TFDS cannot describe it without a further package "
      f"({_said(e)}). Where it is prepared, give its version "
      f"too: then what was prepared describes itself. {FORMS}"
    ) from e
  except (ValueError, AssertionError, TypeError) as e:
    raise UserError(
      f"data.name is {config.name!r}, and TFDS refuses it: {_said(e)}. {FORMS}"
    ) from e


def _said(error):
  """The message of an exception of TFDS in one line, without the arguments that it repeats."""
  return re.sub(r'^Failed to construct dataset .*?\}": ', "", " ".join(str(error).split()))[
    :300
  ].rstrip(".")


def _features(builder, config):
  """(names of the image features, class names). Raises UserError unless there is an image of
  integers and a class label.
  """
  from tensorflow_datasets import features as kinds

  features = builder.info.features
  features = dict(features.items()) if isinstance(features, kinds.FeaturesDict) else {}
  image, label = features.get("image"), features.get("label")
  usable = (
    isinstance(image, kinds.Image)
    and len(image.shape) == 3
    and np.issubdtype(image.np_dtype, np.integer)
  )
  if not usable or not isinstance(label, kinds.ClassLabel) or not label.num_classes:
    have = (
      ", ".join(f"{name}: {_words(feature)}" for name, feature in features.items())
      or "nothing with a name"
    )
    raise UserError(
      f"data.name is {config.name!r}, whose features are {have}. Needed are an image, Image of "
      f"shape [H,W,C] and uint8, and its label, ClassLabel: "
      "choose another data set."
    )
  names = imagenet.class_names(label.names)[0]
  return [name for name, feature in features.items() if isinstance(feature, kinds.Image)], names


def _words(feature):
  """Image[None,None,3] float32, for messages."""
  try:
    shape = ",".join(map(str, feature.shape))
    return f"{type(feature).__name__}[{shape}] {np.dtype(feature.np_dtype).name}"
  except (TypeError, AttributeError, NotImplementedError):  # a feature made of others
    return type(feature).__name__


def _check_prepared(builder, config):
  """Raise UserError, with the way to prepare it, unless the data set's ArrayRecord files are in its
  folder.
  """
  wanted, where = (
    config.name.removeprefix(PREFIX),
    f", data_dir={config.path!r}" if config.path else "",
  )
  way = (
    f'python -c "import tensorflow_datasets as t; t.builder({wanted!r}{where})'
    f'.download_and_prepare(file_format={FORMAT!r})". '
    "That needs TensorFlow (pip install -e '.[tfds_prepare]'), here or on another machine; "
    "training does not."
  )
  if not builder.is_prepared():
    others = sorted(path.name for path in builder.data_path.parent.glob("[0-9]*.*.*"))
    hint = "Prepare it once:"
    if others:
      newest = f"{PREFIX}{wanted.split(':')[0]}:{others[-1]}"
      hint = f"There is {', '.join(others)}: take one, as {newest}, or prepare this one:"
    raise UserError(
      f"data.name is {config.name!r}, but {str(builder.data_path)!r} has no prepared data set. "
      f"{hint} {way}"
    )
  formats = {form.value for form in builder.info.available_file_formats()}
  if FORMAT not in formats:
    raise UserError(
      f"{str(builder.data_path)!r} was prepared as {', '.join(sorted(formats))}, which has no "
      f"random access without TensorFlow: prepare it as "
      f"{FORMAT} in another folder (data.path). {way}"
    )
