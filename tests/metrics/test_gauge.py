"""The tilt gauge against laws that are known exactly."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
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
  """scikit-learn's digits as ten equal classes N(mean, covariance), the latter shrunk by 10%."""

  def __init__(self):
    images, labels = sklearn.datasets.load_digits(return_X_y=True)
    own = [images[labels == c] / 8 - 1 for c in range(10)]
    self.means = np.array([x.mean(axis=0) for x in own])
    covariances = np.array([np.cov(x.T) for x in own])
    spherical = np.trace(covariances, axis1=1, axis2=2)[:, None, None] / 64 * np.eye(64)
    # columns of `axes` are those along which a class varies by itself, by `variances`
    self.variances, self.axes = np.linalg.eigh(0.9 * covariances + 0.1 * spherical)

  def networks(self):
    """Exact ones: of the class of the first label, and of all."""
    every = np.arange(10)
    return {
      guidance.MAIN: lambda z, logsnr, y: self.eps(z, logsnr, y[:1]),
      "guide": lambda z, logsnr, y: self.eps(z, logsnr, every),
    }

  def eps(self, z, logsnr, classes):
    """-sigma grad log p of some classes together."""
    axes, means = jnp.float32(self.axes)[classes], jnp.float32(self.means)[classes]
    means = jnp.einsum("kd,kde->ke", means, axes)
    axes = jnp.moveaxis(axes, 0, 1).reshape(64, -1)
    alpha, sigma = diffusion.alpha(logsnr[0]), diffusion.sigma(logsnr[0])
    offset = (z @ axes).reshape(len(z), len(classes), 64) - alpha * means[None]
    var = (alpha**2 * jnp.float32(self.variances)[classes] + sigma**2)[None]
    share = jax.nn.softmax(-0.5 * jnp.sum(offset**2 / var + jnp.log(var), axis=2))
    return sigma * ((share[:, :, None] * offset / var).reshape(len(z), -1) @ axes.T)

  def draw(self, c, count):
    """[count,64] of class c."""
    noise = np.random.default_rng(0).normal(size=(count, 64)) * np.sqrt(self.variances[c])
    return self.means[c] + noise @ self.axes[c].T

  def log_densities(self, x):
    """[N,10] of each class."""
    along = np.einsum("nkd,kde->nke", x[:, None] - self.means, self.axes)
    return -0.5 * np.sum(along**2 / self.variances + np.log(2 * np.pi * self.variances), axis=2)

  def log_ratio(self, x, c):
    """log p(x|c) / p(x)."""
    log_p = self.log_densities(x)
    return log_p[:, c] - scipy.special.logsumexp(log_p, axis=1) + np.log(10)

  def score(self, x, c):
    """Where x lies between the mean of all classes and that of c, in the latter's metric."""
    apart = (self.means[c] - self.means.mean(axis=0)) @ self.axes[c] / self.variances[c]
    return (x - self.means[c]) @ self.axes[c] @ apart


DIGITS = Digits()


@functools.partial(jax.jit, static_argnames=("sampler", "count"))
def draw_digits(w, c, *, sampler, count):
  """(x [count,64], gap [T,count]) of class c, unclipped."""
  keys = sampling.sample_keys(key=jax.random.key(c), index=jnp.arange(count, dtype=jnp.uint32))
  x, aux = sampling.sample(
    networks=DIGITS.networks(),
    rule=rules.second_network(role="guide"),
    sampler=sampler,
    limit=limits.no_limit(),
    keys=keys,
    y=jnp.full(count, c),
    w=w,
    logsnr=GRID,
    image_shape=(64,),
  )
  return x, aux["gap"]


