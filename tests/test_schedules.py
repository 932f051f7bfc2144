"""The log-SNR schedule of the paper, its values and its ends."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import schedules

# paper section 2, evaluated in float64
VALUES = [
  (1 / 1024, 12.9016),
  (1 / 256, 10.1725),
  (1 / 128, 8.7935),
  (0.01, 8.3014),
  (0.1, 3.6850),
  (0.25, 1.7626),
  (0.5, 0.0),
]


@pytest.mark.smoke
@pytest.mark.parametrize("u, expected", VALUES)
def test_values_in_float32(u, expected):
  """lambda(u) to 1e-4, and lambda(1 - u) = -lambda(u), in float32."""
  values = jax.jit(schedules.cosine_logsnr)(jnp.float32([u, 1 - u]))
  assert values.dtype == jnp.float32
  # 1 - u itself is rounded in float32: allow for the slope there
  np.testing.assert_allclose(values, [expected, -expected], atol=1e-4 if u >= 0.01 else 3e-4)
  # with u a multiple of 2^-24 the reflection is exact
  u32 = np.float32(round(u * 2**10) / 2**10)
  if 0 < u32 < 1:
    pair = jax.jit(schedules.cosine_logsnr)(jnp.asarray([u32, 1 - u32]))
    np.testing.assert_allclose(pair[1], -pair[0], atol=1e-4)


@pytest.mark.parametrize("low, high", [(-20.0, 20.0), (-10.0, 15.0)])
def test_ends(low, high):
  """u = 0 is logsnr_max and u = 1 logsnr_min, in float32, for symmetric ends and others."""
  values = schedules.cosine_logsnr(jnp.float32([0, 1]), logsnr_min=low, logsnr_max=high)
  np.testing.assert_allclose(values, [high, low], atol=1e-4)


@pytest.mark.parametrize("low, high", [(-20.0, 20.0), (-10.0, 15.0)])
def test_float32_follows_the_formula_in_float64(low, high):
  """Over u = k / 1024 the float32 values are those of -2 log tan(a u + b) in float64."""
  u = np.arange(1025) / 1024
  b = math.atan(math.exp(-high / 2))
  a = math.atan(math.exp(-low / 2)) - b
  exact = -2 * np.log(np.tan(a * u + b))
  np.testing.assert_allclose(
    schedules.cosine_logsnr(jnp.float32(u), logsnr_min=low, logsnr_max=high), exact, atol=1e-4
  )
  np.testing.assert_allclose(
    schedules.cosine_logsnr(u, logsnr_min=low, logsnr_max=high, xp=np), exact, atol=1e-6
  )


def test_grid_has_both_ends_and_uniform_u():
  """T points, increasing, at u = 1 - i / (T - 1): inverted, they are evenly spaced."""
  grid = schedules.sampling_grid(num_steps=33)
  assert grid.shape == (33,) and grid.dtype == np.float64 and np.all(np.diff(grid) > 0)
  np.testing.assert_allclose(grid[[0, -1]], [-20, 20], atol=1e-9)
  b = math.atan(math.exp(-10))
  u = (np.arctan(np.exp(-grid / 2)) - b) / (math.pi / 2 - 2 * b)
  np.testing.assert_allclose(u, np.linspace(1, 0, 33), atol=1e-9)


def test_grid_needs_two_points():
  """One point cannot hold both ends."""
  with pytest.raises(ValueError, match="num_steps"):
    schedules.sampling_grid(num_steps=1)
