"""Numbers as text: tables of a sweep and of given images, and the paper's beside."""

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

from cfg.base import files, paths
from cfg.metrics.metric import HELDOUT, TRAIN, Metric, fact, roles

INCEPTION = "inception"
PAPERS = "w"  # the strength of rules that have the paper's, of which scale is 1 + w
FEW = "a Fréchet distance of no more images than features means little."


class Axis(NamedTuple):
  """What a sweep can vary besides w, and its rows can differ in.

  Attributes:
    field: of the config's section sweep, empty for the value of `setting` alone.
    setting: the field of the config that it takes the place of.
    fact: of a row.
    title: of its column.
    label: format of its values in labels.
    file: and in names of files.
  """

  field: str
  setting: str
  fact: str
  title: str
  label: str
  file: str


METHOD = Axis("", "", "method", "method", "{}", "{}")  # of a sweep of several: not a field
AXES = (
  Axis("sampler", "sampler.name", "sampler.name", "sampler", "{}", "{}"),
  Axis("num_steps", "sampler.num_steps", "sampler.num_steps", "T", "T = {}", "T{}"),
  Axis("var_interp", "sampler.var_interp", "sampler.var_interp", "v", "v = {:g}", "v{:g}"),
  Axis("eta", "sampler.eta", "sampler.eta", "eta", "eta = {:g}", "eta{:g}"),
  Axis("spacing", "sampler.spacing", "sampler.spacing", "spacing", "levels in {}", "{}"),
  Axis("ema_decays", "sweep.ema", "main/ema_decay", "EMA", "EMA {:g}", "EMA{:g}"),
)


# facts of a sweep in the line below its table
SETTINGS = {
  "sampler.name": "{} sampler",
  "sampler.num_steps": "T = {}",
  "main/ema_decay": "EMA {:g}",
  "sweep.seed": "seed {}",
  "main/step": "step {}",
  "main/weights_sha256": "weights {:.12}",
}


def strength_name(w: float) -> str:
  """The name of strength w in file names: 0.3 -> "w0.3"."""
  return f"w{w:.10g}"


def read(workdir) -> dict | None:
  """The content of sweep.json; None if it is not there, or damaged: it is written anew."""
  try:
    content = files.read_json(paths.as_path(workdir) / "sweep.json")
  except (OSError, ValueError):
    return None
  return content if isinstance(content, dict) and "rows" in content else None


def symbol_of(rows: Iterable[Mapping]) -> str:
  """What the strength of these rows is called: the paper's "w", or "lambda"."""
  return " or ".join(sorted({row.get("strength", PAPERS) for row in rows}))


def strength_text(row: Mapping) -> str:
  """The strength of a row in words: "w = 0.3 (scale = 1.3)", or "lambda = 0.3"."""
  symbol = symbol_of([row])
  scale = f" (scale = {1 + row['w']:g})" if symbol == PAPERS else ""
  return f"{symbol} = {row['w']:g}{scale}"


def to_json(metrics: Iterable[Metric]) -> list[dict]:
  """Metrics as sweep.json and the rows of cfg.evaluate keep them."""
  return [metric._asdict() for metric in metrics]


def from_json(values: Iterable[Mapping]) -> tuple[Metric, ...]:
  """The inverse of `to_json`."""
  return tuple(Metric(**value) for value in values)


def axes_of(rows: Sequence[Mapping]) -> list[Axis]:
  """The axes in which rows differ, their methods first."""
  return [axis for axis in (METHOD, *AXES) if len({row.get(axis.fact) for row in rows}) > 1]


def rule_of(row: Mapping) -> dict:
  """The facts that say what its strength means: the rule, its settings, the network that guides."""
  return {name: row[name] for name in row if name.startswith(("guidance.", "guide/"))}


