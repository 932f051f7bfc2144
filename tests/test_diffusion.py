"""The Gaussian algebra against brute force in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion

LEVELS = [(-20.0, -3.0), (-2.0, -1.9), (-1.0, 2.0), (5.0, 20.0)]


def sig(x):
  return 1 / (1 + np.exp(-x))


@pytest.mark.smoke
def test_variance_is_preserved():
  """alpha^2 + sigma^2 = 1 at every level, and alpha^2 / sigma^2 = exp(lambda)."""
  logsnr = jnp.linspace(-20, 20, 81)
  alpha, sigma = diffusion.alpha(logsnr), diffusion.sigma(logsnr)
  np.testing.assert_allclose(alpha**2 + sigma**2, 1, atol=1e-6)
  np.testing.assert_allclose(2 * jnp.log(alpha / sigma), logsnr, atol=1e-4)


def test_round_trips():
  """x, eps and v give each other back."""
  x, eps = jax.random.normal(jax.random.key(0), (2, 5, 4, 4, 3))
  logsnr = jnp.float32([-4.0, -1.0, 0.0, 1.0, 4.0])
  z = diffusion.q_sample(x=x, eps=eps, logsnr=logsnr)
  v = diffusion.v_from_x_eps(x=x, eps=eps, logsnr=logsnr)
  close = lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5)
  close(diffusion.x_from_eps(z=z, eps=eps, logsnr=logsnr), x)
  close(diffusion.eps_from_x(z=z, x=x, logsnr=logsnr), eps)
  close(diffusion.x_from_v(z=z, v=v, logsnr=logsnr), x)
  close(diffusion.eps_from_v(z=z, v=v, logsnr=logsnr), eps)


@pytest.mark.parametrize("logsnr_t, logsnr_s", LEVELS)
def test_posterior_is_gaussian_conditioning(logsnr_t, logsnr_s):
  """q(z_s | z_t, x) from the joint of z_s and z_t given x, conditioned in float64."""
  x, z_t = 0.7, -1.3
  alpha_t, alpha_s = np.sqrt(sig(logsnr_t)), np.sqrt(sig(logsnr_s))
  var_t, var_s = sig(-logsnr_t), sig(-logsnr_s)
  # z_t = (alpha_t / alpha_s) z_s + independent noise
  ratio = alpha_t / alpha_s
  cov = ratio * var_s
  mean = alpha_s * x + cov / var_t * (z_t - alpha_t * x)
  var = var_s - cov**2 / var_t
  got = diffusion.posterior_mean(
    z_t=jnp.full((1, 1), z_t), x=jnp.full((1, 1), x), logsnr_t=logsnr_t, logsnr_s=logsnr_s
  )
  np.testing.assert_allclose(got, mean, rtol=1e-5, atol=1e-6)
  logvar = diffusion.posterior_logvar(logsnr_t=logsnr_t, logsnr_s=logsnr_s, var_interp=0.0)
  np.testing.assert_allclose(logvar, np.log(var), atol=1e-4)


@pytest.mark.parametrize("logsnr_t, logsnr_s", LEVELS)
def test_variance_interpolates_in_logs(logsnr_t, logsnr_s):
  """v = 1 is the forward transition's variance sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2; v mixes
  the logs.
  """
  get = lambda v: float(
    diffusion.posterior_logvar(logsnr_t=logsnr_t, logsnr_s=logsnr_s, var_interp=v)
  )
  forward = sig(-logsnr_t) - sig(logsnr_t) / sig(logsnr_s) * sig(-logsnr_s)
  np.testing.assert_allclose(get(1.0), np.log(forward), atol=1e-4)
  np.testing.assert_allclose(get(0.3), 0.7 * get(0.0) + 0.3 * get(1.0), rtol=1e-5)


def test_log1mexp():
  """log(1 - e^-x) to float32 accuracy from 1e-6 to 50, with finite gradients."""
  x = np.logspace(-6, np.log10(50), 200)
  np.testing.assert_allclose(
    diffusion.log1mexp(jnp.float32(x)), np.log(-np.expm1(-x)), rtol=2e-6, atol=1e-12
  )
  grads = jax.vmap(jax.grad(diffusion.log1mexp))(jnp.float32(x))
  assert np.all(np.isfinite(grads))
