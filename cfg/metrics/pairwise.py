"""Metrics of pairs of feature vectors: precision, recall and the kernel distance. They need the
features themselves, [N,D].
"""

import dataclasses

import numpy as np

# rows and columns of a tile of pairs, so that no [N,N] matrix is ever there
TILE = 2048


def _tiles(count, *, start=0):
  """Slices of at most TILE that cover `count` rows from `start` on."""
  return [
    slice(first, min(first + TILE, start + count)) for first in range(start, start + count, TILE)
  ]


def _squared_distances(a, b):
  """|a_i - b_j|^2 in float64; rounding below zero is cut."""
  a = np.asarray(a, np.float64)
  b = np.asarray(b, np.float64)
  return np.maximum((a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1)[None] - 2 * a @ b.T, 0)


def _keep_nearest(nearest, squared):
  """Each row of `nearest` [N,k] becomes the k smallest of it and of that row of `squared`; NaN is
  larger than all.
  """
  k = nearest.shape[1]
  nearest[:] = np.partition(np.concatenate([nearest, squared], axis=1), k - 1, axis=1)[:, :k]


def _nearest(features, sizes, *, k):
  """The squared distances of each vector to the k nearest other ones of each block, [N,B,k] in no
  order; NaN where a block has fewer.
  """
  nearest = np.full((len(features), len(sizes), k), np.nan)
  tiles = [
    (block, rows)
    for block, size in enumerate(sizes)
    for rows in _tiles(size, start=sum(sizes[:block]))
  ]
  for i, (block, rows) in enumerate(tiles):
    for other, columns in tiles[i:]:
      squared = _squared_distances(features[rows], features[columns])
      if rows == columns:
        np.fill_diagonal(squared, np.nan)  # a vector is not its own neighbour
      else:
        _keep_nearest(nearest[columns, block], squared.T)
      _keep_nearest(nearest[rows, other], squared)
  return nearest


def neighbour_radii(features, sizes, *, k):
  """Squared distances of vectors to their k-th nearest other one, float64 [1+B,N]: among all, then
  among all but each block.

  A vector of the block that is left out has no ball there: NaN, which no distance is within. One
  block has only the first row.

  Args:
    features: [N,D].
    sizes: of B blocks of consecutive vectors, N together; more than k vectors without any one of
      them.
    k: at least 1.
  """
  nearest = _nearest(features, sizes, k=k)
  radius = lambda squared: np.partition(squared.reshape(len(squared), -1), k - 1, axis=1)[:, k - 1]
  radii = [radius(nearest)]
  block_of = np.repeat(np.arange(len(sizes)), sizes)
  for block in range(len(sizes)) if len(sizes) > 1 else ():
    radii.append(np.where(block_of == block, np.nan, radius(np.delete(nearest, block, axis=1))))
  return np.stack(radii)


def _inside(queries, features, radii):
  """Whether each query lies in the ball of at least one of the features, bool [R,Q] for R sets of
  radii, [R,N].
  """
  inside = np.zeros((len(radii), len(queries)), bool)
  for rows in _tiles(len(queries)):
    for columns in _tiles(len(features)):
      squared = _squared_distances(queries[rows], features[columns])
      for within, radius in zip(inside, radii, strict=True):
        within[rows] |= (squared <= radius[columns]).any(axis=1)
  return inside


@dataclasses.dataclass(frozen=True)
class PrecisionRecall:
  """Precision and recall of all samples, and of all but those of each block, in order; none of one
  block, without which nothing is left.
  """

  precision: float
  recall: float
  precision_without: tuple
  recall_without: tuple


def precision_recall_blocks(blocks, reference, *, k=3):
  """`precision_recall` of the samples of all blocks and of all but each one, from one distance of
  each pair.

  The numbers are those of `precision_recall` on the concatenated blocks, but where a distance
  equals a radius within rounding.

  Args:
    blocks: list of features [N_b,D], of any sizes.
    reference: features [M,D].
    k: at least 1, below M and below the number of samples without any one block.

  Raises:
    ValueError: k is not.
  """
  sizes = [len(block) for block in blocks]
  reference = np.asarray(reference)
  several = len(sizes) > 1
  left = sum(sizes) - (max(sizes) if several else 0)
  if not 1 <= k < min(left, len(reference)):
    which = "samples without the largest block" if several else "samples"
    raise ValueError(
      f"k is {k}: it must be at least 1 and below the number of {which}, {left}, and of reference "
      f"images, {len(reference)}"
    )
  samples = np.concatenate(blocks)
  precise = _inside(samples, reference, neighbour_radii(reference, [len(reference)], k=k))[0]
  recall, *recall_without = (
    _inside(reference, samples, neighbour_radii(samples, sizes, k=k)).mean(axis=1).tolist()
  )
  block_of = np.repeat(np.arange(len(sizes)), sizes)
  precision_without = (
    tuple(float(precise[block_of != block].mean()) for block in range(len(sizes)))
    if several
    else ()
  )
  return PrecisionRecall(float(precise.mean()), recall, precision_without, tuple(recall_without))


