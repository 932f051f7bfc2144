"""Values that no run could use are refused at the start, by the name of their field."""

import math

import pytest

from cfg.base import config as config_lib
from cfg.base import fields
from cfg.base.errors import UserError
from configs import cifar10, cifar10_cpu, digits, folder, imagenet64, imagenet64_12gb, imagenet128

CONFIGS = (cifar10, cifar10_cpu, digits, folder, imagenet64, imagenet64_12gb, imagenet128)
NAMES = [name for name, _ in fields.leaves(digits.get_config())]
BAD = {
  "seed": (-1, 2**32, 1.5, "1", True),
  "cpu_devices": (0, -1, 2.0),
  "data.resolution": (0, "64"),
  "data.num_classes": (-1,),
  "data.heldout_fraction": (0.0, 1.0, -0.1, math.nan),
  "data.split_seed": (-1, 2**32),
  "model.ch": (0, 2, 15),
  "model.ch_mult": ((), (0,), ("1",), 2, (1, math.inf)),
  "model.num_res_blocks": (0,),
  "model.attn_resolutions": ((0,), ("8",), 8),
  "model.num_heads": (0, "2"),
  "model.head_dim": (0, 1.5),
  "model.dropout": (-0.1, 1.0, math.nan),
  "model.norm_groups": (0,),
  "model.norm_eps": (0.0,),
  "model.discrete_schedule": ("cosin", ""),
  "model.class_rows": (-1,),
  "model.remat": (1, "yes"),
  "model.attention": ("flash", None),
  "model.dtype": ("fp16", "float16", "float64", None),
  "schedule.logsnr_min": (math.nan, -math.inf, 20.0, 30.0),
  "schedule.logsnr_max": (math.nan, math.inf),
  "optimizer.learning_rate": (0.0, -1.0, math.nan, math.inf, "1e-3"),
  "optimizer.warmup_steps": (-1, 0.5),
  "optimizer.grad_clip": (0.0, -1.0, math.nan),
  "optimizer.beta1": (1.0, -0.1),
  "optimizer.beta2": (1.0, math.nan),
  "optimizer.weight_decay": (-1.0,),
  "train.batch_size": (0, -8),
  "train.data_workers": (-1,),
  "train.accumulate": (0,),
  "train.fsdp": (0,),
  "train.num_steps": (0, -1, 2**25 + 1),
  "train.p_uncond": (-0.1, 1.1, math.nan),
  "train.ema_decays": ((), (1.0,), (-0.5,), ("0.9",), 0.9, (0.9, 0.9)),
  "train.keep_checkpoints": (0, -1),
  "train.log_every_steps": (-1, 1.5),
  "watch.every_steps": (-1,),
  "heldout.num_bins": (0,),
  "heldout.num_images": (-5,),
  "heldout.batch_size": (0,),
  "heldout.seed": (-1, 2**32),
  "preview.w": ((), ("0",), (math.nan,), (-2.0,), 1.0),
  "preview.num_classes": (0,),
  "preview.num_per_class": (0,),
  "watch.w": ((), ("0",)),
  "watch.num_samples": (0, 1),
  "guidance.logsnr_min": (math.nan, "0"),
  "guidance.momentum": (math.inf,),
  "guidance.norm_limit": (0.0, -1.0),
  "sampler.num_steps": (0, -1, 1.5),
  "sampler.var_interp": (-0.1, 1.1, math.nan),
  "sampler.limit_percentile": (0.0, 1.1),
  "sampler.rho": (0.0, math.nan),
  "sweep.w": ((), ("0", "1"), (0.0, 0.0), (math.inf,), (-1.5,), ((0.0,),)),
  "sweep.num_samples": (0,),
  "sweep.num_blocks": (0, 1),
  "sweep.batch_size": (0,),
  "sweep.seed": (-1, 2**32),
  "sweep.ema": (1.0, 0.5, "0.99"),
  "sweep.num_steps": ((0,), ("8",), 8),
  "sweep.var_interp": ((2.0,), ("0",)),
  "sweep.eta": ((2.0,), ("0",)),
  "sweep.ema_decays": ((0.5,), ("0.99",)),
  "inception.num_reference": (-1,),
  "paper.num_samples": (-1,),
  "paper.rows": (((1, 2, 3),), ("abcd",), 3),
  "judge.ch": (0, 12),
  "judge.levels": (0, 4),
  "judge.feature_dim": (0,),
  "judge.dropout": (1.0,),
  "judge.num_steps": (-1,),
  "judge.batch_size": (0,),
  "judge.learning_rate": (0.0, math.nan),
  "judge.warmup_steps": (-1,),
  "judge.weight_decay": (-1.0,),
  "judge.min_accuracy": (-0.1, 1.5, math.nan),
}


