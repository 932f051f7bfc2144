"""The optimizer: clip by global norm, Adam, linear warm-up to a constant rate."""

import jax
import jax.numpy as jnp
import optax


def make_optimizer(
  *,
  learning_rate,
  warmup_steps,
  grad_clip,
  beta1=0.9,
  beta2=0.999,
  weight_decay=0.0,
  decay_steps=None,
):
  """Adam as the paper's sibling code sets it (google-research/ddpm_w_distillation, configs
  i64_unet3, i128_unet3).

  The norm that is clipped is the global batch's. The learning rate of update
  n = 1, 2, ... is learning_rate * min(1, n / warmup_steps), times
  (1 + cos(pi min(1, n / decay_steps))) / 2 if decay_steps is given.

  Args:
    learning_rate: after warm-up.
    warmup_steps: 0 for none.
    grad_clip: largest global norm of the gradient, or None.
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    weight_decay: decoupled (AdamW).
    decay_steps: updates until the rate is zero; None keeps it constant, as the paper's code does.
  """

  def rate(count):
    n = count + 1.0  # optax counts from 0
    warmup = jnp.minimum(1.0, n / max(warmup_steps, 1))
    decay = (
      1.0
      if decay_steps is None
      else 0.5 * (1 + jnp.cos(jnp.pi * jnp.minimum(1.0, n / decay_steps)))
    )
    return learning_rate * warmup * decay

  clip = optax.identity() if grad_clip is None else clip_by_global_norm(grad_clip)
  return optax.chain(clip, optax.adamw(rate, b1=beta1, b2=beta2, weight_decay=weight_decay))


def clip_by_global_norm(limit):
  """g min(1, limit / |g|), |g| the norm of all gradients: optax's transformation of that name, but
  for one factor; optax's divides each number by |g|, which takes a TPU a pass of its own.
  """

  def clip(gradients, params=None):
    del params
    factor = limit / jnp.maximum(optax.tree.norm(gradients), limit)
    return jax.tree.map(lambda g: g * factor, gradients)

  return optax.stateless(clip)
