"""Methods of one sweep against each other: at equal scores, and each at its best."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from cfg.metrics import paired
from cfg.metrics.metric import Metric, roles
from cfg.metrics.paired import Difference
from cfg.report import differences, table


class Front(NamedTuple):
  """A row of one method against the curve of the first, at the row's own score.

  Attributes:
    row: of the method.
    score: the metric at whose value they are compared.
    values: {key: Difference from the curve} of the Fréchet distances of its network; None where the
      curve does not reach that score.
  """

  row: Mapping
  score: Metric
  values: dict[str, Difference | None]


def by_strength(rows: Sequence[Mapping]) -> list[Mapping]:
  """The rows of one method in the order of their strengths."""
  return sorted(rows, key=lambda row: row["w"])


def pairs(metrics: Sequence[Metric]) -> list[tuple[Metric, list[Metric]]]:
  """[(score, Fréchet distances)] of each network that has both."""
  found = []
  for role in roles(metrics):
    own = [metric for metric in metrics if metric.role == role]
    score = next((metric for metric in own if metric.kind == "score"), None)
    distances = [metric for metric in own if metric.kind == "frechet"]
    if score is not None and distances:
      found.append((score, distances))
  return found


def fronts(rows: Sequence[Mapping], metrics: Sequence[Metric]) -> list[Front]:
  """Each row of the further methods against the curve of the first."""
  first, *others = map(by_strength, table.by_variant(rows).values())
  found = []
  for score, distances in pairs(metrics):
    for row in (row for method in others for row in method):
      shares = not differences.unshared(first[0], row)
      values = {
        metric.key: paired.at_equal(first, row, x=score, y=metric, paired=shares)
        for metric in distances
      }
      found.append(Front(row, score, values))
  return found


def to_json(rows: Sequence[Mapping], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
  """Every Front of a sweep as sweep.json keeps it; rows are named by their place."""
  if not several(rows):
    return []
  place = {id(row): i for i, row in enumerate(rows)}
  return [
    {
      "row": place[id(front.row)],
      "at": front.score.key,
      **{key: value and value._asdict() for key, value in front.values.items()},
    }
    for front in fronts(rows, metrics)
  ]


def several(rows: Sequence[Mapping]) -> bool:
  """Whether they are of methods with several rules; of one rule, equal strengths are compared
  (report.differences).
  """
  rule = table.rule_of(rows[0])
  return table.METHOD in table.axes_of(rows) and any(table.rule_of(row) != rule for row in rows)


def best(rows: Sequence[Mapping], metric: Metric) -> list[Mapping]:
  """The row of each method in which a metric is lowest."""
  measured = lambda method: [row for row in method if row.get(metric.key) is not None]
  return [
    min(found, key=lambda row: row[metric.key])
    for found in map(measured, table.by_variant(rows).values())
    if found
  ]


def text(content: Mapping) -> str:
  """Both comparisons as aligned text; empty where there are none."""
  rows, metrics = content["rows"], table.from_json(content["metrics"])
  if not several(rows):
    return ""
  name = next(iter(table.by_variant(rows)))
  parts = []
  for score, distances in pairs(metrics):
    parts.append(f"Differences from {name} at equal {score.title}, on its curve:")
    parts.append(_equal_table(rows, [score, *distances]))
    for metric in distances:
      parts.append(f"The lowest {metric.title} of each method, and differences from {name}'s:")
      parts.append(_best_table(rows, metric))
  parts.append(
    "Each method's lowest is the luckiest of its strengths. A difference at equal scores has the "
    "errors of both; a curve is linear between its rows, and '-' stands beyond it."
  )
  return "\n".join(parts)


def _equal_table(rows, metrics):
  """A line for each row of the further methods."""
  score, *distances = metrics
  axes = table.naming_axes(rows)
  head = [*(axis.title for axis in axes), "strength", score.title, "NFE"]
  lines = [head + [cell for metric in distances for cell in (metric.title, "difference", "±", "")]]
  for front in fronts(rows, [score, *distances]):
    row = front.row
    cells = [str(row.get(axis.fact, "")) for axis in axes]
    cells += [f"{row['w']:g}", table.number(score, row[score.key]), str(row["nfe"])]
    for metric in distances:
      cells += [table.number(metric, row[metric.key])]
      cells += differences.cells_of(metric, front.values[metric.key])
    lines.append(cells)
  return table.aligned(lines)


def _best_table(rows, metric):
  """A line for each method."""
  axes = table.naming_axes(rows)
  found = best(rows, metric)
  head = [*(axis.title for axis in axes), "strength", "NFE"]
  lines = [[*head, metric.title, "±", "difference", "±", ""]]
  for row in found:
    cells = [str(row.get(axis.fact, "")) for axis in axes]
    cells += [f"{row['w']:g}", str(row["nfe"])]
    cells += [table.number(metric, row[name]) for name in (metric.key, metric.err)]
    value = None
    if row is not found[0]:
      value = differences.between(found[0], row, [metric]).values[metric.key]
    cells += differences.cells_of(metric, value)
    lines.append(cells)
  return table.aligned(lines)
