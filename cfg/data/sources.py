"""Labelled image sets with random access: the digits, folders of class sub-folders, prepared data
sets, TFDS, synthetic images.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable

import numpy as np

from cfg.base.errors import UserError, nearest
from cfg.base.paths import user_path
from cfg.data import records, tfds
from cfg.data.dataset import ArraySource, Dataset, Rows, split
from cfg.data.preparing import inputs, parts
from cfg.data.recipes import RECIPES
from cfg.data.synthetic import SyntheticSource

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class ReadSource:
  """Images of a split of an Input, made `resolution` square by one of data.recipes when
  they are read.
  """

  part: parts.ImageFiles | parts.Arrays
  resolution: int
  recipe: str

  @property
  def labels(self):
    return self.part.labels

  def __len__(self):
    return len(self.part)

  def __getitem__(self, i):
    return {
      "image": RECIPES[self.recipe](self.part.read(i), self.resolution),
      "label": self.part.labels[i],
    }


def load(config) -> Dataset:
  """The Dataset that `config`, the config's section data, names.

  Raises:
    UserError: an unknown name, or a folder that cannot be used.
  """
  dataset = _kind(config).load(config)
  if config.num_classes and config.num_classes != dataset.num_classes:
    raise UserError(
      f"data.num_classes is {config.num_classes}, but {dataset.name} has {dataset.num_classes} "
      f"classes. Set --config.data.num_classes="
      f"{dataset.num_classes} if that is right (0: as many as there are)."
    )
  return dataset


def shape(config) -> tuple[int, tuple[int, int, int]]:
  """(num_classes, image_shape) of what `load` would give; no image is read, and no file
  where data.num_classes says how many classes there are.
  """
  kind = _kind(config)
  if kind.image_shape is not None:
    return kind.count_classes(config), kind.image_shape
  return (
    config.num_classes or kind.count_classes(config),
    (config.resolution, config.resolution, 3),
  )


def synthetic(config):
  """`num_images` made-up images of `num_classes` classes, to start any config without data."""
  if min(config.num_images, config.num_classes, config.resolution) < 1:
    raise UserError(
      "data.name is 'synthetic': set data.num_images, data.num_classes and data.resolution, each "
      "at least 1."
    )
  make = lambda count, seed: SyntheticSource(count, config.num_classes, config.resolution, seed)
  return Dataset(
    name="synthetic",
    train=make(config.num_images, 2 * config.split_seed),
    heldout=make(
      max(1, int(config.num_images * config.heldout_fraction)), 2 * config.split_seed + 1
    ),
    class_names=tuple(str(i) for i in range(config.num_classes)),
    image_shape=(config.resolution, config.resolution, 3),
  )


def digits(config):
  """scikit-learn's bundled handwritten digits: 1,797 images of 8x8, 17 grey levels, 10 classes.

  The file's order groups writers, hence the split is random and stratified.
  """
  from sklearn.datasets import load_digits  # a slow import, for this data set alone

  images, labels = load_digits(return_X_y=True)
  # 0 ... 16 to 0 ... 255
  images = np.rint(images.reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)
  labels = labels.astype(np.int32)
  train, heldout = split(labels, fraction=config.heldout_fraction, seed=config.split_seed)
  return Dataset(
    name="digits",
    train=ArraySource(images[train], labels[train]),
    heldout=ArraySource(images[heldout], labels[heldout]),
    class_names=tuple("0123456789"),
    image_shape=(8, 8, 1),
  )


def folder(config) -> Dataset:
  """`path/<class>/<image>`, or what else data.preparing.inputs finds in a folder, read as it is:
  images RGB, `resolution` square.
  """
  given = _open_folder(config)
  for part in given.splits.values():
    part.check()
  read = {
    name: ReadSource(part, config.resolution, config.recipe) for name, part in given.splits.items()
  }
  return make_dataset(
    config,
    _folder_path(config).resolve().name,
    read,
    class_names=given.class_names,
    image_shape=(config.resolution, config.resolution, 3),
    content={"files": {name: part.fingerprint() for name, part in given.splits.items()}},
  )


def _folder_path(config):
  if not config.path:
    raise UserError(
      "data.name is 'folder' but data.path is empty: give --config.data.path=DIR, a folder of "
      "class sub-folders."
    )
  root = user_path(config.path, name="data.path")
  if not root.is_dir():
    raise UserError(
      f"data.path {str(root)!r} is not a folder: it must hold one sub-folder of images per class."
    )
  return root


def _open_folder(config):
  """The Input of the folder at `path`; what it is read as, and what is passed over, is logged."""
  root = _folder_path(config)
  check_square(config)
  given = inputs.open_input(root)
  log.info("%s has %s", root, given)
  inputs.warn_of(given.ignored, root)
  return given


def prepared(config) -> Dataset:
  """What python -m cfg.data.prepare made in `path`; a part of it is held out where it has no split
  for that.
  """
  path, manifest = _open_manifest(config)
  read = {name: records.open_split(path, manifest, name) for name in manifest["splits"]}
  written = {name: manifest[name] for name in ("splits", "labels_sha256")}  # hashes of its files
  return make_dataset(
    config,
    manifest["name"],
    read,
    class_names=tuple(manifest["class_names"]),
    image_shape=tuple(manifest["image_shape"]),
    content={"records": hashlib.sha256(json.dumps(written, sort_keys=True).encode()).hexdigest()},
  )


def _open_manifest(config):
  """(path, manifest) of the prepared data set in `path`, which has data.resolution."""
  if not config.path:
    raise UserError(
      "data.name is 'prepared' but data.path is empty: give --config.data.path=DIR, which python "
      "-m cfg.data.prepare made."
    )
  path = user_path(config.path, name="data.path")
  manifest = records.read_manifest(path)
  side = manifest["image_shape"][0]
  if config.resolution != side:
    raise UserError(
      f"data.resolution is {config.resolution}, but {config.path!r} was prepared at {side}: set "
      f"--config.data.resolution={side}, or prepare it again."
    )
  return path, manifest


def from_tfds(config):
  """The data set of TFDS that data.name has behind "tfds:", prepared in `path`; its validation or
  test split, or a part of train, is held out.
  """
  check_square(config)
  name, splits, class_names = tfds.splits(config)
  return make_dataset(
    config,
    name,
    splits,
    class_names=class_names,
    image_shape=(config.resolution, config.resolution, 3),
    content={"tfds": name},
  )


def make_dataset(config, name, splits, *, class_names, image_shape, content):
  """The Dataset of {"train": a source with `labels`, perhaps others}: the first other is held out,
  or a share of "train".
  """
  others = [split for split in splits if split != "train"]
  if others:
    train, heldout = splits["train"], splits[others[0]]
  else:
    rows = split(splits["train"].labels, fraction=config.heldout_fraction, seed=config.split_seed)
    train, heldout = (Rows(splits["train"], some) for some in rows)
  return Dataset(name, train, heldout, class_names, image_shape, content)


def check_square(config):
  """Raise UserError unless data.resolution and data.recipe say how images are made square."""
  if config.resolution < 1:
    raise UserError(
      f"data.resolution is {config.resolution}: give the side of the training images in pixels, "
      f"--config.data.resolution=64 for example."
    )
  if config.recipe not in RECIPES:
    raise UserError(f"data.recipe is {config.recipe!r}: {nearest(config.recipe, RECIPES)}")


@dataclasses.dataclass(frozen=True)
class Kind:
  """What a data.name means: how to load it, and what is known without loading it."""

  load: Callable[..., Dataset]
  count_classes: Callable[..., int]
  image_shape: tuple[int, int, int] | None = None  # None: RGB, data.resolution square


def _count_tfds(config):
  check_square(config)
  return len(tfds.class_names(config))


# by data.name; the last by how it begins
KINDS = {
  "digits": Kind(digits, lambda config: 10, (8, 8, 1)),
  "folder": Kind(folder, lambda config: len(_open_folder(config).class_names)),
  "prepared": Kind(prepared, lambda config: len(_open_manifest(config)[1]["class_names"])),
  "synthetic": Kind(synthetic, lambda config: synthetic(config).num_classes),
  tfds.PREFIX: Kind(from_tfds, _count_tfds),
}


def _kind(config):
  """The Kind that data.name is of; UserError if there is none."""
  name = tfds.PREFIX if config.name.startswith(tfds.PREFIX) else config.name
  if name not in KINDS:
    known = [name for name in KINDS if name != tfds.PREFIX]
    raise UserError(
      f"data.name is {config.name!r}: {nearest(config.name, known)} {tfds.PREFIX}NAME is a data "
      f"set of TFDS."
    )
  return KINDS[name]
