"""Gaussian algebra of the variance-preserving process, written in log-SNR.

P is Ho & Salimans 2022 (arXiv 2207.12598), DD Salimans & Ho 2022 (arXiv 2202.00512).
Arrays: x, z, eps, v are [B, ...] f32; every log-SNR is [B] or a scalar. `t` is the
noisier level, `s` the cleaner one: logsnr_t < logsnr_s. Arguments are keyword-only.
"""

import math

import jax
import jax.numpy as jnp

Array = jax.Array


def expand(a: Array | float, like: Array) -> Array:
  """Append axes to `a` (a scalar, or [B]) until it broadcasts against `like` [B, ...]."""
  a = jnp.asarray(a)
  return a.reshape(a.shape + (1,) * (like.ndim - a.ndim))


def alpha(logsnr: Array) -> Array:
  """alpha = sqrt(sigmoid(lambda)) (P section 2)."""
  return jnp.sqrt(jax.nn.sigmoid(logsnr))


def sigma(logsnr: Array) -> Array:
  """sigma = sqrt(sigmoid(-lambda)), so alpha^2 + sigma^2 = 1 (P section 2)."""
  return jnp.sqrt(jax.nn.sigmoid(-logsnr))


def q_sample(*, x: Array, eps: Array, logsnr: Array) -> Array:
  """z = alpha x + sigma eps (P section 2, algorithm 1 line 5)."""
  return expand(alpha(logsnr), x) * x + expand(sigma(logsnr), x) * eps


def noised(*, z_s: Array, noise: Array, logsnr_s: Array, logsnr_t: Array) -> Array:
  """z_t = (alpha_t / alpha_s) z_s + sqrt(1 - r) sigma_t noise, r = exp(lambda_t - lambda_s).

  q(z_t | z_s) (P section 2); where the levels are equal, z_s itself.
  """
  log_ratio = 0.5 * (jax.nn.log_sigmoid(logsnr_t) - jax.nn.log_sigmoid(logsnr_s))
  std = jnp.sqrt(-jnp.expm1(logsnr_t - logsnr_s)) * sigma(logsnr_t)
  return expand(jnp.exp(log_ratio), z_s) * z_s + expand(std, z_s) * noise


def x_from_eps(*, z: Array, eps: Array, logsnr: Array) -> Array:
  """x_hat = (z - sigma eps) / alpha (P equation 5)."""
  return (z - expand(sigma(logsnr), z) * eps) / expand(alpha(logsnr), z)


def eps_from_x(*, z: Array, x: Array, logsnr: Array) -> Array:
  """eps = (z - alpha x) / sigma, the inverse of `x_from_eps`."""
  return (z - expand(alpha(logsnr), z) * x) / expand(sigma(logsnr), z)


def v_from_x_eps(*, x: Array, eps: Array, logsnr: Array) -> Array:
  """v = alpha eps - sigma x (DD section 4)."""
  return expand(alpha(logsnr), x) * eps - expand(sigma(logsnr), x) * x


def x_from_v(*, z: Array, v: Array, logsnr: Array) -> Array:
  """x = alpha z - sigma v (DD section 4)."""
  return expand(alpha(logsnr), z) * z - expand(sigma(logsnr), z) * v


def eps_from_v(*, z: Array, v: Array, logsnr: Array) -> Array:
  """eps = sigma z + alpha v (DD section 4)."""
  return expand(sigma(logsnr), z) * z + expand(alpha(logsnr), z) * v


def log1mexp(x: Array) -> Array:
  """log(1 - exp(-x)) for x > 0, without cancellation at either end."""
  small = x < math.log(2.0)
  # each branch sees a safe argument, so that neither makes a NaN
  near = jnp.log(-jnp.expm1(-jnp.where(small, x, 1.0)))
  far = jnp.log1p(-jnp.exp(-jnp.where(small, 1.0, x)))
  return jnp.where(small, near, far)


def posterior_mean(*, z_t: Array, x: Array, logsnr_t: Array, logsnr_s: Array) -> Array:
  """mu~ = r (alpha_s/alpha_t) z_t + (1 - r) alpha_s x, r = exp(lambda_t - lambda_s).

  P equation 3.
  """
  log_r = logsnr_t - logsnr_s
  # alpha_s / alpha_t in logs: at lambda = -20 both are small
  log_ratio = 0.5 * (jax.nn.log_sigmoid(logsnr_s) - jax.nn.log_sigmoid(logsnr_t))
  coef_z = jnp.exp(log_r + log_ratio)
  coef_x = -jnp.expm1(log_r) * alpha(logsnr_s)
  return expand(coef_z, z_t) * z_t + expand(coef_x, z_t) * x


def posterior_logvar(*, logsnr_t: Array, logsnr_s: Array, var_interp: float) -> Array:
  """log[ (sigma~^2_{s|t})^(1-v) (sigma^2_{t|s})^v ] (P equations 3 and 4).

  sigma~^2_{s|t} = (1 - r) sigma_s^2 is the posterior variance of z_s given x (v = 0);
  sigma^2_{t|s} = (1 - r) sigma_t^2 is the forward transition's variance (v = 1);
  r = exp(lambda_t - lambda_s).

  Args:
    logsnr_t: noisier level.
    logsnr_s: cleaner level, logsnr_s > logsnr_t.
    var_interp: the paper's v in [0, 1]: 0.3 at 64x64, 0.2 at 128x128.
  """
  log_1mr = log1mexp(logsnr_s - logsnr_t)
  min_logvar = log_1mr + jax.nn.log_sigmoid(-logsnr_s)
  max_logvar = log_1mr + jax.nn.log_sigmoid(-logsnr_t)
  return (1 - var_interp) * min_logvar + var_interp * max_logvar
