"""Samples of the tilted law: groups of particles that are weighed and resampled on the way.

The mix of two branches is at every level the score of q(z) ~ p(z|c)^(1+w) p(z)^(-w), but a sampler
that follows it does not draw q. Each path's weight says by how much it is missed, d log W =
1/2 w (1 + w) |eps_cond - eps_uncond|^2 dlambda (Skreta et al. 2025, arXiv 2503.02819). Sequential
Monte Carlo (Doucet et al. 2001) resamples a group by its weights before they degenerate. A group is
so many rows of a batch that lie side by side; nothing passes from one to another.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfg.diffusion import Array

# of the first sample's key of a group, what resampling draws; sampling has the other streams
GROUP_STREAM = 2**32 - 2


def widths(logsnr: np.ndarray | Array) -> Array:
  """[T]: half of the steps before and behind each level, the trapezoid rule's weights.

  log W of a path is then 1/2 w (1 + w) sum_t widths_t gap_t, as `metrics.gauge` has it, and each
  level's part depends on z at that level alone.
  """
  steps = jnp.diff(jnp.asarray(logsnr, jnp.float32))
  return 0.5 * (jnp.pad(steps, (0, 1)) + jnp.pad(steps, (1, 0)))


def increment(*, gap: Array, width: Array, w: Array | float) -> Array:
  """1/2 w (1 + w) gap dlambda: a level's part of log W.

  Args:
    gap: [B], |eps_cond - eps_uncond|^2.
    width: of the level, a scalar.
    w: the strength, a scalar or [B].
  """
  return 0.5 * w * (1 + w) * width * gap


def effective_size(log_weight: Array) -> Array:
  """(sum W)^2 / sum W^2 over the last axis."""
  share = jax.nn.softmax(log_weight)
  return 1 / jnp.sum(jnp.square(share), axis=-1)


def systematic(*, key: Array, log_weight: Array) -> Array:
  """[P] ancestors: particle i is taken floor or ceil of P W_i / sum W times, on average just that.

  One uniform number u makes the P points (j + u) / P at which the weights' cumulative shares are
  read (Kitagawa 1996). Equal weights leave every particle in its place.

  Args:
    key: a PRNG key.
    log_weight: [P].
  """
  count = log_weight.shape[0]
  points = (jnp.arange(count) + jax.random.uniform(key)) / count
  shares = jnp.cumsum(jax.nn.softmax(log_weight))
  # rounding may leave the last share below the last point
  return jnp.minimum(jnp.searchsorted(shares, points, side="right"), count - 1)


def resample(
  *, keys: Array, log_weight: Array, carry: Any, particles: int, always: Array
) -> tuple[Any, Array, Array]:
  """The carry and log W after resampling the groups whose effective size is below a half.

  Args:
    keys: [B/P] PRNG keys, one a group and step.
    log_weight: [B].
    carry: a tree of arrays [B,...]; scalars in it are the same for all, and stay.
    particles: P, of a group.
    always: a scalar, whether every group is resampled.

  Returns:
    (carry, log_weight [B], which is 0 where a group was resampled, log_z [B], the log of the
    group's mean weight where it was, 0 elsewhere: summed over the levels, with resampling at the
    last, exp(log_z) has the mean Z).
  """
  grouped = log_weight.reshape(-1, particles)
  chosen = always | (effective_size(grouped) < 0.5 * particles)  # [B/P]
  stay = jnp.broadcast_to(jnp.arange(particles), grouped.shape)
  drawn = jax.vmap(lambda key, log_weight: systematic(key=key, log_weight=log_weight))(
    keys, grouped
  )
  ancestors = jnp.where(chosen[:, None], drawn, stay)

  def take(leaf):
    if leaf.ndim == 0:
      return leaf
    groups = leaf.reshape(-1, particles, *leaf.shape[1:])
    return jax.vmap(lambda rows, of: rows[of])(groups, ancestors).reshape(leaf.shape)

  log_z = jax.nn.logsumexp(grouped, axis=1) - np.float32(np.log(particles))
  spread = lambda a: jnp.repeat(a, particles)
  return (
    jax.tree.map(take, carry),
    jnp.where(spread(chosen), 0.0, log_weight),
    jnp.where(spread(chosen), spread(log_z), 0.0),
  )
