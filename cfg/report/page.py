"""What a sweep leaves for a reader: its text, sweep.json, the CSV, the curve, the grids, the
nearest training images.
"""

import csv
import dataclasses
import io
import math
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from cfg.base import files
from cfg.metrics.metric import HELDOUT, TRAIN, Metric, fact, roles
from cfg.report import curves, differences, drawing, fronts, grids, levels, meter, table, tilt

FEWEST_STEPS = 3  # values of T of a line of steps.png
MOST_LINES = 24  # that can be told apart in curve.png
FILES = ("sweep.json", "sweep.csv", "curve.png", "grid.png", "nearest.png")


class Series(NamedTuple):
  """The rows of one sampler, T, v and average, and {w: uint8 [K,H,W,C]}: picture i of each strength
  is from the same noise, of class i mod the number of classes.
  """

  rows: list[dict]
  pictures: Mapping[float, np.ndarray]


@dataclasses.dataclass(frozen=True, eq=False)
class Report:
  """All that a sweep found.

  Attributes:
    series: the first has grid.png and nearest.png.
    metrics: that the rows have, or some of them.
    about: the provenance that all rows share.
    real: rows of real images judged the same way.
    dataset: data.dataset.Dataset.
    paper: the config's section of published numbers, or None.
    meters: of the networks that were sampled from (inference.meter).
    directions: and how the classifiers that guide them compare with the implicit ones.
  """

  series: Sequence[Series]
  metrics: Iterable[Metric]
  about: Mapping[str, Any]
  real: Sequence[Mapping]
  dataset: Any
  paper: Any = None
  meters: Sequence[Mapping] = ()
  directions: Sequence[Mapping] = ()

  @property
  def rows(self) -> list[dict]:
    """Those of all series."""
    return [row for series in self.series for row in series.rows]


def write(workdir: pathlib.Path, report: Report) -> dict:
  """Write FILES to `workdir`, and a grid for each further series; the content of sweep.json."""
  rows = report.rows
  metrics = [metric for metric in report.metrics if metric.key in rows[0]]
  content = {
    "about": report.about,
    "metrics": table.to_json(metrics),
    "rows": rows,
    "references": report.real,
    "differences": differences.to_json(rows, metrics),
    "fronts": fronts.to_json(rows, metrics),
    "meters": list(report.meters),
    "implicit_classifier": list(report.directions),
  }
  if report.paper and report.paper["rows"] and (beside := table.beside_paper(rows, report.paper)):
    content["paper"] = beside
  content["nearest_training_image"] = grids.write_nearest(
    workdir / "nearest.png", pictures=report.series[0].pictures, dataset=report.dataset
  )
  write_csv(workdir / "sweep.csv", rows)
  write_curve(workdir / "curve.png", content)
  if fronts.several(rows):
    write_methods(workdir / "methods.png", content)
  write_steps(workdir / "steps.png", content)
  write_information(workdir / "information.png", report.series[0].rows)
  write_levels(workdir, report)
  differing = table.naming_axes(rows)
  for i, series in enumerate(report.series):
    label = table.label_of(series.rows[0], differing)
    name = table.file_name_of(series.rows[0], differing)
    path = workdir / (f"grid_{name}.png" if i else "grid.png")
    _write_grid(path, series, label=label, dataset=report.dataset)
  files.write_json(workdir / "sweep.json", content)  # last: it says that the rest is there
  return content


def text(content: Mapping) -> str:
  """The table of a sweep, that of its differences, which one row has not, its methods against each
  other, its gauge, and its networks' meters.
  """
  parts = (
    table.table(content),
    differences.text(content),
    fronts.text(content),
    tilt.text(content),
    meter.text(content),
  )
  return "\n\n".join(filter(None, parts))


def _write_grid(path, series, *, label, dataset):
  pictures = series.pictures
  symbol = table.symbol_of(series.rows)
  scale = "  (scale = 1 + w)" if symbol == table.PAPERS else ""
  strengths = list(pictures)
  count = min(dataset.num_classes, grids.MOST_ROWS, len(pictures[strengths[0]]))
  grids.write_grid(
    path,
    np.stack([pictures[w][:count] for w in strengths], axis=1),
    row_names=drawing.class_titles(dataset.class_names, range(count)),
    column_names=[f"{w:g}" for w in strengths],
    column_title=f"guidance strength {symbol}{scale}; the same noise along a "
    f"row{label and '; '}{label}",
    row_title="class",
  )


def write_csv(path: pathlib.Path, rows: Sequence[Mapping]) -> None:
  """One line per row of sweep.json; its columns are those of all rows, but for lists."""
  lines = io.StringIO()
  columns = [name for row in rows for name in row if not isinstance(row[name], list)]
  writer = csv.DictWriter(
    lines, fieldnames=list(dict.fromkeys(columns)), extrasaction="ignore", lineterminator="\n"
  )
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, lines.getvalue())


