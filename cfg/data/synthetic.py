"""Images that need no file."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class SyntheticSource:
  """Images that need no file: coarse random squares tinted by their class. Example i is a function
  of (seed, i).
  """

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
