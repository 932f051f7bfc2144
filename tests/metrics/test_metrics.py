"""Streaming statistics and the metrics made of them."""

import functools

import numpy as np
import pytest

from cfg.base.errors import UserError
from cfg.features import extractor
from cfg.metrics import reference, statistics, summary
from cfg.metrics import scores as metrics

RNG = np.random.default_rng(0)
FEATURES = RNG.normal(size=(500, 5)) @ RNG.normal(size=(5, 5)) + 3
PROBS = RNG.dirichlet(np.ones(4) * 0.3, size=500)
LABELS = RNG.integers(0, 4, 500)


def stream(cls, batches, start):
  return functools.reduce(lambda a, b: a.merge(b), (cls.of(b) for b in batches), start)


@pytest.mark.smoke
@pytest.mark.parametrize("sizes", [[500], [1, 499], [7] * 71 + [3]])
def test_statistics_do_not_depend_on_batches(sizes):
  """Mean and covariance are numpy's, and the Inception Score is the naive one, however the samples
  are cut.
  """
  cuts = np.cumsum(sizes)[:-1]
  gaussian = stream(statistics.Gaussian, np.split(FEATURES, cuts), statistics.Gaussian.empty(5))
  np.testing.assert_allclose(gaussian.mean, FEATURES.mean(axis=0), rtol=1e-12)
  np.testing.assert_allclose(gaussian.cov, np.cov(FEATURES, rowvar=False), rtol=1e-10)
  classes = stream(statistics.ClassEntropy, np.split(PROBS, cuts), statistics.ClassEntropy.empty(4))
  kl = (PROBS * (np.log(PROBS) - np.log(PROBS.mean(axis=0)))).sum(axis=1)
  assert metrics.inception_score(classes) == pytest.approx(np.exp(kl.mean()), rel=1e-10)


def gaussian(mean, cov, count=1000):
  """A Gaussian with exactly these moments."""
  return statistics.Gaussian(count, np.asarray(mean, float), np.asarray(cov, float) * (count - 1))


def test_frechet_of_itself_is_zero():
  """FID(x, x) < 1e-6, for a full and for a nearly singular covariance."""
  for scale in (1.0, 1e-6):
    data = FEATURES * np.array([1, 1, 1, 1, scale])
    assert (
      abs(metrics.frechet_distance(statistics.Gaussian.of(data), statistics.Gaussian.of(data)))
      < 1e-6
    )


def test_frechet_closed_forms():
  """One dimension: (m1 - m2)^2 + (s1 - s2)^2; commuting covariances: the sum of that over the axes,
  in any rotation.
  """
  assert metrics.frechet_distance(
    gaussian([1.0], [[4.0]]), gaussian([3.0], [[9.0]])
  ) == pytest.approx(4 + 1)
  s1, s2, m1, m2 = (RNG.uniform(0.5, 2, 6) for _ in range(4))
  q, _ = np.linalg.qr(RNG.normal(size=(6, 6)))
  a, b = gaussian(q @ m1, q * s1**2 @ q.T), gaussian(q @ m2, q * s2**2 @ q.T)
  assert metrics.frechet_distance(a, b) == pytest.approx(((m1 - m2) ** 2 + (s1 - s2) ** 2).sum())


def test_frechet_of_covariances_that_do_not_commute():
  """tr sqrt(C_a C_b) is the sum of the square roots of the eigenvalues of C_a C_b; and the distance
  is symmetric.
  """
  ca, cb = (m @ m.T + 0.1 * np.eye(5) for m in RNG.normal(size=(2, 5, 5)))
  assert np.abs(ca @ cb - cb @ ca).max() > 1
  want = np.trace(ca) + np.trace(cb) - 2 * np.sqrt(np.linalg.eigvals(ca @ cb).real).sum()
  a, b = gaussian(np.zeros(5), ca), gaussian(np.zeros(5), cb)
  assert metrics.frechet_distance(a, b) == pytest.approx(want)
  assert metrics.frechet_distance(b, a) == pytest.approx(want)


def test_frechet_of_samples_approaches_the_closed_form():
  """50,000 samples of two known Gaussians: the distance of the Gaussians, within 2 %."""
  x, y = RNG.normal(size=(50_000, 3)), 1.0 + 2 * RNG.normal(size=(50_000, 3))
  assert metrics.frechet_distance(
    statistics.Gaussian.of(x), statistics.Gaussian.of(y)
  ) == pytest.approx(6.0, rel=0.02)


