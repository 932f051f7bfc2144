"""Precision, recall and the kernel distance against their definitions."""

import numpy as np
import pytest

from cfg.metrics import pairwise

RNG = np.random.default_rng(0)
REAL = RNG.normal(size=(60, 3))
FAKE = RNG.normal(size=(45, 3)) * 0.7 + 0.4


@pytest.fixture(params=[7, 2048])
def tiles(request, monkeypatch):
  """Pairs in small tiles, and all at once."""
  monkeypatch.setattr(pairwise, "TILE", request.param)


def inside(queries, features, k):
  """The definition, one pair at a time."""
  distance = lambda a, b: np.sqrt(((a - b) ** 2).sum())
  radii = [
    sorted(distance(f, g) for j, g in enumerate(features) if j != i)[k - 1]
    for i, f in enumerate(features)
  ]
  return np.mean(
    [any(distance(q, f) <= r + 1e-12 for f, r in zip(features, radii)) for q in queries]
  )


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(tiles, k):
  """Shares in the union of balls to the k-th nearest other vector: precision of the samples, recall
  of the reference.
  """
  precision, recall = pairwise.precision_recall(FAKE, REAL, k=k)
  assert precision == pytest.approx(inside(FAKE, REAL, k)) and recall == pytest.approx(
    inside(REAL, FAKE, k)
  )
  assert precision != recall


def test_a_collapsed_set_is_precise_and_recalls_nothing():
  """Samples that are one real image over and over: precision 1, recall only of the images that are
  it. The other way round they change places.
  """
  collapsed = np.repeat(REAL[:1], 20, axis=0)
  assert pairwise.precision_recall(collapsed, REAL) == (1.0, 1 / 60)
  assert pairwise.precision_recall(REAL, collapsed) == (1 / 60, 1.0)


def test_equal_and_distant_sets(tiles):
  """A set against itself: 1 and 1. Against one far off: 0 and 0."""
  assert pairwise.precision_recall(REAL, REAL) == (1.0, 1.0)
  assert pairwise.precision_recall(REAL + 100, REAL) == (0.0, 0.0)


SMALL = RNG.integers(3, size=(100, 3))  # of 27 different vectors
BYTES = RNG.integers(256, size=(100, 3), dtype=np.uint8)
BLOCKS = {
  "unequal": (np.split(FAKE, [5, 21]), REAL, 3),
  "of fewer than k": (np.split(FAKE, [2, 3, 21]), REAL, 4),
  "one empty": ([FAKE[:20], FAKE[:0], FAKE[20:]], REAL, 2),
  "k+1 left": (np.split(FAKE[:8], 2), REAL, 3),
  "duplicates": (np.split(SMALL[:40], [13, 22]), SMALL[40:], 2),
  "collapsed": (np.split(np.repeat(SMALL[:2], [30, 4], axis=0), [7, 31]), SMALL[40:], 3),
  "collapsed reference": (np.split(SMALL[:40], [13]), np.repeat(SMALL[:2], 9, axis=0), 3),
  "bytes": (np.split(BYTES[:40], [13, 22]), BYTES[40:], 3),
  "float32 far from 0": (np.split(np.float32(FAKE + 1000), [5, 21]), np.float32(REAL + 1000), 3),
}


@pytest.mark.parametrize("case", BLOCKS)
def test_numbers_without_a_block_are_those_of_the_other_samples(tiles, case):
  """Precision and recall of all blocks and without each are those of the samples that are left, by
  the definition and from precision_recall.
  """
  blocks, reference, k = BLOCKS[case]
  found = pairwise.precision_recall_blocks(blocks, reference, k=k)
  left = [
    np.concatenate(some)
    for some in (blocks, *(blocks[:b] + blocks[b + 1 :] for b in range(len(blocks))))
  ]
  pairs = list(
    zip(
      (found.precision, *found.precision_without),
      (found.recall, *found.recall_without),
      strict=True,
    )
  )
  real = np.asarray(reference, np.float64)
  assert pairs == [
    (inside(samples, real, k), inside(real, samples.astype(np.float64), k)) for samples in left
  ]
  assert pairs == [pairwise.precision_recall(samples, reference, k=k) for samples in left]


def test_a_block_takes_what_only_it_covers(tiles):
  """Blocks that are one mode of the reference each, and one off it: recall falls without a mode,
  precision is 1 without what is off.
  """
  modes = [REAL[:40], REAL[40:] + 100]
  found = pairwise.precision_recall_blocks([*modes, FAKE + 1000], np.concatenate(modes))
  assert (found.precision, found.precision_without) == (60 / 105, (20 / 65, 40 / 85, 1.0))
  assert (found.recall, found.recall_without) == (1.0, (20 / 60, 40 / 60, 1.0))


def test_one_block_has_no_numbers_without_it():
  """Nothing is left without the only block: its numbers are precision_recall's and there are no
  others.
  """
  assert pairwise.precision_recall_blocks([FAKE], REAL) == pairwise.PrecisionRecall(
    *pairwise.precision_recall(FAKE, REAL), (), ()
  )