def digits_row(w, *, sampler, classes, count):
  """(x [K,count,64], log weights [K,count], the row) of K classes."""
  found = [draw_digits(jnp.float32(w), c, sampler=sampler, count=count) for c in classes]
  gap = np.concatenate([np.asarray(gap) for _, gap in found], axis=1).T
  y, blocks = np.repeat(classes, count), np.tile(np.arange(count) % 10, len(classes))
  row = gauge.summarise(gap=gap, logsnr=GRID, y=y, block_of=blocks, w=w, refused="")
  log_weight = gauge.log_weights(information=gauge.information(gap=gap, logsnr=GRID)[0], w=w)
  return np.array([x for x, _ in found], np.float64), log_weight.reshape(-1, count), row


def tilted_digits(w, classes):
  """(log Z, mean score) of the tilted law, averaged over the classes, from draws of each."""
  log_z, score = [], []
  for c in classes:
    real = DIGITS.draw(c, 10_000)
    tilt = np.exp(w * DIGITS.log_ratio(real, c))
    log_z.append(np.log(tilt.mean()))
    score.append(np.average(DIGITS.score(real, c), weights=tilt))
  return np.mean(log_z), np.mean(score)


def mean_score(x, log_weight, classes):
  """The weighted mean score, averaged over the classes, and its jackknife's error."""
  score = np.array([DIGITS.score(own, c) for own, c in zip(x, classes)])
  weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
  blocks = np.arange(x.shape[1]) % 10
  of = lambda rows: np.mean(np.average(score[:, rows], axis=1, weights=weight[:, rows]))
  without = np.array([of(blocks != block) for block in range(10)])
  return of(blocks >= 0), np.sqrt(9) * without.std()


def check_digits(w, *, sampler, classes, count, most):
  """log Z and the weighted mean are those of the tilted law within 3 standard errors, the former's
  at most `most`; the plain mean is not.
  """
  x, log_weight, row = digits_row(w, sampler=sampler, classes=classes, count=count)
  log_z, exactly = tilted_digits(w, classes)
  np.testing.assert_allclose(log_z, w * np.log(10), rtol=0.02)
  assert abs(row["log_z"] - log_z) < 3 * row["log_z_err"] < 3 * most, (row["log_z"], log_z)
  mean, err = mean_score(x, log_weight, classes)
  assert abs(mean - exactly) < 3 * err, (mean, exactly, err)
  mean, err = mean_score(x, 0 * log_weight, classes)
  assert abs(mean - exactly) > 3 * err, (mean, exactly, err)


def test_on_digits():
  """Of correlated classes in 64 dimensions the row tells the tilted law."""
  check_digits(0.1, sampler=DDIM, classes=(1, 8), count=500, most=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("sampler, w", [(DDIM, 0.1), (ANCESTRAL, 0.1), (ANCESTRAL, 0.3)])
def test_on_many_digits(sampler, w):
  """The same of many samples of all ten."""
  check_digits(w, sampler=sampler, classes=range(10), count=4000, most=0.006)


def test_on_digits_strong_guidance_is_not_resolved():
  """At w = 1 no weights are left to say what the tilted law is, and the row says so."""
  *_, row = digits_row(1.0, sampler=DDIM, classes=(1,), count=500)
  assert "an effective sample size of" in row["tilt_unresolved"] and "log_z" not in row


def density(networks, *, w, c, count, dim, num_steps):
  """(x [N,d], log of the density that DDIM draws it with [N], I [N]): the sampler is a map of the
  first noise, whose Jacobian is that of a shift which all samples share.
  """
  grid = np.float32(schedules.sampling_grid(num_steps=num_steps))
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(count, dtype=jnp.uint32))
  first = []

  def flow(shift):
    def start(z, w):
      first.append(z)
      return z + shift[None]

    x, aux = sampling.sample(
      networks=networks,
      rule=rules.second_network(role="guide")._replace(start=start),
      sampler=DDIM,
      limit=limits.no_limit(),
      keys=keys,
      y=jnp.full(count, c),
      w=jnp.float32(w),
      logsnr=grid,
      image_shape=(dim,),
    )
    return x, (x, aux["gap"], first[-1])

  jacobian, (x, gap, z) = jax.jit(jax.jacfwd(flow, has_aux=True))(jnp.zeros(dim))
  noise = scipy.stats.norm.logpdf(np.asarray(z, np.float64)).sum(axis=1)
  volume = np.linalg.slogdet(np.asarray(jacobian, np.float64))[1]
  information = gauge.information(gap=np.asarray(gap).T, logsnr=grid)[0]
  return np.asarray(x, np.float64), noise - volume, information