def test_extrapolation_takes_the_bias_away():
  """Of sets drawn from the reference's own Gaussian the distance is biased by c / N; at 1/N = 0 a
  tenth of that is left, and a line is met exactly.
  """
  reference = gaussian(np.zeros(12), np.eye(12), count=10**6)
  biased, extrapolated = [], []
  for _ in range(40):
    blocks = [statistics.Gaussian.of(RNG.normal(size=(60, 12))) for _ in range(5)]
    biased.append(
      metrics.frechet_distance(functools.reduce(lambda a, b: a.merge(b), blocks), reference)
    )
    extrapolated.append(metrics.frechet_extrapolated(blocks, reference))
  assert np.mean(biased) > 0.1 and abs(np.mean(extrapolated)) < 0.1 * np.mean(
    biased
  ) + 3 * metrics.standard_error(extrapolated)
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(metrics, "frechet_distance", lambda a, b: 2.5 + 70 / a.count)
    assert metrics.frechet_extrapolated(blocks, reference) == pytest.approx(2.5)
  with pytest.raises(ValueError, match="2 blocks"):
    metrics.frechet_extrapolated(blocks[:1], reference)


def test_too_few_samples_are_refused():
  """No more samples than features: no number."""
  few = statistics.Gaussian.of(FEATURES[:5])
  with pytest.raises(ValueError, match="at least 6"):
    metrics.frechet_distance(few, statistics.Gaussian.of(FEATURES))


def test_inception_score_ends():
  """1 for probabilities all alike, uniform or one class; K for certain and balanced ones."""
  score = lambda probs: metrics.inception_score(
    statistics.ClassEntropy.of(np.asarray(probs, float))
  )
  assert score(np.full((8, 4), 0.25)) == pytest.approx(1)
  assert score([[0, 1, 0, 0]] * 8) == pytest.approx(1)
  assert score(np.tile(np.eye(4), (2, 1))) == pytest.approx(4)


JUDGE = extractor.classifier(
  name="judge", model=None, params=None, prepare=None, feature_dim=5, num_classes=4, info={}
)
LOGITS = np.log(PROBS)


def outputs_of(rows):
  return {"judge": FEATURES[rows], "judge_logits": LOGITS[rows]}


def blocks_of(block_of, sizes=(500,), labels=True):
  sums = statistics.Accumulator(JUDGE.metrics, dims=JUDGE.dims, block_of=block_of)
  done = 0
  for size in sizes:
    rows = slice(done, done + size)
    sums.add(outputs_of(rows), LABELS[rows] if labels else None)
    done += size
  return sums.blocks


def reference_of(features):
  gaussians = {"judge": statistics.Gaussian.of(features)}
  return reference.Reference(about={}, gaussians=gaussians, sha256="")


