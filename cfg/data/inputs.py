"""What prepare reads: a folder of class folders, an npz of images and labels, or CIFAR-10's binary archive."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Sequence

import numpy as np

from cfg.data import decode
from cfg.errors import UserError


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

  def part(self, rows):
    """The examples of a slice."""
    return Files(self.root, self.names[rows], self.labels[rows])

  def fingerprint(self):
    """Of names, lengths and labels."""
    sizes = [(self.root / name).stat().st_size for name in self.names]
    return hashlib.sha256(json.dumps([list(self.names), sizes, self.labels.tolist()]).encode()).hexdigest()


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

  def part(self, rows):
    """The examples of a slice."""
    return Arrays(self.images[rows], self.names[rows], self.labels[rows])

  def fingerprint(self):
    """Of pixels and labels."""
    return hashlib.sha256(np.ascontiguousarray(self.images)).hexdigest() + hashlib.sha256(np.ascontiguousarray(self.labels)).hexdigest()


@dataclasses.dataclass(frozen=True)
class Input:
  """Everything that is to be prepared: {"train": ..., maybe "test": ...}, and what was passed over, {name: reason}."""

  kind: str
  class_names: tuple[str, ...]
  splits: dict
  ignored: dict


def open_input(path):
  """The Input at `path`: told apart by what is there.

  Raises:
    UserError: nothing that is known here.
  """
  path = pathlib.Path(path).expanduser()
  if path.is_file() and path.suffix == ".npz":
    return npz(path)
  if path.is_dir() and (path / "batches.meta.txt").is_file():
    return cifar10_binary(path)
  if path.is_dir():
    return folder(path)
  raise UserError(
    f"{str(path)!r} cannot be prepared: give a folder of class sub-folders, an .npz of images and labels, or the extracted folder "
    "of CIFAR-10's binary archive (cifar-10-batches-bin)."
  )


def folder(root):
  """`root/<class>/**/<image>`, or that inside `root/train`, `root/val`, `root/test`; classes in alphabetical order.

  An empty class and files of other endings are passed over.
  """
  children = {d.name for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")}
  roots = {name: root / name for name in ("train", "val", "test") if name in children} if "train" in children and children <= {"train", "val", "test"} else {"train": root}
  listed, ignored = {}, {}
  for split, where in roots.items():
    classes, others = class_folders(where)
    prefix = f"{split}/" if len(roots) > 1 else ""
    ignored |= {f"{prefix}{name}": "not an image by its ending" for name in others}
    ignored |= {f"{prefix}{name}/": "a class without images" for name, images in classes.items() if not images}
    listed[split] = {name: images for name, images in classes.items() if images}
  names = tuple(listed["train"])
  if not names:
    raise UserError(f"{str(roots['train'])!r} has no sub-folders with images: it must hold one sub-folder of images per class.")
  strange = sorted({name for classes in listed.values() for name in classes} - set(names))
  if strange:
    raise UserError(f"the classes {', '.join(strange[:5])} in {str(root)!r} have no images to train on: every split must have classes of {str(roots['train'])!r}.")
  splits = {}
  for split, classes in listed.items():
    label = {name: i for i, name in enumerate(names)}
    labels = np.asarray([label[name] for name, images in classes.items() for _ in images], np.int32)
    splits[split] = Files(roots[split], [image for images in classes.values() for image in images], labels)
  return Input("folder", names, splits, ignored)


def class_folders(root):
  """({class: [image]}, [other file]) of `root/<class>/**`, sorted, names relative to root; hidden ones are left out."""
  classes, others = {}, []
  for class_dir in sorted(d for d in root.iterdir() if d.is_dir() and not d.name.startswith(".")):
    entries = sorted(f for f in class_dir.rglob("*") if f.is_file() and not f.name.startswith("."))
    images = [f for f in entries if f.suffix.lower() in decode.IMAGE_SUFFIXES]
    classes[class_dir.name] = [f.relative_to(root).as_posix() for f in images]
    others += [f.relative_to(root).as_posix() for f in entries if f.suffix.lower() not in decode.IMAGE_SUFFIXES]
  return classes, others


def npz(path):
  """Arrays `images` uint8 [N,H,W,3] and `labels` [N] of integers from 0, or `x_train`, `y_train`, `x_test`, `y_test`; maybe `class_names`.

  Nothing is unpickled.
  """
  try:
    with np.load(path, allow_pickle=False) as archive:
      arrays = {name: archive[name] for name in archive.files}
  except (OSError, ValueError, EOFError) as e:
    raise UserError(f"cannot read {str(path)!r} ({e}): it must be an .npz of plain arrays.") from e
  pairs = {"train": ("x_train", "y_train"), "test": ("x_test", "y_test")} if "x_train" in arrays else {"train": ("images", "labels")}
  splits = {}
  for split, (x, y) in pairs.items():
    if split == "test" and x not in arrays:
      continue
    images, labels = arrays.get(x), arrays.get(y)
    if images is None or labels is None or images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or labels.shape != images.shape[:1]:
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


def cifar10_binary(path):
  """CIFAR-10 as published in binary: records of a label and 3 x 32 x 32 pixels; the training and the test images."""
  names = tuple((path / "batches.meta.txt").read_text(encoding="ascii").split())

  def read(batches):
    raw = np.concatenate([np.fromfile(path / batch, np.uint8) for batch in batches])
    if raw.size % 3073 or raw.size == 0:
      raise UserError(f"the batches {', '.join(batches)} in {str(path)!r} are not whole: unpack the archive again.")
    rows = raw.reshape(-1, 3073)
    images = rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Arrays(np.ascontiguousarray(images), [str(i) for i in range(len(rows))], rows[:, 0].astype(np.int32))

  try:
    splits = {"train": read([f"data_batch_{i}.bin" for i in range(1, 6)]), "test": read(["test_batch.bin"])}
  except OSError as e:
    raise UserError(f"{str(path)!r} looks like CIFAR-10's binary archive but lacks {pathlib.Path(e.filename or '').name}: unpack it again.") from e
  return Input("cifar10", names, splits, {})
