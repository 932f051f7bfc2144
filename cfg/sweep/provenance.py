"""What made a row of a sweep: the facts that are stored in it, and hashed for its folder."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cfg
from cfg.base import images
from cfg.base.config import ConfigDict
from cfg.features import references
from cfg.inference import network, program
from cfg.inference.network import Network
from cfg.report import table

# of the section sweep: what each row has for itself, and what only decides how fast it is drawn
PER_ROW = {"w", "ema", "methods", "evaluations", "gflops", *(axis.field for axis in table.AXES)}
SPEED = {"batch_size"}


def provenance(
  config: ConfigDict,
  settings: ConfigDict,
  *,
  networks: Mapping[str, Network],
  measured: Iterable[references.Measured],
) -> dict[str, Any]:
  """Everything that decides a row but its strength, as JSON values.

  Whole sections are taken, so that a field that nobody thought of is in it: of the config
  program.facts, of the sweep all but PER_ROW and SPEED. Files are named by their content: of each
  network and extractor by role.

  Args:
    config: the whole config, of one sampler.
    settings: of the sweep, with num_samples as drawn.
    networks: {role: Network}.
    measured: each extractor, and what real images gave in it.
  """
  own = {name: settings[name] for name in settings if name not in PER_ROW | SPEED}
  facts = {
    **program.facts(config),
    **{f"sweep.{name}": value for name, value in own.items()},
    **network.facts(networks),
    **references.facts(measured),
    "uint8": images.UINT8,
    "cfg_version": cfg.__version__,
  }
  return json.loads(json.dumps(facts))


def fingerprint(facts: Mapping[str, Any]) -> str:
  """A short hash of the provenance: rows of one folder are of one experiment."""
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def shared(provenances: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
  """The facts that all have in common."""
  first = provenances[0]
  missing = object()
  return {
    name: value
    for name, value in first.items()
    if all(other.get(name, missing) == value for other in provenances)
  }
