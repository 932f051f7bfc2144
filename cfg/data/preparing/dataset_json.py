"""The labels of EDM's and StyleGAN's data sets: a dataset.json beside the images.

{"labels": [["00000/img00000000.png", 6], ...]} (NVlabs/edm and stylegan3, dataset_tool.py). The
folders there are shards of a thousand images, and mean nothing.
"""

from collections.abc import Mapping

from cfg.base import untrusted
from cfg.base.errors import UserError
from cfg.data import decode
from cfg.data.preparing.parts import Input, check_labels
from cfg.data.preparing.trees import Tree

NAME = "dataset.json"


def read(splits: Mapping[str, Tree]) -> Input:
  """The Input of trees with a dataset.json each; classes are called by their numbers, "0" to "K-1".

  Raises:
    UserError: no labels there, others than whole numbers, or not those of the images.
  """
  parts = {}
  ignored = {}
  for split, tree in splits.items():
    names = sorted(filter(decode.is_image, tree.places), key=lambda name: name.split("/"))
    label_of = _labels(tree)
    _check_names(tree, names, label_of)
    labels = check_labels([label_of[name] for name in names], where=f"{NAME} of {tree.where!r}")
    parts[split] = tree.images(names, labels)
    ignored |= tree.ignored
  count = max(int(part.labels.max()) for part in parts.values()) + 1
  return Input(NAME, tuple(map(str, range(count))), parts, ignored)


def _labels(tree):
  """{image: class} of a tree's dataset.json."""
  where = f"{NAME} of {tree.where!r}"
  if NAME not in tree.places:
    raise UserError(f"{tree.where!r} has no {NAME}, as the training images have.")
  try:
    content = untrusted.parse_json(tree.read(NAME))
  except (OSError, ValueError) as e:
    raise UserError(f"{where} cannot be read ({e}): get it again.") from e
  labels = content.get("labels") if isinstance(content, dict) else None
  if not labels:
    raise UserError(
      f"{where} has no labels: the images' classes are not known. Make it with labels, or remove "
      f"it if the folders are the classes."
    )
  try:
    pairs = [(name.replace("\\", "/").removeprefix("./"), label) for name, label in labels]
  except (TypeError, ValueError, AttributeError) as e:
    raise UserError(f'{where} must be {{"labels": [[name, class], ...]}}.') from e
  label_of = {}
  for name, label in pairs:
    if isinstance(label, list):
      raise UserError(
        f"{where} gives {name} a vector of {len(label)} numbers, not a class: only whole numbers "
        f"from 0 are read."
      )
    if isinstance(label, bool) or not isinstance(label, int):
      raise UserError(f"{where} gives {name} the class {label!r}: it must be a whole number.")
    if label_of.setdefault(name, label) != label:
      raise UserError(f"{where} gives {name} two classes, {label_of[name]} and {label}.")
  return label_of


def _check_names(tree, names, label_of):
  """Raise UserError unless the images are those that are labelled."""
  without = [name for name in names if name not in label_of]
  if without:
    raise UserError(
      f"{NAME} of {tree.where!r} does not list {without[0]} ({len(without):,} such images): label "
      f"them, or move them away."
    )
  there = set(names)
  lost = [name for name in label_of if name not in there]
  if lost:
    raise UserError(
      f"{NAME} of {tree.where!r} lists {lost[0]}, which is not there or no image by its ending "
      f"({len(lost):,} such names): get the whole data set again."
    )