def write_curve(path: pathlib.Path, content: Mapping) -> None:
  """curve.png: every metric against w, and the first Fréchet distance against the first score; of
  more than MOST_LINES variants those with the T of the first.
  """
  about, rows = content["about"], content["rows"]
  metrics = table.from_json(content["metrics"])
  variants = table.by_variant(rows)
  if len(variants) > MOST_LINES:
    first = rows[0]["sampler.num_steps"]
    variants = {
      label: found for label, found in variants.items() if found[0]["sampler.num_steps"] == first
    }
  frechet = [metric for metric in metrics if metric.kind == "frechet"]
  scores = [metric for metric in metrics if metric.kind == "score"]
  data = drawing.printable(about["main/data"], otherwise="your images")
  names = " and ".join(str(about.get(fact(role, "name"))) for role in roles(metrics))
  num_steps = about.get("sampler.num_steps")
  steps = "" if num_steps is None else f", T = {num_steps}"
  published = "" if table.INCEPTION in roles(metrics) else ", not Inception's"
  symbol = table.symbol_of(rows)
  curves.write_curve(
    path,
    series=variants,
    panels=panels(metrics, rows, several=len(variants) > 1),
    trade=(scores[0], frechet[0]) if scores and frechet else None,
    real=next(iter(content["references"]), None),
    title=f"Classifier-free guidance on {data}: {about['sweep.num_samples']} samples per {symbol}"
    f"{steps}; features of {names}{published}",
    symbol=symbol,
  )


def write_methods(path: pathlib.Path, content: Mapping) -> None:
  """methods.png: each Fréchet distance against the score of its network, a line each method."""
  rows, metrics = content["rows"], table.from_json(content["metrics"])
  about = content["about"]
  data = drawing.printable(about["main/data"], otherwise="your images")
  evaluations = sorted({row["nfe"] for row in rows if row["w"] != 0})
  most = f" to {evaluations[-1]}" if len(evaluations) > 1 else ""
  curves.write_methods(
    path,
    series={label: fronts.by_strength(method) for label, method in table.by_variant(rows).items()},
    pairs=[(score, metric) for score, found in fronts.pairs(metrics) for metric in found],
    real=next(iter(content["references"]), None),
    title=f"Methods of guidance on {data}: {about['sweep.num_samples']} samples a point, "
    f"{evaluations[0]}{most} evaluations each where guided, the same noise",
  )


def write_steps(path: pathlib.Path, content: Mapping) -> None:
  """steps.png: the first Fréchet distance against the evaluations of a sample, a line each sampler
  and grid of levels; no file where none has FEWEST_STEPS.
  """
  rows, metrics = content["rows"], table.from_json(content["metrics"])
  metric = next((metric for metric in metrics if metric.kind == "frechet"), None)
  naming = [axis for axis in table.naming_axes(rows) if axis.field != "num_steps"]
  sampler = [axis for axis in table.AXES if axis.field not in ("num_steps", "spacing")]
  series: dict[str, curves.Steps] = {}
  for row in rows:
    colour = str([row.get(axis.fact) for axis in sampler])
    line = curves.Steps(colour, str(row.get("sampler.spacing")), [])
    series.setdefault(table.label_of(row, naming), line).rows.append(row)
  most = max(len({row["sampler.num_steps"] for row in line.rows}) for line in series.values())
  if metric is None or most < FEWEST_STEPS:
    return
  about = content["about"]
  data = drawing.printable(about["main/data"], otherwise="your images")
  curves.write_steps(
    path,
    series=series,
    metric=metric,
    title=f"Samplers on {data}: {about['sweep.num_samples']} samples a point",
    symbol=table.symbol_of(rows),
  )


def write_information(path: pathlib.Path, rows: Sequence[Mapping]) -> None:
  """information.png: the gauge's curve of each strength; no file where no row has one."""
  measured = [row for row in rows if "information" in row]
  if measured:
    symbol = table.symbol_of(measured)
    curves.write_information(
      path,
      lines={
        f"{symbol} = {row['w']:g}": (row["information_logsnr"], row["information_by_level"])
        for row in measured
      },
      bound=math.log(len(measured[0]["information_by_class"])),
      title="half the integral of |eps_cond - eps_uncond|^2 along the samples' paths",
    )


def write_levels(workdir: pathlib.Path, report: Report) -> None:
  """meter.png and implicit_classifier.png of what was measured at each level; no file of what was
  not.
  """
  data = drawing.printable(report.about["main/data"], otherwise="your images")
  if report.meters:
    levels.write_meter(
      workdir / "meter.png",
      meters=meter.labelled(report.meters),
      title=f"What the branches know of {report.meters[0]['num_images']} held-out images of {data}",
    )
  if report.directions:
    levels.write_directions(
      workdir / "implicit_classifier.png",
      directions=report.directions[0],
      title="A classifier's gradient and the implicit classifier's, on "
      f"{report.directions[0]['num_images']} noised held-out images of {data}",
    )


def panels(
  metrics: Sequence[Metric], rows: Sequence[Mapping], *, several: bool
) -> list[curves.Panel]:
  """A panel for each metric; the same against held-out images joins it, if every row has it and
  there are not `several` lines in a panel already.
  """
  drawn = {}
  for metric in metrics:
    place = (metric.output, metric.kind)
    if metric.against == TRAIN:
      drawn[place] = [metric]
    elif not several and place in drawn and all(row[metric.key] is not None for row in rows):
      drawn[place].append(metric)
  names = {TRAIN: "to the training split", HELDOUT: "to the held-out split"}
  return [
    curves.Panel(lines[0].title, lines[0].better, {m: names[m.against] for m in lines})
    for lines in drawn.values()
  ]
