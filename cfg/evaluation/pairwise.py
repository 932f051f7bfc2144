"""Metrics of pairs of feature vectors: precision, recall and the kernel distance. They need the features themselves, [N,D]."""

import dataclasses

import numpy as np

# rows of a block of pairs, so that no [N,N] matrix is ever there
BLOCK = 2048


def _blocks(count):
  return [slice(first, min(first + BLOCK, count)) for first in range(0, count, BLOCK)]


def _squared_distances(a, b):
  """|a_i - b_j|^2 in float64; rounding below zero is cut."""
  return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T, 0)


def neighbour_radii(features, *, k):
  """The squared distance of each vector to its k-th nearest other one, float64 [N]."""
  features = np.asarray(features, np.float64)
  radii = np.empty(len(features))
  for rows in _blocks(len(features)):
    squared = _squared_distances(features[rows], features)
    squared[np.arange(len(squared)), np.arange(rows.start, rows.stop)] = -1  # itself, whatever rounding makes of its 0
    radii[rows] = np.partition(squared, k, axis=1)[:, k]
  return radii


def _share_inside(queries, features, radii):
  """The share of queries that lie in the ball of at least one of the features."""
  inside = 0
  for rows in _blocks(len(queries)):
    inside += int((_squared_distances(queries[rows], features) <= radii).any(axis=1).sum())
  return inside / len(queries)


def precision_recall(samples, reference, *, k=3):
  """(precision, recall): shares inside the other set's union of balls to the k-th nearest neighbour (Kynkäänniemi et al. 2019, arXiv 1904.06991).

  Precision is the share of samples inside the reference's manifold, recall that of the reference inside the samples'; balls are
  closed and k does not count the vector itself, as in ADM's evaluator, which has k = 3.

  Args:
    samples, reference: features [N,D] and [M,D].
    k: at least 1, below N and M.

  Raises:
    ValueError: k is not.
  """
  samples, reference = (np.asarray(features, np.float64) for features in (samples, reference))
  if not 1 <= k < min(len(samples), len(reference)):
    raise ValueError(f"k is {k}: it must be at least 1 and below the number of samples, {len(samples)}, and of reference images, {len(reference)}")
  precision = _share_inside(samples, reference, neighbour_radii(reference, k=k))
  recall = _share_inside(reference, samples, neighbour_radii(samples, k=k))
  return precision, recall


def _kernel_sum(a, b):
  """sum_ij (a_i . b_j / D + 1)^3."""
  return sum(float(((a[rows] @ b.T / a.shape[1] + 1) ** 3).sum()) for rows in _blocks(len(a)))


def squared_mmd(a, b):
  """The unbiased estimate of the squared maximum mean discrepancy under k(x, y) = (x . y / D + 1)^3 (Bińkowski et al. 2018, arXiv 1801.01401).

  It may be below zero. float64.

  Args:
    a, b: features [N,D] and [M,D], at least 2 of each.
  """
  a, b = (np.asarray(features, np.float64) for features in (a, b))
  own = lambda x: (_kernel_sum(x, x) - float((((x**2).sum(axis=1) / x.shape[1] + 1) ** 3).sum())) / (len(x) * (len(x) - 1))
  return own(a) + own(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


@dataclasses.dataclass(frozen=True)
class KernelDistance:
  """The mean of `squared_mmd` over random subsets, and the standard error of that mean."""

  kid: float
  kid_err: float
  num_subsets: int
  subset_size: int


def kid(samples, reference, *, num_subsets=100, subset_size=1000, seed=0):
  """The Kernel Inception Distance: `squared_mmd` of `num_subsets` pairs of random subsets, without replacement in each.

  The subsets overlap where the sets are smaller than all of them together: the error is then too small.

  Raises:
    ValueError: fewer samples or reference images than subset_size, or than 2 of either number.
  """
  least = min(len(samples), len(reference))
  if not 2 <= subset_size <= least or num_subsets < 2:
    raise ValueError(f"{num_subsets} subsets of {subset_size}: there must be at least 2, of 2 to {least} vectors")
  rng = np.random.default_rng(seed)
  draw = lambda features: np.asarray(features)[rng.choice(len(features), subset_size, replace=False)]
  values = np.array([squared_mmd(draw(samples), draw(reference)) for _ in range(num_subsets)])
  return KernelDistance(float(values.mean()), float(values.std(ddof=1) / np.sqrt(num_subsets)), num_subsets, subset_size)
