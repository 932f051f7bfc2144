"""The tilt gauge against laws that are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import sklearn.datasets

from cfg import diffusion, guidance, limits, rules, sampling, schedules
from cfg.metrics import gauge

STEPS = 256
GRID = np.float32(schedules.sampling_grid(num_steps=STEPS))
RULE = guidance.classifier_free(null_label=-1)
ANCESTRAL, DDIM = sampling.ancestral(var_interp=1.0), sampling.ddim()


class Mixture:
  """K equal classes N(mean_k, diag(std_k^2)) of d numbers: its exact branches, and its law."""

  def __init__(self, means, stds):
    self.means, self.stds = np.atleast_2d(means), np.atleast_2d(stds)

  def eps(self, z, logsnr, y):
    """-sigma grad log p of a class, or with label -1 of the mixture."""
    flat = z.reshape(len(z), -1)
    alpha, sigma = diffusion.alpha(logsnr)[:, None, None], diffusion.sigma(logsnr)[:, None, None]
    offset = flat[:, None] - alpha * jnp.float32(self.means)[None]
    var = alpha**2 * jnp.float32(self.stds)[None] ** 2 + sigma**2
    log_p = -0.5 * jnp.sum(offset**2 / var + jnp.log(var), axis=2)
    own = jax.nn.one_hot(y, len(self.means))
    weight = jnp.where((y < 0)[:, None], jax.nn.softmax(log_p), own)
    return (sigma[:, 0] * jnp.sum(weight[:, :, None] * offset / var, axis=1)).reshape(z.shape)

  def log_ratio(self, x, c):
    """log p(x|c) / p(x) of x [N,d]."""
    offset = (x[:, None] - self.means) / self.stds
    log_p = -0.5 * np.sum(offset**2, axis=2) - np.sum(np.log(self.stds), axis=1)
    largest = log_p.max(axis=1, keepdims=True)
    return log_p[:, c] - np.log(np.mean(np.exp(log_p - largest), axis=1)) - largest[:, 0]


@functools.partial(jax.jit, static_argnames=("mixture", "sampler", "count"))
def draw(w, c, *, mixture, sampler, count):
  """(x [count,d], gap [T,count]) of class c, unclipped."""
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(count, dtype=jnp.uint32))
  x, aux = sampling.sample(
    networks={guidance.MAIN: mixture.eps},
    rule=RULE,
    sampler=sampler,
    limit=limits.no_limit(),
    keys=keys,
    y=jnp.full(count, c),
    w=w,
    logsnr=GRID,
    image_shape=(mixture.means.shape[1],),
  )
  return x, aux["gap"]


COUNT = 10_000  # samples of a class, in ten blocks
BLOCKS = np.arange(COUNT) % 10
LINE = Mixture([[-1.0], [0.3], [1.2]], [[0.4], [0.25], [0.5]])


def row_of(gap, w, count=COUNT):
  """The gauge of samples of one class."""
  gap = np.asarray(gap).T
  blocks, y = np.arange(count) % 10, np.zeros(count, int)
  return gauge.summarise(gap=gap, logsnr=GRID, y=y, block_of=blocks, w=w, refused="")


def exact(c, w):
  """(log Z, mean, standard deviation) of p(x|c)^(1+w) p(x)^(-w) / Z, by quadrature."""
  x = np.linspace(-8, 8, 40_001)
  density = np.exp(-0.5 * ((x - LINE.means[c]) / LINE.stds[c]) ** 2)
  density *= np.exp(w * LINE.log_ratio(x[:, None], c))
  plain = np.sqrt(2 * np.pi) * LINE.stds[c, 0]
  total = np.trapezoid(density, x)
  mean = np.trapezoid(x * density, x) / total
  return np.log(total / plain), mean, np.sqrt(np.trapezoid((x - mean) ** 2 * density, x) / total)


def moments(x, log_weight):
  """Weighted mean and standard deviation, and their errors without each of ten blocks in turn."""

  def of(rows):
    weight = np.exp(log_weight[rows] - log_weight.max())
    mean = np.average(x[rows], weights=weight)
    return np.array([mean, np.sqrt(np.average((x[rows] - mean) ** 2, weights=weight))])

  blocks = BLOCKS[: len(x)]
  without = np.array([of(blocks != block) for block in range(10)])
  return of(blocks >= 0), np.sqrt(9) * without.std(axis=0)


@pytest.mark.parametrize("c, w", [(1, 0.3), (2, 0.3)])
@pytest.mark.parametrize("sampler", [ANCESTRAL, DDIM], ids=["ancestral", "ddim"])
def test_weighted_samples_follow_the_tilted_law(sampler, c, w):
  """log Z and the weighted moments are those of p(x|c) p(c|x)^w / Z within 3 standard errors, and
  the plain guided moments are not.
  """
  x, gap = draw(jnp.float32(w), c, mixture=LINE, sampler=sampler, count=COUNT)
  x = np.asarray(x, np.float64)[:, 0]
  row = row_of(gap, w)
  log_z, mean, std = exact(c, w)
  slack = 0.004  # of the steps
  assert abs(row["log_z"] - log_z) < 3 * row["log_z_err"] + slack
  log_weight = gauge.log_weights(information=gauge.information(gap=gap.T, logsnr=GRID)[0], w=w)
  weighted, err = moments(x, log_weight)
  assert np.all(np.abs(weighted - [mean, std]) < 3 * err + slack), (weighted, mean, std, err)
  plain, err = moments(x, np.zeros(COUNT))
  assert np.any(np.abs(plain - [mean, std]) > 3 * err + slack), (plain, mean, std, err)
  assert 0 < row["tilt_kl"] < 0.1


def test_kl_is_that_of_the_drawn_density():
  """For DDIM the KL is that of the samples: from their histogram and the exact density, nearly."""
  w, c = 0.3, 2
  x, gap = draw(jnp.float32(w), c, mixture=LINE, sampler=DDIM, count=COUNT)
  row = row_of(gap, w)
  x = np.asarray(x, np.float64)[:, 0]
  counts, edges = np.histogram(x, bins=60)
  middle = (edges[1:] + edges[:-1]) / 2
  log_z, _, _ = exact(c, w)
  normal = -0.5 * ((middle - LINE.means[c]) / LINE.stds[c]) ** 2 - np.log(
    LINE.stds[c] * np.sqrt(2 * np.pi)
  )
  log_q = normal + w * LINE.log_ratio(middle[:, None], c) - log_z
  share = counts / counts.sum()
  seen = counts > 0
  kl = np.sum(share[seen] * (np.log(share[seen] / np.diff(edges)[seen]) - log_q[seen]))
  assert abs(row["tilt_kl"] - kl) < 0.006, (row["tilt_kl"], kl)


def test_information_without_guidance_is_that_of_the_label():
  """At w = 0 its mean is KL(p(x|c) || p(x)), by quadrature."""
  _, gap = draw(jnp.float32(0), 0, mixture=LINE, sampler=ANCESTRAL, count=COUNT)
  row = row_of(gap, 0.0)
  x = np.linspace(-8, 8, 40_001)
  density = np.exp(-0.5 * ((x - LINE.means[0]) / LINE.stds[0]) ** 2)
  exactly = np.average(LINE.log_ratio(x[:, None], 0), weights=density)
  assert abs(row["information"] - exactly) < 3 * row["information_err"] + 0.004
  np.testing.assert_allclose(row["information_by_level"][-1], row["information"], rtol=1e-6)
  assert np.all(np.diff(row["information_by_level"]) >= 0)


def test_in_64_dimensions():
  """log Z is E[(p(x|c) / p(x))^w] over the class, here by plain Monte Carlo: w log K where classes
  are as far apart as these.
  """
  rng = np.random.default_rng(0)
  mixture = Mixture(0.15 * rng.normal(size=(5, 64)), rng.uniform(0.2, 0.5, size=(5, 64)))
  x = mixture.means[3] + mixture.stds[3] * rng.normal(size=(20_000, 64))
  ratio, count = mixture.log_ratio(x, 3), 2500
  _, gap = draw(jnp.float32(0.3), 3, mixture=mixture, sampler=DDIM, count=count)
  row = row_of(gap, 0.3, count)
  log_z = np.log(np.mean(np.exp(0.3 * ratio)))
  np.testing.assert_allclose(log_z, 0.3 * np.log(5), rtol=0.02)
  assert abs(row["log_z"] - log_z) < 3 * row["log_z_err"], (row["log_z"], log_z)


class Digits:
  """scikit-learn's digits as ten equal classes N(mean, covariance), the latter shrunk by 10%: the
  exact networks of one class and of all.
  """

  def __init__(self, label):
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    own = [images[labels == c] / 8 - 1 for c in range(10)]
    self.label, self.means = label, np.array([x.mean(axis=0) for x in own])
    covariances = np.array([np.cov(x.T) for x in own])
    spherical = np.trace(covariances, axis1=1, axis2=2)[:, None, None] / 64 * np.eye(64)
    # columns of `axes` are those along which a class varies by itself, by `variances`
    self.variances, self.axes = np.linalg.eigh(0.9 * covariances + 0.1 * spherical)

  def eps(self, z, logsnr, classes):
    """-sigma grad log p of some classes together."""
    axes = np.float32(np.moveaxis(self.axes[classes], 0, 1).reshape(64, -1))
    means = np.float32(np.einsum("kd,kde->ke", self.means[classes], self.axes[classes]))
    alpha, sigma = diffusion.alpha(logsnr[0]), diffusion.sigma(logsnr[0])
    offset = (z @ axes).reshape(len(z), len(classes), 64) - alpha * means[None]
    var = (alpha**2 * np.float32(self.variances[classes]) + sigma**2)[None]
    share = jax.nn.softmax(-0.5 * jnp.sum(offset**2 / var + jnp.log(var), axis=2))
    return sigma * ((share[:, :, None] * offset / var).reshape(len(z), -1) @ axes.T)

  def draw(self, count):
    """[count,64] of the class itself."""
    noise = np.random.default_rng(0).normal(size=(count, 64)) * np.sqrt(self.variances[self.label])
    return self.means[self.label] + noise @ self.axes[self.label].T

  def log_ratio(self, x):
    """log p(x|c) / p(x)."""
    along = np.einsum("nkd,kde->nke", x[:, None] - self.means, self.axes)
    log_p = -0.5 * np.sum(along**2 / self.variances + np.log(self.variances), axis=2)
    return log_p[:, self.label] - scipy.special.logsumexp(log_p, axis=1) + np.log(10)

  def score(self, x):
    """Where x lies between the mean of all classes and that of its own, in the latter's metric."""
    axes, variances = self.axes[self.label], self.variances[self.label]
    apart = (self.means[self.label] - self.means.mean(axis=0)) @ axes / variances
    return (x - self.means[self.label]) @ axes @ apart


