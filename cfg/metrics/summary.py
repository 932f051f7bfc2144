"""From the statistics of blocks of samples to numbers, each with its error."""

import functools
from collections.abc import Iterable, Mapping

import numpy as np

from cfg.metrics import pairwise, scores
from cfg.metrics.metric import HELDOUT, TRAIN, Metric, leading, outputs
from cfg.metrics.statistics import SampleStatistics, merge

NEIGHBOURS = 3
KID_SUBSETS = 100
KID_SUBSET = 1000


def too_few(
  count: int, *, metrics: Iterable[Metric], dims: Mapping[str, int], blocks: int = 1
) -> dict[str, int]:
  """{key: least number of images} of the Fréchet distances that need more than `count` images, in
  each of so many blocks.
  """
  needed = {
    metric.key: blocks * (dims[metric.output] + 1)
    for metric in metrics
    if metric.kind == "frechet" and metric.against == TRAIN
  }
  return {key: least for key, least in needed.items() if count < least}


def least_images(metrics: Iterable[Metric]) -> int:
  """How many images every number needs even where few are allowed, without any one block: 2 for a
  covariance, more than NEIGHBOURS for precision and recall.
  """
  return NEIGHBOURS + 1 if outputs(metrics, "precision", "recall") else 2


def summarise(
  blocks: list[SampleStatistics],
  *,
  metrics: Iterable[Metric],
  train,
  heldout=None,
  allow_few: bool = False,
  extrapolate: bool = False,
) -> dict:
  """{key: number} of a set of samples given as statistics of k equal, disjoint blocks; each with
  its standard error.

  Numbers are of all samples together. Errors are those of the mean over the blocks where each has
  more images than features, else jackknife ones, leaving out a block at a time: only differences
  count there, which few images do not bias. KID's is the jackknife's of the kernel distance of all
  samples, together with that of drawing its subsets. A Fréchet distance is biased upwards by about
  1/N, hence `fid_block_mean`, at a block's N, lies above `fid`; `inception_score_block_mean` is the
  score as it is mostly reported, the mean over splits, and lies below. Beside each error stands the
  list of its number without each block in turn, of which metrics.paired makes the errors of
  differences.

  Args:
    blocks: at least 2.
    metrics: of the extractor whose outputs they are.
    train: a reference.Reference. Metrics in spaces that it lacks are left out.
    heldout: the same of held-out images, or None. Fréchet distances to it are None if it has too
      few images.
    allow_few: give Fréchet distances of no more images than features too; they mean little.
    extrapolate: add Fréchet distances at infinitely many images, where blocks are large enough.

  Raises:
    ValueError: fewer blocks, or too few images.
  """
  if len(blocks) < 2:
    raise ValueError(f"an error needs at least 2 blocks, got {len(blocks)}")
  parts = _Parts(blocks, allow_few=allow_few, extrapolate=extrapolate)
  references = {TRAIN: train, HELDOUT: heldout}
  values: dict[str, float | list[float] | None] = {}
  for metric in metrics:
    target = references[metric.against]
    if target is not None:
      values |= _KINDS[metric.kind](metric, parts, target)
  return {**values, "num_samples": parts.total.count, "num_blocks": len(blocks)}


def of_reference(real, *, metrics: Iterable[Metric], train) -> dict:
  """{key: number} of real images measured as samples are, against the training split; Fréchet
  distances are None where either set is too small.

  Args:
    real: a reference.Reference of our own measuring.
    metrics: of the extractor whose outputs they are.
    train: a reference.Reference.
  """
  count = real.about["num_images"]
  nearest = functools.cache(
    lambda output: _precision_recall([real.features[output]], train.features[output])
  )
  values: dict[str, float | None] = {}
  for metric in metrics:
    output = metric.output
    if metric.against != TRAIN:
      continue
    if metric.kind == "frechet":
      values[metric.key] = _distance_if_enough(real.gaussians[output], train.gaussians.get(output))
    elif metric.kind == "score":
      values[metric.key] = scores.inception_score(real.entropies[output])
    elif metric.kind == "accuracy" and output in real.about.get("correct", {}):
      values[metric.key] = real.about["correct"][output] / count
    elif metric.kind in ("precision", "recall") and output in train.features:
      values[metric.key] = getattr(nearest(output), metric.kind)
    elif metric.kind == "kid" and output in train.features:
      distance = _kid(real.features[output], train.features[output])
      values |= {metric.key: distance.kid, metric.subset: distance.subset_size}
  return {**values, "num_samples": count}


