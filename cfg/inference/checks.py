"""What the sections guidance, sampler and schedule cannot mean, refused before any work."""

from collections.abc import Iterable

from cfg import guidance, rules
from cfg.base import config as config_lib
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.inference import program


def check(config: ConfigDict, strengths: Iterable[float], *, where: str = "w") -> None:
  """Refuse, before any work, what the sections guidance, sampler and schedule cannot mean.

  Args:
    config: of the network to be sampled from, its section model included.
    strengths: that are asked for.
    where: the field or flag that they come from.

  Raises:
    UserError: settings that cannot be combined, a rule that this network cannot be guided by at
      these strengths, or a second network that is not given, or given for nothing.
  """
  if config.train.objective == "classify":
    raise UserError(
      "this config is a classifier's (train.objective), which has no samples of its own: train it "
      "with --mode=train, and guide a diffusion model by it, --config.guidance.rule=classifier "
      "--config.guidance.guide=WORKDIR."
    )
  config = with_some_interval(config)
  rule = program.from_config(config, image_shape=(1, 1, 1), null_label=0, networks={}).rule
  arguments, section = program.rule_arguments(config), config.guidance
  if "role" in arguments and not section.guide:
    raise UserError(
      f"guidance.rule is {section.rule!r}, which needs a second network: give its work directory "
      "or weights file, --config.guidance.guide=PATH."
    )
  if "role" not in arguments and section.guide:
    able = [name for name, make in rules.RULES.items() if "role" in program.arguments(make)]
    raise UserError(
      f"guidance.guide is {section.guide!r}, but guidance.rule {section.rule!r} has no use for a "
      f"second network: choose another rule ({', '.join(able)}), or leave guide empty."
    )
  strengths = list(strengths)
  guided = [w for w in strengths if w != 0]
  if guided and program.chosen(section, "guidance", "rule") is guidance.conditional:
    raise UserError(
      f"{where} is {guided[0]:g}, but guidance.rule {section.rule!r} does not guide: use w = 0, or "
      "another rule."
    )
  too_low = [w for w in strengths if w < rule.least]
  if too_low:
    raise UserError(
      f"{where} is {too_low[0]:g}, but guidance.rule {section.rule!r} takes a strength "
      f"{rule.strength} >= {rule.least:g}: choose a higher one."
    )
  if guided and "num_classes" in arguments and config_lib.class_rows(config) == 0:
    raise UserError(
      f"guidance.rule {section.rule!r} needs labels, but this network is unconditional: use w = 0, "
      "or a rule that does not (shifted_level)."
    )
  if rule.classifiers:
    check_guided_by_classifier(config, unconditional="null_label" in arguments)
  elif "null_label" not in arguments:
    config_lib.check_conditional(config, strengths)
  elif rule.unguided is None:
    config_lib.check_guidable(config, [1.0])  # every strength takes both branches
  else:
    config_lib.check_guidable(config, strengths)


def check_no_particles(config: ConfigDict, where: str) -> None:
  """Raise UserError if samples that take each class in turn, as those of `where`, were to be
  resampled in groups of one class.
  """
  if config.sampler.particles > 1:
    raise UserError(
      f"sampler.particles is {config.sampler.particles}, but {where} draws the classes in turn and "
      "measures errors over samples that are independent, and a group is of one class and is not: "
      "use it with --mode=sample, and set sampler.particles=1 here."
    )


def check_guided_by_classifier(config: ConfigDict, *, unconditional: bool) -> None:
  """Raise UserError unless the network has the model, conditional or not, that is to be guided."""
  if unconditional:
    config_lib.check_unconditional(config)
  elif config_lib.class_rows(config) == 0 or config.train.p_uncond == 1:
    raise UserError(
      f"guidance.rule {config.guidance.rule!r} guides a conditional model, and this network is "
      "unconditional: use guidance.rule=classifier_unconditional."
    )


def with_some_interval(config: ConfigDict) -> ConfigDict:
  """The config, with some end of its interval where the meter is to give it: so that the rest can
  be checked before it is measured.

  Raises:
    UserError: the meter cannot give one.
  """
  section = config.guidance
  if section.interval != "meter":
    return config
  for name in ("logsnr_min", "logsnr_max"):
    if section[name] is not None:
      raise UserError(
        f"guidance.interval is 'meter', which finds the interval itself, but guidance.{name} is "
        f"{section[name]:g}: leave out one of the two."
      )
  if not config.meter.num_levels:
    raise UserError(
      "guidance.interval is 'meter', but meter.num_levels is 0, which is no meter: set it to 56, "
      "or leave guidance.interval 'none'."
    )
  if not has_branches(config):
    raise UserError(
      "guidance.interval is 'meter', but the network never learnt to estimate the noise both with "
      "a label and without (model.class_rows, train.p_uncond): give the interval, "
      "guidance.logsnr_max."
    )
  some = config.copy_and_resolve_references()
  some.guidance.logsnr_max = config.schedule.logsnr_max
  return some


def has_branches(config: ConfigDict) -> bool:
  """Whether the network of a config learnt to estimate the noise with a label and without."""
  try:
    config_lib.check_guidable(config, [1.0])
  except UserError:
    return False
  return config.train.objective == "denoise"


def usable(config: ConfigDict, strengths: Iterable[float]) -> tuple[float, ...]:
  """Those strengths that `check` lets pass; for pictures, whose others are left out."""

  def passes(w):
    try:
      check(config, [w])
    except UserError:
      return False
    return True

  return tuple(w for w in strengths if passes(w))
