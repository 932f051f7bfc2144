"""Differences of rows: of a sweep's strengths, of its variants, and of two given rows."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from cfg.metrics import paired
from cfg.metrics.metric import Metric, roles
from cfg.metrics.paired import Difference
from cfg.report import table

# facts that samples of one number share if their noise does, besides the seed: how many there are
# of how many classes, in which blocks, of which shape
SHARED = ("num_samples", "num_blocks", "image_shape", "main/data")
SEEDS = ("sweep.seed", "seed")  # of a sweep's row, of a sample run's images
ASKED = "?"  # a difference that is not resolved, in the table of a sweep


class Comparison(NamedTuple):
  """Two rows and their {key: Difference}.

  Attributes:
    row: the second row, whose numbers are compared.
    baseline: the first row.
    unshared: why their samples do not share their noise; empty where they do.
    values: {key: Difference} of the metrics.
  """

  row: Mapping
  baseline: Mapping
  unshared: str
  values: dict[str, Difference]


def unshared(first: Mapping, second: Mapping) -> str:
  """Why sample i of one row and sample i of the other do not share their noise; "" if they do.

  The noise of sample i is a function of the seed, i and the image's shape, its label of i and the
  number of classes; strength, rule, limit, network, sampler and T may differ: where noise is used
  in another way the samples have less in common, but blocks of one place still belong together.
  """
  facts = [{**row.get("sampled", {}), **row} for row in (first, second)]
  seeds = [next((fact[name] for name in SEEDS if name in fact), None) for fact in facts]
  if None in seeds:
    return "images that are not of one seed"
  differing = [("the seed", *seeds)]
  differing += [(name, *(fact.get(name) for fact in facts)) for name in SHARED]
  return "; ".join(f"{name} is {a!r} and {b!r}" for name, a, b in differing if a != b)


def between(baseline: Mapping, row: Mapping, metrics: Iterable[Metric]) -> Comparison:
  """How much larger the numbers of `row` are than those of `baseline`."""
  reason = unshared(baseline, row)
  values = {
    metric.key: paired.of_rows(baseline, row, metric, paired=not reason) for metric in metrics
  }
  return Comparison(row, baseline, reason, values)


def strengths(rows: Sequence[Mapping], metrics: Sequence[Metric]) -> list[Comparison]:
  """Each row of a sweep against its variant's at w = 0, or at the first strength without one."""
  found = []
  for variant in table.by_variant(rows).values():
    baseline = next((row for row in variant if row["w"] == 0), variant[0])
    found += [between(baseline, row, metrics) for row in variant if row is not baseline]
  return found


def variants(rows: Sequence[Mapping], metrics: Sequence[Metric]) -> list[Comparison]:
  """Each row of a sweep's further variants against the first variant's of the same strength and
  rule: strengths of different rules do not mean the same (report.fronts).
  """
  first, *others = table.by_variant(rows).values()
  baselines = {row["w"]: row for row in first}
  rule = table.rule_of(first[0])
  return [
    between(baselines[row["w"]], row, metrics)
    for variant in others
    for row in variant
    if row["w"] in baselines and table.rule_of(row) == rule
  ]


def to_json(rows: Sequence[Mapping], metrics: Sequence[Metric]) -> list[dict[str, Any]]:
  """Every Comparison of a sweep, as sweep.json keeps it: rows are named by their place."""
  place = {id(row): i for i, row in enumerate(rows)}
  return [
    {
      "row": place[id(comparison.row)],
      "baseline": place[id(comparison.baseline)],
      "paired": not comparison.unshared,
      **{key: value._asdict() for key, value in comparison.values.items()},
    }
    for comparison in (*strengths(rows, metrics), *variants(rows, metrics))
  ]


