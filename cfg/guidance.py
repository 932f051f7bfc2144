"""Label dropout for training, and the rule that mixes two noise estimates for sampling.

P is Ho & Salimans 2022 (arXiv 2207.12598). A guidance rule takes an
`eps_fn(z [B,H,W,C], logsnr [B], y [B]) -> eps_hat [B,H,W,C]` and returns one.
"""

import jax
import jax.numpy as jnp


def drop_labels(*, keys, y, p_uncond, null_label):
  """y <- null with probability p_uncond, each row from its own key (P algorithm 1, line 2).

  Args:
    keys: [B] typed PRNG keys, one a row: which rows are dropped cannot depend on devices.
    y: [B] int32 labels.
    p_uncond: probability in [0, 1].
    null_label: the label that means "none"; the number of classes by convention.

  Returns:
    [B] int32.
  """
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, p_uncond))(keys)
  return jnp.where(drop, null_label, y)


def mix(*, eps_cond, eps_uncond, w):
  """eps_guided = (1 + w) eps_cond - w eps_uncond (P equation 6).

  w = 0 is the conditional model, exactly. Others write scale = 1 + w.
  """
  return (1 + w) * eps_cond - w * eps_uncond


def classifier_free(eps_fn, *, w, null_label):
  """The guided eps_fn of P equation 6: both branches in one call of the network.

  Rows are interleaved (z0, z0, z1, z1, ...; y0, null, y1, null, ...): where the
  batch is sharded, each device keeps the two branches of its own rows, and the
  mix needs no communication. Stacking [z, z] would.

  Args:
    eps_fn: the network, conditional and unconditional in one.
    w: the paper's strength, a scalar; may be traced.
    null_label: label of the unconditional branch.
  """

  def guided(z, logsnr, y):
    both_z = jnp.repeat(z, 2, axis=0)
    both_logsnr = jnp.repeat(logsnr, 2, axis=0)
    both_y = jnp.stack([y, jnp.full_like(y, null_label)], axis=1).reshape(-1)
    eps = eps_fn(both_z, both_logsnr, both_y).reshape(z.shape[0], 2, *z.shape[1:])
    return mix(eps_cond=eps[:, 0], eps_uncond=eps[:, 1], w=w)

  return guided
