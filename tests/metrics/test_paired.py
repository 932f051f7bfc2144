"""Differences of rows: textbook errors where they are known, and verdicts that keep their level."""

import numpy as np
import pytest
from scipy import stats

from cfg.features import extractor
from cfg.metrics import paired, pairwise, reference, scores, statistics, summary
from cfg.metrics.metric import Metric

DIM, CLASSES = 4, 4
JUDGE = extractor.classifier(
  name="judge", model=None, params=None, prepare=None, feature_dim=DIM, num_classes=CLASSES, info={}
)
PAIRWISE = tuple(Metric(kind, kind, "judge", kind) for kind in ("precision", "recall", "kid"))


def mean_difference(x, y, *, num_blocks, paired_rows=True, better=""):
  """The Difference of the means of two sets, from equal blocks of consecutive values."""
  without = lambda values: [
    np.delete(values.reshape(num_blocks, -1), i, axis=0).mean() for i in range(num_blocks)
  ]
  return paired.difference(
    first=x.mean(),
    second=y.mean(),
    first_without=without(x),
    second_without=without(y),
    paired=paired_rows,
    better=better,
  )


@pytest.mark.parametrize("num_blocks", [2, 5, 60])
def test_of_means_it_is_the_paired_t_test(num_blocks):
  """Error and interval of the difference of two means are those of the t test of the differences of
  the blocks' means, each sample a block included.
  """
  rng = np.random.default_rng(0)
  x = rng.normal(size=60)
  y = x + 0.3 + 0.2 * rng.normal(size=60)
  got = mean_difference(x, y, num_blocks=num_blocks)
  blocks = (y - x).reshape(num_blocks, -1).mean(axis=1)
  assert got.value == pytest.approx((y - x).mean())
  assert got.err == pytest.approx(stats.sem(blocks))
  interval = stats.ttest_1samp(blocks, 0).confidence_interval(0.95)
  assert (got.low, got.high) == pytest.approx(tuple(interval))
  assert got.ratio < 0.5
  assert (got.verdict == "not resolved") == (stats.ttest_1samp(blocks, 0).pvalue > 0.05)


def test_pairs_of_one_row_and_of_none():
  """A row against itself has no error; independent ones have a ratio near 1, opposite ones sqrt 2;
  without pairs the errors' squares add.
  """
  rng = np.random.default_rng(0)
  x, y = rng.normal(size=(2, 4000))
  same = mean_difference(x, x, num_blocks=5)
  assert (same.value, same.err, same.ratio, same.verdict) == (0, 0, 0, "not resolved")
  assert mean_difference(x, y, num_blocks=400).ratio == pytest.approx(1, abs=0.1)
  assert mean_difference(x, -x, num_blocks=5).ratio == pytest.approx(2**0.5)
  apart = mean_difference(x, x + 1, num_blocks=5, paired_rows=False)
  error = stats.sem(x.reshape(5, -1).mean(axis=1))
  assert apart.err == pytest.approx(2**0.5 * error) and apart.ratio is None
  assert apart.high - apart.value == pytest.approx(stats.t.ppf(0.975, 4) * apart.err)
  constant = mean_difference(np.ones(10), np.ones(10), num_blocks=5)
  assert constant.ratio is None and constant.verdict == "not resolved"


@pytest.mark.parametrize(
  "better, up, down",
  [("lower", "worse", "better"), ("higher", "better", "worse"), ("", "higher", "lower")],
)
def test_the_verdict_and_its_mirror_image(better, up, down):
  """Swapped rows have the opposite difference, interval and verdict; error and ratio stay."""
  x = np.random.default_rng(0).normal(size=50)
  y = x + 1 + 0.01 * np.arange(50)
  there = mean_difference(x, y, num_blocks=5, better=better)
  back = mean_difference(y, x, num_blocks=5, better=better)
  assert (there.verdict, back.verdict) == (up, down)
  assert (back.value, back.low, back.high) == (-there.value, -there.high, -there.low)
  assert (back.err, back.ratio) == (there.err, there.ratio)


def test_unequal_blocks_are_no_pairs():
  """Paired rows of 5 and 3 blocks are refused; apart they have the interval of the fewer."""
  x = np.random.default_rng(0).normal(size=30)
  without = {k: list(x[:k]) for k in (1, 3, 5)}
  ask = lambda a, b, pairs: paired.difference(
    first=0, second=1, first_without=without[a], second_without=without[b], paired=pairs
  )
  apart = ask(5, 3, False)
  assert apart.high - 1 == pytest.approx(stats.t.ppf(0.975, 2) * apart.err)
  for a, b, pairs in ((5, 3, True), (1, 1, False)):
    with pytest.raises(ValueError, match="blocks"):
      ask(a, b, pairs)