def naming_axes(rows: Sequence[Mapping]) -> list[Axis]:
  """Those of `axes_of` that names need: what a method has for all its rows goes without saying."""
  values = lambda axis: {(row.get(METHOD.fact), row.get(axis.fact)) for row in rows}
  count = len({row.get(METHOD.fact) for row in rows})
  return [axis for axis in axes_of(rows) if axis is METHOD or len(values(axis)) > count]


def label_of(row: Mapping, axes: Iterable[Axis]) -> str:
  """What a row is in these axes, as far as it has them: "ddim, T = 4"."""
  return ", ".join(axis.label.format(row[axis.fact]) for axis in axes if axis.fact in row)


def file_name_of(row: Mapping, axes: Iterable[Axis]) -> str:
  """The same for names of files: "ddim_T4"."""
  return "_".join(axis.file.format(row[axis.fact]) for axis in axes if axis.fact in row)


def by_variant(rows: Sequence[Mapping]) -> dict[str, list]:
  """{label: rows}: those of one method, sampler, T, v and average, in the order in which they come;
  the label says in what they differ.
  """
  differing = naming_axes(rows)
  groups: dict[str, list] = {}
  for row in rows:
    groups.setdefault(label_of(row, differing), []).append(row)
  return groups


def number(metric: Metric, value: float | None) -> str:
  """A value or an error of a metric; one too small for the metric's format keeps two digits."""
  if value is None:
    return "-"
  text = metric.format.format(value)
  lost = value != 0 and not set(text) & set("123456789")
  return f"{value:.1e}" if lost else text


def one_line(row: Mapping, metrics: Iterable[Metric]) -> str:
  """A strength in a sentence, for the log."""
  numbers = ", ".join(
    f"{metric.title} {number(metric, row[metric.key])}"
    for metric in metrics
    if metric.against == TRAIN and row.get(metric.key) is not None
  )
  method = f"{row[METHOD.fact]}, " if METHOD.fact in row else ""
  return f"{method}{strength_text(row)}: {numbers}"


def table(content: Mapping) -> str:
  """The sweep as aligned text: a table for each network, and the paper's."""
  metrics = from_json(content["metrics"])
  texts = [_role_table(content, [m for m in metrics if m.role == role]) for role in roles(metrics)]
  if "paper" in content:
    texts.append(paper_table(content["paper"]))
  return "\n".join([*texts, _footnote(content, metrics)])


def _role_table(content, metrics):
  axes = axes_of(content["rows"])
  header = [symbol_of(content["rows"]), "scale", *(axis.title for axis in axes)]
  for metric in metrics:
    header += [metric.title, "±"]
  blank = ["" for _ in axes]
  real = [
    ["real", "", *blank, *_cells(row, metrics, absent=""), str(row["num_samples"]), "", ""]
    for row in content["references"]
  ]
  samples = [
    [
      f"{row['w']:g}",
      "" if row["scale"] is None else f"{row['scale']:g}",
      *(str(row.get(axis.fact, "")) for axis in axes),
      *_cells(row, metrics, absent="-"),
      str(row["num_samples"]),
      str(row["nfe"]),
      f"{row['flops'] / 1e9:.3g}" if "flops" in row else "-",
    ]
    for row in content["rows"]
  ]
  return aligned([[*header, "N", "NFE", "GFLOP"], *real, *samples])


def _cells(row, metrics, *, absent):
  """The value and the error of each metric."""
  return [
    number(metric, row[name]) if name in row else absent
    for metric in metrics
    for name in (metric.key, metric.err)
  ]


def aligned(lines: Sequence[Sequence[str]]) -> str:
  """Cells in columns, right-aligned."""
  widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
  return "\n".join(
    "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
  )


