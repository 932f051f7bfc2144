"""Label dropout for training, and the rules of guidance for sampling.

P is Ho & Salimans 2022 (arXiv 2207.12598). A rule sees the networks as functions
`eps_fn(z [B,H,W,C], logsnr [B], y [B]) -> eps_hat [B,H,W,C]` by role, "main" being the model
that is sampled from, and knows nothing of samplers. A role may be a classifier's instead,
`log_prob_fn(z, logsnr, y) -> log p(y | z) [B]`. A new rule is one function here and its line in
RULES; the names of its arguments are fields of the config's section `guidance`.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import diffusion
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
    sets_renoise: whether Guided.renoise is given, which samplers that do not read
      Estimate.eps would ignore.
    classifiers: the roles that are classifiers.
  """

  init: Callable[[Array, Array], Memory]
  apply: Callable[..., GuidedFn]
  calls: Callable[[float], dict[str, int]]
  unguided: "Rule | None" = None
  strength: str = "w"
  sets_renoise: bool = False
  classifiers: tuple[str, ...] = ()


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


def branches(eps_fn: EpsFn, *, z: Array, logsnr: Array, y: Array, null_label: int):
  """(eps_cond, eps_uncond) of one network, in one call.

  Rows are interleaved (z0, z0, z1, z1, ...; y0, null, y1, null, ...): where the
  batch is sharded, each device keeps the two branches of its own rows, and the
  mix needs no communication. Stacking [z, z] would.
  """
  both_z = jnp.repeat(z, 2, axis=0)
  both_y = jnp.stack([y, jnp.full_like(y, null_label)], axis=1).reshape(-1)
  eps = eps_fn(both_z, jnp.full(both_z.shape[:1], logsnr), both_y)
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

  return Rule(init=_nothing, apply=apply, calls=lambda logsnr: {MAIN: 1})


def classifier_free(*, null_label: int) -> Rule:
  """eps = (1 + w) eps(z, y) - w eps(z, null) (P equation 6): the paper's rule.

  Args:
    null_label: label of the unconditional branch.
  """

  def apply(networks, *, w, y, keys):
    del keys

    def guided(z, logsnr, memory):
      cond, uncond = branches(networks[MAIN], z=z, logsnr=logsnr, y=y, null_label=null_label)
      return Guided(mix(eps_cond=cond, eps_uncond=uncond, w=w), aux=gap(cond, uncond)), memory

    return guided

  return Rule(_nothing, apply, calls=lambda logsnr: {MAIN: 2}, unguided=conditional())


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

  return Rule(_nothing, apply, calls=lambda logsnr: {MAIN: 1, role: 1}, unguided=conditional())


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
      term = _classifier_term(networks[role], z=z, level=level, y=y)
      return Guided(cond - expand(w, z) * term, aux={"gap": squared_norm(term)}), memory

    return guided

  return Rule(
    init=_nothing,
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
      term = _classifier_term(networks[role], z=z, level=level, y=y)
      return Guided(uncond - (1 + expand(w, z)) * term, aux={"gap": squared_norm(term)}), memory

    return guided

  calls = lambda logsnr: {MAIN: 1, role: 1}
  return Rule(_nothing, apply, calls, classifiers=(role,))


def _classifier_term(log_prob_fn: LogProbFn, *, z: Array, level: Array, y: Array) -> Array:
  """sigma grad_z log p(y | z), which is eps_uncond - eps_cond of an exact classifier."""
  # a sample's own log p alone depends on it, so that the sum's gradient is each one's
  gradient = jax.grad(lambda z: jnp.sum(log_prob_fn(z, level, y)))(z)
  return expand(diffusion.sigma(level), z) * gradient


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
  return Rule(_nothing, apply, calls, strength="lambda", sets_renoise=True)


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

  return rule._replace(apply=apply, calls=calls)


def _nothing(z: Array, y: Array) -> Memory:
  """The memory of a rule that remembers nothing."""
  del z, y
  return ()


RULES: dict[str, Callable[..., Rule]] = {
  "classifier_free": classifier_free,
  "conditional": conditional,
  "second_network": second_network,
  "classifier": classifier,
  "classifier_unconditional": classifier_unconditional,
  "cfg_plus_plus": cfg_plus_plus,
  "projected": projected,
}
