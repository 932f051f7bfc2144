"""Label dropout for training, and the rules of guidance for sampling.

P is Ho & Salimans 2022 (arXiv 2207.12598). A rule sees the networks as functions
`eps_fn(z [B,H,W,C], logsnr [B], y [B]) -> eps_hat [B,H,W,C]` by role, "main" being the model
that is sampled from, and knows nothing of samplers. A role may be a classifier's instead,
`log_prob_fn(z, logsnr, y) -> log p(y | z) [B]`. Here are the seam, the paper's rule and what wraps
any rule; `cfg.rules` has those of others, and the table of all.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import schedules
from cfg.diffusion import Array, expand

Memory = Any  # a tree of arrays that a rule or a sampler carries from step to step
EpsFn = Callable[[Array, Array, Array], Array]  # (z [B,H,W,C], logsnr [B], y [B]) -> eps_hat
LogProbFn = Callable[[Array, Array, Array], Array]  # (z, logsnr, y), the same -> log p(y|z) [B]

MAIN = "main"


class Guided(NamedTuple):
  """What a rule says of z at one level.

  Attributes:
    eps: [B,H,W,C], the estimate that x_hat is made of.
    renoise: [B,H,W,C], the noise that the next level is drawn with; None for the one that
      belongs to x_hat.
    aux: {name: [B]}, measured before x_hat is limited.
  """

  eps: Array
  renoise: Array | None = None
  aux: Mapping[str, Array] = {}


GuidedFn = Callable[[Array, Array, Memory], tuple[Guided, Memory]]  # (z, logsnr scalar, memory)


class Rule(NamedTuple):
  """A guidance rule.

  Attributes:
    init: (z, y) -> memory, () for rules that remember nothing.
    apply: (networks, *, w, y, keys) -> GuidedFn. `networks` is {role: EpsFn, or LogProbFn for the
      roles in `classifiers`}; `w` the strength, a scalar or [B], traced; `keys` [B] PRNG keys of
      this step, for rules that draw.
    calls: (logsnr) -> {role: rows of that network for one sample at that level}.
    unguided: the rule that this one equals where every w is 0; None: itself.
    strength: what its strength is called: the paper's "w", or "lambda" of CFG++.
    least: the lowest strength that means something.
    sets_renoise: whether Guided.renoise is given, which samplers that do not read
      Estimate.eps would ignore.
    start: (z_1, w) -> z_1, what the strength does to the first noise; None: nothing.
    noise: (noise, w) -> noise, and what it does to that of each step; None: nothing.
    classifiers: the roles that are classifiers.
    tilts: whether at every level it is the score of p_main^(1+w) p_weak^(-w) of exact networks, for
      one w: then w (1 + w) / 2 times the integral of aux["gap"] weighs samples (metrics.gauge).
  """

  init: Callable[[Array, Array], Memory]
  apply: Callable[..., GuidedFn]
  calls: Callable[[float], dict[str, int]]
  unguided: "Rule | None" = None
  strength: str = "w"
  least: float = -1.0
  sets_renoise: bool = False
  start: Callable[[Array, Array | float], Array] | None = None
  noise: Callable[[Array, Array | float], Array] | None = None
  classifiers: tuple[str, ...] = ()
  tilts: bool = False


def drop_labels(*, keys: Array, y: Array, p_uncond: float, null_label: int) -> Array:
  """y <- null with probability p_uncond, each row from its own key (P algorithm 1, line 2).

  Args:
    keys: [B] typed PRNG keys, one a row: which rows are dropped cannot depend on devices.
    y: [B] int32 labels.
    p_uncond: probability in [0, 1].
    null_label: the label that means "none"; the number of classes by convention.

  Returns:
    [B] int32.
  """
  drop = jax.vmap(lambda key: jax.random.bernoulli(key, p_uncond))(keys)
  return jnp.where(drop, null_label, y)


def mix(*, eps_cond: Array, eps_uncond: Array, w: Array | float) -> Array:
  """eps_guided = (1 + w) eps_cond - w eps_uncond (P equation 6).

  w = 0 is the conditional model, exactly. Others write scale = 1 + w. w is a scalar, or [B].
  """
  w = expand(w, eps_cond)
  return (1 + w) * eps_cond - w * eps_uncond


def squared_norm(a: Array) -> Array:
  """|a|^2 of each sample, over all its axes: [B,...] -> [B]."""
  return jnp.sum(jnp.square(a), axis=tuple(range(1, a.ndim)))


def branches(
  eps_fn: EpsFn,
  *,
  z: Array,
  logsnr: Array,
  y: Array,
  other_y: Array | int,
  other_logsnr: Array | None = None,
) -> tuple[Array, Array]:
  """(eps_fn(z, logsnr, y), eps_fn(z, other_logsnr, other_y)) of one network, in one call.

  Rows are interleaved (z0, z0, z1, z1, ...; y0, null, y1, null, ...): where the
  batch is sharded, each device keeps the two branches of its own rows, and the
  mix needs no communication. Stacking [z, z] would.

  Args:
    eps_fn: the network.
    z: [B,H,W,C].
    logsnr: a scalar, or [B].
    y: [B] labels.
    other_y: those of the other branch, [B] or one for all: the null label.
    other_logsnr: the level that the other branch is told, a scalar; None: the same.
  """

  def pair(a, b):
    return jnp.stack([a, jnp.broadcast_to(b, y.shape).astype(a.dtype)], axis=1).reshape(-1)

  level = jnp.full(y.shape, logsnr)
  levels = pair(level, level if other_logsnr is None else other_logsnr)
  eps = eps_fn(jnp.repeat(z, 2, axis=0), levels, pair(y, other_y))
  eps = eps.reshape(z.shape[0], 2, *z.shape[1:])
  return eps[:, 0], eps[:, 1]


def gap(eps_cond: Array, eps_uncond: Array) -> dict[str, Array]:
  """{"gap": |eps_cond - eps_uncond|^2}: the integrand of what guidance does (arXiv 2607.19725)."""
  return {"gap": squared_norm(eps_cond - eps_uncond)}


def conditional() -> Rule:
  """eps = eps_cond: no guidance, one branch, whatever w."""

  def apply(networks, *, w, y, keys):
    del w, keys

    def guided(z, logsnr, memory):
      return Guided(networks[MAIN](z, jnp.full(z.shape[:1], logsnr), y)), memory

    return guided

  return Rule(init=nothing, apply=apply, calls=lambda logsnr: {MAIN: 1})


def classifier_free(*, null_label: int) -> Rule:
  """eps = (1 + w) eps(z, y) - w eps(z, null) (P equation 6): the paper's rule.

  Args:
    null_label: label of the unconditional branch.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, other_y=null_label)
      return Guided(mix(eps_cond=cond, eps_uncond=uncond, w=w), aux=gap(cond, uncond)), memory

    return guided

  calls = lambda logsnr: {MAIN: 2}
  return Rule(nothing, apply, calls, unguided=conditional(), tilts=True)