def test_summary_of_blocks():
  """fid and IS are of all samples; errors are the blocks' standard deviation over sqrt(k); accuracy
  counts argmax.
  """
  blocks = blocks_of(np.arange(500) // 100)
  target = reference_of(FEATURES + 0.5)
  got = summary.summarise(
    blocks, metrics=JUDGE.metrics, train=target, heldout=reference_of(FEATURES[:3])
  )
  fids = [metrics.frechet_distance(b.gaussians["judge"], target.gaussians["judge"]) for b in blocks]
  scores = [
    metrics.inception_score(statistics.ClassEntropy.of(PROBS[i : i + 100]))
    for i in range(0, 500, 100)
  ]
  assert got["fid"] == pytest.approx(
    metrics.frechet_distance(statistics.Gaussian.of(FEATURES), target.gaussians["judge"])
  )
  assert got["fid_err"] == pytest.approx(np.std(fids, ddof=1) / np.sqrt(5))
  assert got["fid_block_mean"] == pytest.approx(np.mean(fids))
  assert got["inception_score"] == pytest.approx(
    metrics.inception_score(statistics.ClassEntropy.of(PROBS))
  )
  assert (
    got["inception_score_block_mean"] == pytest.approx(np.mean(scores))
    and np.mean(scores) < got["inception_score"]
  )
  assert got["inception_score_err"] == pytest.approx(np.std(scores, ddof=1) / np.sqrt(5))
  right = (PROBS.argmax(axis=1) == LABELS).reshape(5, 100).mean(axis=1)
  assert got["label_accuracy"] == pytest.approx(right.mean()) and got[
    "label_accuracy_err"
  ] == pytest.approx(np.std(right, ddof=1) / np.sqrt(5))
  assert got["num_samples"] == 500 and got["num_blocks"] == 5
  assert got["fid_heldout"] is None and got["fid_heldout_err"] is None
  with pytest.raises(ValueError, match="2 blocks"):
    summary.summarise(blocks[:1], metrics=JUDGE.metrics, train=target)


def test_errors_where_blocks_are_too_small():
  """Blocks of no more images than features: the number is of all samples, its error the
  jackknife's; without any allowance to be few.
  """
  blocks = blocks_of(np.arange(500) % 125)  # of 4 images, in 5 dimensions
  target = reference_of(FEATURES + 0.5)
  got = summary.summarise(blocks, metrics=JUDGE.metrics, train=target, heldout=target)
  distance = lambda rows: metrics.frechet_distance(
    statistics.Gaussian.of(FEATURES[rows]), target.gaussians["judge"]
  )
  without = [distance(np.arange(500) % 125 != block) for block in range(125)]
  assert got["fid"] == got["fid_heldout"] == pytest.approx(distance(slice(None)))
  assert (
    got["fid_err"]
    == got["fid_heldout_err"]
    == pytest.approx(metrics.jackknife_error(without), rel=1e-6)
    and "fid_block_mean" not in got
  )


@pytest.mark.parametrize("subsets, size", [(10, 1000), (5, 15)])
def test_error_of_kid_is_how_far_other_samples_are(subsets, size, monkeypatch):
  """The spread of KID over independent sets of samples is its error, where its subsets are the
  whole set and do not differ, and where they are few and small.
  """
  monkeypatch.setattr(summary, "KID_SUBSETS", subsets)
  monkeypatch.setattr(summary, "KID_SUBSET", size)
  kid = extractor.Metric("kid", "KID", "pool_3", "kid")
  rng = np.random.default_rng(0)  # its own: what comes does not hang on the tests before
  real, index = rng.normal(size=(120, 4)), np.arange(100)

  def measured():
    sums = statistics.Accumulator([kid], dims={"pool_3": 4}, block_of=index // 20)
    sums.add({"pool_3": 1.3 * rng.normal(size=(100, 4))})
    target = reference.Reference(about={}, gaussians={}, sha256="", features={"pool_3": real})
    return summary.summarise(sums.blocks, metrics=[kid], train=target)

  found = [measured() for _ in range(40)]
  spread = np.std([row["kid"] for row in found], ddof=1)
  assert 0.7 < np.sqrt(np.mean([row["kid_err"] ** 2 for row in found])) / spread < 1.5 and found[0][
    "kid_subset"
  ] == min(size, 100)


@pytest.mark.parametrize("sizes", [(500,), (1, 499), (7,) * 71 + (3,), (512 - 20, 8)])
@pytest.mark.parametrize("gathered", [1, 64, 512])
def test_sums_do_not_depend_on_batches(monkeypatch, sizes, gathered):
  """However the outputs come, each block's sums are of the same rows, in the same order: equal bit
  by bit.
  """
  monkeypatch.setattr(statistics, "GATHERED", gathered)
  block_of = np.arange(500) // 125
  for block, whole in zip(blocks_of(block_of, sizes), blocks_of(block_of), strict=True):
    assert block.count == whole.count == 125 and block.correct == whole.correct
    np.testing.assert_array_equal(
      block.gaussians["judge"].scatter, whole.gaussians["judge"].scatter
    )
    np.testing.assert_array_equal(
      block.entropies["judge_logits"].prob_sum, whole.entropies["judge_logits"].prob_sum
    )
  expected = statistics.Gaussian.of(FEATURES[375:])
  np.testing.assert_allclose(block.gaussians["judge"].scatter, expected.scatter, rtol=1e-9)
  assert blocks_of(block_of, sizes, labels=False)[0].correct is None


def test_not_all_images_are_no_statistics():
  """Sums that wait for more images are not given out."""
  sums = statistics.Accumulator(JUDGE.metrics, dims=JUDGE.dims, block_of=np.zeros(500, int))
  sums.add(outputs_of(slice(0, 499)))
  with pytest.raises(ValueError, match="499 of 500"):
    sums.blocks  # noqa: B018


def network(role, **outputs):
  """An Extractor of {output: kind}, each of dimension 2, whose output is its parameter times x."""
  metrics = [extractor.Metric(kind, kind, name, kind) for name, kind in outputs.items()]
  metrics.insert(1, metrics[0].heldout())
  return extractor.Extractor(
    role=role,
    name=f"network {role}",
    apply=lambda p, x: {name: p * x for name in outputs},
    params=len(outputs),
    dims=dict.fromkeys(outputs, 2),
    metrics=tuple(metrics),
  )


def test_extractors_beside_each_other():
  """All outputs and metrics of three networks: the first's keep their names, those of the others
  end in their role, but for an accuracy, which is not taken yet; each knows whose it is.
  """
  extractors = [
    network("inception", pool_3="frechet"),
    network("judge", judge="frechet", judge_logits="accuracy"),
    network("dino", dino="frechet", dino_logits="accuracy"),
  ]
  named = extractor.beside(extractors)
  combined = extractor.combine(named)
  assert combined.apply(combined.params, 3) == {
    "pool_3": 3,
    "judge": 6,
    "judge_logits": 6,
    "dino": 6,
    "dino_logits": 6,
  }
  assert [(m.key, m.title, m.role, m.against) for m in combined.metrics] == [
    ("frechet", "frechet", "inception", "train"),
    ("frechet_heldout", "frechet held-out", "inception", "heldout"),
    ("frechet_judge", "judge frechet", "judge", "train"),
    ("frechet_judge_heldout", "judge frechet held-out", "judge", "heldout"),
    ("accuracy", "accuracy", "judge", "train"),
    ("frechet_dino", "dino frechet", "dino", "train"),
    ("frechet_dino_heldout", "dino frechet held-out", "dino", "heldout"),
    ("accuracy_dino", "dino accuracy", "dino", "train"),
  ]
  assert extractor.beside(extractors[1:2])[0].metrics == extractors[1].metrics
  with pytest.raises(ValueError, match="share a name"):
    extractor.beside([extractors[1], extractors[1]])


def test_features_are_kept_of_each_output():
  """Precision in one output and KID in another: each row is that of its own features."""
  rng = np.random.default_rng(0)
  outputs = {"a": rng.normal(size=(60, 4)), "b": 2 + rng.normal(size=(60, 3))}
  real = {"a": rng.normal(size=(50, 4)), "b": 2 + rng.normal(size=(50, 3))}
  metrics = [
    extractor.Metric("precision", "precision", "a", "precision"),
    extractor.Metric("kid_a", "KID", "a", "kid"),
    extractor.Metric("kid_b", "KID", "b", "kid"),
  ]
  measure = lambda metrics: summary.summarise(
    [
      statistics.SampleStatistics.of(metrics, {name: a[i::3] for name, a in outputs.items()})
      for i in range(3)
    ],
    metrics=metrics,
    train=reference.Reference(about={}, gaussians={}, sha256="", features=real),
  )
  every = measure(metrics)
  for metric in metrics:
    alone = measure([metric])
    assert every.items() >= alone.items() and metric.key in alone
  assert every["kid_a"] != every["kid_b"]


@pytest.mark.parametrize("count", [1, 3])
def test_statistics_that_are_not_finite_are_not_written(tmp_path, count):
  """The covariance of one image is NaN: an error that says so, and no file."""
  with np.errstate(invalid="ignore", divide="ignore"):
    measured = statistics.SampleStatistics.of(
      JUDGE.metrics, outputs_of(slice(0, count)), LABELS[:count]
    )
    few = reference.of(measured, about={"name": "few"}, sha256="")
    if count > 1:
      reference.write(tmp_path / "few.npz", few)
      assert reference.read(tmp_path / "few.npz").about["correct"] == measured.correct
      return
    with pytest.raises(UserError, match="covariance of the images of 'few' in judge has NaN"):
      reference.write(tmp_path / "few.npz", few)
  assert not list(tmp_path.iterdir())


def test_real_images_are_measured_as_samples_are():
  """Distance, score and accuracy of held-out images from what a reference file keeps; a distance of
  too few is None.
  """
  (measured,) = blocks_of(np.zeros(500, int))
  target = reference_of(FEATURES + 0.5)
  got = summary.of_reference(
    reference.of(measured, about={}, sha256=""), metrics=JUDGE.metrics, train=target
  )
  assert got["fid"] == metrics.frechet_distance(
    measured.gaussians["judge"], target.gaussians["judge"]
  )
  assert got["inception_score"] == metrics.inception_score(measured.entropies["judge_logits"])
  assert (got["label_accuracy"], got["num_samples"]) == (
    (PROBS.argmax(axis=1) == LABELS).mean(),
    500,
  )
  few = reference.of(
    statistics.SampleStatistics.of(JUDGE.metrics, outputs_of(slice(0, 5)), LABELS[:5]),
    about={},
    sha256="",
  )
  assert summary.of_reference(few, metrics=JUDGE.metrics, train=target)["fid"] is None
