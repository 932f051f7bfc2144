"""Algorithm 1: the eps-matching loss with label dropout; and the loss of a classifier that guides.

P is Ho & Salimans 2022 (arXiv 2207.12598), ADM Dhariwal & Nichol 2021 (arXiv 2105.05233).
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from cfg import diffusion, guidance
from cfg.guidance import Array, EpsFn, LogProbFn


def eps_error(*, eps_fn: EpsFn, x: Array, eps: Array, logsnr: Array, y: Array) -> Array:
  """mean over pixels and channels of (eps_fn(alpha x + sigma eps, lambda, y) - eps)^2 (P equation
  1).

  Returns:
    [B] f32. (P writes the sum; its authors' code takes the mean per example.)
  """
  z = diffusion.q_sample(x=x, eps=eps, logsnr=logsnr)
  eps_hat = eps_fn(z, logsnr, y)
  if eps_hat.shape != eps.shape:
    raise ValueError(f"eps_fn returned {eps_hat.shape} for eps of shape {eps.shape}")
  return jnp.mean(jnp.square(eps_hat - eps), axis=tuple(range(1, x.ndim)))


def classifier_free_loss(
  *,
  eps_fn: EpsFn,
  keys: Array,
  x: Array,
  y: Array,
  logsnr_fn: Callable[[Array], Array],
  p_uncond: float,
  null_label: int,
) -> tuple[Array, Array]:
  """Per-example loss of P's algorithm 1: drop labels, draw lambda and eps, match eps.

  Everything random about an example comes from its own key, so devices, hosts
  and micro-batches cannot change it.

  Args:
    eps_fn: (z, logsnr, y) -> eps_hat.
    keys: [B] typed PRNG keys.
    x: [B,H,W,C] images in [-1, 1].
    y: [B] int32 labels.
    logsnr_fn: u in [0, 1] -> lambda.
    p_uncond: the probability that a label is dropped.
    null_label: the label that means "none".

  Returns:
    loss [B] f32, logsnr [B].
  """
  key_u, key_eps, key_drop = jax.vmap(lambda key: tuple(jax.random.split(key, 3)))(keys)
  u = jax.vmap(jax.random.uniform)(key_u)
  eps = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(key_eps)
  y = guidance.drop_labels(keys=key_drop, y=y, p_uncond=p_uncond, null_label=null_label)
  logsnr = logsnr_fn(u)
  return eps_error(eps_fn=eps_fn, x=x, eps=eps, logsnr=logsnr, y=y), logsnr


def classifier_loss(
  *, log_prob_fn: LogProbFn, keys: Array, x: Array, y: Array, logsnr_fn: Callable[[Array], Array]
) -> tuple[Array, Array]:
  """-log p(y | z), z = alpha x + sigma eps: cross-entropy at a random level (ADM section 4).

  Everything random about an example comes from its own key.

  Args:
    log_prob_fn: (z, logsnr, y) -> log p(y | z) [B].
    keys: [B] typed PRNG keys.
    x: [B,H,W,C] images in [-1, 1].
    y: [B] int32 labels.
    logsnr_fn: u in [0, 1] -> lambda.

  Returns:
    loss [B] f32, logsnr [B].
  """
  key_u, key_eps = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
  logsnr = logsnr_fn(jax.vmap(jax.random.uniform)(key_u))
  eps = jax.vmap(lambda k: jax.random.normal(k, x.shape[1:]))(key_eps)
  log_prob = log_prob_fn(diffusion.q_sample(x=x, eps=eps, logsnr=logsnr), logsnr, y)
  if log_prob.shape != y.shape:
    raise ValueError(f"log_prob_fn returned {log_prob.shape} for labels of shape {y.shape}")
  return -log_prob, logsnr
