"""What of a config makes a run what it is, and the check that a work directory holds that run."""

import hashlib
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ml_collections import ConfigDict, config_dict

from cfg.base import defaults, fields, trees, untrusted
from cfg.base.errors import UserError

# these may change while a run goes on, or after it: they alter how far, how fast and how
# loudly it runs, or say where its data are, not what each step computes
FREE = frozenset(
  {
    "data.path",  # the data themselves are compared: check_same_data
    "data.num_classes",
    "model.attention",
    "model.remat",
    "train.accumulate",
    "train.data_workers",
    "train.fsdp",
    "train.num_steps",
    "train.most_skipped",
    "train.log_every_steps",
    "train.checkpoint_every_steps",
    "train.keep_checkpoints",
    "train.keep_every_steps",
  }
)
TRAINING_SECTIONS = ("seed", "data", "model", "schedule", "optimizer", "train")


def to_json(config: ConfigDict) -> dict[str, Any]:
  """The config as plain JSON values (tuples become lists)."""
  return json.loads(config.to_json())


def from_json(values: Mapping[str, Any]) -> ConfigDict:
  """The ConfigDict of what `to_json` gave, by this version or an earlier one (base.defaults); lists
  become tuples again.

  Raises:
    UserError: it is damaged.
  """

  def restore(value):
    if isinstance(value, dict):
      return {name: restore(item) for name, item in value.items()}
    if value is None:
      return config_dict.placeholder(object)  # so that it can be overridden
    return tuple(map(restore, value)) if isinstance(value, list) else value

  try:
    with untrusted.reading():
      return ConfigDict(restore(defaults.complete(values)))
  except ValueError as e:
    raise UserError(
      f"the config that the network was stored with is damaged ({e}): restore it from a copy."
    ) from e


def ema_name(ema_decay: float) -> str:
  """The key of an average: 0.9999 -> "0.9999"."""
  return f"{float(ema_decay):.10g}"


def check_values(config: ConfigDict) -> None:
  """Raise UserError for values that no run could use: of one field (`cfg.base.fields`), or of two
  that do not fit each other. Fields that a config lacks are not asked for.
  """
  fields.check_each(config)
  fields.check_methods(config)
  value = dict(fields.leaves(config))
  logsnr_min, logsnr_max = value.get("schedule.logsnr_min"), value.get("schedule.logsnr_max")
  if logsnr_min is not None and logsnr_max is not None and logsnr_min >= logsnr_max:
    fields.refuse("schedule.logsnr_min", logsnr_min, "below schedule.logsnr_max")
  check_stream(value)
  check_widths(value)
  check_judge_levels(value)
  check_swept_averages(value)


def check_stream(value):
  """Raise UserError if training reads more images than there are keys for their noise: an image's
  key has its place in the stream, in 32 bits.
  """
  num_steps, batch_size = value.get("train.num_steps"), value.get("train.batch_size")
  if num_steps is not None and batch_size is not None and num_steps * batch_size > 2**32:
    most = 2**32 // batch_size
    fields.refuse(
      "train.num_steps", num_steps, f"at most {most} for batches of {batch_size}: 2^32 images"
    )


def check_widths(value):
  """Raise UserError if a level of the network would have no channels."""
  ch, ch_mult = value.get("model.ch"), value.get("model.ch_mult", ())
  if ch is not None and any(int(ch * mult) < 1 for mult in ch_mult):
    fields.refuse("model.ch_mult", tuple(ch_mult), f"at least 1 / model.ch, which is {ch}")


def check_judge_levels(value):
  """Raise UserError if a judge that is to be trained halves the images to nothing."""
  # the digits have their own side
  side = 8 if value.get("data.name") == "digits" else value.get("data.resolution")
  levels = value.get("judge.levels")
  trained = value.get("judge.num_steps") and not value.get("judge.path")
  if trained and levels is not None and side is not None and side >> levels < 1:
    most = side.bit_length() - 1
    fields.refuse(
      "judge.levels", levels, f"at most {most}, since each level halves the images of side {side}"
    )


def check_swept_averages(value):
  """Raise UserError if a sweep asks for an average of the parameters that is not kept."""
  kept = value.get("train.ema_decays")
  if kept is None:
    return
  names = [ema_name(decay) for decay in kept]
  for field in ("sweep.ema", "sweep.ema_decays"):
    asked = value.get(field)
    decays = () if asked is None else asked if isinstance(asked, tuple | list) else (asked,)
    if any(ema_name(decay) not in names for decay in decays):
      fields.refuse(field, asked, f"of train.ema_decays, {tuple(kept)}")


def class_rows(config: ConfigDict) -> int | None:
  """Rows of the class table of a network of other origin, 0 for one without classes; None for a
  network with a null label, as all are that are trained here.
  """
  return config.model.get("class_rows")


