"""toy.json as text: distances, and what the weights say."""

from collections.abc import Mapping, Sequence
from typing import Any

from cfg.report import table


def text(content: Mapping[str, Any]) -> str:
  """Two aligned tables, a line for each way to draw and columns for each w; how to read them."""
  rows = content["rows"]
  weighed = [row for row in rows if "log_z" in row]
  parts = ["Distance to the tilted law, of samples drawn by each rule:", _distances(rows)]
  if weighed:
    parts += ["What the weights say, in nats:", _weights(weighed)]
  count = content["settings"]["num_samples"]
  parts += [
    "distance: sliced Wasserstein distance to p(x|c) p(c|x)^w / Z, the mean of the classes, in "
    f"units of x; draws of the law itself have that of the first line, since {count} a class are "
    "finite. ±: standard error. T: levels; P: particles of a group."
  ]
  if weighed:
    parts.append(
      "log Z: estimated by the weights, and exact; KL: of the guided samples to the law, an upper "
      "bound where noise is drawn; ESS: effective size of the weighted samples."
    )
  if "network_error" in content:
    error = content["network_error"]
    parts.append(f"The trained network's noise is off by {error:.1e} in mean square.")
  return "\n".join(parts)


def _ways(rows: Sequence[Mapping]) -> dict[tuple, dict[float, Mapping]]:
  """{(noise, method, T, P): {w: row}}."""
  ways: dict[tuple, dict[float, Mapping]] = {}
  for row in rows:
    key = tuple(row[name] for name in ("network", "method", "num_steps", "particles"))
    ways.setdefault(key, {})[row["w"]] = row
  return ways


def _names(way: tuple) -> list[str]:
  """The first cells of a line."""
  network, method, num_steps, particles = way
  return [network, method, f"{num_steps or ''}", f"{particles}" if particles > 1 else ""]


def _distances(rows):
  strengths = list(dict.fromkeys(row["w"] for row in rows))
  head = [cell for w in strengths for cell in (f"w = {w:g}", "±")]
  lines = [["noise", "drawn by", "T", "P", *head]]
  for way, by_strength in _ways(rows).items():
    cells = _names(way)
    for w in strengths:
      row = by_strength.get(w)
      cells += ["", ""] if row is None else [_number(row[n]) for n in ("distance", "distance_err")]
    lines.append(cells)
  return table.aligned(lines)


def _weights(rows):
  lines = [["noise", "drawn by", "T", "P", "w", "log Z", "exact", "KL", "ESS"]]
  for way, by_strength in _ways(rows).items():
    for w, row in by_strength.items():
      more = [f"{row['kl']:.2f}", f"{row['ess']:.0%}"] if "kl" in row else ["", ""]
      numbers = [f"{row[name]:.2f}" for name in ("log_z", "log_z_exact")]
      lines.append([*_names(way), f"{w:g}", *numbers, *more])
  return table.aligned(lines)


def _number(value: float) -> str:
  """Three decimals, or what is left of them where a sampler went astray."""
  return f"{value:.3f}" if value < 100 else f"{value:.0f}"
