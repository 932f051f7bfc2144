"""Label dropout and the guided mix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion, guidance, sampling
from cfg.base import sharding

NULL = 2


@pytest.mark.smoke
def test_w_zero_is_the_conditional_model():
  """mix at w = 0 returns eps_cond bit for bit, with w traced."""
  cond, uncond = jax.random.normal(jax.random.key(0), (2, 1000)) * 30
  mixed = jax.jit(lambda w: guidance.mix(eps_cond=cond, eps_uncond=uncond, w=w))(jnp.float32(0))
  np.testing.assert_array_equal(mixed, cond)


def test_mix_is_affine_in_w():
  """Three strengths on a line: mix(1) is the mean of mix(0) and mix(2); the slope is eps_cond -
  eps_uncond.
  """
  cond, uncond = jax.random.normal(jax.random.key(1), (2, 1000))
  at = lambda w: guidance.mix(eps_cond=cond, eps_uncond=uncond, w=w)
  np.testing.assert_allclose(at(1.0), (at(0.0) + at(2.0)) / 2, atol=1e-5)
  np.testing.assert_allclose(at(1.0) - at(0.0), cond - uncond, atol=1e-5)


def dropped(mesh, count, p):
  """Which of `count` labels are dropped, computed over a mesh."""

  @functools.partial(jax.jit, in_shardings=sharding.batch_sharding(mesh))
  def run(index):
    keys = sampling.sample_keys(key=jax.random.key(3), index=index)
    return (
      guidance.drop_labels(
        keys=keys, y=jnp.ones(index.shape, jnp.int32), p_uncond=p, null_label=NULL
      )
      == NULL
    )

  return np.asarray(run(jnp.arange(count, dtype=jnp.uint32)))


def test_dropout_rate(mesh1):
  """Within 3 standard errors of p_uncond over 100,000 labels; never at 0, always at 1."""
  p, count = 0.1, 100_000
  assert abs(dropped(mesh1, count, p).mean() - p) < 3 * np.sqrt(p * (1 - p) / count)
  assert not dropped(mesh1, 1000, 0.0).any()
  assert dropped(mesh1, 1000, 1.0).all()


def test_the_same_rows_are_dropped_on_any_mesh(mesh1, mesh8):
  """1, 2 and 8 devices drop the same labels, some and not all."""
  one = dropped(mesh1, 4096, 0.2)
  assert 0 < one.sum() < one.size
  np.testing.assert_array_equal(dropped(sharding.make_mesh(jax.devices()[:2]), 4096, 0.2), one)
  np.testing.assert_array_equal(dropped(mesh8, 4096, 0.2), one)


def test_one_call_is_two_calls():
  """The interleaved call gives the mix of a conditional and an unconditional call, row by row."""

  def eps_fn(z, logsnr, y):
    assert z.shape[0] == logsnr.shape[0] == y.shape[0]
    return jnp.sin(z * 3 + diffusion.expand(logsnr, z)) + 10.0 * diffusion.expand(
      y.astype(jnp.float32), z
    )

  z = jax.random.normal(jax.random.key(4), (3, 2, 2, 1))
  logsnr, y = jnp.float32([-1.0, 0.0, 2.0]), jnp.int32([0, 1, 0])
  got = guidance.classifier_free(eps_fn, w=1.7, null_label=NULL)(z, logsnr, y)
  want = 2.7 * eps_fn(z, logsnr, y) - 1.7 * eps_fn(z, logsnr, jnp.full_like(y, NULL))
  np.testing.assert_allclose(got, want, atol=1e-4)


MEANS = jnp.array([[-1.0, 0.3], [0.8, -0.5]])
STDS = jnp.array([0.5, 0.9])
PRIOR = jnp.array([0.3, 0.7])


def log_p_given(z, logsnr, c):
  """log p(z_lambda | c) of x | c ~ N(mu_c, s_c^2 I), up to the constant that all classes share."""
  var = diffusion.alpha(logsnr) ** 2 * STDS[c] ** 2 + diffusion.sigma(logsnr) ** 2
  return -0.5 * jnp.sum(
    (z - diffusion.alpha(logsnr) * MEANS[c]) ** 2
  ) / var - 0.5 * z.size * jnp.log(var)


def exact_eps(z, logsnr, y):
  """Closed-form eps = -sigma grad log p, conditional or (null label) of the mixture;
  responsibilities by hand.
  """

  def one(z, logsnr, y):
    z = z.reshape(2)
    a, sig2 = diffusion.alpha(logsnr), diffusion.sigma(logsnr) ** 2
    var = a**2 * STDS**2 + sig2
    scores = -(z[None] - a * MEANS) / var[:, None]
    weight = jax.nn.softmax(jnp.log(PRIOR) + jnp.stack([log_p_given(z, logsnr, c) for c in (0, 1)]))
    score = jnp.where(y == NULL, (weight[:, None] * scores).sum(0), scores[jnp.minimum(y, 1)])
    return -diffusion.sigma(logsnr) * score.reshape(1, 1, 2)

  return jax.vmap(one)(z, logsnr, y)


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_guided_eps_is_the_tilted_score(w):
  """At each level the guided eps is -sigma grad_z log[ p(z|c) p(c|z)^w ], the gradient by autodiff."""

  def tilted(z, logsnr, c):
    joint = jnp.log(PRIOR) + jnp.stack([log_p_given(z, logsnr, k) for k in (0, 1)])
    return log_p_given(z, logsnr, c) + w * jax.nn.log_softmax(joint)[c]

  z = 1.5 * jax.random.normal(jax.random.key(5), (8, 1, 1, 2))
  y = jnp.arange(8, dtype=jnp.int32) % 2
  for level in (-4.0, -1.0, 0.0, 2.0, 4.0):
    logsnr = jnp.full((8,), level)
    got = guidance.classifier_free(exact_eps, w=w, null_label=NULL)(z, logsnr, y)
    grad = jax.vmap(jax.grad(tilted))(z.reshape(8, 2), logsnr, y)
    want = -diffusion.sigma(jnp.float32(level)) * grad
    np.testing.assert_allclose(got.reshape(8, 2), want, atol=2e-4, rtol=1e-4)
