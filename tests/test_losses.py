"""Algorithm 1's loss against denoisers whose error is known."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion, guidance, losses, sampling, schedules

STD, MEAN = 0.6, 0.3


def exact_eps(z, logsnr, y, scale=1.0):
  """argmin eps for x ~ N(MEAN, STD^2): sigma (z - alpha MEAN) / (alpha^2 STD^2 + sigma^2)."""
  alpha, sigma = (
    diffusion.expand(diffusion.alpha(logsnr), z),
    diffusion.expand(diffusion.sigma(logsnr), z),
  )
  return scale * sigma * (z - alpha * MEAN) / (alpha**2 * STD**2 + sigma**2)


@pytest.mark.smoke
def test_exact_denoiser_has_the_expected_error():
  """E|eps_hat - eps|^2 = alpha^2 s^2 / (alpha^2 s^2 + sigma^2) at each level; any other scale does
  worse.
  """
  key_x, key_eps = jax.random.split(jax.random.key(0))
  x = MEAN + STD * jax.random.normal(key_x, (4000, 4, 4, 1))
  eps = jax.random.normal(key_eps, x.shape)
  for level in (-3.0, 0.0, 3.0):
    logsnr, y = jnp.full((4000,), level), jnp.zeros(4000, jnp.int32)
    run = lambda fn, logsnr=logsnr, y=y: np.asarray(
      losses.eps_error(eps_fn=fn, x=x, eps=eps, logsnr=logsnr, y=y)
    )
    error = run(exact_eps)
    signal = float(diffusion.alpha(level)) ** 2 * STD**2
    expected = signal / (signal + float(diffusion.sigma(level)) ** 2)
    assert abs(error.mean() - expected) < 4 * error.std() / np.sqrt(4000)
    for scale in (0.8, 1.2):
      assert run(functools.partial(exact_eps, scale=scale)).mean() > error.mean()


def arguments(index):
  """Loss arguments of stream positions `index`: image and label depend on the position alone."""
  index = jnp.asarray(index, jnp.uint32)
  x = jax.vmap(lambda k: jax.random.normal(k, (2, 2, 1)))(
    sampling.sample_keys(key=jax.random.key(1), index=index)
  )
  keys = sampling.sample_keys(key=jax.random.key(2), index=index)
  return dict(
    keys=keys,
    x=x,
    y=(index % 3).astype(jnp.int32),
    logsnr_fn=schedules.cosine_logsnr,
    p_uncond=0.3,
    null_label=3,
  )


def test_rows_are_independent():
  """A row's loss and level follow from its own key: any order, any batch, the same numbers."""
  eps_fn = lambda z, logsnr, y: (
    z * jnp.cos(diffusion.expand(logsnr, z)) + 0.1 * diffusion.expand(y.astype(jnp.float32), z)
  )
  loss, logsnr = losses.classifier_free_loss(eps_fn=eps_fn, **arguments(np.arange(12)))
  order = np.array([5, 0, 11, 3])
  some, some_logsnr = losses.classifier_free_loss(eps_fn=eps_fn, **arguments(order))
  np.testing.assert_allclose(some, loss[order], rtol=1e-5)
  np.testing.assert_array_equal(some_logsnr, logsnr[order])
  assert len(np.unique(logsnr)) == 12


def test_network_sees_the_dropped_labels():
  """Labels reach eps_fn after dropout: some null, the others untouched."""
  seen = []

  def eps_fn(z, logsnr, y):
    seen.append(np.asarray(y))
    return jnp.zeros_like(z)

  losses.classifier_free_loss(eps_fn=eps_fn, **arguments(np.arange(200)))
  null = seen[0] == 3
  assert 0.15 < null.mean() < 0.45
  np.testing.assert_array_equal(seen[0][~null], (np.arange(200) % 3)[~null])


def test_levels_follow_the_schedule():
  """P(lambda > l) = u(l) over 20,000 rows: the sech law, by its quartiles."""
  args = arguments(np.arange(20_000))
  _, logsnr = losses.classifier_free_loss(eps_fn=lambda z, logsnr, y: z, **args)
  for u in (0.1, 0.25, 0.5, 0.9):
    level = float(schedules.cosine_logsnr(np.float64(u), xp=np))
    assert abs(np.mean(np.asarray(logsnr) > level) - u) < 4 * np.sqrt(u * (1 - u) / 20_000)


def test_wrong_shape_is_refused():
  """An eps_fn that changes the shape is an error, not a broadcast."""
  with pytest.raises(ValueError, match="eps_fn returned"):
    losses.classifier_free_loss(eps_fn=lambda z, logsnr, y: z[..., 0], **arguments(np.arange(2)))


def test_drop_labels_keeps_dtype():
  """Labels stay int32."""
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(4, dtype=jnp.uint32))
  assert (
    guidance.drop_labels(keys=keys, y=jnp.zeros(4, jnp.int32), p_uncond=0.5, null_label=9).dtype
    == jnp.int32
  )
