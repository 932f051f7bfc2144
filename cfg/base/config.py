"""What of a config makes a run what it is, and the check that a work directory holds that run."""

import hashlib
import json

from ml_collections import ConfigDict, config_dict

from cfg.base import trees
from cfg.base.errors import UserError

# these may change while a run goes on, or after it: they alter how far, how fast and how
# loudly it runs, not what each step computes
FREE = frozenset(
  {
    "model.remat",
    "train.accumulate",
    "train.data_workers",
    "train.fsdp",
    "train.num_steps",
    "train.log_every_steps",
    "train.heldout_every_steps",
    "train.preview_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
  }
)
TRAINING_SECTIONS = ("seed", "data", "model", "schedule", "optimizer", "train")


def to_json(config):
  """The config as plain JSON values (tuples become lists)."""
  return json.loads(config.to_json())


def from_json(values):
  """The ConfigDict of what `to_json` gave: lists become tuples again."""

  def restore(value):
    if isinstance(value, dict):
      return {name: restore(item) for name, item in value.items()}
    if value is None:
      return config_dict.placeholder(object)  # so that it can be overridden
    return tuple(map(restore, value)) if isinstance(value, list) else value

  return ConfigDict(restore(values))


def ema_name(decay):
  """The key of an average: 0.9999 -> "0.9999"."""
  return f"{float(decay):.10g}"


def check_values(config):
  """Raise UserError for values that no run could use."""
  train = config.train
  rules = [
    (0 <= train.p_uncond <= 1, "train.p_uncond", train.p_uncond, "a probability, 0.1 in the paper"),
    (train.get("num_steps", 1) >= 1, "train.num_steps", train.get("num_steps"), "at least 1"),
    (
      len(train.ema_decays) > 0 and all(0 <= d < 1 for d in train.ema_decays),
      "train.ema_decays",
      tuple(train.ema_decays),
      "one rate or more, each at least 0 and below 1",
    ),
    (
      config.schedule.logsnr_min < config.schedule.logsnr_max,
      "schedule.logsnr_min",
      config.schedule.logsnr_min,
      "below schedule.logsnr_max",
    ),
    (
      train.get("data_workers", 0) >= 0,
      "train.data_workers",
      train.get("data_workers"),
      "a number of processes, 0 for none",
    ),
    (config.cpu_devices >= 1, "cpu_devices", config.cpu_devices, "at least 1"),
  ]
  for holds, name, value, meaning in rules:
    if not holds:
      raise UserError(f"{name} is {value}: it must be {meaning}. Set it with --config.{name}=...")


def check_guidable(config, strengths):
  """Raise UserError if guidance is asked of a network that never saw the null label."""
  guided = [w for w in strengths if w != 0]
  if guided and config.model.class_rows is not None:
    asked = f"w = {guided[0]:g} (scale = {1 + guided[0]:g}) was asked for, but this network "
    if config.model.class_rows == 0:
      raise UserError(f"{asked}is unconditional: it has no classes to guide towards. Use w = 0.")
    raise UserError(
      f"{asked}has no null label: it is conditional only, and the mix needs an unconditional "
      f"estimate. Use w = 0; or guide it by "
      "another network - a separate unconditional checkpoint, a noise-conditional classifier "
      "(classifier guidance), or a worse "
      "version of itself (autoguidance); or train one with label dropout (train.p_uncond = 0.1)."
    )
  if guided and config.train.p_uncond == 0:
    raise UserError(
      f"w = {guided[0]:g} was asked for, but train.p_uncond is 0: this network never learnt the "
      f"unconditional model. "
      "Use w = 0, or train with train.p_uncond = 0.1 in another --workdir."
    )


def training_identity(config, sections=TRAINING_SECTIONS):
  """The flattened fields that decide what a training run computes."""
  config = config if isinstance(config, dict) else to_json(config)
  flat = trees.flatten({section: config[section] for section in sections}, separator=".")
  return {name: value for name, value in flat.items() if name not in FREE}


def data_identity(config, dataset, **more):
  """A hash of the data set and of what else decides a result that is kept."""
  facts = {
    "data": to_json(config)["data"],
    "class_names": dataset.class_names,
    "image_shape": dataset.image_shape,
    **more,
  }
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_same_run(config, stored, *, workdir, sections=TRAINING_SECTIONS):
  """Raise UserError if `workdir` holds a network trained under another config.

  Args:
    config: the config of this command.
    stored: the config in the checkpoint, as JSON values.
    workdir: for the message.
    sections: that must agree.
  """
  ours, theirs = training_identity(config, sections), training_identity(stored, sections)
  names = sorted(n for n in ours.keys() | theirs.keys() if ours.get(n) != theirs.get(n))
  if names:
    changes = "; ".join(
      f"{n} is {ours.get(n)!r}, the checkpoint has {theirs.get(n)!r}" for n in names[:5]
    )
    more = f"; and {len(names) - 5} more fields" if len(names) > 5 else ""
    raise UserError(
      f"the work directory {str(workdir)!r} holds a checkpoint of another config: {changes}{more}. "
      "Nothing was changed. Choose another --workdir, or the config that the directory was made "
      "with."
    )
