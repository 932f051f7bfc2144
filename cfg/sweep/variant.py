"""What a sweep goes through besides w: its methods, each with every combination of its axes."""

import dataclasses
import itertools
import json
import logging
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cfg.base import fields, files
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.guidance import MAIN
from cfg.inference import network, program
from cfg.inference.network import Network
from cfg.report import table

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
  """Everything but w.

  Attributes:
    method: its name among the config's methods; "" where there are none.
    config: with one rule and one sampler.
    networks: {role: Network}.
    provenance: of its rows.
    folder: of its rows.
  """

  method: str
  config: ConfigDict
  networks: Mapping[str, Network]
  provenance: Mapping[str, Any]
  folder: pathlib.Path

  @property
  def program(self) -> program.Program:
    """What draws."""
    return network.make_program(self.config, self.networks)

  @property
  def strengths(self) -> tuple[float, ...]:
    """Those that are asked of it."""
    return tuple(self.config.sweep.w)

  @property
  def num_classes(self) -> int:
    """Of the network that is sampled from."""
    return self.networks[MAIN].model.num_classes

  def path(self, w: float, ending: str) -> pathlib.Path:
    """The file of strength w."""
    return self.folder / f"{table.strength_name(w)}{ending}"

  def row(self, w: float) -> dict[str, Any] | None:
    """The finished row of strength w, or None; without its pictures it is not finished."""
    path = self.path(w, ".json")
    if not path.exists() or not self.path(w, ".npz").exists():
      return None
    try:
      row = files.read_json(path)
    except (OSError, ValueError) as e:
      row, why = None, str(e)
    else:
      why = "it is no row of this strength"
    if not isinstance(row, dict) or row.get("w") != w:
      log.warning("%s cannot be used (%s): the strength is drawn again", path, why)
      return None
    return row

  def finished(self, w: float) -> dict[str, Any]:
    """The row of strength w, which is there."""
    row = self.row(w)
    assert row is not None, w
    # a name changes no sample: the file of a row does not have it
    return {**({table.METHOD.fact: self.method} if self.method else {}), **row}


def combinations(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
  """(name of the method, its config with one sampler and one average) for each combination of the
  sweep's axes.

  Of those that draw the same samples, as DDIM's of several v, the first.

  Raises:
    UserError: two methods draw the same samples.
  """
  seen: dict[str, str] = {}
  for method, changed in methods(config):
    choices = [tuple(config.sweep[axis.field]) or (_own(changed, axis),) for axis in table.AXES]
    for values in itertools.product(*choices):
      count = len(seen)
      single = changed.copy_and_resolve_references()
      for axis, value in zip(table.AXES, values, strict=True):
        section, name = axis.setting.split(".")
        single[section][name] = value
      # another checkpoint of the guide is another method, though its place is no fact
      guide = {name: single.guidance[name] for name in single.guidance if "guide" in name}
      key = json.dumps([program.facts(single), single.sweep.ema, guide], sort_keys=True)
      if seen.setdefault(key, method) != method:
        raise UserError(
          f"sweep.methods has {seen[key]!r} and {method!r}, which draw the same samples: leave one "
          "out, or change a field of config.methods."
        )
      if len(seen) > count:
        yield method, single


def methods(config: ConfigDict) -> Iterator[tuple[str, ConfigDict]]:
  """(name, the config with what it sets) of sweep.methods; ("", the config) where that is empty."""
  if not config.sweep.methods:
    yield "", config
  for method in config.sweep.methods:
    changed = config.copy_and_resolve_references()
    for name, value in fields.leaves(config[fields.METHODS][method]):
      section, field = name.split(".")
      with changed[section].ignore_type():
        changed[section][field] = value
    yield method, changed


def within_budget(config: ConfigDict, flops: Mapping[str, int] | None = None) -> ConfigDict:
  """The config with the largest sampler.num_steps at which a guided sample costs no more than
  sweep.evaluations, and no more than sweep.gflops; without either, as it is.

  Args:
    config: of one sampler.
    flops: {role: of one evaluation}; without them sweep.gflops is not looked at.

  Raises:
    UserError: two steps already cost more.
  """
  settings = config.sweep
  limits: list[tuple[str, float, Mapping[str, int]]] = []  # name, most, {role: each evaluation's}
  if settings.evaluations is not None:
    each = dict.fromkeys(program.roles(config), 1)
    limits.append(("sweep.evaluations", settings.evaluations, each))
  if settings.gflops is not None and flops is not None:
    limits.append(("sweep.gflops", settings.gflops * 1e9, flops))
  if not limits:
    return config
  fitting = config.copy_and_resolve_references()

  def exceeded(num_steps):
    """The limits that so many steps are beyond."""
    fitting.sampler.num_steps = num_steps
    drawing = program.from_config(fitting, image_shape=(1, 1, 1), null_label=0, networks={})
    calls = program.nfe(drawing).items()
    return [limit for limit in limits if sum(n * limit[2][role] for role, n in calls) > limit[1]]

  # no step takes less than one evaluation
  longest = min(int(most // min(each.values())) for _, most, each in limits)
  for num_steps in range(longest, 1, -1):
    if not exceeded(num_steps):
      return fitting
  name, most, _ = exceeded(2)[0]
  raise UserError(
    f"{name} is {most / (1e9 if name == 'sweep.gflops' else 1):g}: two steps of sampler.name "
    f"{config.sampler.name!r} with guidance.rule {config.guidance.rule!r} cost more. Raise it."
  )


def _own(config, axis):
  """The value that the config has where the sweep does not vary it."""
  section, name = axis.setting.split(".")
  return config[section][name]
