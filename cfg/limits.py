"""What becomes of x_hat after the mix, before the next level is drawn from it.

A new one is one function here and its line in LIMITS; the names of its arguments are fields of the
config's section `sampler`.
"""

from collections.abc import Callable

import jax.numpy as jnp

from cfg.diffusion import Array, expand

Limit = Callable[[Array], Array]  # x_hat [B,H,W,C] -> [B,H,W,C]


def no_limit() -> Limit:
  """x_hat as it is. P does not mention a limit."""
  return lambda x: x


def clip() -> Limit:
  """x_hat cut to [-1, 1], after the mix: right for images."""
  return lambda x: jnp.clip(x, -1.0, 1.0)


def dynamic_threshold(*, limit_percentile: float, limit_max: float | None = None) -> Limit:
  """x_hat cut to [-q, q] and divided by q, q = the percentile of |x_hat| of a sample, at least 1.

  Imagen's (Saharia et al. 2022, arXiv 2205.11487, section 2.3).

  Args:
    limit_percentile: share of the pixels' magnitudes below q, in (0, 1].
    limit_max: the largest q, at least 1, or None; 1 is `clip`.

  Raises:
    ValueError: one is not.
  """
  if not 0 < limit_percentile <= 1:
    raise ValueError(f"limit_percentile is {limit_percentile}: it must be a share in (0, 1]")
  if limit_max is not None and limit_max < 1:
    raise ValueError(f"limit_max is {limit_max}: it must be at least 1")

  def limit(x):
    magnitudes = jnp.abs(x).reshape(x.shape[0], -1)
    q = expand(jnp.clip(jnp.quantile(magnitudes, limit_percentile, axis=1), 1.0, limit_max), x)
    return jnp.clip(x, -q, q) / q

  return limit


LIMITS: dict[str, Callable[..., Limit]] = {
  "none": no_limit,
  "clip": clip,
  "dynamic": dynamic_threshold,
}
