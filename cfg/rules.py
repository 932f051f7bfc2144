"""The rules of guidance of others, low temperatures beside them, and the table of all.

P is Ho & Salimans 2022 (arXiv 2207.12598). A new rule is one function here and its line in RULES;
the names of its arguments are fields of the config's section `guidance`. `cfg.guidance` has the
seam and the paper's own.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.special import ndtr, ndtri

from cfg import diffusion, schedules
from cfg.diffusion import expand
from cfg.guidance import (
  MAIN,
  Array,
  Guided,
  LogProbFn,
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

  calls = lambda logsnr: {MAIN: 1, role: 1}
  return Rule(nothing, apply, calls, unguided=conditional(), tilts=True)


def classifier(*, role: str) -> Rule:
  """eps = eps(z, y) - w sigma grad_z log p_role(y | z): classifier guidance of a conditional model.

  P section 3.1, after Dhariwal & Nichol 2021 (arXiv 2105.05233, algorithm 2), whose classifier
  scale is w here. The target is p(z | y) p(y | z)^w. A gradient counts as one call.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      level = jnp.full(z.shape[:1], logsnr)
      cond = networks[MAIN](z, level, y)
      term = classifier_term(networks[role], z=z, level=level, y=y)
      return Guided(cond - expand(w, z) * term, aux={"gap": squared_norm(term)}), memory

    return guided

  return Rule(
    init=nothing,
    apply=apply,
    calls=lambda logsnr: {MAIN: 1, role: 1},
    unguided=conditional(),
    classifiers=(role,),
  )


