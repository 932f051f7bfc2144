"""The rules of guidance of others, and the table of all.

A new rule is one function here and its line in RULES; the names of its arguments are fields of the
config's section `guidance`. `cfg.guidance` has the seam and the paper's own.
"""

from collections.abc import Callable

import jax.numpy as jnp

from cfg import diffusion
from cfg.diffusion import expand
from cfg.guidance import (
  MAIN,
  Array,
  Guided,
  Rule,
  branches,
  classifier_free,
  conditional,
  gap,
  mix,
  nothing,
  squared_norm,
)


def second_network(*, role: str) -> Rule:
  """eps = (1 + w) eps(z, y) - w eps_role(z, y): another network in place of the null label.

  A worse version of the same network is autoguidance (Karras et al. 2024, arXiv 2406.02507,
  equation 3, whose weight is 1 + w); a network without classes ignores its label, and makes
  classifier-free guidance of two networks (P section 3.2).
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      level = jnp.full(z.shape[:1], logsnr)
      cond, weak = networks[MAIN](z, level, y), networks[role](z, level, y)
      return Guided(mix(eps_cond=cond, eps_uncond=weak, w=w), aux=gap(cond, weak)), memory

    return guided

  return Rule(nothing, apply, calls=lambda logsnr: {MAIN: 1, role: 1}, unguided=conditional())


def cfg_plus_plus(*, null_label: int) -> Rule:
  """eps = eps_uncond + lambda (eps_cond - eps_uncond), re-noised with eps_uncond (CFG++).

  Chung et al. 2024, arXiv 2406.08070, algorithm 2. The strength is lambda in [0, 1]: 0 is the
  unconditional model, and no value is the conditional one. A DDIM step with it is a plain one of
  w = lambda / (1 - exp(-(l' - l) / 2)) - 1, so that a lambda means another w at each step and
  another at another number of steps.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, null_label=null_label)
      eps = mix(eps_cond=cond, eps_uncond=uncond, w=w - 1)
      return Guided(eps, renoise=uncond, aux=gap(cond, uncond)), memory

    return guided

  calls = lambda logsnr: {MAIN: 2}
  return Rule(nothing, apply, calls, strength="lambda", sets_renoise=True)


def projected(
  *, null_label: int, momentum: float = 0.0, norm_limit: float | None = None, parallel: float = 1.0
) -> Rule:
  """x_hat = x_cond + w (G_orth + parallel G_par), G = (x_cond - x_uncond) + momentum G_before.

  Adaptive projected guidance (Sadat et al. 2024, arXiv 2410.02416, section 4): G is shortened to
  norm_limit where it is longer, and split along x_cond; norms are of a sample. With momentum 0, no
  limit and parallel 1 it is classifier-free guidance. The weight is the paper's w: the original and
  its ports differ in theirs.

  Args:
    null_label: label of the unconditional branch.
    momentum: weight of the last step's G, before it was shortened; negative in that paper.
    norm_limit: the largest norm of G, or None.
    parallel: weight of the part along x_cond; 0 leaves it out.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, before):
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, null_label=null_label)
      ratio = jnp.exp(-0.5 * logsnr)  # sigma / alpha: x_cond - x_uncond = -ratio (cond - uncond)
      direction = -ratio * (cond - uncond) + momentum * before
      x_cond = diffusion.x_from_eps(z=z, eps=cond, logsnr=logsnr)
      update = _shortened(direction, norm_limit)
      along = _projection(update, x_cond)
      update = (update - along) + parallel * along
      eps = cond - expand(w, z) * update / ratio
      return Guided(eps, aux=gap(cond, uncond)), direction

    return guided

  return Rule(
    init=lambda z, y: jnp.zeros_like(z),
    apply=apply,
    calls=lambda logsnr: {MAIN: 2},
    unguided=conditional(),
  )


def _shortened(a: Array, limit: float | None) -> Array:
  """Each sample of `a`, its norm at most `limit`."""
  if limit is None:
    return a
  norm = jnp.sqrt(squared_norm(a))
  return a * expand(jnp.minimum(1.0, limit / jnp.maximum(norm, 1e-30)), a)


def _projection(a: Array, onto: Array) -> Array:
  """The part of each sample of `a` along that of `onto`."""
  dot = jnp.sum(a * onto, axis=tuple(range(1, a.ndim)))
  return expand(dot / jnp.maximum(squared_norm(onto), 1e-30), onto) * onto


RULES: dict[str, Callable[..., Rule]] = {
  "classifier_free": classifier_free,
  "conditional": conditional,
  "second_network": second_network,
  "cfg_plus_plus": cfg_plus_plus,
  "projected": projected,
}
