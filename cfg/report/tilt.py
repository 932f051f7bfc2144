"""What guidance did to a sweep's samples, as text: information, and how far from its target."""

import math
from collections.abc import Mapping

import numpy as np

from cfg.metrics import gauge
from cfg.report import table

FALLS = (
  "log Z / w lies below that of a smaller w, which of exact networks it cannot: samples that weigh "
  "most were not drawn"
)


def text(content: Mapping) -> str:
  """The gauge of the rows that have one (metrics.gauge) as aligned text; empty where none has."""
  rows = [row for row in content["rows"] if "information" in row]
  if not rows:
    return ""
  axes = table.axes_of(content["rows"])
  wrong = [id(row) for variant in table.by_variant(rows).values() for row in _falling(variant)]
  rows = [_without_tilt(row) if id(row) in wrong else row for row in rows]
  resolved = any("log_z" in row for row in rows)
  head = [table.symbol_of(rows), *(axis.title for axis in axes), "I", "±"]
  lines = [head + (["log Z", "±", "KL", "±", "ESS"] if resolved else [])]
  for row in rows:
    cells = [f"{row['w']:g}", *(str(row.get(axis.fact, "")) for axis in axes)]
    cells += [f"{row[name]:.2f}" for name in ("information", "information_err")]
    if "log_z" in row:
      cells += [f"{row[name]:.3f}" for name in ("log_z", "log_z_err", "tilt_kl", "tilt_kl_err")]
      cells.append(f"{row['tilt_ess'] / row['num_samples']:.0%}")
    elif resolved:
      cells += ["?", "", "?", "", ""]
    lines.append(cells)
  count = len(rows[0]["information_by_class"])
  notes = [
    "In nats. I: half the integral over log-SNR of the branches' squared difference. Exact "
    f"branches have at most log {count} = {math.log(count):.2f} of it, as a mean over the classes "
    "at w = 0; what is beyond is the networks' error."
  ]
  if resolved:
    notes.append(
      "KL: of what was drawn to p(x|c) p(c|x)^w / Z, an upper bound where the sampler draws noise; "
      "ESS: the samples' effective size as samples of that."
    )
  reasons: dict[str, list[str]] = {}
  for row in rows:
    if "tilt_unresolved" in row:
      reasons.setdefault(row["tilt_unresolved"], []).append(f"{row['w']:g}")
  symbol = table.symbol_of(rows)
  notes += [
    f"log Z and KL are not resolved at {symbol} = {', '.join(dict.fromkeys(strengths))}: {reason}."
    for reason, strengths in reasons.items()
  ]
  return "\n".join(["What guidance did:", table.aligned(lines), *notes])


def _falling(variant):
  """The rows of one variant whose log Z has fallen below what a smaller strength allows."""
  found = [row for row in variant if "log_z" in row and row["w"] > 0]
  get = lambda name: np.array([row[name] for row in found], float)
  fallen = gauge.falls(w=get("w"), log_z=get("log_z"), err=get("log_z_err"))
  return [row for row, falls in zip(found, fallen) if falls]


def _without_tilt(row):
  """A row that does not say what its weights say, but why not."""
  return {name: row[name] for name in row if name != "log_z"} | {"tilt_unresolved": FALLS}
