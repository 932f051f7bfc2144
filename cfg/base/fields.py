"""The fields of a config and the values that each may have."""

import math
import numbers
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from ml_collections import ConfigDict

from cfg.base.errors import UserError, nearest
from cfg.base.paths import user_path, workdir_path


class Values(NamedTuple):
  """The values that a field may have.

  Attributes:
    holds: whether a value is one of them; it may be of any type.
    meaning: what they are, behind "it must be".
  """

  holds: Callable[[object], bool]
  meaning: str


def is_integer(value: object) -> bool:
  """Whether it is a whole number, and no bool."""
  return isinstance(value, numbers.Integral) and not isinstance(value, (bool, np.bool_))


def is_number(value: object) -> bool:
  """Whether it is a finite number, and no bool."""
  real = isinstance(value, numbers.Real) and not isinstance(value, (bool, np.bool_))
  return real and math.isfinite(value)


def integer(least: int, meaning: str = "a whole number") -> Values:
  """Whole numbers from `least`."""
  return Values(lambda value: is_integer(value) and value >= least, f"{meaning}, at least {least}")


def number(
  meaning: str,
  *,
  least: float = -math.inf,
  above: float = -math.inf,
  most: float = math.inf,
  below: float = math.inf,
) -> Values:
  """Finite numbers, least <= value <= most and above < value < below."""
  inside = lambda value: least <= value <= most and above < value < below
  return Values(lambda value: is_number(value) and inside(value), meaning)


def word(*known: str) -> Values:
  """One of the words that are known; any text if none are given."""
  if not known:
    return Values(lambda value: isinstance(value, str), "text")
  return Values(
    lambda value: isinstance(value, str) and value in known, " or ".join(map(repr, known))
  )


def optional(values: Values) -> Values:
  """None, or what `values` has."""
  return Values(lambda value: value is None or values.holds(value), f"None, or {values.meaning}")


def several(values: Values, *, least: int = 0, meaning: str = "") -> Values:
  """Tuples of at least so many of `values`."""
  holds = lambda value: (
    isinstance(value, (tuple, list)) and len(value) >= least and all(map(values.holds, value))
  )
  count = {0: "a tuple, empty or of values", 1: "a tuple of one value or more"}[least]
  return Values(holds, f"{count}, each {meaning or values.meaning}")


def distinct(values: Values) -> Values:
  """Those of the tuples that hold nothing twice."""
  return Values(
    lambda value: values.holds(value) and len(set(value)) == len(value),
    f"{values.meaning}, none of them twice",
  )


def paper_row(value: object) -> bool:
  """Whether it is (T, w, FID, IS)."""
  return isinstance(value, (tuple, list)) and len(value) == 4 and all(map(is_number, value))


COUNT = integer(1)
COUNT_OR_0 = integer(0)
# jax.random.key(2**32) is key(0)
SEED = Values(
  lambda value: is_integer(value) and 0 <= value < 2**32, "a whole number from 0 to 2^32 - 1"
)
FLAG = Values(lambda value: isinstance(value, (bool, np.bool_)), "True or False")
TEXT = word()
PATH = word()  # a file or folder; "" is none
POSITIVE = number("a finite number above 0", above=0)
NOT_NEGATIVE = number("a finite number, at least 0", least=0)
DECAY = number("at least 0 and below 1", least=0, below=1)
DROPOUT = number("a probability below 1", least=0, below=1)
FINITE = number("a finite number")
V = number("the paper's v, between 0 and 1", least=0, most=1)
ETA = number("a share in [0, 1]", least=0, most=1)
STRENGTH = number("finite and at least -1 (w = 0 is unguided, scale = 1 + w)", least=-1)
STRENGTHS = several(STRENGTH, least=1)
CH = Values(
  lambda value: is_integer(value) and value >= 4 and value % 2 == 0, "an even number, at least 4"
)
JUDGE_CH = Values(
  lambda value: is_integer(value) and value >= 1 and (value < 8 or value % 8 == 0),
  "a whole number from 1 to 7, or a multiple of 8 (it is normalised in 8 groups)",
)