@pytest.mark.parametrize("c", [1, 2])
def test_a_weight_is_the_ratio_of_two_densities(c):
  """w (1 + w) I of each single sample is log p(x|c)^(1+w) p(x)^(-w) - log p_guided(x), the latter
  by the change of variables of the whole sampler; what is left halves with the steps. So KL is
  that of the two densities.
  """
  w = 0.3
  networks = {
    guidance.MAIN: lambda z, logsnr, y: LINE.eps(z, logsnr, y),
    "guide": lambda z, logsnr, y: LINE.eps(z, logsnr, jnp.full_like(y, -1)),
  }
  left = []
  for num_steps in (256, 512):
    x, log_p, information = density(networks, w=w, c=c, count=200, dim=1, num_steps=num_steps)
    own = scipy.stats.norm.logpdf(x[:, 0], LINE.means[c, 0], LINE.stds[c, 0])
    log_weight = gauge.log_weights(information=information, w=w)
    left.append(own + w * LINE.log_ratio(x, c) - log_p - log_weight)
    kl = exact(c, w)[0] - np.mean(own + w * LINE.log_ratio(x, c) - log_p)
  coarse, fine = (np.sqrt(np.mean(d**2)) for d in left)
  assert 0.4 < fine / coarse < 0.6 and fine < 0.02 * np.ptp(log_weight), (coarse, fine)
  log_z = exact(c, w)[0]
  assert abs(kl - (log_z - log_weight.mean())) < 0.005 < 0.1 * kl, kl


def test_a_weight_is_the_ratio_of_two_densities_of_digits():
  """The same in 64 dimensions, at w = 1, where no average of weights tells anything any more."""
  c, w = 8, 1.0
  x, log_p, information = density(DIGITS.networks(), w=w, c=c, count=32, dim=64, num_steps=STEPS)
  log_ratio = DIGITS.log_densities(x)[:, c] + w * DIGITS.log_ratio(x, c) - log_p
  log_weight = gauge.log_weights(information=information, w=w)
  assert np.std(log_ratio - log_weight) < 0.25 * np.std(log_weight)
  assert abs(np.mean(log_ratio - log_weight)) < 0.1 < 0.2 * (np.log(10) - log_weight.mean())


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


def test_log_z_cannot_fall_below_that_of_smaller_strengths():
  """Of a convex log Z with log Z(0) = 0 nothing is wrong, whatever the order; one that lies below
  the line through 0 and a smaller strength by more than two errors is, and one below 0.
  """
  w = np.array([1.0, 0.1, 0.3])
  falls = lambda log_z, err=0.01: gauge.falls(
    w=w, log_z=np.array(log_z), err=np.full(3, err)
  ).tolist()
  assert falls(0.5 * w * (1 + w)) == [False, False, False]
  assert falls([1.6, 0.23, 0.69]) == [True, False, False]
  # the slopes' errors are 0.01 and 0.033
  assert falls([2.3 - 2.1 * np.hypot(0.01, 1 / 30), 0.23, 0.69]) == [True, False, False]
  assert falls([2.3 - 1.9 * np.hypot(0.01, 1 / 30), 0.23, 0.69]) == [False, False, False]
  assert falls([2.3, -0.03, 0.69]) == [False, True, False]
  assert gauge.falls(w=np.array([]), log_z=np.array([]), err=np.array([])).size == 0


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