def row_of(features, logits, labels, *, num_blocks, metrics, real):
  """The numbers of samples in their order, in equal blocks."""
  block_of = np.arange(len(features)) // (len(features) // num_blocks)
  sums = statistics.Accumulator(metrics, dims=JUDGE.dims, block_of=block_of)
  sums.add({"judge": features, "judge_logits": logits}, labels)
  return summary.summarise(sums.blocks, metrics=metrics, train=real, heldout=real)


def real_of(features):
  """A Reference of features."""
  gaussians = {"judge": statistics.Gaussian.of(features)}
  return reference.Reference(about={}, gaussians=gaussians, sha256="", features={"judge": features})


def samples(rng, count):
  """(features, logits, labels) of a mixture, a Gaussian a class, classes in turn."""
  labels = np.arange(count) % CLASSES
  features = rng.normal(size=(count, DIM)) + 1.5 * np.eye(CLASSES)[labels]
  return features, features + rng.normal(size=(count, CLASSES)), labels


@pytest.mark.parametrize("num_blocks", [5, 20])
def test_rows_keep_each_number_without_each_block(num_blocks):
  """Every metric with an error has k values, which are the metric of all samples but the block's;
  with small blocks, of 4 images in 4 dimensions, as with large ones. KID's lack the reference's own
  term.
  """
  rng = np.random.default_rng(0)
  features, logits, labels = samples(rng, 80)
  real = real_of(1.2 * rng.normal(size=(90, DIM)))
  metrics = (*JUDGE.metrics, *PAIRWISE)
  measure = lambda rows, k: row_of(
    features[rows], logits[rows], labels[rows], num_blocks=k, metrics=metrics, real=real
  )
  row = measure(slice(None), num_blocks)
  block_of = np.arange(80) // (80 // num_blocks)
  without_first = measure(block_of != 0, 2)
  own_terms = []
  for metric in metrics:
    without = row[metric.without]
    assert len(without) == num_blocks, metric
    if metric.kind == "kid":
      for block, value in enumerate(without):
        rest = features[block_of != block].astype(np.float32)
        own_terms.append(pairwise.squared_mmd(rest, real.features["judge"]) - value)
    else:
      assert without[0] == pytest.approx(without_first[metric.key]), metric
    if num_blocks == 20 and metric.kind in ("frechet", "precision", "recall"):
      assert row[metric.err] == scores.jackknife_error(without), metric
  np.testing.assert_allclose(own_terms, own_terms[0], rtol=1e-9)


def test_kid_is_compared_without_its_subsets(monkeypatch):
  """Of two rows the difference of the kernel distances of all samples, whatever subsets were drawn:
  the same with 2 subsets of 5 as with many large ones, and zero error for a row against itself.
  """
  rng = np.random.default_rng(0)
  kid = (Metric("kid", "KID", "judge", "kid", "lower"),)
  (a, logits, labels), real = samples(rng, 80), real_of(rng.normal(size=(90, DIM)))
  b = a + 0.1 * rng.normal(size=a.shape)
  found = []
  for subsets, size in ((100, 1000), (2, 5)):
    monkeypatch.setattr(summary, "KID_SUBSETS", subsets)
    monkeypatch.setattr(summary, "KID_SUBSET", size)
    first, second = (
      row_of(x, logits, labels, num_blocks=5, metrics=kid, real=real) for x in (a, b)
    )
    found.append(paired.of_rows(first, second, kid[0], paired=True))
  assert found[0] == found[1]
  exact = [pairwise.squared_mmd(x, real.features["judge"]) for x in (a, b)]
  assert abs(found[0].value - (exact[1] - exact[0])) < 0.2 * found[0].err
  assert paired.of_rows(first, first, kid[0], paired=True).err == 0


