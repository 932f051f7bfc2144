"""Images through FID's Inception network to statistics, and from two sets' statistics to numbers that say what they are."""

import dataclasses
import functools

import numpy as np

from cfg.evaluation import metrics, pairwise, statistics
from cfg.models import inception

# Fréchet distances by the space they are in; only that of pool_3 may be called FID
FRECHET = {"pool_3": "fid", "spatial": "sfid", "mixed_7": "fid_768", "mixed_8": "frechet_1280"}
SCORES = {"logits": "inception_score", "logits_no_bias": "inception_score_no_bias"}
# the space of precision, recall and KID: the first that there is; others than pool_3 are in their names
PAIRWISE = {"pool_3": "", "mixed_8": "_1280"}
NEIGHBOURS = 3
KID_SUBSETS, KID_SUBSET = 100, 1000
RESIZE = "TF1 bilinear to 299x299, no half-pixel shift"


def pairwise_space(outputs):
  """The space of precision, recall and KID, or None."""
  return next((space for space in PAIRWISE if space in outputs), None)


@dataclasses.dataclass
class BlockStatistics:
  """What the metrics need of the images of one block: a Gaussian of each space, sums of each softmax, and features of one space in order."""

  gaussians: dict
  entropies: dict
  features: list  # of arrays [n,D], of pairwise_space

  @classmethod
  def empty(cls, outputs):
    dims = {name: inception.OUTPUTS[name].dim for name in outputs}
    return cls(
      {name: statistics.Gaussian.empty(dim) for name, dim in dims.items() if name in FRECHET},
      {name: statistics.ClassEntropy.empty(dim) for name, dim in dims.items() if name in SCORES},
      [],
    )

  @classmethod
  def of(cls, outputs):
    """Of one batch, {output: [N, dim]}."""
    space = pairwise_space(outputs)
    return cls(
      {name: statistics.Gaussian.of(a) for name, a in outputs.items() if name in FRECHET},
      {name: statistics.ClassEntropy.of(softmax(a)) for name, a in outputs.items() if name in SCORES},
      [] if space is None else [np.asarray(outputs[space], np.float32)],
    )

  def merge(self, other):
    together = lambda a, b: {name: a[name].merge(b[name]) for name in a}
    return BlockStatistics(together(self.gaussians, other.gaussians), together(self.entropies, other.entropies), self.features + other.features)


def softmax(logits):
  """Probabilities in float64."""
  logits = np.asarray(logits, np.float64)
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


def block_of(count, *, num_blocks, seed=0):
  """The block of each image: equal ones, drawn at random, since images come sorted by class often enough."""
  return np.random.default_rng(seed).permutation(count) % num_blocks


def few(count, outputs):
  """{metric: least number of images} of the Fréchet distances that `count` images are too few for."""
  needed = {FRECHET[name]: inception.OUTPUTS[name].dim + 1 for name in outputs if name in FRECHET}
  return {name: least for name, least in needed.items() if count < least}


def compare(blocks, reference, *, outputs, allow_few=False, extrapolate=False):
  """{metric: number} and {metric}_err of images in equal blocks against a reference.

  Errors are jackknife ones over the blocks, of KID over its subsets; None where too few images are left without a block.

  Args:
    blocks: list of BlockStatistics, at least 2.
    reference: {"gaussians": {space: Gaussian or Moments}, "features": [M,D] of pairwise_space, or None}.
    outputs: of models.inception, those that were measured.
    allow_few: give Fréchet distances of fewer images than features too; they mean little.
    extrapolate: add those at infinitely many images.

  Raises:
    ValueError: too few images.
  """
  merge = lambda some: functools.reduce(lambda a, b: a.merge(b), some)
  total, without = merge(blocks), [merge(blocks[:i] + blocks[i + 1 :]) for i in range(len(blocks))]
  found = {}

  def add(name, function, *, enough=True):
    found[name] = function(total)
    found[f"{name}_err"] = metrics.jackknife_error([function(rest) for rest in without]) if enough else None

  for space, name in FRECHET.items():
    if space in outputs and space in reference["gaussians"]:
      target = reference["gaussians"][space]
      distance = lambda s, space=space, target=target: metrics.frechet_distance(s.gaussians[space], target, allow_few=allow_few)
      add(name, distance, enough=allow_few or without[0].gaussians[space].count > target.mean.size)
      if extrapolate and all(block.gaussians[space].count > target.mean.size for block in blocks):
        found[f"{name}_infinity"] = metrics.frechet_extrapolated([block.gaussians[space] for block in blocks], target)
  for name, score in SCORES.items():
    if name in outputs:
      add(score, lambda s, name=name: metrics.inception_score(s.entropies[name]))
      found[f"{score}_block_mean"] = float(np.mean([metrics.inception_score(block.entropies[name]) for block in blocks]))
  space = pairwise_space(outputs)
  if space is not None and reference["features"] is not None:
    suffix, real = PAIRWISE[space], reference["features"]
    both = {id(s): pairwise.precision_recall(np.concatenate(s.features), real, k=NEIGHBOURS) for s in (total, *without)}
    for i, name in enumerate(("precision", "recall")):
      add(f"{name}{suffix}", lambda s, i=i: both[id(s)][i])
    size = min(KID_SUBSET, len(real), sum(map(len, total.features)))
    distance = pairwise.kid(np.concatenate(total.features), real, num_subsets=KID_SUBSETS, subset_size=size)
    found |= {f"kid{suffix}": distance.kid, f"kid{suffix}_err": distance.kid_err, f"kid{suffix}_subset": size}
  return found
