"""Statistics that stream in float64 on the host and merge, whatever the batches were."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence

import numpy as np

from cfg.metrics.metric import Metric, outputs

# buffer this many rows for each update: adding a [D,D] scatter costs the same for one row
GATHERED = 512
# kinds of metrics that need the features themselves
PAIRWISE = ("precision", "recall", "kid")
LABELS = "labels"


@dataclasses.dataclass
class Gaussian:
  """Count, mean and scatter sum (f - mean)(f - mean)^T of features [N,D] (Chan et al. 1983)."""

  count: int
  mean: np.ndarray  # [D]
  scatter: np.ndarray  # [D,D]

  @classmethod
  def empty(cls, dim):
    return cls(0, np.zeros(dim), np.zeros((dim, dim)))

  @classmethod
  def of(cls, features):
    """Of one batch [N,D]."""
    features = np.asarray(features, np.float64)
    mean = features.mean(axis=0)
    centred = features - mean
    return cls(len(features), mean, centred.T @ centred)

  def merge(self, other):
    """The statistics of both sets together."""
    if other.count == 0 or self.count == 0:
      return self if other.count == 0 else other
    count = self.count + other.count
    delta = other.mean - self.mean
    mean = self.mean + delta * (other.count / count)
    cross = np.outer(delta, delta) * (self.count * other.count / count)
    return Gaussian(count, mean, self.scatter + other.scatter + cross)

  @property
  def cov(self):
    """Unbiased covariance [D,D]."""
    return self.scatter / (self.count - 1)

  @functools.cached_property
  def cov_root(self):
    """The symmetric square root of `cov`, kept: a reference is measured against many times."""
    return symmetric_sqrt(self.cov)


@dataclasses.dataclass
class Moments:
  """Mean and covariance that somebody published; of how many samples is not known."""

  mean: np.ndarray  # [D]
  cov: np.ndarray  # [D,D]
  count = None

  @functools.cached_property
  def cov_root(self):
    """The symmetric square root of `cov`, kept."""
    return symmetric_sqrt(self.cov)


def symmetric_sqrt(matrix):
  """The root of a symmetric matrix by its eigen-decomposition; eigenvalues below zero (rounding)
  are cut to zero.
  """
  values, vectors = np.linalg.eigh(matrix)
  return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


@dataclasses.dataclass
class ClassEntropy:
  """Sums for the Inception Score of class probabilities [N,K]: of p, and of sum_k p log p."""

  count: int
  prob_sum: np.ndarray  # [K]
  plogp_sum: float

  @classmethod
  def empty(cls, num_classes):
    return cls(0, np.zeros(num_classes), 0.0)

  @classmethod
  def of(cls, probs):
    """Of one batch [N,K] of probabilities."""
    probs = np.asarray(probs, np.float64)
    # the limit of p log p at 0 is 0
    plogp = probs * np.log(np.where(probs > 0, probs, 1.0))
    return cls(len(probs), probs.sum(axis=0), float(plogp.sum()))

  def merge(self, other):
    return ClassEntropy(
      self.count + other.count, self.prob_sum + other.prob_sum, self.plogp_sum + other.plogp_sum
    )


def softmax(logits):
  """Probabilities in float64."""
  logits = np.asarray(logits, np.float64)
  weights = np.exp(logits - logits.max(axis=1, keepdims=True))
  return weights / weights.sum(axis=1, keepdims=True)


@dataclasses.dataclass
class SampleStatistics:
  """What the metrics need of a set of images, in one streaming object.

  Attributes:
    count: images.
    gaussians: {output: Gaussian}, where there is a Fréchet distance.
    entropies: {output: ClassEntropy}, where there is an Inception Score.
    features: {output: list of arrays [n,D], in order}, where there is precision, recall or KID.
    correct: {output: images whose largest entry is their label's}, where there is an accuracy;
      None without labels.
  """

  count: int
  gaussians: dict[str, Gaussian]
  entropies: dict[str, ClassEntropy]
  features: dict[str, list[np.ndarray]]
  correct: dict[str, int] | None

  @classmethod
  def empty(cls, metrics: Sequence[Metric], *, dims: Mapping[str, int]) -> "SampleStatistics":
    """Of no images; `dims` are {output: dimension}."""
    return cls(
      count=0,
      gaussians={name: Gaussian.empty(dims[name]) for name in outputs(metrics, "frechet")},
      entropies={name: ClassEntropy.empty(dims[name]) for name in outputs(metrics, "score")},
      features={name: [] for name in outputs(metrics, *PAIRWISE)},
      correct={name: 0 for name in outputs(metrics, "accuracy")},
    )

  @classmethod
  def of(cls, metrics: Sequence[Metric], batch: Mapping, labels=None) -> "SampleStatistics":
    """Of one batch, {output: [N, dim]}, and its labels [N]."""
    agree = lambda logits: int(np.sum(np.argmax(logits, axis=1) == np.asarray(labels)))
    correct = None
    if labels is not None:
      correct = {name: agree(batch[name]) for name in outputs(metrics, "accuracy")}
    return cls(
      count=len(next(iter(batch.values()))),
      gaussians={name: Gaussian.of(batch[name]) for name in outputs(metrics, "frechet")},
      entropies={name: ClassEntropy.of(softmax(batch[name])) for name in outputs(metrics, "score")},
      features={
        name: [np.asarray(batch[name], np.float32)] for name in outputs(metrics, *PAIRWISE)
      },
      correct=correct,
    )

  def merge(self, other: "SampleStatistics") -> "SampleStatistics":
    """The statistics of both sets together."""
    join = lambda a, b: {name: a[name].merge(b[name]) for name in a}
    correct = None
    if self.correct is not None and other.correct is not None:
      correct = {name: count + other.correct[name] for name, count in self.correct.items()}
    return SampleStatistics(
      count=self.count + other.count,
      gaussians=join(self.gaussians, other.gaussians),
      entropies=join(self.entropies, other.entropies),
      features={name: parts + other.features[name] for name, parts in self.features.items()},
      correct=correct,
    )


def merge(parts):
  """The statistics of all sets together."""
  return functools.reduce(lambda a, b: a.merge(b), parts)


class Accumulator:
  """Adds an extractor's outputs, as they come, to the statistics of blocks; the sums do not depend
  on how the rows came.

  Args:
    metrics: what the sums are for.
    dims: {output: dimension}.
    block_of: [N] which block each image belongs to, from 0 on.
  """

  def __init__(self, metrics: Sequence[Metric], *, dims: Mapping[str, int], block_of):
    self._metrics = tuple(metrics)
    self._block_of = np.asarray(block_of)
    num_blocks = int(self._block_of.max()) + 1
    self._blocks = [SampleStatistics.empty(self._metrics, dims=dims) for _ in range(num_blocks)]
    self._waiting: list[dict] = []
    self._done = 0
    self.count = 0

  def add(self, batch: Mapping, labels=None) -> None:
    """The next images' outputs, {output: [n, dim]}, and their labels [n] where they are known."""
    rows = dict(batch)
    if labels is not None:
      rows[LABELS] = np.asarray(labels)
    left = len(next(iter(rows.values())))
    while left:
      free = self._done + GATHERED - self.count
      self._waiting.append({name: a[:free] for name, a in rows.items()})
      self.count += len(next(iter(self._waiting[-1].values())))
      rows = {name: a[free:] for name, a in rows.items()}
      left = len(next(iter(rows.values())))
      if self.count in (self._done + GATHERED, len(self._block_of)):
        self._sum()

  def _sum(self):
    rows = {
      name: np.concatenate([part[name] for part in self._waiting]) for name in self._waiting[0]
    }
    block_of = self._block_of[self._done : self.count]
    for block in np.unique(block_of):
      batch = {name: a[block_of == block] for name, a in rows.items()}
      labels = batch.pop(LABELS, None)
      part = SampleStatistics.of(self._metrics, batch, labels)
      self._blocks[block] = self._blocks[block].merge(part)
    self._waiting = []
    self._done = self.count

  @property
  def blocks(self):
    """The statistics of each block, when all images were added."""
    if self.count != len(self._block_of):
      raise ValueError(f"{self.count} of {len(self._block_of)} images were added")
    return self._blocks
