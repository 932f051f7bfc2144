"""Turns a guided-diffusion checkpoint into a work directory to sample from or to be guided by.

Usage: python -m cfg.interop.adm CHECKPOINT WORKDIR

ADM is Dhariwal & Nichol 2021 (arXiv 2105.05233), GD its code, openai/guided-diffusion.
"""

import argparse
import hashlib
import logging
import math
import pathlib

from cfg import schedules
from cfg.base import defaults, paths, progress
from cfg.base.errors import UserError, run_command
from cfg.base.paths import path_argument, workdir_path
from cfg.interop import adm_weights, torch_file, weights
from cfg.interop.adm_weights import LEGACY, NEW, Facts

log = logging.getLogger("cfg.interop.adm")  # __name__ is "__main__" when it is run

NORM_EPS = 1e-5  # PyTorch's

# the published networks by (ch, ch_mult, num_res_blocks, attn_levels): GD's README gives their
# flags
PUBLISHED = {
  (192, (1, 2, 3, 4), 3, (1, 2, 3)): Facts(64, None, 64, NEW, "cosine"),
  (256, (1, 1, 2, 3, 4), 2, (2, 3, 4)): Facts(128, 4, None, LEGACY, "linear"),
  (256, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): Facts(256, None, 64, LEGACY, "linear"),
  (256, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)): Facts(512, None, 64, LEGACY, "linear"),
  # the classifiers
  (128, (1, 2, 3, 4), 4, (1, 2, 3)): Facts(64, None, 64, LEGACY, "cosine"),
  (128, (1, 1, 2, 3, 4), 2, (2, 3, 4)): Facts(128, None, 64, LEGACY, "linear"),
  (128, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5)): Facts(256, None, 64, LEGACY, "linear"),
  (128, (0.5, 1, 1, 2, 2, 4, 4), 2, (4, 5, 6)): Facts(512, None, 64, LEGACY, "linear"),
}


def read_facts(*, signature, given):
  """The Facts of a network: those of the published one of that signature, with what the user gave
  instead.

  Args:
    signature: (ch, ch_mult, num_res_blocks, attn_levels).
    given: {"image_size", "num_heads", "head_dim", "attention_order", "schedule"}, None where not
      given.

  Raises:
    UserError: not a published network, and not all given.
  """
  if given["num_heads"] and given["head_dim"]:
    raise UserError(
      "--num_heads and --head_dim were given together: give the one that the network was made with."
    )
  known = PUBLISHED.get(signature)
  heads_given = given["num_heads"] or given["head_dim"]
  if known is None:
    missing = [
      f"--{name}" for name in ("image_size", "attention_order", "schedule") if given[name] is None
    ]
    missing += [] if heads_given else ["--num_heads or --head_dim"]
    if missing:
      ch, mult, blocks, levels = signature
      raise UserError(
        f"this is none of the published networks ({ch} channels times {mult}, {blocks} blocks per "
        f"level, attention on levels "
        f"{levels}), and a checkpoint does not show everything: give {', '.join(missing)} as it "
        f"was trained with (guided-diffusion's "
        "image_size, use_new_attention_order, noise_schedule, num_heads, num_head_channels)."
      )
    return Facts(**given)
  values = {name: getattr(known, name) if value is None else value for name, value in given.items()}
  if heads_given:
    values.update(num_heads=given["num_heads"], head_dim=given["head_dim"])
  return Facts(**values)