def check_guidable(config: ConfigDict, strengths: Iterable[float]) -> None:
  """Raise UserError for strengths of a mix whose conditional or unconditional model the network
  never learnt.

  Without a null label (model.class_rows) and with train.p_uncond = 0 only w = 0 is left, which is
  the conditional model alone; with train.p_uncond = 1 only w = -1, the unconditional one alone.
  """
  strengths = list(strengths)
  guided = [w for w in strengths if w != 0]
  if guided and class_rows(config) is not None:
    asked = f"{strength(guided[0])} was asked for, but this network "
    if class_rows(config) == 0:
      raise UserError(f"{asked}is unconditional: it has no classes to guide towards. Use w = 0.")
    raise UserError(
      f"{asked}has no null label: it is conditional only, and the mix needs an unconditional "
      f"estimate. Use w = 0; or another weak branch: its own estimate for a random label "
      f"(guidance.rule=random_label) or a noisier level (shifted_level), or another network "
      f"(second_network) - a separate unconditional checkpoint, or a worse version of itself "
      f"(autoguidance); or guide it by a noise-conditional classifier (classifier, classifier "
      f"guidance); or train one with label dropout (train.p_uncond = 0.1)."
    )
  if guided and config.train.p_uncond == 0:
    raise UserError(
      f"{strength(guided[0])} was asked for, but train.p_uncond is 0: this network never learnt "
      f"the unconditional model. "
      "Use w = 0, or train with train.p_uncond = 0.1 in another --workdir."
    )
  check_conditional(config, strengths)


def check_unconditional(config: ConfigDict) -> None:
  """Raise UserError if the network has no unconditional model: neither a null label that it learnt
  nor no classes at all.
  """
  rows = class_rows(config)
  if rows:
    raise UserError(
      "this network has no null label, and an unconditional estimate was asked for: it is "
      "conditional only. Guide the conditional model, guidance.rule=classifier."
    )
  if rows is None and config.train.p_uncond == 0:
    raise UserError(
      "train.p_uncond is 0, and an unconditional estimate was asked for: this network never learnt "
      "the unconditional model. Guide the conditional model, guidance.rule=classifier, or train "
      "with train.p_uncond = 0.1 in another --workdir."
    )


def check_conditional(config: ConfigDict, strengths: Iterable[float]) -> None:
  """Raise UserError for strengths that use the conditional model of a network that has none."""
  conditional = [w for w in strengths if w != -1]
  if conditional and config.train.p_uncond == 1:
    raise UserError(
      f"{strength(conditional[0])} was asked for, but train.p_uncond is 1: this network never "
      f"learnt the conditional model, so that its labels mean nothing. Use w = -1, the "
      f"unconditional model alone, or train with train.p_uncond = 0.1 in another --workdir."
    )


def strength(w):
  """A guidance strength as both conventions write it."""
  return f"w = {w:g} (scale = {1 + w:g})"


def training_identity(
  config: ConfigDict | dict[str, Any], sections: Sequence[str] = TRAINING_SECTIONS
) -> dict[str, Any]:
  """The flattened fields that decide what a training run computes.

  Args:
    config: a config, or its JSON values, of this version or an earlier one.
    sections: to take them from.
  """
  values = defaults.complete(config if isinstance(config, dict) else to_json(config))
  flat = trees.flatten({section: values[section] for section in sections}, separator=".")
  return {name: value for name, value in flat.items() if name not in FREE}


def data_identity(config: ConfigDict, dataset: Any, **more: Any) -> str:
  """A hash of the data set and of what else decides a result that is kept. Where the data are does
  not count.
  """
  facts = {"data": training_identity(config, ("data",)), "content": dataset.identity, **more}
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def check_same_data(
  dataset: Any,
  meta: Mapping[str, Any],
  *,
  workdir: str | pathlib.Path,
  facts: Sequence[str] = ("class_names", "image_shape", "num_images", "content"),
) -> None:
  """Raise UserError if the network in `workdir` was trained on other data than `dataset`.

  Args:
    dataset: data.dataset.Dataset.
    meta: of the checkpoint or weights file; what it does not tell is not compared.
    workdir: for the message.
    facts: of Dataset.identity that must agree.
  """
  ours = dataset.identity
  changed = [name for name in facts if name in meta and ours[name] != meta[name]]
  if not changed:
    return
  differences = "; ".join(_difference(name, ours[name], meta[name]) for name in changed)
  raise UserError(
    f"the data set {dataset.name!r} is not the one that the network in {str(workdir)!r} was "
    f"trained on: {differences}. Nothing was changed. Restore the data, or choose another "
    f"--workdir."
  )


def _difference(name: str, ours: Any, theirs: Any) -> str:
  """What of a fact of the data is another, in words."""
  if name == "content":
    return "its files or their labels were changed since"
  if name == "num_images":
    counts = [
      f"{split} has {ours[split]} images, the checkpoint's had {theirs[split]}"
      for split in ours
      if ours[split] != theirs[split]
    ]
    return ", ".join(counts)
  if name == "image_shape":
    sides = ["x".join(map(str, shape)) for shape in (ours, theirs)]
    return f"its images are {sides[0]}, the checkpoint's are {sides[1]}"
  listed = lambda names: f"{', '.join(names[:5])}{', ...' if len(names) > 5 else ''}"
  added = [name for name in ours if name not in set(theirs)]
  gone = [name for name in theirs if name not in set(ours)]
  words = f"it has {len(ours)} classes, the checkpoint {len(theirs)}"
  if added:
    words += f"; the checkpoint does not have {listed(added)}"
  if gone:
    words += f"; the data set does not have {listed(gone)}"
  if not added and not gone:
    words += f"; they are in another order ({listed(ours)}, the checkpoint's are {listed(theirs)})"
  return words


def check_same_run(
  config: ConfigDict,
  stored: dict[str, Any],
  *,
  workdir: str | pathlib.Path,
  sections: Sequence[str] = TRAINING_SECTIONS,
) -> None:
  """Raise UserError if `workdir` holds a network trained under another config.

  Args:
    config: the config of this command.
    stored: the config in the checkpoint, as JSON values.
    workdir: for the message.
    sections: that must agree.
  """
  ours = training_identity(config, sections)
  theirs = training_identity(stored, sections)
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
