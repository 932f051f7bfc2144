"""What prepare reads, told apart by what is there: class folders, ImageNet's archives, CIFAR-10's,
an npz; and images without labels.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Callable, Mapping

import numpy as np

from cfg.base import files, untrusted
from cfg.base.errors import UserError
from cfg.base.paths import user_path
from cfg.data import decode, records
from cfg.data.preparing import cifar10, class_folders, imagenet, trees
from cfg.data.preparing.parts import Arrays, Input, check_labels

log = logging.getLogger(__name__)

MOST_SHOWN = 10
IMAGES_WANTED = (
  "an .npz with arr_0, a folder, zip or tar of images, what --mode=sample made, or a prepared data "
  "set"
)


def open_input(path: str | os.PathLike) -> Input:
  """The Input at `path`.

  Raises:
    UserError: nothing that is known here, or a damaged one.
  """
  path = user_path(str(path), name="the input")
  if path.is_file() and path.suffix == ".npz":
    return npz(path)
  if path.is_file() and (batches := cifar10.compressed(path)) is not None:
    given = cifar10.from_files(batches.keys(), batches.__getitem__, where=path)
    if given is None:
      raise UserError(f"{str(path)!r} has CIFAR-10's classes and not its batches: get it again.")
    return given
  tree = trees.open_tree(path)
  return (
    cifar10.from_files(tree.names, tree.read, where=path)
    or imagenet.ilsvrc_tars(tree)
    or imagenet.kaggle(tree)
    or class_folders.read(tree)
  )


def warn_of(ignored: Mapping[str, str], root: pathlib.Path) -> None:
  """Log what is passed over in a folder or an archive, {name: why}; of many the first."""
  for name, why in list(ignored.items())[:MOST_SHOWN]:
    log.warning("%s is passed over: %s", root / name, why)
  if len(ignored) > MOST_SHOWN:
    log.warning("... and so are %d more", len(ignored) - MOST_SHOWN)


def npz(path: pathlib.Path) -> Input:
  """Arrays `images` uint8 [N,H,W,3] and `labels` [N] of integers from 0, or `x_train`, `y_train`,
  and `x_val`, `y_val`, `x_test`, `y_test`; maybe `class_names`.

  Nothing is unpickled.
  """
  try:
    arrays = files.read_npz(path)
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {str(path)!r} ({e}): it must be an .npz of plain arrays.") from e
  pairs = {"train": ("images", "labels")}
  if "x_train" in arrays:
    pairs = {
      split: (f"x_{split}", f"y_{split}")
      for split in ("train", "val", "test")
      if f"x_{split}" in arrays
    }
  splits = {}
  for split, (x, y) in pairs.items():
    images = arrays.get(x)
    labels = arrays.get(y)
    if (
      images is None
      or labels is None
      or images.ndim != 4
      or images.shape[3] != 3
      or images.dtype != np.uint8
      or labels.shape != images.shape[:1]
    ):
      have = ", ".join(f"{name} {a.dtype}{list(a.shape)}" for name, a in arrays.items())
      raise UserError(f"{str(path)!r} holds {have}: it must hold {x} uint8 [N,H,W,3] and {y} [N].")
    splits[split] = Arrays(images, check_labels(labels, where=f"{y} of {str(path)!r}"))
  count = max(int(part.labels.max()) for part in splits.values()) + 1
  names = _class_names(arrays, count, where=str(path))
  return Input("npz", names, splits, {})


def _class_names(arrays, count, *, where):
  """The names that an npz gives to its `count` classes, or their numbers."""
  names = arrays.get("class_names", arrays.get("names"))
  if names is None:
    return tuple(map(str, range(count)))
  names = tuple(cifar10.text(name) for name in names.ravel().tolist())
  names = tuple(map(str, names))
  if len(names) < count:
    raise UserError(f"{where!r} has labels up to {count - 1} but {len(names)} class_names.")
  if len(set(names)) < len(names):
    raise UserError(f"{where!r} has two classes of one name among its class_names.")
  return names


@dataclasses.dataclass(frozen=True)
class Images:
  """Images without labels, in an order: how many, `read(i)` -> uint8 [H,W,3], `name(i)` for
  messages, and facts of a sample run.
  """

  count: int
  read: Callable
  name: Callable
  about: dict


def open_images(path: str | os.PathLike) -> Images:
  """The Images at `path`: an .npz with arr_0 uint8 [N,H,W,3]; a prepared data set's training split;
  a folder, zip or tar of images, sorted by name.

  Of a folder that --mode=sample made, those that its samples.json lists.

  Raises:
    UserError: none of these, or no images.
  """
  path = user_path(str(path), name="the path of the images")
  if path.is_file() and path.suffix == ".npz":
    pixels = _arr_0(path)
    return Images(len(pixels), pixels.__getitem__, lambda i: f"{path.name}[{i}]", {})
  if (path / records.MANIFEST).is_file():
    manifest = records.read_manifest(path)
    source = records.open_split(path, manifest, "train")
    return Images(
      len(source),
      lambda i: source[i]["image"],
      lambda i: f"{path.name}[{i}]",
      {"data": manifest["name"], "plan_sha256": manifest["plan_sha256"]},
    )
  tree = trees.open_tree(path, wanted=IMAGES_WANTED)
  about = {}
  names = sorted(filter(decode.is_image, tree.places))
  if "samples.json" in tree.names:
    there = set(names)
    try:
      run = untrusted.parse_json(tree.read("samples.json"))
      about = {**run["about"], **{name: run["samples"][0][name] for name in ("w", "scale", "seed")}}
      names = [row["file"] for row in run["samples"]]
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as e:
      raise UserError(
        f"samples.json in {str(path)!r} is not what --mode=sample wrote ({e!r}): sample again, or "
        f"remove it."
      ) from e
    if lost := [name for name in names if name not in there]:
      raise UserError(
        f"samples.json in {str(path)!r} lists {lost[0]}, which is not there ({len(lost)} such "
        f"files): sample again, or remove it."
      )
  warn_of(tree.ignored, path)
  if not names:
    raise UserError(f"{str(path)!r} has no images ({', '.join(decode.IMAGE_SUFFIXES)}).")
  part = tree.images(names, np.zeros(len(names), np.int32))
  return Images(len(names), part.read, names.__getitem__, about)


def _arr_0(path):
  try:
    pixels = files.read_npz(path)["arr_0"]
  except (OSError, ValueError, KeyError) as e:
    raise UserError(
      f"cannot read images from {str(path)!r} ({e}): it must be an .npz with arr_0, uint8 "
      f"[N,H,W,3]."
    ) from e
  if pixels.ndim != 4 or pixels.shape[3] != 3 or pixels.dtype != np.uint8 or not len(pixels):
    raise UserError(
      f"arr_0 of {str(path)!r} is {pixels.dtype} {list(pixels.shape)}: it must be uint8 [N,H,W,3]."
    )
  return pixels
