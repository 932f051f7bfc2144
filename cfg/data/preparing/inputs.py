"""What prepare reads, told apart by what is there: class folders, ImageNet's archives, CIFAR-10's,
an npz; and images without labels.
"""

import dataclasses
import json
import pathlib
from collections.abc import Callable

import numpy as np

from cfg.base import files
from cfg.base.errors import UserError
from cfg.data import decode, records
from cfg.data.preparing import cifar10, imagenet, trees
from cfg.data.preparing.parts import Arrays, Input


def open_input(path):
  """The Input at `path`.

  Raises:
    UserError: nothing that is known here, or a damaged one.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_file() and path.suffix == ".npz":
    return npz(path)
  if path.is_file() and (batches := cifar10.compressed(path)) is not None:
    return cifar10.from_files(batches.keys(), batches.__getitem__, where=path)
  tree = trees.open_tree(path)
  return (
    cifar10.from_files(tree.names, tree.read, where=path)
    or imagenet.ilsvrc_tars(tree)
    or imagenet.kaggle(tree)
    or folder(tree)
  )


def folder(tree):
  """`<class>/**/<image>`, or that inside `train/`, `val/`, `test/`; classes in alphabetical order.

  An empty class and files of other endings are passed over.
  """
  children = {name.split("/")[0] for name in tree.names if "/" in name}
  parts = (
    {name: tree.under(f"{name}/") for name in ("train", "val", "test") if name in children}
    if "train" in children and children <= {"train", "val", "test"}
    else {"train": tree}
  )
  listed, ignored = {}, {}
  for split, part in parts.items():
    classes, others = trees.class_folders(part.names)
    prefix = f"{split}/" if len(parts) > 1 else ""
    ignored |= {f"{prefix}{name}": why for name, why in others.items()}
    ignored |= {
      f"{prefix}{name}/": "a class without images" for name, images in classes.items() if not images
    }
    listed[split] = {name: images for name, images in classes.items() if images}
    if not listed[split] and split != "train":
      del listed[split]
      ignored[prefix] = "no class folders with images"
  folders = tuple(listed["train"])
  if not folders:
    raise UserError(
      f"{str(parts['train'].path)!r} has no sub-folders with images: it must hold one sub-folder "
      f"of images per class."
    )
  strange = sorted({name for classes in listed.values() for name in classes} - set(folders))
  if strange:
    raise UserError(
      f"the classes {', '.join(strange[:5])} in {str(tree.path)!r} have no images to train on: "
      f"every split must have classes of {str(parts['train'].path)!r}."
    )
  splits = {
    split: parts[split].images(*trees.labelled(classes, folders))
    for split, classes in listed.items()
  }
  names, ids = imagenet.class_names(folders)
  return Input("folder", names, splits, ignored, ids)


def npz(path):
  """Arrays `images` uint8 [N,H,W,3] and `labels` [N] of integers from 0, or `x_train`, `y_train`,
  `x_test`, `y_test`; maybe `class_names`.

  Nothing is unpickled.
  """
  try:
    arrays = files.read_npz(path)
  except (OSError, ValueError) as e:
    raise UserError(f"cannot read {str(path)!r} ({e}): it must be an .npz of plain arrays.") from e
  pairs = (
    {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")}
    if "x_train" in arrays
    else {"train": ("images", "labels")}
  )
  splits = {}
  for split, (x, y) in pairs.items():
    if split == "test" and x not in arrays:
      continue
    images, labels = arrays.get(x), arrays.get(y)
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
    if not np.issubdtype(labels.dtype, np.integer) or len(labels) == 0 or labels.min() < 0:
      raise UserError(f"{y} of {str(path)!r} must be integers from 0.")
    splits[split] = Arrays(images, [str(i) for i in range(len(labels))], labels.astype(np.int32))
  count = max(int(part.labels.max()) for part in splits.values()) + 1
  names = tuple(map(str, arrays.get("class_names", arrays.get("names", range(count)))))
  if len(names) < count:
    raise UserError(f"{str(path)!r} has labels up to {count - 1} but {len(names)} class_names.")
  return Input("npz", names, splits, {})


@dataclasses.dataclass(frozen=True)
class Images:
  """Images without labels, in an order: how many, `read(i)` -> uint8 [H,W,3], `name(i)` for
  messages, and facts of a sample run.
  """

  count: int
  read: Callable
  name: Callable
  about: dict


def open_images(path):
  """The Images at `path`: an .npz with arr_0 uint8 [N,H,W,3]; a prepared data set's training split;
  a folder, zip or tar of images, sorted by name.

  Of a folder that --mode=sample made, those that its samples.json lists.

  Raises:
    UserError: none of these, or no images.
  """
  path = pathlib.Path(path).expanduser()
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
  tree = trees.open_tree(path)
  about, names = (
    {},
    sorted(
      name
      for name in tree.names
      if pathlib.PurePosixPath(name).suffix.lower() in decode.IMAGE_SUFFIXES
    ),
  )
  if "samples.json" in tree.names:
    there = set(names)
    try:
      run = json.loads(tree.read("samples.json"))
      about = {**run["about"], **{name: run["samples"][0][name] for name in ("w", "scale", "seed")}}
      names = [row["file"] for row in run["samples"]]
    except (ValueError, KeyError, IndexError, TypeError) as e:
      raise UserError(
        f"samples.json in {str(path)!r} is not what --mode=sample wrote ({e!r}): sample again, or "
        f"remove it."
      ) from e
    if lost := [name for name in names if name not in there]:
      raise UserError(
        f"samples.json in {str(path)!r} lists {lost[0]}, which is not there ({len(lost)} such "
        f"files): sample again, or remove it."
      )
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