def convert_unet(
  arrays, *, image_size=None, num_heads=None, head_dim=None, attention_order=None, schedule=None
):
  """Our UNet's parameters and config from a UNetModel's state dict.

  Args:
    arrays: {name: array} in GD's names.
    image_size, num_heads, head_dim, attention_order, schedule: see Facts; the published networks
    need none.

  Returns:
    (params, model, facts): `model` has the fields of config.model; class_rows is the number of
    classes, or 0 for an unconditional network.
  """
  given = dict(
    image_size=image_size,
    num_heads=num_heads,
    head_dim=head_dim,
    attention_order=attention_order,
    schedule=schedule,
  )
  state = adm_weights.State(arrays)
  if "out.2.positional_embedding" in state:
    raise UserError(
      "this is a noise-conditional classifier, not a diffusion model: it has no samples of its own."
    )
  fields, attn_levels = adm_weights.architecture(state)
  channels, out_channels = state.shape("input_blocks.0.0.weight")[1], state.shape("out.2.weight")[0]
  if out_channels not in (channels, 2 * channels):
    raise UserError(
      f"the network takes {channels} channels and gives {out_channels}: neither as many nor twice "
      f"as many (learned variance). "
      "An upsampler, which takes a small image too, cannot be used alone."
    )
  facts = read_facts(signature=_signature(fields, attn_levels), given=given)
  class_rows = state.shape("label_emb.weight")[0] if "label_emb.weight" in state else 0
  params = adm_weights.unet_params(
    state, fields=fields, attn_levels=attn_levels, facts=facts, out_channels=channels
  )
  return params, {**_model(fields, attn_levels, facts), "class_rows": class_rows}, facts


def convert_classifier(
  arrays, *, image_size=None, num_heads=None, head_dim=None, attention_order=None, schedule=None
):
  """Our Classifier's parameters and fields from an EncoderUNetModel's state dict.

  Args:
    arrays: {name: array} in GD's names.
    image_size: side of the training images, which a classifier's file does not show.
    num_heads, head_dim, attention_order, schedule: see Facts; the published classifiers need none.

  Returns:
    (params, model, facts): `model` has the fields of config.model; the number of classes is the
    width of the last map.
  """
  if image_size is None:
    raise UserError(
      "this is a noise-conditional classifier, whose checkpoint does not show the size of its "
      "images: give --image_size as it was trained with."
    )
  state = adm_weights.State(arrays)
  given = dict(
    image_size=image_size,
    num_heads=num_heads,
    head_dim=head_dim,
    attention_order=attention_order,
    schedule=schedule,
  )
  num_levels = round(math.log2(image_size / adm_weights.pooled_side(state))) + 1
  fields, attn_levels = adm_weights.architecture(state, num_levels=num_levels)
  facts = read_facts(signature=_signature(fields, attn_levels), given=given)
  params = adm_weights.classifier_params(state, fields=fields, attn_levels=attn_levels, facts=facts)
  return params, _model(fields, attn_levels, facts), facts


def _signature(fields, attn_levels):
  return fields["ch"], fields["ch_mult"], fields["num_res_blocks"], tuple(attn_levels)


def _model(fields, attn_levels, facts):
  """Fields of our network."""
  return {
    **fields,
    "attn_resolutions": tuple(facts.image_size >> level for level in attn_levels),
    "num_heads": facts.num_heads,
    "head_dim": facts.head_dim,
    "norm_groups": 32,
    "norm_eps": NORM_EPS,
    "discrete_schedule": facts.schedule,
    "dropout": 0.0,
    "remat": False,
    "dtype": "float32",
  }


def make_config(model, facts, *, objective, num_classes):
  """A whole config for sampling and sweeping, or of a classifier: the grid's ends are those of the
  network's own schedule. What says how a network is trained is not of this one.
  """
  table = schedules.discrete_logsnr(facts.schedule)
  return defaults.complete(
    {
      "data": {
        "name": "folder",
        "resolution": facts.image_size,
        "recipe": "adm",
        "num_classes": num_classes,
        "heldout_fraction": 0.04,
      },
      "model": model,
      "schedule": {"logsnr_min": float(table[-1]), "logsnr_max": float(table[0])},
      "train": {"objective": objective, "p_uncond": 0.0, "ema_decays": [0.9999]},
      "sampler": {
        "name": "ancestral",
        "num_steps": 256,
        "var_interp": 0.3 if facts.image_size <= 64 else 0.2,
      },
      "sweep": {"w": [0.0], "num_samples": 50_000, "batch_size": 64},
      "judge": {
        "ch": 64,
        "levels": 4,
        "feature_dim": 256,
        "num_steps": 20_000,
        "batch_size": 256,
        "learning_rate": 1e-3,
        "warmup_steps": 500,
        "min_accuracy": 0.0,
      },
    }
  )


