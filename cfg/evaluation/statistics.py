"""Statistics that stream in float64 on the host and merge, whatever the batches were."""

import dataclasses

import numpy as np


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


@dataclasses.dataclass
class Moments:
  """Mean and covariance that somebody published; of how many samples is not known."""

  mean: np.ndarray  # [D]
  cov: np.ndarray  # [D,D]
  count = None


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


@dataclasses.dataclass
class SampleStatistics:
  """What the metrics need of a set of labelled images, in one streaming object."""

  features: Gaussian
  classes: ClassEntropy
  correct: int

  @classmethod
  def empty(cls, *, feature_dim, num_classes):
    return cls(Gaussian.empty(feature_dim), ClassEntropy.empty(num_classes), 0)

  @classmethod
  def of(cls, *, features, probs, labels):
    correct = int(np.sum(np.argmax(probs, axis=1) == np.asarray(labels)))
    return cls(Gaussian.of(features), ClassEntropy.of(probs), correct)

  def merge(self, other):
    return SampleStatistics(
      self.features.merge(other.features), self.classes.merge(other.classes), self.correct + other.correct
    )

  @property
  def count(self):
    return self.features.count