def classifier_unconditional(*, role: str, null_label: int) -> Rule:
  """eps = eps(z, null) - (1 + w) sigma grad_z log p_role(y | z): that of an unconditional model.

  P section 3.1: weight 1 + w on p(z) is weight w on p(z | y), so that w still counts from the
  conditional model; the classifier scale of Dhariwal & Nichol 2021 is 1 + w here. Every strength
  but -1 takes the classifier's word for what the class is.

  Args:
    role: of the classifier.
    null_label: label of the unconditional branch; a network without classes ignores it.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      level = jnp.full(z.shape[:1], logsnr)
      uncond = networks[MAIN](z, level, jnp.full_like(y, null_label))
      term = classifier_term(networks[role], z=z, level=level, y=y)
      return Guided(uncond - (1 + expand(w, z)) * term, aux={"gap": squared_norm(term)}), memory

    return guided

  calls = lambda logsnr: {MAIN: 1, role: 1}
  return Rule(nothing, apply, calls, classifiers=(role,))


def classifier_term(log_prob_fn: LogProbFn, *, z: Array, level: Array, y: Array) -> Array:
  """sigma grad_z log p(y | z), which is eps_uncond - eps_cond of an exact classifier.

  Args:
    log_prob_fn: of the classifier.
    z: [B,H,W,C].
    level: [B] log-SNRs.
    y: [B] labels.
  """
  # a sample's own log p alone depends on it, so that the sum's gradient is each one's
  gradient = jax.grad(lambda z: jnp.sum(log_prob_fn(z, level, y)))(z)
  return expand(diffusion.sigma(level), z) * gradient


def random_label(*, num_classes: int) -> Rule:
  """eps = (1 + w) eps(z, y) - w eps(z, y'), y' uniform over all classes and drawn at each step.

  Independent condition guidance (Sadat et al. 2024, arXiv 2407.02687): for networks that have no
  null label. Of the network's own answers to unrelated labels; one in num_classes is the same.

  Args:
    num_classes: of the network; labels are below it.
  """

  def apply(networks, *, w, y, keys):
    # folded in, a key can be used by both calls of Heun's step, which draw the same label
    draw = jax.vmap(lambda k: jax.random.randint(jax.random.fold_in(k, 0), (), 0, num_classes))

    def guided(z, logsnr, memory):
      other_y = draw(keys).astype(y.dtype)
      cond, weak = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, other_y=other_y)
      return Guided(mix(eps_cond=cond, eps_uncond=weak, w=w), aux=gap(cond, weak)), memory

    return guided

  return Rule(nothing, apply, calls=lambda logsnr: {MAIN: 2}, unguided=conditional())


def shifted_level(*, level_shift: float, schedule_min: float, schedule_max: float) -> Rule:
  """eps = (1 + w) eps(z, lambda, y) - w eps(z, lambda', y), lambda' = lambda(u + level_shift).

  Self-guidance (Li et al. 2024, arXiv 2412.05827): the same network, told that z is noisier than it
  is, for networks that have no null label. The difference is taken in eps. lambda' stays within
  what the network was trained on.

  Args:
    level_shift: in u, at least 0; 0 is no guidance.
    schedule_min: log-SNR of the network's schedule at u = 1.
    schedule_max: and at u = 0.

  Raises:
    ValueError: level_shift is below 0, or above 1.
  """
  if not 0 <= level_shift <= 1:
    raise ValueError(f"level_shift is a part of u in [0, 1], got {level_shift}")
  ends = dict(logsnr_min=schedule_min, logsnr_max=schedule_max)

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      u = jnp.minimum(schedules.cosine_u(logsnr, **ends) + level_shift, 1.0)
      noisier = jnp.minimum(schedules.cosine_logsnr(u, **ends), logsnr)
      cond, weak = branches(
        networks[MAIN], z=z, logsnr=logsnr, y=y, other_y=y, other_logsnr=noisier
      )
      return Guided(mix(eps_cond=cond, eps_uncond=weak, w=w), aux=gap(cond, weak)), memory

    return guided

  return Rule(nothing, apply, calls=lambda logsnr: {MAIN: 2}, unguided=conditional())


def power_law(*, null_label: int, power: float) -> Rule:
  """eps = eps_cond + w (|d| / sigma)^power d, d = eps_cond - eps_uncond.

  Pavasovic et al. 2025 (arXiv 2502.07849), whose |d| / sigma is the difference of the scores; the
  norm is that of a sample. A power above 0 guides most where the branches differ most. w means
  another strength with each power and number of pixels.

  Args:
    null_label: label of the unconditional branch.
    power: 0 is classifier-free guidance.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, other_y=null_label)
      measured = gap(cond, uncond)
      norm = jnp.sqrt(jnp.maximum(measured["gap"], 1e-30)) / diffusion.sigma(logsnr)
      return Guided(mix(eps_cond=cond, eps_uncond=uncond, w=w * norm**power), aux=measured), memory

    return guided

  return Rule(nothing, apply, calls=lambda logsnr: {MAIN: 2}, unguided=conditional())


def scaled_score() -> Rule:
  """eps = (1 + w) eps(z, y): the score of p(z_lambda | y)^(1 + w), at each level for itself.

  The plainest low temperature, 1 / (1 + w): Dhariwal & Nichol 2021 (arXiv 2105.05233) found that it
  blurs, and P section 1 repeats it.
  """
  return _scaled(lambda logsnr, w: 1 + w)


def temporal_rescaling(*, data_std: float) -> Rule:
  """eps = eps(z, y) (n s^2 + 1) / (n s^2 / k + 1), n = alpha^2 / sigma^2, k = 1 + w, s = data_std.

  Temporal score rescaling (arXiv 2510.01184): for Gaussian data of that standard deviation exactly
  the score of p(x | y)^k noised, whose variance is k times smaller.

  Args:
    data_std: of a pixel given its class, above 0.

  Raises:
    ValueError: it is not.
  """
  if not data_std > 0:
    raise ValueError(f"data_std is a standard deviation above 0, got {data_std}")

  def factor(logsnr, w):
    # the same as (1 + w) / (1 + w / (n s^2 + 1)): exactly 1 where w is 0, and 0 where it is -1,
    # also in pure noise, where the denominator is 0 too
    denominator = 1 + jax.nn.sigmoid(-logsnr - 2 * jnp.log(data_std)) * w
    return (1 + w) / jnp.maximum(denominator, 1e-30)

  return _scaled(factor)


def _scaled(factor: Callable) -> Rule:
  """eps = factor(logsnr, w) eps(z, y), and the conditional model where w is 0."""

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      eps = networks[MAIN](z, jnp.full(y.shape, logsnr), y)
      return Guided(expand(factor(logsnr, jnp.asarray(w)), z) * eps), memory

    return guided

  return Rule(nothing, apply, calls=lambda logsnr: {MAIN: 1}, unguided=conditional())


def shrunk_noise() -> Rule:
  """noise <- noise / sqrt(1 + w) at each step of the conditional model: noise of a low temperature.

  P section 1 names it beside `scaled_score`. Of samplers that draw noise alone.
  """
  shrink = lambda noise, w: noise / jnp.sqrt(1 + expand(w, noise))
  return conditional()._replace(noise=shrink, unguided=conditional(), least=0.0)


def truncation() -> Rule:
  """z_1 from the normal law cut to [-1/w, 1/w], and the conditional model.

  The truncation trick of GANs (Brock et al. 2019, arXiv 1809.11096, section 3.1), of deterministic
  samplers alone: others forget z_1. The strength is 1 / threshold: 0 cuts nothing. Each number of
  z_1 keeps its quantile, so that all strengths share their noise.
  """

  def start(z, w):
    outside = ndtr(-1 / jnp.maximum(expand(w, z), 1e-6))  # below -threshold
    quantile = outside + (1 - 2 * outside) * ndtr(-jnp.abs(z))  # the lower half keeps its digits
    return jnp.where(expand(w, z) > 0, -jnp.sign(z) * ndtri(quantile), z)

  return conditional()._replace(
    start=start, unguided=conditional(), strength="1/threshold", least=0.0
  )


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
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, other_y=null_label)
      eps = mix(eps_cond=cond, eps_uncond=uncond, w=w - 1)
      return Guided(eps, renoise=uncond, aux=gap(cond, uncond)), memory

    return guided

  calls = lambda logsnr: {MAIN: 2}
  return Rule(nothing, apply, calls, strength="lambda", least=0.0, sets_renoise=True)


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
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, other_y=null_label)
      difference = cond - uncond
      ratio = jnp.exp(-0.5 * logsnr)  # sigma / alpha: x_cond - x_uncond = -ratio (cond - uncond)
      direction = difference - momentum * before / ratio  # -G / ratio
      x_cond = diffusion.x_from_eps(z=z, eps=cond, logsnr=logsnr)
      update = _shortened(direction, None if norm_limit is None else norm_limit / ratio)
      update += (parallel - 1) * _projection(update, x_cond)
      # as what it adds to the paper's rule, so that the neutral settings add 0 exactly
      eps = mix(eps_cond=cond, eps_uncond=uncond, w=w) + expand(w, z) * (update - difference)
      return Guided(eps, aux=gap(cond, uncond)), -ratio * direction

    return guided

  return Rule(
    init=lambda z, y: jnp.zeros_like(z),
    apply=apply,
    calls=lambda logsnr: {MAIN: 2},
    unguided=conditional(),
  )


def _shortened(a: Array, limit: Array | None) -> Array:
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
  "classifier": classifier,
  "classifier_unconditional": classifier_unconditional,
  "cfg_plus_plus": cfg_plus_plus,
  "projected": projected,
  "random_label": random_label,
  "shifted_level": shifted_level,
  "power_law": power_law,
  "scaled_score": scaled_score,
  "temporal_rescaling": temporal_rescaling,
  "shrunk_noise": shrunk_noise,
  "truncation": truncation,
}