def import_checkpoint(checkpoint, workdir, **given):
  """Convert the file `checkpoint` into `workdir`/weights.safetensors; returns its metadata."""
  checkpoint, workdir = pathlib.Path(checkpoint), paths.as_path(workdir)
  out = workdir / weights.NAME
  if out.exists() or (workdir / "checkpoints").exists():
    raise UserError(
      f"the work directory {str(workdir)!r} already holds a network: choose another, or remove it "
      f"first."
    )
  arrays = torch_file.read(checkpoint)
  if "out.2.positional_embedding" in arrays:
    objective = "classify"
    params, model, facts = convert_classifier(arrays, **given)
    classes = [str(i) for i in range(params["pool"]["proj"]["bias"].shape[0])]
  else:
    objective = "denoise"
    params, model, facts = convert_unet(arrays, **given)
    classes = [str(i) for i in range(model["class_rows"])] or ["unconditional"]
  with checkpoint.open("rb") as file:
    digest = hashlib.file_digest(file, "sha256").hexdigest()
  channels = params["conv_in"]["kernel"].shape[2]
  meta = {
    "config": make_config(model, facts, objective=objective, num_classes=len(classes)),
    "class_names": classes,
    "image_shape": [facts.image_size, facts.image_size, channels],
    "data_name": "unknown",
    "step": 0,
    "ema": "0.9999",
    "source": {
      "file": checkpoint.name,
      "sha256": digest,
      "kind": "guided-diffusion",
      "attention_order": facts.attention_order,
    },
  }
  workdir.mkdir(parents=True, exist_ok=True)
  weights.write(out, params=params, meta=meta)
  return meta


def main(argv=None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cfg.interop.adm",
    description="Make a work directory of a checkpoint of openai/guided-diffusion (.pt). "
    "The published 64, 128, 256 and 512 networks need no options, their classifiers --image_size; "
    "others need all of them.",
  )
  parser.add_argument(
    "checkpoint",
    type=path_argument("CHECKPOINT"),
    help="a .pt or .pth file; it is read without being executed",
  )
  parser.add_argument(
    "workdir", type=path_argument("WORKDIR", of=workdir_path), help="made if it is not there"
  )
  parser.add_argument("--image_size", type=int, help="side of the training images")
  parser.add_argument("--num_heads", type=int, help="attention heads, where given by number")
  parser.add_argument(
    "--head_dim", type=int, help="width of a head (num_head_channels), where given by width"
  )
  parser.add_argument(
    "--attention_order", choices=(NEW, LEGACY), help="new where use_new_attention_order was True"
  )
  parser.add_argument(
    "--schedule", choices=("cosine", "linear"), help="noise_schedule, of 1,000 steps"
  )
  options = vars(parser.parse_args(argv))
  checkpoint, workdir = options.pop("checkpoint"), options.pop("workdir")
  meta = import_checkpoint(checkpoint, workdir, **options)
  model, schedule = meta["config"]["model"], meta["config"]["schedule"]
  heads = f"{model['num_heads']} heads" if model["num_heads"] else f"heads of {model['head_dim']}"
  log.info(
    "%s: %s, %d classes, %s, %s attention order, %s schedule with log-SNR from %.2f to %.2f",
    checkpoint,
    "x".join(map(str, meta["image_shape"])),
    model.get("class_rows", len(meta["class_names"])),
    heads,
    meta["source"]["attention_order"],
    model["discrete_schedule"],
    schedule["logsnr_min"],
    schedule["logsnr_max"],
  )
  use = f"Sample from it: python -m cfg.main --workdir={workdir} --mode=sample --w=0"
  if meta["config"]["train"]["objective"] == "classify":
    use = (
      f"Guide a network by it: --config.guidance.rule=classifier --config.guidance.guide={workdir}"
    )
  print(f"{paths.as_path(workdir) / weights.NAME} is written. {use}")


if __name__ == "__main__":
  progress.to_stderr()
  run_command(main)
