"""Precision, recall and the kernel distance against their definitions."""

import numpy as np
import pytest

from cfg.evaluation import pairwise

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(60, 3))
FAKE = RNG.normal(size=(45, 3)) * 0.7 + 0.4


@pytest.fixture(params=[7, 2048])
def blocks(request, monkeypatch):
  """Pairs in small blocks, and all at once."""
  monkeypatch.setattr(pairwise, "BLOCK", request.param)


def inside(queries, features, k):
  """The definition, one pair at a time."""
  distance = lambda a, b: np.sqrt(((a - b) ** 2).sum())
  radii = [sorted(distance(f, g) for j, g in enumerate(features) if j != i)[k - 1] for i, f in enumerate(features)]
  return np.mean([any(distance(q, f) <= r + 1e-12 for f, r in zip(features, radii)) for q in queries])


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(blocks, k):
  """Shares in the union of balls to the k-th nearest other vector: precision of the samples, recall of the reference."""
  precision, recall = pairwise.precision_recall(FAKE, REAL, k=k)
  assert precision == pytest.approx(inside(FAKE, REAL, k)) and recall == pytest.approx(inside(REAL, FAKE, k))
  assert precision != recall


def test_a_collapsed_set_is_precise_and_recalls_nothing():
  """Samples that are one real image over and over: precision 1, recall only of the images that are it. The other way round they change places."""
  collapsed = np.repeat(REAL[:1], 20, axis=0)
  assert pairwise.precision_recall(collapsed, REAL) == (1.0, 1 / 60)
  assert pairwise.precision_recall(REAL, collapsed) == (1 / 60, 1.0)


def test_equal_and_distant_sets(blocks):
  """A set against itself: 1 and 1. Against one far off: 0 and 0."""
  assert pairwise.precision_recall(REAL, REAL) == (1.0, 1.0)
  assert pairwise.precision_recall(REAL + 100, REAL) == (0.0, 0.0)


def test_squared_mmd_is_its_definition(blocks):
  """The mean kernel over different pairs of each set, less twice that over pairs of both."""
  kernel = lambda x, y: (x @ y / 3 + 1) ** 3
  own = lambda a: np.mean([kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j])
  expected = own(FAKE) + own(REAL) - 2 * np.mean([kernel(x, y) for x in FAKE for y in REAL])
  assert pairwise.squared_mmd(FAKE, REAL) == pytest.approx(expected, rel=1e-10)


def test_squared_mmd_is_unbiased():
  """Halves of one distribution: zero within the error, below zero about as often as above; of another one: many errors away."""
  draws = RNG.normal(size=(200, 2, 30, 2))
  values = np.array([pairwise.squared_mmd(a, b) for a, b in draws])
  assert abs(values.mean()) < 4 * values.std() / np.sqrt(200) and 0.2 < (values < 0).mean() < 0.9
  shifted = np.array([pairwise.squared_mmd(a, b + 0.5) for a, b in draws])
  assert shifted.mean() > 10 * shifted.std() / np.sqrt(200)


def test_kid_is_a_mean_over_subsets():
  """The whole sets, drawn over and over, are the estimate itself without error; smaller subsets are seeded and agree within errors."""
  whole = pairwise.kid(REAL[:45], FAKE, num_subsets=3, subset_size=45)
  assert whole.kid == pytest.approx(pairwise.squared_mmd(REAL[:45], FAKE)) and whole.kid_err < 1e-12
  some = pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=1)
  assert some == pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=1) != pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=2)
  others = [pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=seed).kid for seed in range(10)]
  assert 0.5 < some.kid_err / np.std(others, ddof=1) < 2  # the error is that of the mean
  assert abs(some.kid - pairwise.squared_mmd(FAKE, REAL)) < 5 * some.kid_err and (some.num_subsets, some.subset_size) == (200, 20)


def test_what_is_too_few_is_refused():
  """k neighbours need more vectors; subsets must fit."""
  for k in (0, 45):
    with pytest.raises(ValueError, match=f"k is {k}"):
      pairwise.precision_recall(FAKE, REAL, k=k)
  for fields in (dict(subset_size=46), dict(subset_size=1), dict(subset_size=10, num_subsets=1)):
    with pytest.raises(ValueError, match="2 to 45"):
      pairwise.kid(FAKE, REAL, **fields)
