"""The optimizer's first steps and the moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfg.base import config, optim
from cfg.training import state as train_state


def first_updates(count, **settings):
  """Sizes of the first updates of one parameter under a constant gradient of 1: Adam moves by the
  learning rate.
  """
  optimizer = optim.make_optimizer(
    **{"learning_rate": 0.1, "warmup_steps": 0, "grad_clip": None, **settings}
  )
  params = jnp.float32(0)
  state, sizes = optimizer.init(params), []
  for _ in range(count):
    update, state = optimizer.update(jnp.float32(1), state, params)
    sizes.append(-float(update))
  return np.array(sizes)


@pytest.mark.smoke
def test_learning_rate():
  """Linear warm-up from the first update on, then constant; or a cosine to zero."""
  np.testing.assert_allclose(
    first_updates(6, warmup_steps=4), 0.1 * np.array([0.25, 0.5, 0.75, 1, 1, 1]), rtol=1e-4
  )
  np.testing.assert_allclose(first_updates(3), 0.1, rtol=1e-4)
  np.testing.assert_allclose(
    first_updates(5, decay_steps=4),
    0.05 * (1 + np.cos(np.pi * np.array([1, 2, 3, 4, 4]) / 4)),
    rtol=1e-4,
    atol=1e-9,
  )


def test_clip_is_of_the_global_norm():
  """A gradient above the bound is scaled to it as a whole, one below is left."""
  optimizer = optim.make_optimizer(learning_rate=1.0, warmup_steps=0, grad_clip=1.0)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(1)}
  moment = lambda grads: optax.tree_utils.tree_get(
    optimizer.update(grads, optimizer.init(params), params)[1], "mu"
  )
  # Adam's first moment after one update is 0.1 of the clipped gradient
  big = moment({"a": jnp.float32([3, 0]), "b": jnp.float32([4])})
  np.testing.assert_allclose(big["a"][0] * 10, 0.6, rtol=1e-5)
  np.testing.assert_allclose(big["b"][0] * 10, 0.8, rtol=1e-5)
  small = moment({"a": jnp.float32([0.3, 0]), "b": jnp.float32([0.4])})
  np.testing.assert_allclose(small["b"][0] * 10, 0.4, rtol=1e-5)


def test_clip_is_optax_s():
  """The same gradients to rounding as optax's transformation, and none where there is no norm; its
  state is the same, so that checkpoints are.
  """
  gradients = {"a": jnp.float32([3, -2, 1e-4]), "b": {"c": jnp.float32([[5]])}}
  for limit in (0.5, 6.0, 7.0):
    ours, theirs = optim.clip_by_global_norm(limit), optax.clip_by_global_norm(limit)
    assert ours.init(gradients) == theirs.init(gradients)
    clipped = [each.update(gradients, each.init(gradients))[0] for each in (ours, theirs)]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *clipped)
  ours = optim.clip_by_global_norm(1.0)
  zeros = jax.tree.map(jnp.zeros_like, gradients)
  clipped, _ = ours.update(zeros, ours.init(zeros))
  assert all(not np.any(leaf) for leaf in jax.tree.leaves(clipped))


def test_ema_is_the_recursion():
  """Each average follows e + (1 - d)(p - e), d = min(decay, (1 + n)/(10 + n)), in f32, against
  float64 numbers.
  """
  decays = (0.5, 0.9999)
  state = train_state.create(
    params={"p": jnp.float32(1.0)}, optimizer=optax.sgd(0.1), ema_decays=decays
  )
  assert set(state.ema) == {"0.5", "0.9999"}
  ema, want = state.ema, {"0.5": 1.0, "0.9999": 1.0}
  for n in range(1, 40):
    p = np.sin(n)
    ema = jax.jit(train_state.update_ema)(ema, params={"p": jnp.float32(p)}, step=jnp.int32(n))
    for decay in decays:
      d = min(decay, (1 + n) / (10 + n))
      name = config.ema_name(decay)
      want[name] = d * want[name] + (1 - d) * p
  for name, value in want.items():
    assert ema[name]["p"].dtype == jnp.float32
    np.testing.assert_allclose(ema[name]["p"], value, atol=1e-6)


def test_ema_moves_at_the_papers_decay():
  """At 0.9999 an f32 average still moves by 1e-4 of the distance."""
  ema = train_state.update_ema(
    {"0.9999": jnp.float32(1.0)}, params=jnp.float32(2.0), step=jnp.int32(10**6)
  )
  np.testing.assert_allclose(ema["0.9999"] - 1, 1e-4, rtol=2e-3)