def test_on_digits():
  """Of ten correlated classes in 64 dimensions: at w = 0.1 log Z and the weighted mean are those of
  the tilted law within 3 standard errors, and the plain mean is not; at w = 1 no weights are left
  to say so.
  """
  law, count = Digits(8), 1000
  networks = {
    guidance.MAIN: lambda z, logsnr, y: law.eps(z, logsnr, [law.label]),
    "guide": lambda z, logsnr, y: law.eps(z, logsnr, range(10)),
  }

  @jax.jit
  def draw(w):
    keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(count, dtype=jnp.uint32))
    return sampling.sample(
      networks=networks,
      rule=rules.second_network(role="guide"),
      sampler=DDIM,
      limit=limits.no_limit(),
      keys=keys,
      y=jnp.zeros(count, jnp.int32),
      w=w,
      logsnr=GRID,
      image_shape=(64,),
    )

  w = 0.1
  x, aux = draw(jnp.float32(w))
  row = row_of(aux["gap"], w, count)
  real = law.draw(20_000)
  tilt = np.exp(w * law.log_ratio(real))
  log_z = np.log(tilt.mean())
  np.testing.assert_allclose(log_z, w * np.log(10), rtol=0.02)
  assert abs(row["log_z"] - log_z) < 3 * row["log_z_err"] < 0.1, (row["log_z"], log_z)
  score, exactly = law.score(np.asarray(x, np.float64)), np.average(law.score(real), weights=tilt)
  information = gauge.information(gap=np.asarray(aux["gap"]).T, logsnr=GRID)[0]
  log_weight = gauge.log_weights(information=information, w=w)
  for weights, right in ((log_weight, True), (0 * log_weight, False)):
    mean, err = (a[0] for a in moments(score, weights))
    assert (abs(mean - exactly) < 3 * err) == right, (mean, exactly, err)
  assert 0.01 < row["tilt_kl"] < 0.06
  row = row_of(draw(jnp.float32(1.0))[1]["gap"], 1.0, count)
  assert "an effective sample size of" in row["tilt_unresolved"]


