"""What a sweep goes through besides w: every combination of its axes."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

from cfg.base.config import ConfigDict
from cfg.guidance import MAIN
from cfg.inference import network, program
from cfg.inference.network import Network
from cfg.report import table


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
  """Everything but w.

  Attributes:
    config: with one sampler.
    networks: {role: Network}.
    provenance: of its rows.
    folder: of its rows.
  """

  config: ConfigDict
  networks: Mapping[str, Network]
  provenance: Mapping[str, Any]
  folder: pathlib.Path

  @property
  def program(self) -> program.Program:
    """What draws."""
    return network.make_program(self.config, self.networks)

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
    return json.loads(path.read_text(encoding="utf-8"))

  def finished(self, w: float) -> dict[str, Any]:
    """The row of strength w, which is there."""
    row = self.row(w)
    assert row is not None, w
    return row


def combinations(config: ConfigDict) -> Iterator[tuple[ConfigDict, float | None]]:
  """(config of one sampler, decay of the average) for each combination of the sweep's axes.

  Of those that draw the same samples, as DDIM's of several v, the first.
  """
  choices = [tuple(config.sweep[axis.field]) or (_own(config, axis),) for axis in table.AXES]
  seen = set()
  for values in itertools.product(*choices):
    single = config.copy_and_resolve_references()
    for axis, value in zip(table.AXES, values, strict=True):
      section, name = axis.setting.split(".")
      single[section][name] = value
    key = json.dumps([program.facts(single), single.sweep.ema], sort_keys=True)
    if key not in seen:
      seen.add(key)
      yield single, single.sweep.ema


def _own(config, axis):
  """The value that the config has where the sweep does not vary it."""
  section, name = axis.setting.split(".")
  return config[section][name]
