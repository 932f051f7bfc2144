"""Exact mixtures: noise that is the score, and tilted laws whose numbers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion, mixtures
from cfg.mixtures import Mixture

PLANE = mixtures.figure_2()
LINE = Mixture(np.array([[-1.0], [0.3], [1.2]]), np.array([0.4, 0.25, 0.5]))


def test_noise_is_the_score():
  """eps = -sigma grad log p(z|y), by differentiating the density; with the null label p(z)'s."""
  z = jax.random.normal(jax.random.key(0), (8, 2))
  logsnr, y = jnp.linspace(-6.0, 6.0, 8), jnp.arange(8) % 4

  def log_p(z, level, label):
    log_classes = mixtures.log_classes(z[None], mixture=PLANE, logsnr=level, xp=jnp)[0]
    return jnp.where(label == 3, jax.nn.logsumexp(log_classes), log_classes[label])

  gradient = jax.jit(jax.vmap(jax.grad(log_p)))(z, logsnr, y)
  want = -diffusion.sigma(logsnr)[:, None] * gradient
  got = jax.jit(mixtures.make_eps_fn(PLANE))(z.reshape(8, 1, 1, 2), logsnr, y)
  np.testing.assert_allclose(got.reshape(8, 2), want, atol=2e-5)


def test_density_of_a_level_is_that_of_noised_samples():
  """log p(z|k) is normal: of alpha x + sigma eps with a million of each, its mean is -d/2 log(2 pi
  e var)."""
  rng = np.random.default_rng(0)
  x = LINE.means[0] + LINE.stds[0] * rng.standard_normal((200_000, 1))
  level = 0.7
  z = diffusion.alpha(level) * x + diffusion.sigma(level) * rng.standard_normal(x.shape)
  got = mixtures.log_classes(np.float64(z), mixture=LINE, logsnr=level)[:, 0].mean()
  var = 0.4**2 / (1 + np.exp(-level)) + 1 / (1 + np.exp(level))
  np.testing.assert_allclose(got, -0.5 * np.log(2 * np.pi * np.e * var), atol=0.01)


@pytest.mark.parametrize("mixture", [LINE, PLANE], ids=["line", "plane"])
def test_the_tilted_law_without_guidance_is_the_class(mixture):
  """At w = 0: Z is 1, and mean and covariance are the class's."""
  law = mixtures.tilted_on_grid(mixture=mixture, label=2, w=0.0)
  np.testing.assert_allclose(law.log_z, 0, atol=1e-10)
  np.testing.assert_allclose(law.mean, mixture.means[2], atol=1e-10)
  np.testing.assert_allclose(law.cov, mixture.stds[2] ** 2 * np.eye(mixture.dim), atol=1e-10)


def test_numbers_that_are_known():
  """On the line: means and standard deviations of arXiv 2607.19725's kind by another quadrature;
  and classes that do not overlap at all have log Z = w log K.
  """
  x = np.linspace(-8, 8, 40_001)
  normal = lambda k: np.exp(-0.5 * ((x - LINE.means[k, 0]) / LINE.stds[k]) ** 2) / LINE.stds[k]
  q = normal(2) ** 4 / np.mean([normal(k) for k in range(3)], axis=0) ** 3
  law = mixtures.tilted_on_grid(mixture=LINE, label=2, w=3.0, points=4001)
  mean = np.average(x, weights=q)
  np.testing.assert_allclose(law.mean[0], mean, rtol=1e-6)
  np.testing.assert_allclose(law.cov[0, 0], np.average((x - mean) ** 2, weights=q), rtol=1e-6)
  z = np.trapezoid(q, x) / np.sqrt(2 * np.pi)
  np.testing.assert_allclose(law.log_z, np.log(z), rtol=1e-6)
  far = Mixture(20 * PLANE.means, PLANE.stds)
  law = mixtures.tilted_on_grid(mixture=far, label=1, w=2.0)
  np.testing.assert_allclose(law.log_z, 2 * np.log(3), rtol=1e-9)
  cell = np.prod([axis[1] - axis[0] for axis in law.axes])
  np.testing.assert_allclose(law.density.sum() * cell, 1)


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_draws_follow_the_tilted_law(w):
  """Mean and covariance of exact draws are the grid's within 4 standard errors."""
  law = mixtures.tilted_on_grid(mixture=PLANE, label=0, w=w)
  x = mixtures.draw_tilted(mixture=PLANE, label=0, w=w, count=40_000, rng=np.random.default_rng(3))
  assert x.shape == (40_000, 2)
  assert np.all(np.abs(x.mean(axis=0) - law.mean) < 4 * np.sqrt(np.diag(law.cov) / len(x)))
  np.testing.assert_allclose(np.cov(x.T), law.cov, atol=4 * 1.5 * law.cov.max() / 200)


def test_what_has_no_exact_law_is_refused():
  """Below w = 0 the law may not fall off; a grid of three dimensions would be too large."""
  rng = np.random.default_rng(0)
  with pytest.raises(ValueError, match="at least 0"):
    mixtures.draw_tilted(mixture=PLANE, label=0, w=-0.5, count=1, rng=rng)
  with pytest.raises(ValueError, match="at most 2"):
    solid = Mixture(np.zeros((2, 3)), np.ones(2))
    mixtures.tilted_on_grid(mixture=solid, label=0, w=1.0)