def precision_recall(samples, reference, *, k=3):
  """(precision, recall): shares inside the other set's union of balls to the k-th nearest neighbour
  (Kynkäänniemi et al. 2019, arXiv 1904.06991).

  Precision is the share of samples inside the reference's manifold, recall that of the reference
  inside the samples'; balls are closed and k does not count the vector itself, as in ADM's
  evaluator, which has k = 3.

  Args:
    samples, reference: features [N,D] and [M,D].
    k: at least 1, below N and M.

  Raises:
    ValueError: k is not.
  """
  shares = precision_recall_blocks([samples], reference, k=k)
  return shares.precision, shares.recall


def _kernel_sum(a, b):
  """sum_ij (a_i . b_j / D + 1)^3."""
  return sum(
    float(((a[rows] @ b[columns].T / a.shape[1] + 1) ** 3).sum())
    for rows in _tiles(len(a))
    for columns in _tiles(len(b))
  )


def _kernel_of_pairs(a):
  """The same over pairs of different vectors of one set, i != j."""
  return _kernel_sum(a, a) - float((((a**2).sum(axis=1) / a.shape[1] + 1) ** 3).sum())


def squared_mmd(a, b):
  """The unbiased estimate of the squared maximum mean discrepancy under k(x, y) = (x . y / D + 1)^3
  (Bińkowski et al. 2018, arXiv 1801.01401).

  It may be below zero. float64.

  Args:
    a, b: features [N,D] and [M,D], at least 2 of each.
  """
  a, b = (np.asarray(features, np.float64) for features in (a, b))
  own = lambda x: _kernel_of_pairs(x) / (len(x) * (len(x) - 1))
  return own(a) + own(b) - 2 * _kernel_sum(a, b) / (len(a) * len(b))


def squared_mmd_without(blocks, reference):
  """`squared_mmd` of all samples but those of each block, in order, less the reference's own term,
  which they share; [B].

  A jackknife needs no more: one kernel of each pair of vectors.

  Args:
    blocks: list of features [N_b,D], at least 2; 2 samples or more without any one of them.
    reference: features [M,D].
  """
  blocks = [np.asarray(block, np.float64) for block in blocks]
  reference = np.asarray(reference, np.float64)
  sizes = np.array([len(block) for block in blocks])
  cross = np.array([_kernel_sum(block, reference) for block in blocks])
  own = np.diag([_kernel_of_pairs(block) for block in blocks])
  for i, j in zip(*np.tril_indices(len(blocks), -1), strict=True):
    own[i, j] = own[j, i] = _kernel_sum(blocks[i], blocks[j])
  without = []
  for keep in ~np.eye(len(blocks), dtype=bool):
    count = sizes[keep].sum()
    without.append(
      own[np.ix_(keep, keep)].sum() / (count * (count - 1))
      - 2 * cross[keep].sum() / (count * len(reference))
    )
  return np.array(without)


@dataclasses.dataclass(frozen=True)
class KernelDistance:
  """The mean of `squared_mmd` over random subsets, and the standard error of that mean."""

  kid: float
  kid_err: float
  num_subsets: int
  subset_size: int


def kid(samples, reference, *, num_subsets=100, subset_size=1000, seed=0):
  """The Kernel Inception Distance: `squared_mmd` of `num_subsets` pairs of random subsets, without
  replacement in each.

  The subsets overlap where the sets are smaller than all of them together: the error is then that
  of drawing subsets, not of drawing samples.

  Raises:
    ValueError: fewer samples or reference images than subset_size, or than 2 of either number.
  """
  least = min(len(samples), len(reference))
  if not 2 <= subset_size <= least or num_subsets < 2:
    raise ValueError(
      f"{num_subsets} subsets of {subset_size}: there must be at least 2, of 2 to {least} vectors"
    )
  rng = np.random.default_rng(seed)
  draw = lambda features: np.asarray(features)[
    rng.choice(len(features), subset_size, replace=False)
  ]
  values = np.array([squared_mmd(draw(samples), draw(reference)) for _ in range(num_subsets)])
  return KernelDistance(
    float(values.mean()), float(values.std(ddof=1) / np.sqrt(num_subsets)), num_subsets, subset_size
  )