def test_a_gap_that_is_the_same_everywhere():
  """I is half of it times the range, all weights are equal: log Z = w (1 + w) I, no KL, and every
  sample counts.
  """
  gap, logsnr = np.full((400, 9), 0.7), np.linspace(-3, 5, 9)
  y, blocks = np.arange(400) % 4, np.arange(400) // 100
  row = gauge.summarise(gap=gap, logsnr=logsnr, y=y, block_of=blocks, w=0.5, refused="")
  np.testing.assert_allclose([row["information"], row["log_z"]], [2.8, 0.75 * 2.8])
  np.testing.assert_allclose([row["tilt_kl"], row["tilt_ess"]], [0, 400], atol=1e-9)
  np.testing.assert_allclose(row["information_by_class"], [2.8] * 4)
  np.testing.assert_allclose(row["information_by_level"], 0.35 * np.arange(9))


def test_two_kinds_of_weights():
  """Of N samples half weigh three times as much: Z is 2, and they are worth 0.8 N."""
  log_weight = np.log(np.tile([1.0, 3.0], 50))
  got = gauge.tilt(log_weight=log_weight, y=np.zeros(100, int))
  np.testing.assert_allclose(
    [got["log_z"], got["tilt_kl"], got["tilt_ess"]], [np.log(2), np.log(2 / np.sqrt(3)), 80]
  )


