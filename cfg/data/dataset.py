"""What a data set is: two splits of labelled images with random access, and what tells it apart."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np

from cfg.base.errors import UserError


class Source(Protocol):
  """Random access to examples: {"image": uint8 [H,W,C], "label": int32}."""

  def __len__(self) -> int: ...

  def __getitem__(self, i: int) -> dict: ...


@dataclasses.dataclass(frozen=True)
class Dataset:
  """A labelled image set, split for training and for evaluation references.

  Attributes:
    name: for people and file names; it may change with the folder's.
    train, heldout: the splits.
    class_names: by label.
    image_shape: (H, W, C).
    content: JSON-able facts by which other images are told from these, whatever the place they are
      read from.
  """

  name: str
  train: Source
  heldout: Source
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  content: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  @property
  def num_classes(self) -> int:
    return len(self.class_names)

  @property
  def identity(self) -> dict[str, Any]:
    """What the data are, as JSON values, equal wherever and under whatever name they lie."""
    return {
      "class_names": [str(name) for name in self.class_names],
      "image_shape": [int(side) for side in self.image_shape],
      "num_images": {"train": len(self.train), "heldout": len(self.heldout)},
      "content": dict(self.content),
    }


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
class Rows:
  """Chosen rows of a source."""

  source: Source
  rows: np.ndarray

  def __len__(self):
    return len(self.rows)

  def __getitem__(self, i):
    return self.source[int(self.rows[i])]


def split(labels, *, fraction, seed):
  """A seeded random split with the same share of every class: (train rows, held-out rows), both
  sorted.

  Every class keeps at least one row to train on and, of two rows or more, one that is held out.
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
  if not len(heldout):
    raise UserError(
      "no class has more than one image: at least 2 of one are needed, to hold one out. Add images."
    )
  return np.setdiff1d(np.arange(len(labels)), heldout), heldout
