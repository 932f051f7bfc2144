"""What a network's branches know of held-out images, as text (metrics.meter)."""

from collections.abc import Mapping, Sequence
from typing import Any

from cfg.report import table

COLUMNS = {"M1": "M1", "M2": "M2", "M1_minus_M2": "M1 - M2", "M2_plus_log_p": "M2 + log p(c)"}


def labelled(meters: Sequence[Mapping]) -> dict[str, Mapping]:
  """{what a network is called: its meter}; "" for a single one."""
  if len(meters) == 1:
    return {"": meters[0]}
  about = [meter["about"] for meter in meters]
  names = [f"EMA {facts['main/ema_decay']:g}" for facts in about]
  if len(set(names)) < len(names):
    names = [f"weights {facts['main/weights_sha256'][:12]}" for facts in about]
  return dict(zip(names, meters))


def text(content: Mapping) -> str:
  """The meters of a sweep's networks as aligned text, and how to read them; empty without any."""
  meters = content.get("meters", [])
  if not meters:
    return ""
  networks = labelled(meters)
  head = [*([""] if len(meters) > 1 else [])]
  head += [cell for title in COLUMNS.values() for cell in (title, "±")]
  lines = [[*head, "ends at"]]
  for name, meter in networks.items():
    cells = [name] if len(meters) > 1 else []
    for key in COLUMNS:
      cells += [_number(meter[key]), _number(meter[f"{key}_err"])]
    level = meter["end_level"]
    lines.append([*cells, "-" if level is None else f"{level:g}"])
  first = meters[0]
  edges = first["logsnr"]
  notes = [
    f"In nats, on {first['num_images']:,} held-out images noised at a level in each of "
    f"{len(edges) - 1} parts of log-SNR {edges[0]:g} to {edges[-1]:g}; made once, with "
    f"{sum(first['evaluations'].values()):,} network evaluations that NFE does not count.",
    "M1: half the integral of |e_c - e_u|^2. M2: of |e_u - eps|^2 - |e_c - eps|^2, how much better "
    "the label makes the network explain an image. M1 - M2: the class branch's error. M2 + log "
    "p(c): at least so much worse is the branch without a label than the mixture of the class "
    "branches, if above 0.",
    f"The labels tell {first['label_entropy']:.2f} nats. 'ends at': the log-SNR at which M2 up to "
    "there is within one standard error of its largest value (guidance.interval='meter').",
  ]
  return "\n".join(["What the network's branches know:", table.aligned(lines), *notes])


def _number(value: Any) -> str:
  return "-" if value is None else f"{value:.2f}"