def changed(name, value):
  """The digits' config with one field of any type."""
  config = digits.get_config()
  *sections, field = name.split(".")
  section = config[sections[0]] if sections else config
  with section.ignore_type():
    section[field] = value
  return config


@pytest.mark.parametrize("name, value", [(n, value) for n in BAD for value in BAD[n]])
def test_a_bad_value_is_named(name, value):
  """Field, value and what it must be, in a line."""
  with pytest.raises(UserError) as caught:
    config_lib.check_values(changed(name, value))
  said = str(caught.value)
  assert f"{name} is {value!r}: it must be " in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_field_has_a_type(name):
  """No field takes a value of a type that it cannot be."""
  with pytest.raises(UserError, match=name):
    config_lib.check_values(changed(name, object()))


@pytest.mark.parametrize("module", CONFIGS, ids=lambda module: module.__name__)
def test_our_configs_are_good_and_complete(module):
  """Every config of configs/ has every field, with a value that it may have."""
  config = module.get_config()
  config_lib.check_values(config)
  fields.check_complete(config)


@pytest.mark.parametrize(
  "name, value",
  [
    ("seed", 2**32 - 1),
    ("optimizer.learning_rate", 1),
    ("optimizer.grad_clip", None),
    ("sweep.ema", 0.99),
    ("model.ch_mult", (0.5, 1)),
    ("train.ema_decays", [0.0, 0.99]),
    ("judge.num_steps", 0),
    ("preview.w", (-1, 0)),
  ],
)
def test_good_values_pass(name, value):
  """At the edges, and whole numbers where numbers are wanted."""
  config_lib.check_values(changed(name, value))


def test_a_config_from_nothing_is_told_what_it_lacks():
  """Fields that are not there are named before anything asks for them."""
  config = digits.get_config()
  del config.heldout
  with pytest.raises(UserError, match="no field heldout.num_bins, .* and 1 more"):
    fields.check_complete(config)


def test_paths_are_what_they_mean(monkeypatch):
  """~ is the home folder, and an address is refused by the name of its field, but for a bucket that
  another network's work directory is in.
  """
  monkeypatch.setenv("HOME", "/home/me")
  config = digits.get_config()
  for name in fields.PATHS:
    section, field = name.split(".")
    config[section][field] = "~/x"
    fields.expand_paths(config)
    assert config[section][field] == "/home/me/x"
    buckets = ("gs://bucket/x",) if name != "guidance.guide" else ()
    for address in (*buckets, "s3://bucket/x", "~nobody-of-that-name/x"):
      config[section][field] = address
      with pytest.raises(UserError, match=f"{name} is"):
        fields.expand_paths(config)
    config[section][field] = ""
    fields.expand_paths(config)
    assert config[section][field] == ""


def test_only_what_was_learnt_can_be_drawn():
  """p_uncond = 1 never trains the conditional model: w = -1 alone is left."""
  config = changed("train.p_uncond", 1.0)
  config_lib.check_guidable(config, [-1.0])
  for strengths in ([0.0], [-1.0, 2.0], [1.0]):
    with pytest.raises(UserError, match="p_uncond is 1: .* Use w = -1"):
      config_lib.check_guidable(config, strengths)
  config.train.p_uncond = 0.0
  config_lib.check_guidable(config, [0.0])
  with pytest.raises(UserError, match="p_uncond is 0: .* Use w = 0"):
    config_lib.check_guidable(config, [-1.0])
