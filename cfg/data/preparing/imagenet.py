"""ImageNet as people have it: ILSVRC2012's tars, Kaggle's archive, and its classes' names."""

import csv
import functools
import io
import pathlib
import re

import numpy as np

from cfg.base import untrusted
from cfg.base.errors import UserError
from cfg.data.preparing import layout, tars, trees
from cfg.data.preparing.parts import Input

TRAIN_TAR, VAL_TAR, DEVKIT = (
  "ILSVRC2012_img_train.tar",
  "ILSVRC2012_img_val.tar",
  "ILSVRC2012_devkit_t12.tar.gz",
)
KAGGLE_TRAIN = re.compile(r"^(.*?)Data/CLS-LOC/train/")
KAGGLE_VAL_LABELS = "LOC_val_solution.csv"
LARGEST = 2**28  # bytes of the development kit unpacked; it has 3 million
LARGEST_PART = 2**20


@functools.cache
def synsets():
  """{"n01440764": "tench", ...}: the 1,000 classes in their usual order, and the first name WordNet
  has for each.

  Two synsets of the same first name have their number behind it, "crane (n02012849)". The file
  beside this one has all of WordNet's names (WordNet 3.0, Princeton University).
  """
  lines = (
    pathlib.Path(__file__)
    .with_name("imagenet_classes.txt")
    .read_text(encoding="utf-8")
    .splitlines()
  )
  first = {synset: names.split(", ")[0] for synset, names in (line.split(" ", 1) for line in lines)}
  shared = [name.lower() for name in first.values()]
  return {
    synset: f"{name} ({synset})" if shared.count(name.lower()) > 1 else name
    for synset, name in first.items()
  }


def class_names(folders):
  """(names, ids): folders that are all synsets get their WordNet names, and are kept as ids; others
  keep theirs, and have no ids.
  """
  folders = tuple(folders)
  if folders and set(folders) <= synsets().keys():
    return tuple(synsets()[name] for name in folders), folders
  return folders, None


def ilsvrc_tars(tree):
  """The Input of a folder that holds the tars of image-net.org, or None.

  The validation images are taken if their tar is there, and then need the development kit, which
  knows their labels.
  """
  if TRAIN_TAR not in tree.names:
    return None
  train = trees.open_tree(tree.path / TRAIN_TAR)
  classes, _ = layout.class_folders(train.names)
  strange = sorted(classes.keys() - synsets().keys())
  if strange or not classes:
    raise UserError(
      f"{TRAIN_TAR} in {str(tree.path)!r} has "
      f"{'the part ' + strange[0] if strange else 'nothing in it'}: it must hold a tar for each "
      f"class, n01440764.tar ..."
    )
  splits = {"train": train.images(*layout.labelled(classes, list(classes)))}
  if VAL_TAR in tree.names:
    if DEVKIT not in tree.names:
      raise UserError(
        f"{str(tree.path)!r} has {VAL_TAR} but not {DEVKIT}, which holds its labels: put it there "
        f"too, or take the first away."
      )
    val = trees.open_tree(tree.path / VAL_TAR)
    splits["val"] = _flat(
      val, dict(zip(sorted(val.places), devkit_labels(tree.path / DEVKIT))), list(classes)
    )
  names, ids = class_names(classes)
  return Input("ilsvrc2012", names, splits, tree.ignored, ids)


def kaggle(tree):
  """The Input of Kaggle's ImageNet archive (imagenet-object-localization-challenge.zip), or of it
  extracted, or None.
  """
  prefix = next((found[1] for found in map(KAGGLE_TRAIN.match, tree.names) if found), None)
  if prefix is None:
    return None
  train, val = (tree.under(f"{prefix}Data/CLS-LOC/{split}/") for split in ("train", "val"))
  classes, _ = layout.class_folders(train.names)
  splits = {"train": train.images(*layout.labelled(classes, list(classes)))}
  ignored = dict(tree.ignored)
  labels = next((name for name in tree.names if name.split("/")[-1] == KAGGLE_VAL_LABELS), None)
  if val.names and labels:
    try:
      with untrusted.reading():
        rows = csv.DictReader(io.StringIO(tree.read(labels).decode("utf-8")))
        known = {f"{row['ImageId']}.JPEG": row["PredictionString"].split()[0] for row in rows}
    except (OSError, ValueError) as e:
      raise UserError(
        f"{labels} of {str(tree.path)!r} is not Kaggle's table of boxes, or is damaged "
        f"({e}): get it again."
      ) from e
    splits["val"] = _flat(val, known, list(classes))
  elif val.names:
    ignored[f"{prefix}Data/CLS-LOC/val/"] = f"there is no {KAGGLE_VAL_LABELS} with its labels"
  names, ids = class_names(classes)
  return Input("kaggle", names, splits, ignored, ids)


def _flat(tree, label_of, classes):
  """Images that lie side by side, by a table {name: synset}."""
  number = {synset: i for i, synset in enumerate(classes)}
  names = sorted(name for name in tree.names if not name.endswith("/"))
  try:
    return tree.images(names, np.asarray([number[label_of[name]] for name in names], np.int32))
  except KeyError as e:
    raise UserError(
      f"the validation images of {str(tree.path)!r} and their labels do not fit: nothing is known "
      f"of {e.args[0]}."
    ) from e


def devkit_labels(path):
  """[synset] of the validation images in the order of their names, from
  ILSVRC2012_devkit_t12.tar.gz.

  Its meta.mat numbers the synsets (ILSVRC2012_ID), in an order that is not the alphabet's.
  """
  from scipy import io as scipy_io  # for this file alone

  try:
    with untrusted.reading():
      wanted = ("data/ILSVRC2012_validation_ground_truth.txt", "data/meta.mat")
      found = {}
      for member, read in tars.gzipped(path, most=LARGEST):
        ending = next((name for name in wanted if member.name.endswith(name)), None)
        if ending and member.isfile() and member.size <= LARGEST_PART:
          found[ending] = read()
      numbers = [int(line) for line in found[wanted[0]].split()]
      meta = scipy_io.loadmat(io.BytesIO(found[wanted[1]]), squeeze_me=True)["synsets"]
      synset = {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in meta}
      return [synset[number] for number in numbers]
  except (OSError, ValueError) as e:
    raise UserError(
      f"{str(path)!r} is not the development kit of ILSVRC2012, or is damaged ({e}): get it again."
    ) from e