def of_few(measured: SampleStatistics, *, metrics: Iterable[Metric], train) -> dict:
  """{key: number} of samples too few for more: the leading Fréchet distances, biased upwards,
  scores and label accuracies.
  """
  metrics = tuple(metrics)
  values = {
    metric.key: scores.frechet_distance(
      measured.gaussians[metric.output], train.gaussians[metric.output], allow_few=True
    )
    for metric in leading(metrics)
    if metric.output in train.gaussians
  }
  for metric in metrics:
    if metric.kind == "score":
      values[metric.key] = scores.inception_score(measured.entropies[metric.output])
    elif metric.kind == "accuracy" and measured.correct is not None:
      values[metric.key] = measured.correct[metric.output] / measured.count
  return values


class _Parts:
  """The blocks, all samples, and all but each block."""

  def __init__(self, blocks, *, allow_few, extrapolate):
    self.blocks = blocks
    self.total = merge(blocks)
    self.without = [merge(blocks[:i] + blocks[i + 1 :]) for i in range(len(blocks))]
    self.allow_few = allow_few
    self.extrapolate = extrapolate
    self.nearest = functools.cache(self._nearest)

  def large(self, output):
    """Whether each block alone has a Fréchet distance in `output`."""
    return all(block.count > block.gaussians[output].mean.size for block in self.blocks)

  def features(self, output):
    """The features of each block, [n,D]."""
    return [np.concatenate(block.features[output]) for block in self.blocks]

  def _nearest(self, output, target):
    """Precision and recall, which are made of the same distances; `target` by identity."""
    return _precision_recall(self.features(output), target.features[output])


def _frechet(metric, parts, target):
  """The distance, its error, and to the training split, where blocks are large enough, the mean
  over them and the value at infinitely many samples.
  """
  if metric.output not in target.gaussians:
    return {}
  gaussian = target.gaussians[metric.output]
  if metric.against == HELDOUT and not _enough(gaussian):
    return {metric.key: None, metric.err: None}
  distance = lambda s, allow_few=parts.allow_few: scores.frechet_distance(
    s.gaussians[metric.output], gaussian, allow_few=allow_few
  )
  if not parts.large(metric.output):
    without = [distance(rest, True) for rest in parts.without]
    return {
      metric.key: distance(parts.total),
      metric.err: scores.jackknife_error(without),
      metric.without: without,
    }
  values = _over_blocks(metric, distance, parts)
  if metric.against == HELDOUT:
    del values[metric.block_mean]
  elif parts.extrapolate:
    values[metric.infinity] = scores.frechet_extrapolated(
      [block.gaussians[metric.output] for block in parts.blocks], gaussian
    )
  return values


def _score(metric, parts, target):
  del target
  return _over_blocks(metric, lambda s: scores.inception_score(s.entropies[metric.output]), parts)


def _accuracy(metric, parts, target):
  del target
  if parts.total.correct is None:
    return {}
  values = _over_blocks(metric, lambda s: s.correct[metric.output] / s.count, parts)
  del values[metric.block_mean]  # of equal blocks it is the number itself
  return values


def _share(metric, parts, target):
  """Precision or recall."""
  if metric.output not in target.features:
    return {}
  nearest = parts.nearest(metric.output, target)
  without = getattr(nearest, f"{metric.kind}_without")
  return {
    metric.key: getattr(nearest, metric.kind),
    metric.err: scores.jackknife_error(without),
    metric.without: list(without),
  }


def _kernel_distance(metric, parts, target):
  if metric.output not in target.features:
    return {}
  blocks = parts.features(metric.output)
  real = target.features[metric.output]
  distance = _kid(np.concatenate(blocks), real)
  # subsets of few samples overlap, and hardly differ: how far other samples would be is the
  # jackknife's to say
  without = pairwise.squared_mmd_without(blocks, real)
  return {
    metric.key: distance.kid,
    metric.subset: distance.subset_size,
    metric.err: float(np.hypot(scores.jackknife_error(without), distance.kid_err)),
    metric.without: without.tolist(),
  }


_KINDS = {
  "frechet": _frechet,
  "score": _score,
  "accuracy": _accuracy,
  "precision": _share,
  "recall": _share,
  "kid": _kernel_distance,
}


def _over_blocks(metric, function, parts):
  values = [function(block) for block in parts.blocks]
  return {
    metric.key: function(parts.total),
    metric.err: scores.standard_error(values),
    metric.without: [function(rest) for rest in parts.without],
    metric.block_mean: float(np.mean(values)),
  }


def _enough(gaussian):
  """Whether a covariance is of more images than features, as far as is known."""
  return gaussian.count is None or gaussian.count > gaussian.mean.size


def _distance_if_enough(a, b):
  return scores.frechet_distance(a, b) if b is not None and _enough(a) and _enough(b) else None


def _precision_recall(blocks, real):
  return pairwise.precision_recall_blocks(blocks, real, k=NEIGHBOURS)


def _kid(samples, real):
  size = min(KID_SUBSET, len(real), len(samples))
  return pairwise.kid(samples, real, num_subsets=KID_SUBSETS, subset_size=size)