@pytest.mark.parametrize("num_blocks", [5, 10])
def test_halves_of_one_row_are_not_told_apart(num_blocks):
  """200 random splits of a row in two, classes balanced: 95 % of the 95 % intervals of the Fréchet
  distance, the score and the accuracy have zero in them; 90 to 99 % here. Pairs of independent
  samples gain nothing: the ratio is about 1.
  """
  rng = np.random.default_rng(0)
  features, logits, labels = samples(rng, 2000)
  real = real_of(1.3 * samples(rng, 3000)[0])
  metrics = [m for m in JUDGE.metrics if m.against == "train"]
  assert [m.kind for m in metrics] == ["frechet", "score", "accuracy"]
  by_class = np.arange(2000).reshape(-1, CLASSES)  # a column is a class
  found = {metric: [] for metric in metrics}
  for _ in range(200):
    shuffled = rng.permuted(by_class, axis=0)
    halves = [
      row_of(features[i], logits[i], labels[i], num_blocks=num_blocks, metrics=metrics, real=real)
      for i in (shuffled[:250].ravel(), shuffled[250:].ravel())
    ]
    for metric in metrics:
      found[metric].append(paired.of_rows(*halves, metric, paired=True))
  for metric, differences in found.items():
    unresolved = np.mean([d.verdict == "not resolved" for d in differences])
    assert 0.9 <= unresolved <= 0.99, metric.key
    ratio = np.sqrt(np.mean(np.square([d.ratio for d in differences])))
    assert ratio == pytest.approx(1, abs=0.1), metric.key


def test_what_rows_lack():
  """No number in one row: no difference; a row of an earlier version: the difference alone."""
  fid = Metric("fid", "FID", "judge", "frechet", "lower")
  kept = {"fid": 2.0, "fid_without": [1.0, 3.0]}
  assert paired.of_rows({"fid": None}, kept, fid, paired=True) == paired.Difference(None)
  assert paired.of_rows({"fid": 1.5}, kept, fid, paired=True) == paired.Difference(0.5)
  assert paired.of_rows(kept, kept, fid, paired=True).err == 0


X = Metric("x", "IS", "judge", "score", "higher")
Y = Metric("y", "FID", "judge", "frechet", "lower")


def point(x, y, *, spread=0.0):
  """A row whose numbers are without each of 5 blocks what they are, but for `spread` times those of
  a fixed draw.
  """
  noise = np.random.default_rng(int(1000 * x)).normal(size=(2, 5)) * spread
  without = {"x_without": x + noise[0], "y_without": y + noise[1]}
  return {"x": x, "y": y, **{name: list(a) for name, a in without.items()}}


def test_at_equal_score_a_point_on_the_curve_has_no_difference():
  """A row that lies on a line between two rows of the curve has difference 0; above it, its height;
  a row of the curve itself is 0 with no error, however noisy, as its blocks are the same.
  """
  curve = [point(1, 3), point(2, 1), point(3, 2)]
  found = lambda x, y: paired.at_equal(curve, point(x, y), x=X, y=Y, paired=True)
  assert found(1.5, 2).value == pytest.approx(0)
  assert found(2.5, 2).value == pytest.approx(0.5)
  assert found(2.5, 2).verdict == "worse" and found(2.5, 1).verdict == "better"
  noisy = [point(1, 3, spread=0.1), point(2, 1, spread=0.1), point(3, 2, spread=0.1)]
  same = paired.at_equal(noisy, noisy[1], x=X, y=Y, paired=True)
  assert same.value == 0 and same.err == pytest.approx(0, abs=1e-12)
  assert same.verdict == "not resolved"


def test_at_equal_score_the_error_has_that_of_the_score():
  """Of a row whose x alone is noisy the error is the curve's slope times that of x; of one whose y
  alone is, that of y.
  """
  curve = [point(0, 0), point(10, 30)]
  row = point(5, 15)
  jitter = np.array([-2.0, -1, 0, 1, 2])
  for name, slope in (("x_without", 3), ("y_without", 1)):
    changed = {**row, name: list(5 + jitter) if name[0] == "x" else list(15 + jitter)}
    got = paired.at_equal(curve, changed, x=X, y=Y, paired=True)
    assert got.err == pytest.approx(slope * scores.jackknife_error(jitter))


def test_at_equal_score_a_curve_ends_where_its_score_does():
  """Beyond the curve there is nothing to say; where the score no longer rises with the strength the
  curve is over, so that it has one y at each x.
  """
  curve = [point(1, 3), point(2, 1), point(2, 9), point(4, 9)]
  find = lambda x: paired.at_equal(curve, point(x, 1), x=X, y=Y, paired=True)
  assert find(0.9) is None and find(2.1) is None
  assert find(2).value == pytest.approx(0)
  without = {name: value for name, value in point(1.5, 1).items() if name != "y_without"}
  assert paired.at_equal(curve, without, x=X, y=Y, paired=True) is None
