"""Fréchet distance, Inception Score, and errors from disjoint blocks."""

import functools

import numpy as np


def frechet_distance(a, b, *, allow_few=False):
  """|m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a^(1/2) C_b C_a^(1/2))^(1/2)) (Heusel et al. 2017, arXiv
  1706.08500).

  The square roots are taken by symmetric eigen-decomposition in float64, with
  eigenvalues below zero (rounding) cut to zero. That of b, the reference, is kept in b.

  Args:
    a, b: statistics.Gaussian, or statistics.Moments. Each count, where it is known, must exceed the
      feature dimension,
    allow_few: or need not.

  Raises:
    ValueError: fewer samples than that: the covariance would be singular and the number biased at
      will.
  """
  for stats in (a, b):
    if not allow_few and stats.count is not None and stats.count <= stats.mean.size:
      raise ValueError(
        f"{stats.count} samples cannot give a covariance of {stats.mean.size} features: "
        f"at least {stats.mean.size + 1} are needed"
      )
  eigenvalues = np.linalg.eigvalsh(b.cov_root @ a.cov @ b.cov_root)
  cross = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
  diff = a.mean - b.mean
  return float(diff @ diff + np.trace(a.cov) + np.trace(b.cov) - 2 * cross)


def frechet_extrapolated(blocks, reference):
  """The Fréchet distance to `reference` at infinitely many samples: the line through distances
  against 1/N, at 1/N = 0.

  To first order the bias is proportional to 1/N (Chong & Forsyth 2020, arXiv 1911.07023, who draw
  random subsets; here the subsets are disjoint runs of 1, 2, ... of the blocks, weighted by how
  many there are of a length). The reference's own bias stays.

  Args:
    blocks: statistics.Gaussian of equal, disjoint sets, at least 2, each larger than the feature
      dimension.
    reference: statistics.Gaussian.
  """
  if len(blocks) < 2:
    raise ValueError(f"a line needs at least 2 blocks, got {len(blocks)}")
  inverse = []
  distances = []
  weights = []
  for length in range(1, len(blocks) + 1):
    runs = [blocks[first : first + length] for first in range(0, len(blocks) - length + 1, length)]
    merged = [functools.reduce(lambda a, b: a.merge(b), run) for run in runs]
    inverse.append(1 / merged[0].count)
    distances.append(np.mean([frechet_distance(gaussian, reference) for gaussian in merged]))
    weights.append(np.sqrt(len(runs)))
  return float(np.polyfit(inverse, distances, 1, w=weights)[1])


def inception_score(classes):
  """exp( mean_i KL(p(y|x_i) || p(y)) ), p(y) the mean over the samples (Salimans et al. 2016, arXiv
  1606.03498).

  One pass over all samples, no splits. Between 1 and the number of classes.

  Args:
    classes: statistics.ClassEntropy.
  """
  marginal = classes.prob_sum / classes.count
  entropy = -np.sum(marginal * np.log(np.where(marginal > 0, marginal, 1.0)))
  return float(np.exp(classes.plogp_sum / classes.count + entropy))


def standard_error(values):
  """Standard deviation (n - 1) of block values over sqrt(number of blocks)."""
  values = np.asarray(values, np.float64)
  return float(values.std(ddof=1) / np.sqrt(len(values)))


def jackknife_error(values):
  """sqrt((k - 1) / k sum_i (v_i - mean)^2): the standard error of a number of all samples, from
  what it is without each of k blocks (Efron & Stein 1981).

  Each value is of nearly all samples, so that it exists where blocks alone are too small for a
  covariance.
  """
  values = np.asarray(values, np.float64)
  return float(np.sqrt((len(values) - 1) / len(values) * ((values - values.mean()) ** 2).sum()))