def text(content: Mapping) -> str:
  """The differences of a sweep as aligned text, for each network a table, and how to read them;
  empty where there are none. Of several methods those of one method's strengths are left out.
  """
  rows, metrics = content["rows"], table.from_json(content["metrics"])
  symbol = table.symbol_of(rows)
  parts, compared = [], []
  if table.METHOD not in table.axes_of(rows) and (found := strengths(rows, metrics)):
    baseline = found[0].baseline["w"]
    parts.append(f"Differences from {symbol} = {baseline:g}:")
    parts += _role_tables(found, metrics, rows)
    compared += found
  if found := variants(rows, metrics):
    parts.append(f"Differences from {next(iter(table.by_variant(rows)))}, at the same {symbol}:")
    parts += _role_tables(found, metrics, rows)
    compared += found
  if not compared:
    return ""
  return "\n".join([*parts, *notes(compared, metrics)])


def _role_tables(compared, metrics, rows):
  """A table of the Comparisons for each network."""
  axes = table.axes_of(rows)
  head = [table.symbol_of(rows), *(axis.title for axis in axes)]
  tables = []
  for role in roles(metrics):
    own = [metric for metric in metrics if metric.role == role]
    lines = [[*head, *(cell for metric in own for cell in (metric.title, "±", ""))]]
    for comparison in compared:
      cells = [f"{comparison.row['w']:g}"]
      cells += [str(comparison.row.get(axis.fact, "")) for axis in axes]
      for metric in own:
        cells += cells_of(metric, comparison.values[metric.key])
      lines.append(cells)
    tables.append(table.aligned(lines))
  return tables


def cells_of(metric: Metric, value: Difference | None) -> list[str]:
  """[difference, its error, verdict] as a table has them."""
  if value is None:
    return ["-", "", ""]
  verdict = ASKED if value.verdict == paired.UNRESOLVED else value.verdict or ""
  return [signed(metric, value.value), table.number(metric, value.err), verdict]


def signed(metric: Metric, value: float | None) -> str:
  """A difference of a metric, with its sign."""
  return f"{'+' if value is not None and value > 0 else ''}{table.number(metric, value)}"


def difference_table(comparison: Comparison, metrics: Sequence[Metric]) -> str:
  """The numbers of two rows side by side, how much larger the second's are, how well that is known,
  and what the second is.
  """
  first, second = comparison.baseline, comparison.row
  head = table.strength_text(first) if "w" in first else ""
  lines = [[head, "first", "second", "difference", "±", "ratio", "second is"]]
  for metric in metrics:
    value = comparison.values[metric.key]
    lines.append(
      [
        metric.title,
        *(table.number(metric, row.get(metric.key)) for row in (first, second)),
        signed(metric, value.value),
        table.number(metric, value.err),
        "-" if value.ratio is None else f"{value.ratio:.2f}",
        value.verdict or "-",
      ]
    )
  return table.aligned(lines)


def notes(compared: Sequence[Comparison], metrics: Iterable[Metric]) -> list[str]:
  """What must be known of these differences."""
  lines = []
  values = [value for comparison in compared for value in comparison.values.values()]
  if any(value.err is not None for value in values):
    blocks = " or ".join(sorted({str(comparison.row["num_blocks"]) for comparison in compared}))
    lines.append(f"±: standard error of the difference, without each of {blocks} blocks in turn.")
    if any(value.verdict == paired.UNRESOLVED for value in values):
      share = f"{paired.CONFIDENCE:.0%}"
      lines.append(f"{paired.UNRESOLVED} ({ASKED}): 0 lies within the {share} interval.")
    if any(metric.kind == "kid" for metric in metrics):
      lines.append("KID's difference is of all samples, not of its subsets.")
    for reason in dict.fromkeys(c.unshared for c in compared if c.unshared):
      lines.append(f"Not paired ({reason}): errors are those of independent samples.")
  if any(value.err is None and value.value is not None for value in values):
    lines.append(
      "Differences without an error: a row is of an earlier version, which kept no values without "
      "each block."
    )
  return lines