def test_nothing_is_said_that_is_not_resolved():
  """Refused by the caller, too few effective samples, a coarse grid: the reason stands there."""
  rng = np.random.default_rng(1)
  logsnr, y_of_two = np.linspace(0, 4, 5), np.arange(400) % 2
  of = functools.partial(
    gauge.summarise, logsnr=logsnr, y=0 * y_of_two, block_of=np.arange(400) // 100, refused=""
  )
  even = np.ones((400, 5))
  assert of(gap=even, w=1.0, refused="it was clipped")["tilt_unresolved"] == "it was clipped"
  wild = np.exp(2 * rng.normal(size=(400, 1))) * even
  assert "effective sample size" in of(gap=wild, w=2.0)["tilt_unresolved"]
  # a class that has too few of its own, however many the others have
  wild[:] = np.where(y_of_two[:, None] == 0, wild, 1.0)
  two = of(gap=wild, w=2.0, y=y_of_two)
  assert "in 200" in two["tilt_unresolved"]
  assert "finite" in of(gap=even * np.nan, w=1.0)["tilt_unresolved"]
  falling = even * np.array([4.0, 1, 1, 1, 1])
  assert "too coarse" in of(gap=falling, w=0.1)["tilt_unresolved"]
  assert "log_z" not in of(gap=falling, w=0.1) and "log_z" in of(gap=even, w=0.1)


def test_samples_and_classes_in_any_order():
  """The numbers do not depend on the order of the samples; classes are averaged with equal weight,
  whatever their log Z.
  """
  rng = np.random.default_rng(2)
  log_weight, y = rng.normal(size=300) * 0.3, np.arange(300) % 3
  shuffled = rng.permutation(300)
  a = gauge.tilt(log_weight=log_weight, y=y)
  b = gauge.tilt(log_weight=log_weight[shuffled], y=y[shuffled])
  assert a.keys() == b.keys()
  for name in a:
    np.testing.assert_allclose(a[name], b[name])
  moved = gauge.tilt(log_weight=log_weight + 5.0 * y, y=y)
  np.testing.assert_allclose(moved["log_z"], a["log_z"] + 5.0)
  np.testing.assert_allclose([moved["tilt_kl"], moved["tilt_ess"]], [a["tilt_kl"], a["tilt_ess"]])
