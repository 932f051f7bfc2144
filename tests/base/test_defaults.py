"""Configs that earlier versions stored are read right, and count as the run that they are."""

import dataclasses
import json

import pytest
import safetensors
from paths import ROOT

from cfg.base import config as config_lib
from cfg.base import defaults, trees
from cfg.base.errors import UserError
from cfg.interop import weights
from cfg.models import unet
from configs import cifar10_cpu
from configs import digits as digits_config


def test_defaults_are_those_of_the_base_config():
  """What a stored config lacks has the value of configs/digits.py, read wherever cfg lies."""
  assert defaults.base() == config_lib.to_json(digits_config.get_config())
  assert (defaults.configs_folder() / "digits.py").is_file()


def test_the_networks_defaults_are_the_networks():
  """A field that configs leave out has the value at which it was left out."""
  own = {f"model.{field.name}": field.default for field in dataclasses.fields(unet.UNet)}
  for name, value in defaults.NETWORK_DEFAULTS.items():
    assert own[name] == value and name not in trees.flatten(defaults.base(), separator=".")


def earlier(config):
  """The JSON values of `config` as the first versions stored them."""
  values = config_lib.to_json(config)
  values["train"]["heldout_every_steps"] = values["heldout"].pop("every_steps")
  values["train"]["preview_every_steps"] = values["preview"].pop("every_steps")
  values["model"] |= {
    name.removeprefix("model."): value for name, value in defaults.NETWORK_DEFAULTS.items()
  }
  values["sampler"] = {
    **{name: values["sampler"][name] for name in ("name", "num_steps", "var_interp")},
    "clip_x": values["sampler"]["limit"] == "clip",
  }
  for section in ("watch", "inception", "paper", "guidance"):
    del values[section]
  for field in ("allow_few", "extrapolate", "sampler", "num_steps", "var_interp", "ema_decays"):
    del values["sweep"][field]
  del values["judge"]["path"]
  del values["train"]["data_workers"]
  return values


def test_an_earlier_config_is_completed(config):
  """Cadences move to their sections, the network's switches go, what was not there has its default;
  it is the same run, and completing it again changes nothing.
  """
  config.heldout.every_steps = 70
  config.preview.every_steps = 30
  stored = earlier(config)
  read = config_lib.from_json(stored)
  assert config_lib.to_json(read) == config_lib.to_json(config)
  assert isinstance(read.sweep.w, tuple) and read.watch.every_steps == 0
  config_lib.check_same_run(config, stored, workdir="runs/old")
  config_lib.check_same_run(read, config_lib.to_json(config), workdir="runs/old")
  assert defaults.complete(config_lib.to_json(config)) == config_lib.to_json(config)


def test_zero_meant_the_end_alone(config):
  """An earlier cadence of 0 is read as one that falls due at the end alone."""
  stored = earlier(config)
  stored["train"] |= {"num_steps": 50, "heldout_every_steps": 0, "preview_every_steps": 0}
  read = config_lib.from_json(stored)
  assert read.heldout.every_steps == read.preview.every_steps == 50


def test_a_switch_that_is_set_stays(config):
  """Networks of other origin keep their switches, which make another network."""
  stored = earlier(config)
  stored["model"]["class_rows"] = 1000
  stored["model"]["norm_eps"] = 1e-5
  read = config_lib.from_json(stored)
  assert (read.model.class_rows, read.model.norm_eps) == (1000, 1e-5)
  assert "scale_shift" not in read.model
  with pytest.raises(UserError, match="model.class_rows is None, the checkpoint has 1000"):
    config_lib.check_same_run(config, stored, workdir="runs/old")


def test_a_rename_is_one_line(config):
  """A field with another name and another kind of value is read by one entry of RENAMED."""
  stored = config_lib.to_json(config)
  del stored["sampler"]["limit"]
  for clip, limit in ((False, "none"), (True, "clip")):
    stored["sampler"]["clip_x"] = clip
    assert defaults.complete(stored)["sampler"]["limit"] == limit
  stored["sampler"] |= {"clip_x": False, "limit": "clip"}  # today's name wins
  assert defaults.complete(stored)["sampler"]["limit"] == "clip"


def test_the_published_weights_are_of_their_config():
  """docs/cifar10's file, written by an earlier version, is of configs/cifar10_cpu.py."""
  path = ROOT / "docs/cifar10/cifar10_cpu.safetensors"
  stored = weights.read_meta(path)["config"]
  config = cifar10_cpu.get_config()
  config_lib.check_same_run(config, stored, workdir=path)
  read = config_lib.from_json(stored)
  assert read.heldout.every_steps == 1000 and "heldout_every_steps" not in read.train
  unet.from_config(read.model, num_classes=10, image_shape=(32, 32, 3))
  with safetensors.safe_open(path, framework="np") as file:
    assert json.loads(file.metadata()["meta"])["config"] == stored  # read as it is, not upgraded
