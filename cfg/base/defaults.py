"""What a stored config means where it lacks today's fields, or has yesterday's.

The defaults are those of configs/digits.py. A field that is added there starts with the value that
means what the code did before it was there; one that is renamed has a line in RENAMED.
"""

import functools
import importlib.util
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cfg.base import trees


def configs_folder() -> pathlib.Path:
  """The folder of cfg's own configs: cfg/configs where cfg is installed, configs/ in a clone."""
  package = pathlib.Path(__file__).parents[1]
  inside = package / "configs"
  return inside if inside.is_dir() else package.parent / "configs"


@functools.cache
def _base() -> str:
  """The base config, configs/digits.py, as JSON."""
  spec = importlib.util.spec_from_file_location("cfg_base", configs_folder() / "digits.py")
  assert spec is not None and spec.loader is not None
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config().to_json()


def base() -> dict[str, Any]:
  """The JSON values of the base config: lists, not tuples."""
  return json.loads(_base())


def _only_at_the_end(value: int, fields: Mapping[str, Any]) -> int:
  """Earlier cadences had 0 for "at the end alone"; now that is as many steps as the run has."""
  return value or fields["train.num_steps"]


# a field's earlier name -> (its name now, (earlier value, all earlier fields) -> the value now)
RENAMED: dict[str, tuple[str, Callable[[Any, Mapping[str, Any]], Any]]] = {
  "train.heldout_every_steps": ("heldout.every_steps", _only_at_the_end),
  "train.preview_every_steps": ("preview.every_steps", _only_at_the_end),
  "sampler.clip_x": ("sampler.limit", lambda clip, _: "clip" if clip else "none"),
}

# switches for networks of other origin, which every config had earlier: the network's own defaults
# (models.unet.UNet), at which a config no longer names them
NETWORK_DEFAULTS = {
  "model.norm_eps": 1e-6,
  "model.scale_shift": True,
  "model.conv_resample": False,
  "model.discrete_schedule": None,
  "model.class_rows": None,
}


def complete(values: Mapping[str, Any]) -> dict[str, Any]:
  """A config's JSON values with today's names for its fields and defaults for those it lacks.

  Complete values come back as they are.
  """
  defaults = trees.flatten(base(), separator=".")
  given = trees.flatten(values, separator=".")
  fields = {}
  for name, value in given.items():
    new_name, read = RENAMED.get(name, (name, None))
    if new_name != name and new_name in given:
      continue
    if name in NETWORK_DEFAULTS and value == NETWORK_DEFAULTS[name]:
      continue
    fields[new_name] = value if read is None else read(value, {**defaults, **given})
  return trees.unflatten({**defaults, **fields}, separator=".")
