"""The laws that samplers with noise draw from an exact mixture: orders of their mean and variance.

Without sampling: E[f(z_end) | z] is carried backwards from the grid's end, level by level, by
quadrature over each step's noise and splines in between.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.interpolate
from test_sampling import MEANS, STDS, WEIGHTS, mixture_eps, sig

from cfg import guidance, limits, sampling, schedules

LOW, HIGH = -4.0, 5.0
# of the noise of a step: its values, and their shares
NOISE, SHARES = np.polynomial.hermite_e.hermegauss(8)
SHARES = SHARES / SHARES.sum()
Z = np.linspace(-7, 7, 201)
# of the last step's x_hat, on which little depends, for a sampler that remembers it
BEFORE = 4.0 * np.polynomial.chebyshev.chebpts1(5)


def law(logsnr):
  """(means, variances) of the classes at a level."""
  return np.sqrt(sig(logsnr)) * MEANS, sig(logsnr) * STDS**2 + sig(-logsnr)


def moments(logsnr):
  """The mixture's mean and variance at a level."""
  means, variances = law(logsnr)
  mean = WEIGHTS @ means
  return np.array([mean, WEIGHTS @ (variances + means**2) - mean**2])


def drawn(sampler, grid):
  """Mean and variance of z at the grid's end, from the mixture's own law at its start."""
  guided = guidance.conditional().apply({guidance.MAIN: mixture_eps}, w=0.0, y=None, keys=None)
  denoise = sampling.make_denoise(guided, limit=limits.no_limit())
  remembers = sampler.init(jnp.zeros(1)) != ()
  before = BEFORE if remembers else np.zeros(1)
  share_of = scipy.interpolate.BarycentricInterpolator(BEFORE, np.eye(len(BEFORE)))
  z, noise, x = (a.astype(np.float32) for a in np.meshgrid(Z, NOISE, before, indexing="ij"))

  @jax.jit
  def step(last, logsnr_t, logsnr_s):
    memory = sampler.init(z)._replace(x=x, h=0.5 * (logsnr_t - last)) if remembers else ()
    levels = dict(logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    z_s, x_hat, *_ = sampler.step(denoise, z, memory, (), **levels, noise=noise, last=False)
    return z_s, x_hat

  after = np.stack([Z, Z**2], axis=1)[:, None] + np.zeros((1, len(before), 1))
  for last, t, s in zip([-np.inf, *grid[:-2]][::-1], grid[-2::-1], grid[:0:-1]):
    z_s, x_hat = np.asarray(step(np.float32(last), t, s), np.float64)
    # [Z, NOISE, BEFORE, the next level's BEFORE, moment]; what lies beyond the ends has no weight
    values = scipy.interpolate.CubicSpline(Z, after)(np.clip(z_s, Z[0], Z[-1]))
    x_hat = np.clip(x_hat[:, :, 0], BEFORE.min(), BEFORE.max())
    shares = share_of(x_hat) if remembers else np.ones((*x_hat.shape, 1))
    after = np.einsum("znbam,zna,n->zbm", values, shares, SHARES)
  means, variances = law(np.float64(grid[0]))
  density = np.exp(-0.5 * (Z[:, None] - means) ** 2 / variances) / np.sqrt(2 * np.pi * variances)
  mean, square = np.trapezoid(after[:, 0] * (density @ WEIGHTS)[:, None], Z, axis=0)
  return np.array([mean, square - mean**2])


STOCHASTIC = {
  "ancestral": (lambda T: sampling.ancestral(var_interp=0.3), (0.9, 1.1)),
  "ddim": (lambda T: sampling.ddim(eta=0.5), (0.9, 1.1)),
  "dpm_solver_pp_2m": (lambda T: sampling.dpm_solver_pp_2m(eta=1.0), (1.8, 2.5)),
  "dpm_solver_pp_2m of eta 0.5": (lambda T: sampling.dpm_solver_pp_2m(eta=0.5), (1.8, 2.5)),
  "heun": (lambda T: sampling.heun(churn=8.0, num_levels=T, lowest=LOW), (1.7, 2.2)),
}


@pytest.mark.parametrize("name", STOCHASTIC)
def test_order_of_the_moments(name):
  """The errors of mean and variance on the exact mixture fall as T^-order, on a grid uniform in
  log-SNR; every sampler that can draw noise is here.
  """
  assert {key.split(" of ")[0] for key in STOCHASTIC} == sampling.SAMPLERS.keys()
  make, (least, most) = STOCHASTIC[name]
  errors = []
  for num_steps in (65, 129):
    grid = schedules.sampling_grid(
      num_steps=num_steps, logsnr_min=LOW, logsnr_max=HIGH, spacing="logsnr"
    )
    sampler = make(num_steps)
    assert sampler.stochastic
    errors.append(np.abs(drawn(sampler, np.float32(grid)) - moments(grid[-1])))
  orders = np.log2(errors[0] / errors[1])
  # above its order too something is wrong: what does not vanish cancels an error that does
  assert np.all((orders > least) & (orders < most)), (orders, errors)
  assert np.all(errors[1] < 0.02), errors
