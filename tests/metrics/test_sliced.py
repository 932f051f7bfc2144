"""The sliced distance against shifts and scales, whose distance is known."""

import numpy as np

from cfg.metrics import sliced

RNG = np.random.default_rng(0)
DRAWS = RNG.standard_normal((2**15, 3))


def test_a_shift_is_its_own_distance():
  """Moved by a: the mean over directions of |a . direction|; of other draws of the law nearly 0."""
  law = sliced.law(DRAWS, directions=64)
  x = RNG.standard_normal((20_000, 3))
  shift = np.array([0.3, -1.0, 0.5])
  want = np.abs(law.directions @ shift).mean()
  np.testing.assert_allclose(sliced.distance(x + shift, law), want, atol=0.01)
  np.testing.assert_allclose(np.linalg.norm(law.directions, axis=1), 1)
  assert sliced.distance(x, law) < 0.02
  # twice as wide: E| |2 g| - |g| | of a normal g
  np.testing.assert_allclose(sliced.distance(2 * x, law), np.sqrt(2 / np.pi), atol=0.02)


def test_weights_are_repetitions():
  """A sample that weighs k is k samples; the order does not matter, nor a constant factor."""
  law = sliced.law(DRAWS)
  x, times = RNG.standard_normal((300, 3)), RNG.integers(1, 4, 300)
  want = sliced.distance(np.repeat(x, times, axis=0), law)
  order = RNG.permutation(300)
  got = sliced.distance(x[order], law, log_weight=np.log(times[order]) + 7.0)
  np.testing.assert_allclose(got, want, rtol=1e-2)


def test_weights_take_samples_to_another_law():
  """Normal samples weighed by exp(x_0) are of the normal law around 1."""
  law = sliced.law(DRAWS + np.array([1.0, 0, 0]))
  x = RNG.standard_normal((20_000, 3))
  assert sliced.distance(x, law, log_weight=x[:, 0]) < 0.05 < 0.3 < sliced.distance(x, law)
