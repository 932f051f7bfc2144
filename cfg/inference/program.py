"""A rule, a sampler, a grid and a limit as one program: the sections guidance and sampler."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import guidance, limits, rules, sampling, schedules
from cfg.base import flops, images
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError, nearest
from cfg.guidance import MAIN, EpsFn, LogProbFn, Rule
from cfg.limits import Limit
from cfg.sampling import Sampler

# roles of networks besides MAIN: each is a field of the section guidance, a place, and which of the
# networks there
GUIDE = "guide"
ROLES = (GUIDE,)
ROLE_ENDS = ("", "_ema", "_step")
# fields that choose a constructor, by section; its arguments are fields of the same section
CHOICES: dict[str, dict[str, Mapping[str, Callable]]] = {
  "sampler": {"name": sampling.SAMPLERS, "limit": limits.LIMITS, "spacing": schedules.SPACINGS},
  "guidance": {"rule": rules.RULES, "ramp": guidance.RAMPS},
}


class Program(NamedTuple):
  """Everything about sampling but parameters, labels, strength and seed; compiled once for all w.

  Attributes:
    rule: what the networks say together.
    sampler: how a level becomes the next.
    logsnr: [T] the levels, float32.
    limit: what becomes of x_hat.
    image_shape: (H, W, C).
    networks: {role: parameters -> eps_fn, or log_prob_fn for the rule's classifiers}.
    particles: samples of a group, which are resampled together; 1 for none.
  """

  rule: Rule
  sampler: Sampler
  logsnr: np.ndarray
  limit: Limit
  image_shape: tuple[int, int, int]
  networks: Mapping[str, Callable[[Any], EpsFn | LogProbFn]]
  particles: int = 1

  def at(self, w: float | np.ndarray) -> "Program":
    """The program for these strengths: with the rule's unguided form where every one is 0, whose
    samples all weigh the same.
    """
    unguided = self.rule.unguided
    return self if unguided is None or np.any(w) else self._replace(rule=unguided, particles=1)


def nfe(program: Program) -> dict[str, int]:
  """{role: rows of that network for one sample}: its calls at every level of the sampler's."""
  levels = [float(level) for level in program.logsnr]
  total: dict[str, int] = {}
  for logsnr_t, logsnr_s in zip(levels, [*levels[1:], None], strict=True):
    for level in program.sampler.levels(logsnr_t, logsnr_s):
      for role, rows in program.rule.calls(level).items():
        total[role] = total.get(role, 0) + rows
  return total


def flops_of_calls(program: Program, params: Mapping[str, Any]) -> dict[str, int]:
  """{role: FLOPs of one evaluation of that network for one sample}, counted in its jaxpr; of a
  classifier those of its gradient. Times `nfe` they are a sample's.
  """
  z = jax.ShapeDtypeStruct((1, *program.image_shape), jnp.float32)
  level, y = jax.ShapeDtypeStruct((1,), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)

  def count(role, make):
    call = lambda z, level, y, params: make(params)(z, level, y)
    if role in program.rule.classifiers:
      call = jax.grad(lambda *inputs: jnp.sum(make(inputs[3])(*inputs[:3])))
    return flops.count(jax.make_jaxpr(call)(z, level, y, params[role]))

  return {role: count(role, make) for role, make in program.networks.items()}


def generate(
  params: Mapping[str, Any],
  index: jax.Array,
  y: jax.Array,
  w: jax.Array,
  key: jax.Array,
  *,
  program: Program,
) -> tuple[jax.Array, jax.Array, Mapping[str, jax.Array]]:
  """Images of P's algorithm 2 (arXiv 2207.12598).

  Image i is a function of (params, key, index[i], y[i], w[i]); with particles, of those of its
  group: rows that lie side by side, their number dividing B, of one y and one w.

  Args:
    params: {role: of that network}.
    index: [B] uint32 sample numbers.
    y: [B] int32 labels.
    w: the strength, f32, a scalar or [B]; traced: one program for all strengths.
    key: typed PRNG key of the whole run.
    program: what draws.

  Returns:
    uint8 [B,H,W,C]; [B] whether all of a sample's numbers are finite, without which its pixels mean
    nothing; and {name: [T,B]} that the rule measured.
  """
  x, aux = sampling.sample(
    networks={role: make(params[role]) for role, make in program.networks.items()},
    rule=program.rule,
    sampler=program.sampler,
    limit=program.limit,
    keys=sampling.sample_keys(key=key, index=index),
    y=y,
    w=w,
    logsnr=jnp.asarray(program.logsnr),
    image_shape=program.image_shape,
    particles=program.particles,
  )
  finite = jnp.isfinite(x).all(axis=range(1, x.ndim))
  return images.to_uint8(x), finite, aux


def from_config(
  config: ConfigDict,
  *,
  image_shape: tuple[int, int, int],
  null_label: int,
  networks: Mapping[str, Callable[[Any], EpsFn | LogProbFn]],
) -> Program:
  """The Program of a config.

  Args:
    config: the whole config; `guidance`, `sampler` and `schedule` are used.
    image_shape: (H, W, C).
    null_label: label of the unconditional branch.
    networks: of Program.

  Raises:
    UserError: settings that no sampler has, or that cannot be combined.
  """
  if config.guidance.interval == "meter" and config.guidance.logsnr_max is None:
    raise UserError(
      "guidance.interval is 'meter', which is of a trained network that was measured: use it with "
      "--mode=sweep, and then --mode=sample."
    )
  rule = make_rule(config, null_label=null_label)
  sampler, limit, logsnr = make_sampler(config)
  _check_combination(config, rule, sampler)
  particles = config.sampler.particles
  if particles > 1:
    _check_particles(config, rule, sampler)
  return Program(rule, sampler, logsnr, limit, image_shape, networks, particles)


def _check_combination(config, rule, sampler):
  """Raise UserError if the sampler ignores what the rule decides."""
  name = f"guidance.rule {config.guidance.rule!r}"
  drawn = f"sampler.name {config.sampler.name!r}"
  if rule.sets_renoise and not sampler.reads_eps:
    able = [name for name in sampling.SAMPLERS if _reads_eps(name, config.sampler)]
    raise UserError(
      f"{name} chooses the noise of the next level, which {drawn} does not read: choose one of "
      f"{', '.join(able)}."
    )
  if rule.start is not None and sampler.stochastic:
    raise UserError(
      f"{name} changes the first noise, which {drawn} forgets, since it draws more at each step: "
      "choose a deterministic one, as ddim with sampler.eta = 0."
    )
  if rule.noise is not None and not sampler.stochastic:
    raise UserError(
      f"{name} changes the noise of each step, but {drawn} draws none: choose one that does, as "
      "ancestral, or ddim with sampler.eta above 0."
    )


def _check_particles(config, rule, sampler):
  """Raise UserError unless samples have weights towards a tilted law, and their copies part."""
  section = config.sampler
  what = f"sampler.particles is {section.particles}, but "
  without = "or set sampler.particles=1"
  if not rule.tilts:
    raise UserError(
      f"{what}guidance.rule {config.guidance.rule!r} with its ramp and its interval is not the "
      "mix of two branches at one w, so that no weights are known: use classifier_free or "
      f"second_network with constant w, {without}."
    )
  if section.limit != "none":
    raise UserError(
      f"{what}sampler.limit is {section.limit!r}: the weights are those of an x_hat that is left "
      f"as it is. Set sampler.limit=none, {without}."
    )
  if sampler.goes_back:
    raise UserError(
      f"{what}sampler.churn is {section.churn:g}: noise that is added on the way takes the samples "
      f"off the law that the weights are of. Use ancestral, {without}."
    )
  if not sampler.stochastic:
    raise UserError(
      f"{what}sampler.name {section.name!r} draws no noise, so that copies of a sample would never "
      f"part: use ancestral, ddim or dpm_solver_pp_2m with sampler.eta above 0, {without}."
    )


def make_rule(config: ConfigDict, *, null_label: int) -> Rule:
  """The Rule of config.guidance with its ramp, in its interval of log-SNR where one is given."""
  section, schedule = config.guidance, config.schedule
  try:
    rule = _construct(
      section,
      "guidance",
      "rule",
      null_label=null_label,
      num_classes=null_label,
      role=GUIDE,
      schedule_min=schedule.logsnr_min,
      schedule_max=schedule.logsnr_max,
    )
    rule = guidance.ramped(rule, chosen(section, "guidance", "ramp"), **schedule)
    if section.logsnr_min is None and section.logsnr_max is None:
      return rule
    return guidance.interval(rule, logsnr_min=section.logsnr_min, logsnr_max=section.logsnr_max)
  except (ValueError, TypeError) as e:
    raise UserError(f"guidance.rule {section.rule!r} cannot be used like this: {e}.") from e


def make_sampler(config: ConfigDict) -> tuple[Sampler, Limit, np.ndarray]:
  """(sampler, limit, levels [T] f32) of config.sampler; the ends are the schedule's if None."""
  section, schedule = config.sampler, config.schedule
  low = schedule.logsnr_min if section.logsnr_min is None else section.logsnr_min
  high = schedule.logsnr_max if section.logsnr_max is None else section.logsnr_max
  if low < schedule.logsnr_min or high > schedule.logsnr_max:
    raise UserError(
      f"the sampler's grid goes from log-SNR {low:g} to {high:g}, beyond the schedule's "
      f"{schedule.logsnr_min:g} to {schedule.logsnr_max:g} that the network was trained on: set "
      "sampler.logsnr_min and sampler.logsnr_max within it."
    )
  try:
    sampler = _construct(
      section, "sampler", "name", num_levels=section.num_steps, lowest=schedule.logsnr_min
    )
    limit = _construct(section, "sampler", "limit")
    chosen(section, "sampler", "spacing")
    logsnr = schedules.sampling_grid(
      num_steps=section.num_steps,
      logsnr_min=low,
      logsnr_max=high,
      spacing=section.spacing,
      rho=section.rho,
    )
  except (ValueError, TypeError) as e:
    raise UserError(f"the config's section sampler cannot be used: {e}.") from e
  return sampler, limit, logsnr.astype(np.float32)


def facts(config: ConfigDict) -> dict[str, Any]:
  """{"sampler.num_steps": 32, ...}: what of a config decides a sample, but networks and seed.

  Whole sections, less the arguments of constructors that were not chosen. Of another network its
  place is left out: Network.facts has its content.
  """
  everything: dict[str, Any] = {}
  for name in ("schedule", "sampler", "guidance"):
    section = config[name].to_dict()
    dropped = {f"{role}{end}" for role in ROLES for end in ROLE_ENDS} | _unused(section, name)
    everything |= {f"{name}.{field}": section[field] for field in section if field not in dropped}
  return everything


def strength_facts(rule: Rule, w: float) -> dict[str, Any]:
  """{"w", "scale", "strength"} of a row: scale = 1 + w, which the lambda of CFG++ does not have."""
  scale = 1.0 + float(w) if rule.strength == "w" else None
  return {"w": float(w), "scale": scale, "strength": rule.strength}


def roles(config: ConfigDict) -> tuple[str, ...]:
  """The networks that the config's rule calls, MAIN first."""
  return (MAIN, GUIDE) if "role" in rule_arguments(config) else (MAIN,)


def rule_arguments(config) -> set[str]:
  """The names of the arguments of the config's rule."""
  return arguments(chosen(config.guidance, "guidance", "rule"))


def arguments(constructor: Callable) -> set[str]:
  """The names of the arguments of a constructor."""
  return set(inspect.signature(constructor).parameters)


def chosen(section, name: str, field: str) -> Callable:
  """The constructor that a field of a section chooses."""
  table = CHOICES[name][field]
  if section[field] not in table:
    raise UserError(f"{name}.{field} is {section[field]!r}: {nearest(section[field], table)}")
  return table[section[field]]


def _construct(section, name: str, field: str, **more):
  """What that constructor makes of the section's fields, and of `more`."""
  constructor = chosen(section, name, field)
  values = {**section.to_dict(), **more}
  return constructor(**{key: values[key] for key in arguments(constructor)})


def _unused(section: Mapping[str, Any], name: str) -> set[str]:
  """Arguments of constructors of a section that are not chosen, and of none that is."""
  used: set[str] = set()
  known: set[str] = set()
  for field, table in CHOICES.get(name, {}).items():
    used |= arguments(chosen(section, name, field))
    known = known.union(*map(arguments, table.values()))
  return known - used


def _reads_eps(name: str, section) -> bool:
  """Whether a sampler of that name reads Estimate.eps."""
  constructor = sampling.SAMPLERS[name]
  values = {key: section[key] for key in arguments(constructor) if key in section}
  return constructor(**values).reads_eps
