"""Time u in [0, 1] to log-SNR lambda: u = 0 is clean, u = 1 is noise.

P is Ho & Salimans 2022 (arXiv 2207.12598). lambda = log(alpha^2 / sigma^2).
"""

import math

import jax.numpy as jnp
import numpy as np


def cosine_logsnr(u, *, logsnr_min=-20.0, logsnr_max=20.0, xp=jnp):
  """lambda(u) = -2 log tan(a u + b), b = arctan(exp(-lambda_max/2)), a = arctan(exp(-lambda_min/2)) - b.

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


def sampling_grid(*, num_steps, logsnr_min=-20.0, logsnr_max=20.0):
  """lambda_1 = lambda_min < ... < lambda_T = lambda_max, at T uniformly spaced u from 1 to 0.

  The grid of P's algorithm 2, both ends included; spacing 1 / (T - 1) in u.
  (The authors' related code makes N calls at u = (i + 1) / N instead and never
  calls the network at lambda_max.)

  Returns:
    float64 numpy [num_steps], increasing.

  Raises:
    ValueError: num_steps < 2.
  """
  if num_steps < 2:
    raise ValueError(f"num_steps must be at least 2 (both ends of the grid), got {num_steps}")
  u = np.linspace(1.0, 0.0, num_steps)
  return cosine_logsnr(u, logsnr_min=logsnr_min, logsnr_max=logsnr_max, xp=np)