def measured_in(about: Mapping, metrics: Sequence[Metric]) -> list[str]:
  """For each role a line: the network that its numbers are measured in, against what; and what must
  be known of them.
  """
  lines = []
  for role in roles(metrics):
    get = lambda name, role=role: about.get(fact(role, name))
    titles = ", ".join(m.title for m in metrics if m.role == role and m.against != HELDOUT)
    resize = f" ({get('resize')})" if get("resize") else ""
    count = get("train_images")
    against = f"{'an unknown number of' if count is None else f'{count:,}'} images"
    lines.append(
      f"{titles}: measured with {get('name')}{resize}, against {against} of {get('train')}."
    )
    if get("note"):
      lines.append(str(get("note")))
  if INCEPTION not in roles(metrics):
    lines.append(
      "These features are not Inception's: the numbers cannot be compared with published ones."
    )
  return lines


def _footnote(content, metrics):
  about = content["about"]
  lines = measured_in(about, metrics)
  if about["sweep.allow_few"]:
    lines.append(f"sweep.allow_few: {FEW}")
  others = {
    (row["strength"], row.get("guidance.rule", about.get("guidance.rule")))
    for row in content["rows"]
    if symbol_of([row]) != PAPERS
  }
  lines += [
    f"{symbol} is the strength of guidance.rule {rule!r}, not the paper's w."
    for symbol, rule in sorted(others)
  ]
  settings = ", ".join(text.format(about[name]) for name, text in SETTINGS.items() if name in about)
  return "\n".join([*lines, f"'real' is the held-out split. {settings}."])


def image_table(row: Mapping) -> str:
  """The numbers of a row of cfg.evaluate, one below the other, and what they are."""
  metrics = from_json(row["metrics"])
  lines = [["", "value", "±"]]
  lines += [[m.title, number(m, row[m.key]), number(m, row[m.err])] for m in metrics]
  notes = [
    f"{row['num_samples']:,} images of {row['images']}; ±: standard error, from "
    f"{row['num_blocks']} blocks.",
    *measured_in(row, metrics),
  ]
  if row["allow_few"]:
    notes.append(f"--allow_few: {FEW}")
  return "\n".join([aligned(lines), *notes])


def beside_paper(rows: Sequence[Mapping], paper) -> dict | None:
  """{"source", "num_samples", "rows"}: this sweep's FID and IS beside published ones at the same w
  and T; None if none are of the whole Inception network.

  Args:
    rows: of the sweep.
    paper: has source, num_samples, and rows of (T, w, FID, IS); T = 0 where it was not stated.
  """
  published = {(num_steps, w): (fid, score) for num_steps, w, fid, score in paper["rows"]}
  compared = []
  for row in rows:
    num_steps = row["sampler.num_steps"]
    theirs = published.get((num_steps, row["w"]), published.get((0, row["w"])))
    complete = row.get(fact(INCEPTION, "complete"))
    if theirs is not None and complete and row.get("fid") is not None:
      compared.append(
        {
          "w": row["w"],
          "num_steps": num_steps,
          "fid": row["fid"],
          "fid_paper": theirs[0],
          "inception_score": row["inception_score"],
          "inception_score_paper": theirs[1],
        }
      )
  if not compared:
    return None
  return {
    "source": paper["source"],
    "num_samples": paper["num_samples"],
    "own_num_samples": rows[0]["num_samples"],
    "rows": compared,
  }


def paper_table(beside: Mapping) -> str:
  """The same as aligned text, with the difference in each cell."""
  lines = [["w", "T", "FID", "paper", "difference", "IS", "paper", "difference"]]
  for row in beside["rows"]:
    cells = [f"{row['w']:g}", str(row["num_steps"])]
    for ours, theirs in (
      (row["fid"], row["fid_paper"]),
      (row["inception_score"], row["inception_score_paper"]),
    ):
      cells += [f"{ours:.2f}", f"{theirs:.2f}", f"{ours - theirs:+.2f}"]
    lines.append(cells)
  text = f"\n{beside['source']}, {beside['num_samples']:,} samples at each w:\n{aligned(lines)}"
  if beside["own_num_samples"] != beside["num_samples"]:
    text += (
      f"\nFID falls with the number of samples: {beside['own_num_samples']:,} here cannot be "
      f"compared with {beside['num_samples']:,}."
    )
  return text
