"""Labelled image sets with random access: the digits, folders of class sub-folders, prepared data sets, synthetic images."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from cfg.data import decode, imagenet, records, trees
from cfg.data.recipes import RECIPES
from cfg.errors import UserError, nearest


class Source(Protocol):
  """Random access to examples: {"image": uint8 [H,W,C], "label": int32}."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> dict: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled image set, split for training and for evaluation references."""

  name: str
  train: Source
  heldout: Source
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]

  @property
  def num_classes(self):
    return len(self.class_names)


@dataclasses.dataclass(frozen=True)
class ArraySource:
  """Images that are in memory."""

  images: np.ndarray  # uint8 [N,H,W,C]
  labels: np.ndarray  # int32 [N]

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    return {"image": self.images[i], "label": self.labels[i]}


@dataclasses.dataclass(frozen=True)
class FileSource:
  """Images in files, made `resolution` square by one of data.recipes."""

  paths: Sequence[pathlib.Path]
  labels: np.ndarray
  resolution: int
  recipe: str

  def __len__(self):
    return len(self.labels)

  def __getitem__(self, i):
    return {"image": read_image(self.paths[i], resolution=self.resolution, recipe=self.recipe), "label": self.labels[i]}


@dataclasses.dataclass(frozen=True)
class Rows:
  """Chosen rows of a source."""

  source: Source
  rows: np.ndarray

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    return self.source[int(self.rows[i])]


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
  """Images that need no file: coarse random squares tinted by their class. Example i is a function of (seed, i)."""

  count: int
  num_classes: int
  resolution: int
  seed: int

  def __len__(self):
    return self.count

  def __getitem__(self, i):
    label = i % self.num_classes
    tint = np.random.default_rng([label]).integers(0, 128, 3)
    coarse = np.random.default_rng([self.seed, i]).integers(0, 128, (4, 4, 3)) + tint
    cells = np.arange(self.resolution) * 4 // self.resolution
    return {"image": coarse[cells][:, cells].astype(np.uint8), "label": np.int32(label)}


def load(config):
  """The Dataset that `config`, the config's section data, names.

  Raises:
    UserError: an unknown name, or a folder that cannot be used.
  """
  makers = {"digits": digits, "folder": folder, "prepared": prepared, "synthetic": synthetic}
  if config.name not in makers:
    raise UserError(f"data.name is {config.name!r}: {nearest(config.name, makers)}")
  dataset = makers[config.name](config)
  if config.num_classes and config.num_classes != dataset.num_classes:
    raise UserError(
      f"data.num_classes is {config.num_classes}, but {dataset.name} has {dataset.num_classes} classes. Set --config.data.num_classes="
      f"{dataset.num_classes} if that is right (0: as many as there are)."
    )
  return dataset


def shape(config):
  """(num_classes, image_shape) of what `load` would give, without reading images where the config tells."""
  if config.name in ("folder", "prepared", "synthetic") and config.num_classes:
    return config.num_classes, (config.resolution, config.resolution, 3)
  dataset = load(config)
  return dataset.num_classes, dataset.image_shape


def synthetic(config):
  """`num_images` made-up images of `num_classes` classes, to start any config without data."""
  if min(config.num_images, config.num_classes, config.resolution) < 1:
    raise UserError("data.name is 'synthetic': set data.num_images, data.num_classes and data.resolution, each at least 1.")
  make = lambda count, seed: SyntheticSource(count, config.num_classes, config.resolution, seed)
  return Dataset(
    name="synthetic",
    train=make(config.num_images, 2 * config.split_seed),
    heldout=make(max(1, int(config.num_images * config.heldout_fraction)), 2 * config.split_seed + 1),
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


def folder(config):
  """`path/<class>/<image>`: classes in alphabetical order, images RGB, `resolution` square."""
  if not config.path:
    raise UserError("data.name is 'folder' but data.path is empty: give --config.data.path=DIR, a folder of class sub-folders.")
  if config.resolution < 1:
    raise UserError(f"data.resolution is {config.resolution}: give the side of the training images in pixels, --config.data.resolution=64 for example.")
  if config.recipe not in RECIPES:
    raise UserError(f"data.recipe is {config.recipe!r}: {nearest(config.recipe, RECIPES)}")
  root = pathlib.Path(config.path).expanduser()
  if not root.is_dir():
    raise UserError(f"data.path {str(root)!r} is not a folder: it must hold one sub-folder of images per class.")
  classes, _ = trees.class_folders(trees.folder(root).names)
  if not classes:
    raise UserError(f"data.path {str(root)!r} has no sub-folders: it must hold one sub-folder of images per class.")

  paths, labels = [], []
  for label, (name, images) in enumerate(classes.items()):
    if len(images) < 2:
      raise UserError(
        f"class folder {str(root / name)!r} has {len(images)} images ({', '.join(decode.IMAGE_SUFFIXES)}): "
        "at least 2 are needed, one to train on and one to hold out. Add images or remove the folder."
      )
    for image in images:
      decode.check_header(root / image)
    paths += [root / image for image in images]
    labels += [label] * len(images)

  labels = np.asarray(labels, np.int32)
  train, heldout = split(labels, fraction=config.heldout_fraction, seed=config.split_seed)
  pick = lambda rows: FileSource([paths[i] for i in rows], labels[rows], config.resolution, config.recipe)
  return Dataset(
    name=root.resolve().name,
    train=pick(train),
    heldout=pick(heldout),
    class_names=imagenet.class_names(classes)[0],
    image_shape=(config.resolution, config.resolution, 3),
  )


def prepared(config):
  """What python -m cfg.data.prepare made in `path`; a part of it is held out where it has no split for that."""
  if not config.path:
    raise UserError("data.name is 'prepared' but data.path is empty: give --config.data.path=DIR, which python -m cfg.data.prepare made.")
  manifest = records.read_manifest(config.path)
  side = manifest["image_shape"][0]
  if config.resolution != side:
    raise UserError(f"data.resolution is {config.resolution}, but {config.path!r} was prepared at {side}: set --config.data.resolution={side}, or prepare it again.")
  open_split = lambda name: records.open_split(config.path, manifest, name)
  whole, others = open_split("train"), [name for name in manifest["splits"] if name != "train"]
  if others:
    train, heldout = whole, open_split(others[0])
  else:
    train, heldout = (Rows(whole, rows) for rows in split(whole.labels, fraction=config.heldout_fraction, seed=config.split_seed))
  return Dataset(manifest["name"], train, heldout, tuple(manifest["class_names"]), tuple(manifest["image_shape"]))


def split(labels, *, fraction, seed):
  """A seeded random split with the same share of every class: (train rows, held-out rows), both sorted.

  Every class keeps at least one row on each side.
  """
  if not 0 < fraction < 1:
    raise UserError(f"data.heldout_fraction is {fraction}: it must lie between 0 and 1.")
  rng = np.random.default_rng(seed)
  heldout = []
  for label in np.unique(labels):
    rows = np.flatnonzero(labels == label)
    count = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    heldout.append(rng.permutation(rows)[:count])
  heldout = np.sort(np.concatenate(heldout))
  return np.setdiff1d(np.arange(len(labels)), heldout), heldout


def read_image(path, *, resolution, recipe):
  """Decode to RGB and follow a recipe (data.recipes, by name): uint8 [resolution, resolution, 3].

  Raises UserError that names the file.
  """
  return RECIPES[recipe](decode.read_rgb(path), resolution)
