"""What the names in a folder or an archive mean: which are tools' own, which splits, which classes.

Everything here is a function of names, relative and with / between their parts.
"""

import re
from collections.abc import Collection, Iterable, Sequence

import numpy as np

from cfg.data import decode

# what file managers, servers and file systems keep beside people's files, in lower case; so are all
# names that begin with a dot
SYSTEM_FOLDERS = frozenset(
  {
    "__macosx",
    "__pycache__",
    "@eadir",
    "@recycle",
    "@sharebin",
    "@synoresource",
    "@tmp",
    "#recycle",
    "#snapshot",
    "$recycle.bin",
    "lost+found",
    "network trash folder",
    "system volume information",
    "temporary items",
  }
)
SYSTEM_FILES = frozenset({"desktop.ini", "ehthumbs.db", "ehthumbs_vista.db", "icon\r", "thumbs.db"})

SPLITS = {
  "train": "train",
  "training": "train",
  "val": "val",
  "valid": "val",
  "validation": "val",
  "dev": "val",
  "eval": "val",
  "test": "test",
  "testing": "test",
}
ORDER = ("train", "val", "test")
# a folder of such a name holds images of any class
CONTAINERS = frozenset({"data", "dataset", "image", "images", "img", "imgs", "jpegimages"})
# words that do not change what a folder's name means: training_set, train_images, seg_train
FILLERS = frozenset({"set", "data", "dataset", "split", "images", "image", "imgs", "img", "seg"})


def split_of(folder: str) -> str | None:
  """The split that a folder is named after, "train", "val" or "test"; or None."""
  words = re.findall(r"[^\W\d_]+", folder.lower())
  words = [word for word in words if word not in FILLERS]
  word = words[0] if len(words) == 1 else ""
  return SPLITS.get(word) or SPLITS.get(word.removesuffix("set"))


def is_system(part: str) -> bool:
  """Whether a part of a path is a tool's own folder."""
  return part.lower() in SYSTEM_FOLDERS


def is_hidden(part: str) -> bool:
  """Whether a part of a path is a hidden file or folder, or a tool's own file."""
  return part.startswith(".") or part.lower() in SYSTEM_FILES


def visible(names: Iterable[str]) -> tuple[list[str], dict[str, str]]:
  """(names without hidden ones and those of tools, {tool's folder: why}): the folders with images.

  macOS's and others' folders hold copies and thumbnails, which are no images of a class.
  """
  shown = []
  images = {}
  judged = {}  # {folder: (whether it hides, the tool's folder that it is in)}
  for name in names:
    folder, _, file = name.rpartition("/")
    if folder not in judged:
      parts = folder.split("/")
      judged[folder] = any(map(is_hidden, parts)), next(filter(is_system, parts), None)
    hidden, system = judged[folder]
    if hidden or is_hidden(file):
      continue
    if system is None:
      shown.append(name)
    elif decode.is_image(name):
      images[system] = images.get(system, 0) + 1
  return shown, {
    f"{folder}/": f"a folder of the system or a tool, not a class ({count:,} images in it)"
    for folder, count in images.items()
  }


def image_folders(names: Iterable[str]) -> list[str]:
  """The first-level folders that have images, sorted."""
  return sorted({name.split("/")[0] for name in names if "/" in name and decode.is_image(name)})


def wrapping_folder(names: Collection[str], *, marker: str) -> str | None:
  """The one folder that holds everything and is no class itself, or None.

  All images are in it, none lies directly in it unless a file `marker` does too; other files may
  lie beside it.
  """
  folders = image_folders(names)
  if len(folders) != 1:
    return None
  prefix = f"{folders[0]}/"
  if prefix + marker in names:
    return folders[0]
  inside = [name for name in names if name.startswith(prefix) and decode.is_image(name)]
  return folders[0] if all(name.count("/") >= 2 for name in inside) else None


def inner_splits(names: Iterable[str]) -> dict[str, set[str]]:
  """{first-level folder: names of its sub-folders} of those whose images all lie in sub-folders
  that are named as splits.
  """
  below = {}
  for name in names:
    if "/" in name and decode.is_image(name):
      first, *rest = name.split("/")
      below.setdefault(first, set()).add(rest[0] if len(rest) > 1 else "")
  return {first: parts for first, parts in below.items() if all(map(split_of, parts))}


def class_folders(names: Iterable[str]) -> tuple[dict[str, list[str]], dict[str, str]]:
  """({class: [image]}, {other file: why}) of the names `<class>/**/<image>`, sorted by the parts of
  the names.

  Files beside the class folders that are no images are left out of both.
  """
  classes = {}
  others = {}
  for name in sorted(names, key=lambda name: name.split("/")):
    folder, inside, file = name.partition("/")
    image = decode.is_image(name)
    if inside:
      classes.setdefault(folder, [])
    if image and inside:
      classes[folder].append(name)
    elif image:
      others[name] = "not in a class folder"
    elif file and not name.endswith("/"):
      others[name] = "not an image by its ending"
  return classes, others


def labelled(classes: dict[str, list[str]], folders: Sequence[str]) -> tuple[list[str], np.ndarray]:
  """(names, labels int32) of what `class_folders` gave; a class is numbered as in `folders`."""
  number = {folder: i for i, folder in enumerate(folders)}
  names = [name for images in classes.values() for name in images]
  return names, np.asarray(
    [number[folder] for folder, images in classes.items() for _ in images], np.int32
  )
