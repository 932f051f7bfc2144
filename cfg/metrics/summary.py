"""From the statistics of blocks of samples to numbers, each with its error."""

import numpy as np

from cfg.metrics import pairwise, scores
from cfg.metrics.statistics import merge

NEIGHBOURS = 3
KID_SUBSETS, KID_SUBSET = 100, 1000


def too_few(count, extractor, *, blocks=1):
  """{metric: least number of images} of the Fréchet distances that need more than `count` images,
  in each of so many blocks.
  """
  needed = {
    metric: blocks * (extractor.dims[output] + 1) for output, metric in extractor.frechet.items()
  }
  return {metric: least for metric, least in needed.items() if count < least}


def summarise(blocks, *, extractor, train, heldout=None, allow_few=False, extrapolate=False):
  """{metric: number} of a set of samples given as statistics of k equal, disjoint blocks;
  {metric}_err is its standard error.

  Numbers are of all samples together. Errors are those of the mean over the blocks where each has
  more images than features, else jackknife ones, leaving out a block at a time: only differences
  count there, which few images do not bias. KID's is the jackknife's of the kernel distance of all
  samples, together with that of drawing its subsets. A Fréchet distance is biased upwards by about
  1/N, hence `fid_block_mean`, at a block's N, lies above `fid`; `inception_score_block_mean` is the
  score as it is mostly reported, the mean over splits, and lies below.

  Args:
    blocks: list of statistics.SampleStatistics, at least 2.
    extractor: whose outputs they are of.
    train: what is measured against: has `gaussians`, {output: Gaussian or Moments}, and `features`,
      [M,D] of extractor.pairwise or None. Spaces that it lacks are left out.
    heldout: the same of held-out images, for {metric}_heldout in the leading outputs, which is None
      if they are too few.
    allow_few: give Fréchet distances of no more images than features too; they mean little.
    extrapolate: add {metric}_infinity, Fréchet distances at infinitely many images, where blocks
      are large enough.

  Raises:
    ValueError: fewer blocks, or too few images.
  """
  if len(blocks) < 2:
    raise ValueError(f"an error needs at least 2 blocks, got {len(blocks)}")
  parts = _Parts(blocks, allow_few=allow_few)
  found = {}
  for output, metric in extractor.frechet.items():
    if output not in train.gaussians:
      continue
    found |= parts.frechet(output, metric, train.gaussians[output])
    if heldout is not None and output in extractor.leading:
      target = heldout.gaussians[output]
      enough = target.count is None or target.count > target.mean.size
      found |= (
        parts.frechet(output, f"{metric}_heldout", target)
        if enough
        else {f"{metric}_heldout": None, f"{metric}_heldout_err": None}
      )
      found.pop(f"{metric}_heldout_block_mean", None)
    if extrapolate and parts.large(output):
      found[f"{metric}_infinity"] = scores.frechet_extrapolated(
        [block.gaussians[output] for block in blocks], train.gaussians[output]
      )
  for output, metric in extractor.scores.items():
    found |= _over_blocks(
      metric, lambda s, output=output: scores.inception_score(s.entropies[output]), parts
    )
  if parts.total.correct is not None:
    found |= _over_blocks("label_accuracy", lambda s: s.correct / s.count, parts)
    del found["label_accuracy_block_mean"]
  if extractor.pairwise is not None and train.features is not None:
    found |= _pairwise(
      [np.concatenate(block.features) for block in blocks],
      train.features,
      suffix=extractor.pairwise_suffix,
    )
  return {**found, "num_samples": parts.total.count, "num_blocks": len(blocks)}


def of_reference(found, *, extractor, train):
  """{metric: number} of real images measured as samples are; Fréchet distances are None where
  either set is too small.

  Args:
    found: a reference.Reference of our own measuring.
    extractor: whose outputs it is of.
    train: a reference.Reference.
  """
  values, count = {}, found.about["num_images"]
  for output, metric in extractor.frechet.items():
    pair = (found.gaussians[output], train.gaussians.get(output))
    enough = pair[1] is not None and all(g.count is None or g.count > g.mean.size for g in pair)
    values[metric] = scores.frechet_distance(*pair) if enough else None
  values |= {
    metric: scores.inception_score(found.entropies[output])
    for output, metric in extractor.scores.items()
  }
  if "correct" in found.about:
    values["label_accuracy"] = found.about["correct"] / count
  if extractor.pairwise is not None and train.features is not None:
    values |= {
      name: value
      for name, value in _pairwise(
        [found.features], train.features, suffix=extractor.pairwise_suffix
      ).items()
      if not name.endswith("_err")
    }
  return {**values, "num_samples": count}


def of_few(measured, *, extractor, train):
  """{metric: number} of samples too few for more, statistics.SampleStatistics: the leading Fréchet
  distances, biased upwards, scores and label accuracy.
  """
  distance = lambda output: scores.frechet_distance(
    measured.gaussians[output], train.gaussians[output], allow_few=True
  )
  values = {
    extractor.frechet[output]: distance(output)
    for output in extractor.leading
    if output in train.gaussians
  }
  values |= {
    metric: scores.inception_score(measured.entropies[output])
    for output, metric in extractor.scores.items()
  }
  return (
    values
    if measured.correct is None
    else {**values, "label_accuracy": measured.correct / measured.count}
  )


class _Parts:
  """The blocks, all samples, and all but each block."""

  def __init__(self, blocks, *, allow_few):
    self.blocks, self.total, self._allow_few = blocks, merge(blocks), allow_few
    self.without = [merge(blocks[:i] + blocks[i + 1 :]) for i in range(len(blocks))]

  def large(self, output):
    """Whether each block alone has a Fréchet distance in `output`."""
    return all(block.count > block.gaussians[output].mean.size for block in self.blocks)

  def frechet(self, output, metric, target):
    """{metric}, its error, and where blocks are large enough the mean over them."""
    distance = lambda s, allow_few=self._allow_few: scores.frechet_distance(
      s.gaussians[output], target, allow_few=allow_few
    )
    if self.large(output):
      return _over_blocks(metric, distance, self)
    return {
      metric: distance(self.total),
      f"{metric}_err": scores.jackknife_error([distance(rest, True) for rest in self.without]),
    }


def _over_blocks(metric, function, parts):
  values = [function(block) for block in parts.blocks]
  return {
    metric: function(parts.total),
    f"{metric}_err": scores.standard_error(values),
    f"{metric}_block_mean": float(np.mean(values)),
  }


def _pairwise(blocks, real, *, suffix):
  """Of features, a list of [n,D] for each block."""
  both = pairwise.precision_recall_blocks(blocks, real, k=NEIGHBOURS)
  found = {}
  for name in ("precision", "recall"):
    found[f"{name}{suffix}"] = getattr(both, name)
    if len(blocks) > 1:
      found[f"{name}{suffix}_err"] = scores.jackknife_error(getattr(both, f"{name}_without"))
  samples = np.concatenate(blocks)
  size = min(KID_SUBSET, len(real), len(samples))
  distance = pairwise.kid(samples, real, num_subsets=KID_SUBSETS, subset_size=size)
  found |= {f"kid{suffix}": distance.kid, f"kid{suffix}_subset": size}
  if len(blocks) > 1:
    # subsets of few samples overlap, and hardly differ: how far other samples would be is the
    # jackknife's to say
    found[f"kid{suffix}_err"] = float(
      np.hypot(scores.jackknife_error(pairwise.squared_mmd_without(blocks, real)), distance.kid_err)
    )
  return found
