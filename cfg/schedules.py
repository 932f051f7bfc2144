"""Time u in [0, 1] to log-SNR lambda: u = 0 is clean, u = 1 is noise.

P is Ho & Salimans 2022 (arXiv 2207.12598), ND Nichol & Dhariwal 2021 (arXiv 2102.09672).
lambda = log(alpha^2 / sigma^2).
"""

import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np


def cosine_logsnr(u, *, logsnr_min: float = -20.0, logsnr_max: float = 20.0, xp=jnp):
  """lambda(u) = -2 log tan(a u + b), b = arctan(exp(-lambda_max/2)), a = arctan(exp(-lambda_min/2))
  - b.

  P section 2; with u ~ Uniform[0, 1] this draws lambda from the paper's
  truncated hyperbolic secant, the continuous relative of the cosine schedule.

  The formula loses digits where a u + b nears pi/2, so the noisy half is
  computed from the complementary angle: with b' = arctan(exp(lambda_min/2)),
  pi/2 - (a u + b) = a (1 - u) + b', hence lambda = 2 log tan(a (1 - u) + b').

  Args:
    u: any shape, in [0, 1].
    logsnr_min: lambda at u = 1.
    logsnr_max: lambda at u = 0.
    xp: jax.numpy, or numpy for a float64 grid on the host.

  Returns:
    lambda, shape and dtype of u.
  """
  b = math.atan(math.exp(-logsnr_max / 2))
  b_rev = math.atan(math.exp(logsnr_min / 2))
  a = math.pi / 2 - b_rev - b
  clean = u <= 0.5
  angle = xp.where(clean, a * u + b, a * (1 - u) + b_rev)
  return xp.where(clean, -2.0, 2.0) * xp.log(xp.tan(angle))


def cosine_u(logsnr, *, logsnr_min: float = -20.0, logsnr_max: float = 20.0):
  """u(lambda) = (arctan(exp(-lambda/2)) - b) / a, the inverse of `cosine_logsnr`."""
  b = math.atan(math.exp(-logsnr_max / 2))
  a = math.atan(math.exp(-logsnr_min / 2)) - b
  return (jnp.arctan(jnp.exp(-0.5 * logsnr)) - b) / a


def grid_in_u(*, num_steps: int, logsnr_min: float, logsnr_max: float) -> np.ndarray:
  """lambda(u) at T uniformly spaced u from 1 to 0: the grid of P's algorithm 2."""
  return cosine_logsnr(
    np.linspace(1.0, 0.0, num_steps), logsnr_min=logsnr_min, logsnr_max=logsnr_max, xp=np
  )


def grid_in_logsnr(*, num_steps: int, logsnr_min: float, logsnr_max: float) -> np.ndarray:
  """T uniformly spaced lambda: equal steps for solvers in log(alpha / sigma) (arXiv 2206.00927)."""
  return np.linspace(logsnr_min, logsnr_max, num_steps)


def grid_edm(*, num_steps: int, logsnr_min: float, logsnr_max: float, rho: float) -> np.ndarray:
  """s_i = (s_max^(1/rho) + i/(T-1) (s_min^(1/rho) - s_max^(1/rho)))^rho, s = exp(-lambda/2).

  Karras et al. 2022 (arXiv 2206.00364, equation 5), who take rho = 7; s is their sigma.
  """
  high, low = math.exp(-logsnr_min / (2 * rho)), math.exp(-logsnr_max / (2 * rho))
  return -2 * rho * np.log(np.linspace(high, low, num_steps))


SPACINGS: dict[str, Callable[..., np.ndarray]] = {
  "u": grid_in_u,
  "logsnr": grid_in_logsnr,
  "edm": grid_edm,
}


def sampling_grid(
  *,
  num_steps: int,
  logsnr_min: float = -20.0,
  logsnr_max: float = 20.0,
  spacing: str = "u",
  rho: float = 7.0,
) -> np.ndarray:
  """lambda_1 = lambda_min < ... < lambda_T = lambda_max: the levels at which networks are called.

  Both ends are included. (The authors' related code makes N calls at u = (i + 1) / N instead and
  never calls the network at lambda_max.)

  Args:
    num_steps: T.
    logsnr_min: the first level.
    logsnr_max: the last.
    spacing: one of SPACINGS; "u" is the paper's.
    rho: of "edm".

  Returns:
    float64 numpy [num_steps], increasing.

  Raises:
    ValueError: num_steps < 2, an unknown spacing, ends that are not in order, or rho <= 0.
  """
  if num_steps < 2:
    raise ValueError(f"num_steps must be at least 2 (both ends of the grid), got {num_steps}")
  if spacing not in SPACINGS:
    raise ValueError(f"unknown spacing {spacing!r}: choose one of {sorted(SPACINGS)}")
  if not logsnr_min < logsnr_max:
    raise ValueError(f"logsnr_min must be below logsnr_max, got {logsnr_min} and {logsnr_max}")
  if not rho > 0:
    raise ValueError(f"rho must be above 0, got {rho}")
  more = {"rho": rho} if spacing == "edm" else {}
  return SPACINGS[spacing](
    num_steps=num_steps, logsnr_min=logsnr_min, logsnr_max=logsnr_max, **more
  )


@functools.cache
def discrete_logsnr(name: str, num_timesteps: int = 1000) -> np.ndarray:
  """lambda_t = log(abar_t / (1 - abar_t)), abar_t = prod_{i<=t} (1 - beta_i): the levels of a
  discrete model.

  "linear": beta from 0.0001 to 0.02 at 1,000 steps, both ends times 1000/T (DDPM, arXiv
  2006.11239); "cosine": beta_t = min(0.999, 1 - f((t+1)/T) / f(t/T)), f(u) = cos^2(pi/2 (u + 0.008)
  / 1.008) (ND equation 17).

  Returns:
    float64 numpy [num_timesteps], decreasing: t = 0 is the cleanest.

  Raises:
    ValueError: any other name.
  """
  if name == "linear":
    beta = np.linspace(0.0001, 0.02, num_timesteps) * (1000 / num_timesteps)
  elif name == "cosine":
    f = np.cos((np.arange(num_timesteps + 1) / num_timesteps + 0.008) / 1.008 * np.pi / 2) ** 2
    beta = np.minimum(1 - f[1:] / f[:-1], 0.999)
  else:
    raise ValueError(f'unknown discrete schedule {name!r}: choose "cosine" or "linear"')
  log_abar = np.cumsum(np.log1p(-beta))
  table = log_abar - np.log(-np.expm1(log_abar))
  table.flags.writeable = False  # shared by all callers
  return table


def discrete_time(logsnr: jax.Array, *, table: np.ndarray) -> jax.Array:
  """The step t, fractional, at which a discrete model has this log-SNR: the inverse of
  `discrete_logsnr`.

  Linear in lambda between steps; beyond the table's ends it stays at the end, 0 or T - 1.

  Args:
    logsnr: any shape.
    table: from discrete_logsnr.

  Returns:
    f32 in [0, T - 1], shape of logsnr.
  """
  return jnp.interp(
    -logsnr, jnp.asarray(-table, jnp.float32), jnp.arange(len(table), dtype=jnp.float32)
  )
