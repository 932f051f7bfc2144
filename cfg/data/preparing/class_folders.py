"""Class folders: whose names are classes, and which of them are splits; or EDM's dataset.json."""

from collections.abc import Mapping

from cfg.base.errors import UserError
from cfg.data import decode
from cfg.data.preparing import dataset_json, imagenet, layout
from cfg.data.preparing.parts import Input, list_classes
from cfg.data.preparing.trees import Tree

REMEDY = (
  "Give the folder whose sub-folders are the classes, or one that holds train/ and val/ or test/ "
  "with the classes' folders in each, and no other folders of images beside them. A class that is "
  "called like a split needs another name."
)


def read(tree: Tree) -> Input:
  """The Input of `<class>/**/<image>`, or of that inside `train/`, `val/`, `test/`; or of images
  that a dataset.json beside them labels.

  Classes are in alphabetical order. Folders that only wrap the others are entered. A class
  without images and files of other endings are passed over.

  Raises:
    UserError: no class folders, or some that may mean splits.
  """
  tree = _unwrapped(tree)
  splits = _splits(tree)
  if dataset_json.NAME in splits["train"].places:
    return dataset_json.read(splits)
  _refuse_other_labels(splits)
  listed = {}
  ignored = dict(tree.ignored)
  for split, part in splits.items():
    listed[split], others = _classes(part)
    ignored |= others
  folders = tuple(listed["train"])
  if not folders:
    raise UserError(
      f"{splits['train'].where!r} has no sub-folders with images: it must hold one sub-folder of "
      f"images per class."
    )
  for split in [split for split in listed if split != "train"]:
    strange = sorted(listed[split].keys() - set(folders))
    if strange and len(listed[split]) > 1:
      raise UserError(
        f"the classes {', '.join(strange[:5])} in {splits[split].where!r} have no images to train "
        f"on: every split must have classes of {splits['train'].where!r}."
      )
    if strange or not listed[split]:
      ignored[splits[split].inside] = (
        f"its folder {strange[0]} is no class of the training images"
        if strange
        else "no class folders with images"
      )
      del listed[split]
  _refuse_odd_classes(splits["train"], listed["train"])
  parts = {
    split: splits[split].images(*layout.labelled(classes, folders))
    for split, classes in listed.items()
  }
  names, ids = imagenet.class_names(folders)
  return Input("folder", names, parts, ignored, ids)


def _unwrapped(tree, *, of_split=False):
  """What is in the folders that only hold the others, down to the classes or the splits; of a split
  down to its classes, as in train/train/cat.
  """
  while dataset_json.NAME not in tree.places:
    wrapping = layout.wrapping_folder(tree.names, marker=dataset_json.NAME)
    if wrapping is None or (layout.split_of(wrapping) and not of_split):
      break
    tree = tree.under(f"{wrapping}/")
  return tree


def _splits(tree) -> Mapping[str, Tree]:
  """{"train": Tree, perhaps "val", "test"} of a Tree that is one or all of them."""
  if dataset_json.NAME in tree.places:
    return {"train": tree}
  folders = layout.image_folders(tree.names)
  named = {folder: split for folder in folders if (split := layout.split_of(folder))}
  if not named:
    return _splits_of_classes(tree, folders)
  others = [folder for folder in folders if folder not in named]
  where = f"{tree.where!r} has the folders {', '.join(folders[:10])}"
  if others:
    raise UserError(
      f"{where}: of these {', '.join(named)} may be splits or classes, and {', '.join(others[:5])} "
      f"cannot be splits. {REMEDY}"
    )
  if "train" not in named.values():
    raise UserError(
      f"{where}: they are named as splits, and none is the training images'. {REMEDY}"
    )
  if len(set(named.values())) < len(named):
    twice = [name for name in named if list(named.values()).count(named[name]) > 1]
    raise UserError(
      f"{where}: {' and '.join(twice)} are named as one split. Move all but one of them away."
    )
  return {
    split: _of_one_split(tree.under(f"{folder}/"))
    for split in layout.ORDER
    for folder, theirs in named.items()
    if theirs == split
  }


def _of_one_split(tree):
  """The class folders of one split."""
  tree = _unwrapped(tree, of_split=True)
  folders = layout.image_folders(tree.names)
  if folders and all(map(layout.split_of, folders)):
    raise UserError(
      f"{tree.where!r} is one split by its name, and holds folders of splits: "
      f"{', '.join(folders)}. {REMEDY}"
    )
  return tree


def _splits_of_classes(tree, folders):
  """The splits inside the classes, cat/train/1.png, or all as one."""
  inner = layout.inner_splits(tree.places)
  if not inner:
    return {"train": tree}
  images = [name for name in tree.places if "/" in name and decode.is_image(name)]
  split_of = {name: layout.split_of(name.split("/")[1]) for name in images}
  everywhere = len(inner) == len(folders)
  if everywhere and "train" in split_of.values() and all(n.count("/") == 2 for n in images):
    return {
      split: tree.only([name for name in tree.places if split_of.get(name, "train") == split])
      for split in layout.ORDER
      if split in split_of.values()
    }
  if everywhere or any(len(parts) > 1 for parts in inner.values()):
    raise UserError(
      f"{tree.where!r} has the folders {', '.join(folders[:10])}, and in them "
      f"{', '.join(sorted(set().union(*inner.values())))}, which are named as splits: it is not "
      f"clear which are the classes. {REMEDY}"
    )
  return {"train": tree}


def _classes(tree):
  """({class: [image]}, {what is passed over: why}) of a split."""
  classes, others = layout.class_folders(tree.names)
  ignored = {f"{tree.inside}{name}": why for name, why in others.items()}
  ignored |= {
    f"{tree.inside}{name}/": "a class without images"
    for name, images in classes.items()
    if not images
  }
  return {name: images for name, images in classes.items() if images}, ignored


def _refuse_odd_classes(tree, classes):
  """Raise UserError for folders that seem to hold images of all classes."""
  if len(classes) == 1:
    [(name, images)] = classes.items()
    inside = layout.image_folders(_inside(name, images))
    if len(inside) > 1 or any(map(layout.split_of, inside)):
      raise UserError(
        f"the only class in {tree.where!r} would be {name!r}, with images in its folders "
        f"{', '.join(inside[:5])} and others beside these. If those folders are the classes, move "
        f"the images beside them away; if not, move theirs up into {name}/."
      )
  for name in classes:
    if name.lower() in layout.CONTAINERS:
      raise UserError(
        f"{tree.where!r} would have {list_classes(list(classes))}; but {name} seems to hold images "
        f"of all classes. Give a folder with one sub-folder of images per class, and nothing else "
        f"in it; a class of that name needs another."
      )


def _inside(folder, names):
  """Names in a folder, relative to it."""
  return [name.removeprefix(f"{folder}/") for name in names]


def _refuse_other_labels(splits):
  """Raise UserError where files beside the images seem to hold their labels."""
  for tree in splits.values():
    for name in tree.places:
      if name.split("/")[-1] == dataset_json.NAME:
        folder = name.removesuffix(dataset_json.NAME)
        raise UserError(
          f"{tree.where!r} has {name}, which may label the images beside it: give the folder "
          f"{tree.inside}{folder} itself, or remove the file if the folders are the classes."
        )
      if name.endswith(".cls") and any(
        name.removesuffix("cls") + ending.lstrip(".") in tree.places
        for ending in decode.IMAGE_SUFFIXES
      ):
        raise UserError(
          f"{tree.where!r} has {name}: it seems to be of WebDataset, whose labels are in .cls "
          f"files, which are not read here. Sort the images into class folders."
        )