def test_a_vector_of_nan_is_nowhere(tiles):
  """It counts as a sample, but lies in no ball, has none and is nobody's neighbour; who has too few
  others has no ball, not one of everything.
  """
  blocks = np.split(FAKE, [20])
  without, found = (
    pairwise.precision_recall_blocks([blocks[0], last], REAL)
    for last in (blocks[1], np.append(blocks[1], [[np.nan] * 3], axis=0))
  )
  assert (found.recall, found.recall_without) == (without.recall, without.recall_without)
  assert found.precision == pytest.approx(without.precision * 45 / 46)
  assert pairwise.precision_recall(np.append(REAL[:3], [[np.nan] * 3], axis=0), REAL) == (
    3 / 4,
    0.0,
  )


def test_each_distance_is_computed_once(monkeypatch):
  """Distances come in tiles of TILE, and those of a pair once for the radii and once for the
  queries, however many blocks there are.
  """
  shapes, distances = [], pairwise._squared_distances
  monkeypatch.setattr(pairwise, "TILE", 7)
  monkeypatch.setattr(
    pairwise, "_squared_distances", lambda a, b: shapes.append((len(a), len(b))) or distances(a, b)
  )
  pairwise.precision_recall_blocks(np.split(FAKE, 5), REAL)
  assert max(max(shape) for shape in shapes) == 7
  tiles_on_the_diagonal = 7 * (45 + 60) / 2
  assert (
    2 * 45 * 60 + (45**2 + 60**2) / 2
    < sum(a * b for a, b in shapes)
    <= 2 * 45 * 60 + (45**2 + 60**2) / 2 + tiles_on_the_diagonal
  )


def test_squared_mmd_is_its_definition(tiles):
  """The mean kernel over different pairs of each set, less twice that over pairs of both."""
  kernel = lambda x, y: (x @ y / 3 + 1) ** 3
  own = lambda a: np.mean(
    [kernel(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
  )
  expected = own(FAKE) + own(REAL) - 2 * np.mean([kernel(x, y) for x in FAKE for y in REAL])
  assert pairwise.squared_mmd(FAKE, REAL) == pytest.approx(expected, rel=1e-10)


def test_squared_mmd_without_a_block(tiles):
  """What is left without each block, of any sizes, measured by itself; the reference's own term is
  the same in all.
  """
  blocks = np.split(FAKE, [20, 21])
  got = pairwise.squared_mmd_without(blocks, REAL)
  left = [np.concatenate([other for other in blocks if other is not block]) for block in blocks]
  np.testing.assert_allclose(
    np.diff(got), np.diff([pairwise.squared_mmd(some, REAL) for some in left]), rtol=1e-9
  )


def test_squared_mmd_is_unbiased():
  """Halves of one distribution: zero within the error, below zero about as often as above; of
  another one: many errors away.
  """
  draws = RNG.normal(size=(200, 2, 30, 2))
  values = np.array([pairwise.squared_mmd(a, b) for a, b in draws])
  assert abs(values.mean()) < 4 * values.std() / np.sqrt(200) and 0.2 < (values < 0).mean() < 0.9
  shifted = np.array([pairwise.squared_mmd(a, b + 0.5) for a, b in draws])
  assert shifted.mean() > 10 * shifted.std() / np.sqrt(200)


def test_kid_is_a_mean_over_subsets():
  """The whole sets, drawn over and over, are the estimate itself without error; smaller subsets are
  seeded and agree within errors.
  """
  whole = pairwise.kid(REAL[:45], FAKE, num_subsets=3, subset_size=45)
  assert whole.kid == pytest.approx(pairwise.squared_mmd(REAL[:45], FAKE)) and whole.kid_err < 1e-12
  some = pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=1)
  assert (
    some
    == pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=1)
    != pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=2)
  )
  others = [
    pairwise.kid(FAKE, REAL, num_subsets=200, subset_size=20, seed=seed).kid for seed in range(10)
  ]
  assert 0.5 < some.kid_err / np.std(others, ddof=1) < 2  # the error is that of the mean
  assert abs(some.kid - pairwise.squared_mmd(FAKE, REAL)) < 5 * some.kid_err and (
    some.num_subsets,
    some.subset_size,
  ) == (200, 20)


def test_what_is_too_few_is_refused():
  """k neighbours need more vectors; subsets must fit."""
  for k in (0, 45):
    with pytest.raises(ValueError, match=f"k is {k}"):
      pairwise.precision_recall(FAKE, REAL, k=k)
  with pytest.raises(
    ValueError, match="k is 20.* without the largest block, 20, and of reference images, 60"
  ):
    pairwise.precision_recall_blocks(np.split(FAKE, [25]), REAL, k=20)
  with pytest.raises(ValueError, match="k is 5.* reference images, 5$"):
    pairwise.precision_recall_blocks(np.split(FAKE, [25]), REAL[:5], k=5)
  with pytest.raises(ValueError, match="samples, 0"):
    pairwise.precision_recall_blocks([], REAL)
  for fields in (dict(subset_size=46), dict(subset_size=1), dict(subset_size=10, num_subsets=1)):
    with pytest.raises(ValueError, match="2 to 45"):
      pairwise.kid(FAKE, REAL, **fields)