FIELDS: dict[str, Values] = {
  "seed": SEED,
  "cpu_devices": COUNT,
  "data.name": TEXT,
  "data.path": PATH,
  "data.resolution": integer(1, "the images' side in pixels"),
  "data.recipe": TEXT,
  "data.num_classes": integer(0, "a whole number, 0 for as many as there are"),
  "data.num_images": COUNT_OR_0,
  "data.heldout_fraction": number("a number between 0 and 1", above=0, below=1),
  "data.split_seed": SEED,
  "model.ch": CH,
  "model.emb_ch": COUNT,
  "model.ch_mult": several(POSITIVE, least=1),
  "model.num_res_blocks": COUNT,
  "model.attn_resolutions": several(COUNT),
  "model.num_heads": optional(COUNT),
  "model.head_dim": optional(COUNT),
  "model.dropout": DROPOUT,
  "model.norm_groups": COUNT,
  "model.norm_eps": POSITIVE,
  "model.scale_shift": FLAG,
  "model.conv_resample": FLAG,
  "model.discrete_schedule": optional(word("cosine", "linear")),
  "model.class_rows": optional(COUNT_OR_0),
  "model.remat": FLAG,
  "model.attention": word("auto", "xla", "cudnn", "splash"),
  "model.dtype": word("float32", "bfloat16"),
  "schedule.logsnr_min": number("a finite number below schedule.logsnr_max"),
  "schedule.logsnr_max": number("a finite number above schedule.logsnr_min"),
  "optimizer.learning_rate": POSITIVE,
  "optimizer.warmup_steps": COUNT_OR_0,
  "optimizer.grad_clip": optional(POSITIVE),
  "optimizer.beta1": DECAY,
  "optimizer.beta2": DECAY,
  "optimizer.weight_decay": NOT_NEGATIVE,
  "train.batch_size": COUNT,
  "train.data_workers": integer(0, "a number of processes, 0 for none"),
  "train.accumulate": integer(1, "the number of micro-batches of an update"),
  "train.most_skipped": integer(1, "a number of updates in a row"),
  "train.fsdp": integer(1, "a number of devices"),
  "train.num_steps": COUNT,
  "train.objective": word("denoise", "classify"),
  "train.p_uncond": number("a probability, 0.1 in the paper", least=0, most=1),
  "train.flip": FLAG,
  "train.ema_decays": distinct(several(DECAY, least=1)),
  "train.keep_checkpoints": COUNT,
  "heldout.num_bins": COUNT,
  "heldout.num_images": integer(0, "a whole number, 0 for all"),
  "heldout.batch_size": COUNT,
  "heldout.seed": SEED,
  "meter.num_levels": integer(0, "a number of parts of the log-SNR, 0 for no meter"),
  "meter.num_images": integer(0, "a whole number, 0 for all"),
  "meter.batch_size": COUNT,
  "meter.seed": SEED,
  "preview.w": STRENGTHS,
  "preview.num_classes": COUNT,
  "preview.num_per_class": COUNT,
  "watch.w": STRENGTHS,
  "watch.num_samples": integer(2),
  "guidance.rule": TEXT,
  "guidance.guide": PATH,
  "guidance.guide_ema": optional(DECAY),
  "guidance.guide_step": optional(integer(0, "a step, at least 0")),
  "guidance.logsnr_min": optional(FINITE),
  "guidance.logsnr_max": optional(FINITE),
  "guidance.interval": word("none", "meter"),
  "guidance.ramp": TEXT,
  "guidance.momentum": FINITE,
  "guidance.norm_limit": optional(POSITIVE),
  "guidance.parallel": FINITE,
  "guidance.level_shift": number("a part of u in [0, 1]", least=0, most=1),
  "guidance.power": FINITE,
  "guidance.data_std": POSITIVE,
  "sampler.name": TEXT,
  "sampler.num_steps": integer(2, "a whole number, both ends of the grid included"),
  "sampler.var_interp": V,
  "sampler.eta": ETA,
  "sampler.churn": NOT_NEGATIVE,
  "sampler.churn_noise": POSITIVE,
  "sampler.churn_logsnr_min": optional(FINITE),
  "sampler.churn_logsnr_max": optional(FINITE),
  "sampler.particles": integer(1, "a number of samples, 1 for none"),
  "sampler.limit": TEXT,
  "sampler.limit_percentile": number("a share above 0, at most 1", above=0, most=1),
  "sampler.limit_max": optional(number("a finite number, at least 1", least=1)),
  "sampler.spacing": TEXT,
  "sampler.rho": POSITIVE,
  "sampler.logsnr_min": optional(FINITE),
  "sampler.logsnr_max": optional(FINITE),
  "sweep.w": distinct(STRENGTHS),
  "sweep.num_samples": COUNT,
  "sweep.num_blocks": integer(2),
  "sweep.batch_size": COUNT,
  "sweep.seed": SEED,
  "sweep.ema": optional(DECAY),
  "sweep.methods": distinct(several(TEXT)),
  "sweep.sampler": several(TEXT),
  "sweep.num_steps": several(COUNT),
  "sweep.var_interp": several(V),
  "sweep.eta": several(ETA),
  "sweep.spacing": several(TEXT),
  "sweep.ema_decays": several(DECAY),
  "sweep.gflops": optional(POSITIVE),
  "sweep.evaluations": optional(integer(2, "a number of evaluations for each sample")),
  "sweep.allow_few": FLAG,
  "sweep.extrapolate": FLAG,
  "inception.path": PATH,
  "inception.reference": PATH,
  "inception.num_reference": integer(0, "a whole number, 0 for all"),
  "paper.source": TEXT,
  "paper.num_samples": COUNT_OR_0,
  "paper.rows": several(Values(paper_row, "(T or 0 for any, w, FID, IS)")),
  "judge.path": PATH,
  "judge.ch": JUDGE_CH,
  "judge.levels": COUNT,
  "judge.feature_dim": COUNT,
  "judge.dropout": DROPOUT,
  "judge.num_steps": integer(0, "a whole number, 0 for no judge"),
  "judge.batch_size": COUNT,
  "judge.learning_rate": POSITIVE,
  "judge.warmup_steps": COUNT_OR_0,
  "judge.weight_decay": NOT_NEGATIVE,
  "judge.min_accuracy": number("a share of the images, from 0 to 1", least=0, most=1),
}
# of any section: how often something is done
CADENCE = integer(0, "a number of steps")
# a section of methods by name, and what one may set
METHODS = "methods"
METHOD_SECTIONS = ("guidance.", "sampler.")
METHOD_FIELDS = ("sweep.w",)
PATHS = tuple(name for name, values in FIELDS.items() if values is PATH)
# fields that only networks of other origin have (python -m cfg.interop.adm)
OPTIONAL = (
  "model.norm_eps",
  "model.scale_shift",
  "model.conv_resample",
  "model.discrete_schedule",
  "model.class_rows",
)


