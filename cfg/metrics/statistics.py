"""Statistics that stream in float64 on the host and merge, whatever the batches were."""

import dataclasses
import functools

import numpy as np

# rows of features that are waited for before they are added: a sum of [D,D] costs as much for one
GATHERED = 512
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
  """What the metrics need of a set of images in the spaces of an extractor.Extractor, in one
  streaming object.
  """

  count: int
  gaussians: dict  # {output: Gaussian}, of those with a Fréchet distance
  entropies: dict  # {output: ClassEntropy}, of those with an Inception Score
  features: list  # of arrays [n,D] of the output behind precision, recall and KID, in order
  correct: (
    int | None
  )  # images that are of their label's class; None without labels or without such an output

  @classmethod
  def empty(cls, extractor):
    dims = extractor.dims
    return cls(
      0,
      {name: Gaussian.empty(dims[name]) for name in extractor.frechet},
      {name: ClassEntropy.empty(dims[name]) for name in extractor.scores},
      [],
      None if extractor.classes is None else 0,
    )

  @classmethod
  def of(cls, extractor, outputs, labels=None):
    """Of one batch, {output: [N, dim]}, and its labels [N]."""
    space = extractor.pairwise
    known = labels is not None and extractor.classes is not None
    return cls(
      len(next(iter(outputs.values()))),
      {name: Gaussian.of(outputs[name]) for name in extractor.frechet},
      {name: ClassEntropy.of(softmax(outputs[name])) for name in extractor.scores},
      [] if space is None else [np.asarray(outputs[space], np.float32)],
      int(np.sum(np.argmax(outputs[extractor.classes], axis=1) == np.asarray(labels)))
      if known
      else None,
    )

  def merge(self, other):
    """The statistics of both sets together."""
    together = lambda a, b: {name: a[name].merge(b[name]) for name in a}
    return SampleStatistics(
      self.count + other.count,
      together(self.gaussians, other.gaussians),
      together(self.entropies, other.entropies),
      self.features + other.features,
      None if self.correct is None or other.correct is None else self.correct + other.correct,
    )


def merge(parts):
  """The statistics of all sets together."""
  return functools.reduce(lambda a, b: a.merge(b), parts)


class Accumulator:
  """Adds an extractor's outputs, as they come, to the statistics of blocks; the sums do not depend
  on how the rows came.

  Args:
    extractor: an extractor.Extractor.
    block_of: [N] which block each image belongs to, from 0 on.
  """

  def __init__(self, extractor, *, block_of):
    self._extractor, self._block_of = extractor, np.asarray(block_of)
    self._blocks = [SampleStatistics.empty(extractor) for _ in range(int(self._block_of.max()) + 1)]
    self._waiting, self._done, self.count = [], 0, 0

  def add(self, outputs, labels=None):
    """The next images' outputs, {output: [n, dim]}, and their labels [n] where they are known."""
    rows = {**outputs, **({} if labels is None else {LABELS: np.asarray(labels)})}
    while rows:
      free = self._done + GATHERED - self.count
      self._waiting.append({name: a[:free] for name, a in rows.items()})
      self.count += len(next(iter(self._waiting[-1].values())))
      rest = {name: a[free:] for name, a in rows.items()}
      rows = rest if len(next(iter(rest.values()))) else None
      if self.count in (self._done + GATHERED, len(self._block_of)):
        self._sum()

  def _sum(self):
    outputs = {
      name: np.concatenate([some[name] for some in self._waiting]) for name in self._waiting[0]
    }
    block_of = self._block_of[self._done : self.count]
    for block in np.unique(block_of):
      mine = {name: a[block_of == block] for name, a in outputs.items()}
      part = SampleStatistics.of(self._extractor, mine, mine.pop(LABELS, None))
      self._blocks[block] = self._blocks[block].merge(part)
    self._waiting, self._done = [], self.count

  @property
  def blocks(self):
    """The statistics of each block, when all images were added."""
    if self.count != len(self._block_of):
      raise ValueError(f"{self.count} of {len(self._block_of)} images were added")
    return self._blocks
