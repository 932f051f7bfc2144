"""Which samples have weights towards the tilted law."""

import types

import pytest

from cfg.inference import program
from cfg.sweep import strength
from configs import digits


@pytest.mark.parametrize(
  "changes, said",
  [
    ({}, ""),
    ({"sampler.name": "heun"}, ""),
    ({"sampler.name": "heun", "sampler.churn": 4.0}, "churn"),
    ({"sampler.limit": "clip"}, "limited"),
    ({"guidance.ramp": "linear"}, "one w"),
    ({"guidance.logsnr_max": 2.0}, "one w"),
    ({"guidance.rule": "projected"}, "one w"),
    ({"guidance.rule": "power_law"}, "one w"),
    ({"guidance.rule": "second_network"}, ""),
  ],
)
def test_only_the_mix_at_one_w_without_a_limit_has_weights(changes, said):
  """Anything else says why it has none."""
  config = digits.get_config()
  config.sampler.limit = "none"
  for name, value in changes.items():
    section, field = name.split(".")
    config[section][field] = value
  drawn = program.from_config(config, image_shape=(1, 1, 1), null_label=10, networks={})
  reason = strength.no_tilt(types.SimpleNamespace(program=drawn, config=config))
  assert said in reason and bool(said) == bool(reason)
