"""Algorithm 2 and its relatives: one lax.scan over a grid of log-SNRs.

P is Ho & Salimans 2022 (arXiv 2207.12598). The integrator speaks only to an
`eps_fn`; it does not know that guidance exists.
"""

import functools

import jax
import jax.numpy as jnp

from cfg import diffusion


def ancestral_step(*, z, x_hat, logsnr_t, logsnr_s, noise, var_interp):
  """z_s ~ N( mu~_{s|t}(z_t, x_hat), (sigma~^2_{s|t})^(1-v) (sigma^2_{t|s})^v ) (P algorithm 2, line
  4).
  """
  mean = diffusion.posterior_mean(z_t=z, x=x_hat, logsnr_t=logsnr_t, logsnr_s=logsnr_s)
  logvar = diffusion.posterior_logvar(logsnr_t=logsnr_t, logsnr_s=logsnr_s, var_interp=var_interp)
  return mean + jnp.exp(0.5 * logvar) * noise


def ddim_step(*, z, x_hat, logsnr_t, logsnr_s, noise):
  """z_s = alpha_s x_hat + sigma_s eps_hat, eps_hat = (z_t - alpha_t x_hat) / sigma_t.

  DDIM with eta = 0 (Song et al. 2021, arXiv 2010.02502, equation 12), as arXiv
  2202.00512 equation 8 writes it. eps_hat follows x_hat, clipped or not.
  """
  del noise
  eps_hat = diffusion.eps_from_x(z=z, x=x_hat, logsnr=logsnr_t)
  return diffusion.q_sample(x=x_hat, eps=eps_hat, logsnr=logsnr_s)


def make_step(*, sampler, var_interp):
  """The transition z_t -> z_s by name: "ancestral" (with the paper's v) or "ddim".

  Raises:
    ValueError: any other name, or v outside [0, 1].
  """
  if not 0 <= var_interp <= 1:
    raise ValueError(f"var_interp is the paper's v in [0, 1], got {var_interp}")
  steps = {"ancestral": functools.partial(ancestral_step, var_interp=var_interp), "ddim": ddim_step}
  if sampler not in steps:
    raise ValueError(f"unknown sampler {sampler!r}: choose one of {sorted(steps)}")
  return steps[sampler]


def sample_keys(*, key, index):
  """[B] keys, one a sample: fold_in(key, i). Sample i is the same in any batch, on any device."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def sample(*, eps_fn, step_fn, keys, y, logsnr, image_shape, clip_x):
  """P's algorithm 2: z_1 ~ N(0, I); T calls of eps_fn, T - 1 transitions; returns x_hat at
  lambda_T.

  Args:
    eps_fn: (z [B,H,W,C], logsnr [B], y [B]) -> eps_hat; guided already, where wanted.
    step_fn: (z, x_hat, logsnr_t, logsnr_s, noise) -> z_s, by keyword.
    keys: [B] typed PRNG keys; all noise of sample i comes from keys[i].
    y: [B] int32 labels.
    logsnr: [T] increasing, from schedules.sampling_grid.
    image_shape: (H, W, C).
    clip_x: clip x_hat to [-1, 1], after the mix. P does not mention it; right for images.

  Returns:
    x [B,H,W,C] f32.
  """
  num_steps = logsnr.shape[0]

  def noise(i):
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, i), image_shape)
    return jax.vmap(draw)(keys)

  def body(carry, inputs):
    z, _ = carry
    i, logsnr_t, logsnr_s = inputs
    eps_hat = eps_fn(z, jnp.full(z.shape[:1], logsnr_t), y)
    x_hat = diffusion.x_from_eps(z=z, eps=eps_hat, logsnr=logsnr_t)
    if clip_x:
      x_hat = jnp.clip(x_hat, -1.0, 1.0)
    z = step_fn(z=z, x_hat=x_hat, logsnr_t=logsnr_t, logsnr_s=logsnr_s, noise=noise(i))
    return (z, x_hat), None

  logsnr = jnp.asarray(logsnr, jnp.float32)
  # The scan's last transition has no target: it steps anywhere, and only x_hat is kept.
  # That keeps all T calls of the network in one loop, compiled once.
  logsnr_s = jnp.append(logsnr[1:], logsnr[-1] + 1.0)
  z = noise(0)
  (_, x_hat), _ = jax.lax.scan(body, (z, z), (jnp.arange(1, num_steps + 1), logsnr, logsnr_s))
  return x_hat