def interval(rule: Rule, *, logsnr_min: float | None, logsnr_max: float | None) -> Rule:
  """`rule` where logsnr_min <= logsnr < logsnr_max, its unguided form elsewhere.

  Kynkäänniemi et al. 2024 (arXiv 2404.07724), whose interval (sigma_lo, sigma_hi] is ours of
  logsnr = -2 log sigma. Outside, the second branch is not computed.

  Args:
    rule: one that has an unguided form.
    logsnr_min: None for no end. A neutral interval has none: one that ends at the grid's last
      level leaves that one out.
    logsnr_max: the same.

  Raises:
    ValueError: the rule has no unguided form, or the interval is empty.
  """
  low = np.float32(-math.inf if logsnr_min is None else logsnr_min)
  high = np.float32(math.inf if logsnr_max is None else logsnr_max)
  outside = rule.unguided
  if outside is None:
    raise ValueError("it has no unguided form to take outside of an interval of log-SNR")
  _check_acts_on_eps(rule, "an interval of log-SNR")
  if not low < high:
    raise ValueError(f"the interval of log-SNR from {low:g} to {high:g} is empty")
  contains = lambda logsnr: (logsnr >= low) & (logsnr < high)

  def apply(networks, *, w, y, keys):
    inner = rule.apply(networks, w=w, y=y, keys=keys)
    outer = outside.apply(networks, w=w, y=y, keys=keys)

    def guided(z, logsnr, memory):
      shapes, _ = jax.eval_shape(inner, z, logsnr, memory)
      zeros = {name: jnp.zeros(a.shape, a.dtype) for name, a in shapes.aux.items()}

      def unguided(z):
        eps = outer(z, logsnr, outside.init(z, y))[0].eps
        return Guided(eps, aux=zeros), memory

      return jax.lax.cond(contains(logsnr), lambda z: inner(z, logsnr, memory), unguided, z)

    return guided

  def calls(logsnr):
    # in f32, as the device decides
    return rule.calls(logsnr) if contains(np.float32(logsnr)) else outside.calls(logsnr)

  return rule._replace(apply=apply, calls=calls, tilts=False)


def ramp_constant(p: Array) -> Array:
  """1: w at every level."""
  return jnp.ones_like(p)


def ramp_linear(p: Array) -> Array:
  """2 p: no guidance in pure noise, 2 w at the end."""
  return 2 * p


def ramp_cosine(p: Array) -> Array:
  """1 - cos(pi p): the same ends, with a gentle start."""
  return 1 - jnp.cos(jnp.pi * p)


RAMPS: dict[str, Callable[[Array], Array]] = {
  "constant": ramp_constant,
  "linear": ramp_linear,
  "cosine": ramp_cosine,
}


def ramped(
  rule: Rule, ramp: Callable[[Array], Array], *, logsnr_min: float, logsnr_max: float
) -> Rule:
  """`rule` with strength w ramp(p), p = 1 - u(lambda): 0 in pure noise, 1 at the end.

  Wang et al. 2024 (arXiv 2404.13040), for the mix as a difference from the conditional model: every
  ramp has mean 1 over the paper's grid, and none is above 2, so that the least strength is halved.

  Args:
    rule: one that has an unguided form, which it takes where the strength is 0.
    ramp: one of RAMPS.
    logsnr_min: the schedule's end at u = 1.
    logsnr_max: and at u = 0.

  Raises:
    ValueError: the rule has no unguided form.
  """
  if ramp is ramp_constant:
    return rule
  if rule.unguided is None:
    raise ValueError("it has no strength that could vary with the level around an unguided form")
  _check_acts_on_eps(rule, "a ramp of its strength")

  def apply(networks, *, w, y, keys):
    def guided(z, logsnr, memory):
      u = schedules.cosine_u(logsnr, logsnr_min=logsnr_min, logsnr_max=logsnr_max)
      return rule.apply(networks, w=w * ramp(1 - u), y=y, keys=keys)(z, logsnr, memory)

    return guided

  return rule._replace(apply=apply, least=rule.least / 2, tilts=False)


def _check_acts_on_eps(rule: Rule, what: str) -> None:
  """Raise ValueError if the strength of a rule acts on the noise, once for all levels."""
  if rule.start is not None or rule.noise is not None:
    raise ValueError(f"its strength acts on the noise, not on the estimate: {what} has no meaning")


def nothing(z: Array, y: Array) -> Memory:
  """The memory of a rule that remembers nothing."""
  del z, y
  return ()