def rule(name: str) -> Values | None:
  """The values that the field `name` may have, in a method of a sweep too; None if any."""
  name = of_method(name)
  return CADENCE if name.endswith("every_steps") else FIELDS.get(name)


def leaves(config: ConfigDict, prefix: str = "") -> Iterable[tuple[str, object]]:
  """("section.field", value) of every field."""
  for name, value in config.items():
    if isinstance(value, ConfigDict):
      yield from leaves(value, f"{prefix}{name}.")
    else:
      yield f"{prefix}{name}", value


def of_method(name: str) -> str:
  """The field that a method of a sweep sets: "methods.plain.sampler.name" is sampler.name."""
  methods, *parts = name.split(".", maxsplit=2)
  return parts[1] if methods == METHODS and len(parts) == 2 else name


def check_methods(config: ConfigDict) -> None:
  """Raise UserError for a method of a sweep that sets what no method can, or is not there."""
  able = [name for name in FIELDS if name.startswith(METHOD_SECTIONS) or name in METHOD_FIELDS]
  for name, _ in leaves(config.get(METHODS, ConfigDict())):
    method, _, field = name.partition(".")
    if not method.isidentifier():
      raise UserError(
        f"config.methods has {method!r}: its names are made of letters, digits and _, so that the "
        "command line can say them."
      )
    if field not in able:
      raise UserError(
        f"{METHODS}.{method} sets {repr(field) if field else 'no field'}: a method sets fields of "
        f"guidance and sampler, and sweep.w; {nearest(field, able)}"
      )
  known = config.get(METHODS, ())
  for method in config.get("sweep", {}).get("methods", ()):
    if method not in known:
      raise UserError(
        f"sweep.methods has {method!r}, which config.methods has not: {nearest(method, known)}"
      )


def check_each(config: ConfigDict) -> None:
  """Raise UserError for a field whose value is none that it may have."""
  for name, value in leaves(config):
    values = rule(name)
    if values is not None and not values.holds(value):
      refuse(name, value, values.meaning)


def check_complete(config: ConfigDict) -> None:
  """Raise UserError if a config lacks fields, as one that was written from nothing may."""
  there = {name for name, _ in leaves(config)}
  if missing := [name for name in FIELDS if name not in there and name not in OPTIONAL]:
    more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
    raise UserError(
      f"the config has no field {', '.join(missing[:3])}{more}: start from "
      f"configs.digits.get_config(), which has every field, and change what is different."
    )


def expand_paths(config: ConfigDict) -> None:
  """Put the paths that are meant (cfg.base.paths) into the fields that hold one.

  Raises:
    UserError: an address that is no path.
  """
  for name, value in list(leaves(config)):
    if of_method(name) in PATHS and value:
      *sections, field = name.split(".")
      place = config
      for section in sections:
        place = place[section]
      path = workdir_path if of_method(name) == "guidance.guide" else user_path
      place[field] = str(path(value, name=name))


def refuse(name: str, value: object, meaning: str) -> None:
  """Raise the UserError of a field whose value is not what it must be."""
  raise UserError(f"{name} is {value!r}: it must be {meaning}. Set it with --config.{name}=...")
