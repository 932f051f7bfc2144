"""Mixtures of Gaussian classes: exact noise, and the law that guidance is meant to draw.

P is Ho & Salimans 2022 (arXiv 2207.12598). Where the classes are Gaussian, both branches of
guidance are known exactly, and so is the tilted law p(x|c) p(c|x)^w / Z of P's section 3.2 and
figure 2: what a sampler misses is then the sampler's own.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import diffusion
from cfg.diffusion import Array
from cfg.guidance import EpsFn


class Mixture(NamedTuple):
  """K equally probable classes N(mean_k, std_k^2 I) of d numbers.

  Attributes:
    means: [K,d] f64.
    stds: [K] f64, above 0.
  """

  means: np.ndarray
  stds: np.ndarray

  @property
  def num_classes(self) -> int:
    """K, which is also the null label."""
    return len(self.means)

  @property
  def dim(self) -> int:
    """d."""
    return self.means.shape[1]


def figure_2() -> Mixture:
  """Three isotropic Gaussians in the plane, as in P's figure 2, whose means and standard deviations
  are not stated: here at equal distances, and overlapping.
  """
  angles = np.pi * np.array([1 / 2, 7 / 6, 11 / 6])
  return Mixture(np.stack([np.cos(angles), np.sin(angles)], axis=1), np.full(3, 0.6))


def log_classes(x, *, mixture: Mixture, logsnr=np.inf, xp=np):
  """[N,K]: log p(z|k) of z [N,d] at a level, N(alpha mean_k, (alpha^2 std_k^2 + sigma^2) I).

  Args:
    x: [N,d]; the clean x at the infinite log-SNR that is the default.
    mixture: of the classes.
    logsnr: a scalar or [N].
    xp: numpy, for f64 on the host, or jax.numpy.
  """
  alpha2 = xp.reshape(1 / (1 + xp.exp(-xp.asarray(logsnr))), (-1, 1))
  var = alpha2 * xp.asarray(mixture.stds, x.dtype)[None] ** 2 + (1 - alpha2)
  offset = x[:, None] - xp.sqrt(alpha2)[:, :, None] * xp.asarray(mixture.means, x.dtype)[None]
  square = xp.sum(offset**2, axis=2)
  return -0.5 * (square / var + mixture.dim * xp.log(2 * np.pi * var))


def make_eps_fn(mixture: Mixture) -> EpsFn:
  """eps = -sigma grad log p(z|y), or of the whole mixture with the null label K: what a perfect
  network says.

  z is [B,...] of d numbers a sample.
  """

  def eps_fn(z: Array, logsnr: Array, y: Array) -> Array:
    flat = z.reshape(len(z), -1)
    log_p = log_classes(flat, mixture=mixture, logsnr=logsnr, xp=jnp)
    one = jax.nn.one_hot(y, mixture.num_classes)
    weight = jnp.where((y == mixture.num_classes)[:, None], jax.nn.softmax(log_p), one)
    alpha, sigma = diffusion.alpha(logsnr)[:, None], diffusion.sigma(logsnr)[:, None]
    var = alpha**2 * jnp.float32(mixture.stds)[None] ** 2 + sigma**2
    offset = flat[:, None] - alpha[:, :, None] * jnp.float32(mixture.means)[None]
    return (sigma * jnp.sum((weight / var)[:, :, None] * offset, axis=1)).reshape(z.shape)

  return eps_fn


def log_posterior(x: np.ndarray, *, mixture: Mixture, label: int) -> np.ndarray:
  """[N]: log p(c|x) of x [N,d], f64."""
  log_p = log_classes(x, mixture=mixture)
  largest = log_p.max(axis=1)
  return log_p[:, label] - largest - np.log(np.exp(log_p - largest[:, None]).sum(axis=1))


def log_tilted(x: np.ndarray, *, mixture: Mixture, label: int, w: float) -> np.ndarray:
  """[N]: log of p(x|c)^(1+w) p(x)^(-w), whose integral is Z (P section 3.2, with p(c|x) / p(c))."""
  log_ratio = log_posterior(x, mixture=mixture, label=label) + np.log(mixture.num_classes)
  return log_classes(x, mixture=mixture)[:, label] + w * log_ratio


class Tilted(NamedTuple):
  """The tilted law of a class on a regular grid.

  Attributes:
    axes: d arrays [M], the grid.
    density: [M,...] normalised.
    log_z: log of the integral of p(x|c)^(1+w) p(x)^(-w).
    mean: [d].
    cov: [d,d].
  """

  axes: tuple[np.ndarray, ...]
  density: np.ndarray
  log_z: float
  mean: np.ndarray
  cov: np.ndarray


def tilted_on_grid(
  *, mixture: Mixture, label: int, w: float, points: int = 401, reach: float = 8.0
) -> Tilted:
  """The tilted law by sums over a grid: of one or two dimensions, exact to the last digits.

  Args:
    mixture: of d = 1 or 2.
    label: c.
    w: the strength, at least 0, so that the law falls off as p(x|c) does or faster.
    points: M, along each axis.
    reach: how many of the class's standard deviations the grid goes from its mean.

  Raises:
    ValueError: w is below 0, or the mixture has more dimensions.
  """
  if w < 0 or mixture.dim > 2:
    raise ValueError(f"w must be at least 0 and d at most 2, got {w} and {mixture.dim}")
  width = reach * mixture.stds[label]
  axes = tuple(np.linspace(m - width, m + width, points) for m in mixture.means[label])
  x = np.stack([a.ravel() for a in np.meshgrid(*axes, indexing="ij")], axis=1)
  log_q = log_tilted(x, mixture=mixture, label=label, w=w)
  mass = np.exp(log_q - log_q.max())
  cell = float(np.prod([axis[1] - axis[0] for axis in axes]))
  log_z = float(np.log(mass.sum() * cell) + log_q.max())
  share = mass / mass.sum()
  mean = share @ x
  cov = (share[:, None] * (x - mean)).T @ (x - mean)
  return Tilted(axes, (share / cell).reshape((points,) * mixture.dim), log_z, mean, cov)


def draw_tilted(
  *, mixture: Mixture, label: int, w: float, count: int, rng: np.random.Generator
) -> np.ndarray:
  """[count,d]: independent draws of the tilted law, in any dimension.

  By rejection: x ~ p(x|c) is taken with probability p(c|x)^w, which is at most 1.

  Raises:
    ValueError: w is below 0.
  """
  if w < 0:
    raise ValueError(f"w must be at least 0, got {w}")
  parts, missing = [], count
  while missing > 0:
    noise = rng.standard_normal((4 * missing + 64, mixture.dim))
    x = mixture.means[label] + mixture.stds[label] * noise
    accept = np.log(rng.random(len(x))) < w * log_posterior(x, mixture=mixture, label=label)
    parts.append(x[accept][:missing])
    missing -= len(parts[-1])
  return np.concatenate(parts)
