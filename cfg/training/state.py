"""Everything a run carries from step to step, and the exponential moving averages in it."""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from cfg.base import config


@flax.struct.dataclass
class TrainState:
  """Parameters, their moving averages, the optimizer's state, and completed updates.

  Attributes:
    step: int32 scalar array, completed updates.
    params: float32 tree.
    ema: {decay as text: float32 tree like params}.
    opt_state: of optim.make_optimizer.
  """

  step: jax.Array
  params: Any
  ema: dict[str, Any]
  opt_state: Any


def create(*, params, optimizer, ema_decays):
  """The state before the first update; the averages start at the parameters."""
  return TrainState(
    step=jnp.zeros((), jnp.int32),
    params=params,
    ema={config.ema_name(d): jax.tree.map(jnp.copy, params) for d in ema_decays},
    opt_state=optimizer.init(params),
  )


def all_finite(state):
  """Whether every number of a state is finite, as an array of one bool."""
  return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(state)]).all()


def update_ema(ema, *, params, step):
  """ema <- d ema + (1 - d) params in float32, d = min(decay, (1 + n) / (10 + n)) after update n =
  1, 2, ...

  The smaller decay of the first updates lets a short run's average forget its
  start (as TensorFlow's ExponentialMovingAverage with num_updates).

  Args:
    ema: {decay as text: tree}.
    params: after the update.
    step: completed updates, this one included.
  """
  n = step.astype(jnp.float32)

  def update(decay, tree):
    d = jnp.minimum(float(decay), (1 + n) / (10 + n))
    return jax.tree.map(lambda e, p: e + (1 - d) * (p.astype(jnp.float32) - e), tree, params)

  return {decay: update(decay, tree) for decay, tree in ema.items()}
