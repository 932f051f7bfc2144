"""How far samples are from a law: the sliced Wasserstein distance, in the data's own units."""

from typing import NamedTuple

import numpy as np


class Law(NamedTuple):
  """What `distance` knows of a law.

  Attributes:
    directions: [S,d], of length 1.
    quantiles: [Q,S] of the law's projections, at (i + 1/2) / Q.
  """

  directions: np.ndarray
  quantiles: np.ndarray


def law(draws: np.ndarray, *, directions: int = 16, levels: int = 512, seed: int = 0) -> Law:
  """The Law that `draws` [M,d] are of; M many times `levels`.

  Args:
    draws: independent ones.
    directions: S, uniform over the sphere.
    levels: Q.
    seed: of the directions.
  """
  normals = np.random.default_rng(seed).standard_normal((directions, draws.shape[1]))
  unit = normals / np.linalg.norm(normals, axis=1, keepdims=True)
  return Law(unit, _quantiles(draws @ unit.T, None, levels))


def distance(x: np.ndarray, of: Law, *, log_weight: np.ndarray | None = None) -> float:
  """mean over directions of W_1 = int |F^-1(u) - G^-1(u)| du: how far samples have to be moved.

  Rabin et al. 2011. It is not 0 for draws of the law itself, but falls as 1 / sqrt(N) for them.

  Args:
    x: [N,d].
    of: the law.
    log_weight: [N], up to a constant; None for equal weights.
  """
  own = _quantiles(x @ of.directions.T, log_weight, len(of.quantiles))
  return float(np.abs(own - of.quantiles).mean())


def _quantiles(values, log_weight, levels):
  """[Q,S]: the weighted quantiles of each column of values [N,S]."""
  places = (np.arange(levels) + 0.5) / levels
  if log_weight is None:
    return np.sort(values, axis=0)[(places * len(values)).astype(int)]
  share = np.exp(log_weight - log_weight.max())
  share = share / share.sum()
  columns = []
  for column in values.T:
    order = np.argsort(column)
    found = np.searchsorted(np.cumsum(share[order]), places)
    columns.append(column[order[np.minimum(found, len(order) - 1)]])
  return np.stack(columns, axis=1)
