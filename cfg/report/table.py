"""What a sweep leaves for a reader: the table, the paper's beside it, the curve, the grid, the
nearest training images.
"""

import csv
import io
import json
import pathlib

import numpy as np

from cfg.base import files
from cfg.features.extractor import JUDGE
from cfg.report import figures

FILES = ("sweep.json", "sweep.csv", "curve.png", "grid.png", "nearest.png")
# what a metric is called; its end names the network it is in, if that is not the first
TITLES = {
  "fid": "FID",
  "sfid": "sFID",
  "fid_768": "FID-768",
  "frechet_1280": "FD-1280",
  "inception_score": "IS",
  "inception_score_no_bias": "IS (no bias)",
  "label_accuracy": "label acc.",
  "precision": "precision",
  "recall": "recall",
  "kid": "KID",
  "precision_1280": "precision-1280",
  "recall_1280": "recall-1280",
  "kid_1280": "KID-1280",
}
# what distinguishes rows of one strength: a fact of each row, and how it is written
AXES = {"sampler": "{}", "num_steps": "T = {}", "var_interp": "v = {:g}", "ema": "EMA {:g}"}


def write(workdir, *, rows, references, pictures, about, extractor, dataset, paper=None):
  """Write FILES to `workdir`, and a grid for each further variant.

  Args:
    workdir: a Path.
    rows: a dict per variant and strength, in order of w in each variant.
    references: dicts of real images judged the same way.
    pictures: for each variant {w: uint8 [K,H,W,C]}, picture i of each strength from the same noise,
      of class i mod the number of classes.
    about: the provenance that all rows share.
    extractor: an extractor.Extractor, whose metrics the rows have.
    dataset: data.sources.Dataset.
    paper: the config's section of published numbers, or None.

  Returns:
    The content of sweep.json.
  """
  content = {
    "about": about,
    "metrics": shown(rows[0], extractor),
    "rows": rows,
    "references": references,
  }
  if paper and paper["rows"] and (beside := beside_paper(rows, paper)):
    content["paper"] = beside
  content["nearest_training_image"] = figures.write_nearest(
    workdir / "nearest.png", pictures=pictures[0], dataset=dataset
  )
  write_csv(workdir / "sweep.csv", rows)
  write_curve(workdir / "curve.png", content)
  for label, some in zip(by_variant(rows), pictures, strict=True):
    columns = list(some)
    count = min(dataset.num_classes, figures.MOST_ROWS, len(some[columns[0]]))
    figures.write_grid(
      workdir
      / (
        "grid.png"
        if some is pictures[0]
        else f"grid_{label.replace(' ', '').replace(',', '_').replace('=', '')}.png"
      ),
      np.stack([some[w][:count] for w in columns], axis=1),
      row_names=figures.class_titles(dataset.class_names, range(count)),
      column_names=[f"{w:g}" for w in columns],
      column_title=f"guidance strength w  (scale = 1 + w); the same noise along a "
      f"row{label and '; '}{label}",
      row_title="class",
    )
  files.write_json(workdir / "sweep.json", content)  # last: it says that the rest is there
  return content


def strength_name(w):
  """The name of strength w in file names: 0.3 -> "w0.3"."""
  return f"w{w:.10g}"


def read(workdir):
  """The content of sweep.json, or None."""
  path = pathlib.Path(workdir) / "sweep.json"
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def write_csv(path, rows):
  """One line per row of sweep.json, with its columns."""
  text = io.StringIO()
  writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())


def shown(row, extractor):
  """{"frechet", "scores", "shares"}: the metrics of a row that tables and curves show; all are in
  the row.

  Of the Fréchet distances to the held-out images only the first network's first is.
  """
  there = lambda metrics: [metric for metric in metrics if f"{metric}_err" in row]
  shares = (
    "label_accuracy",
    *(f"{name}{extractor.pairwise_suffix}" for name in ("precision", "recall", "kid")),
  )
  return {
    "frechet": there(extractor.frechet.values()),
    "scores": there(extractor.scores.values()),
    "shares": there(shares),
  }


def title(metric):
  """What a metric is called."""
  own = metric.removesuffix("_heldout")
  base = own.removesuffix(JUDGE)
  return f"{'judge ' if base != own else ''}{TITLES.get(base, base)}{' held-out' if own != metric else ''}"


def by_variant(rows):
  """{label: rows}: those of one sampler, T, v and average, in the order in which they come; the
  label says in what they differ.
  """
  differ = [name for name in AXES if len({row[name] for row in rows}) > 1]
  groups = {}
  for row in rows:
    groups.setdefault(", ".join(AXES[name].format(row[name]) for name in differ), []).append(row)
  return groups


def one_line(row):
  """A strength in a sentence, for the log."""
  numbers = ", ".join(
    f"{title(name)} {_number(name, row[name])}"
    for name in row
    if f"{name}_err" in row and row[name] is not None and "held" not in name
  )
  return f"w = {row['w']:g} (scale {row['scale']:g}): {numbers}"


def _number(metric, value):
  if value is None:
    return "-"
  return (
    f"{100 * value:.1f} %"
    if metric.startswith("label_accuracy")
    else f"{value:.5f}"
    if metric.startswith("kid")
    else f"{value:.3f}"
  )


def table(content):
  """The sweep as aligned text: a table for each network, and the paper's."""
  about, metrics = content["about"], content["metrics"]
  every = [*metrics["frechet"], *metrics["scores"], *metrics["shares"]]
  first = [name for name in every if not name.endswith(JUDGE)]
  if first[0] in metrics["frechet"]:
    first.insert(1, f"{first[0]}_heldout")
  second = [name for name in every if name.endswith(JUDGE)]
  if second and "label_accuracy" in first:
    first.remove("label_accuracy")
    second.append("label_accuracy")
  texts = [_lines(content, first), *([_lines(content, second)] if second else []), _footnote(about)]
  if "paper" in content:
    texts.insert(-1, paper_table(content["paper"]))
  return "\n".join(texts)


def _lines(content, metrics):
  columns = [
    (name, part)
    for name in metrics
    for part in (("", "_err") if name != "label_accuracy" else ("",))
  ]
  differ = [name for name in AXES if name not in content["about"]]
  header = (
    "w",
    "scale",
    *(name.replace("num_steps", "T").replace("var_interp", "v") for name in differ),
    *("±" if part else title(name) for name, part in columns),
    "N",
    "NFE",
  )
  lines = [
    (
      "real",
      "",
      *("" for _ in differ),
      *("" if part else _number(name, row[name]) if name in row else "" for name, part in columns),
      str(row["num_samples"]),
      "",
    )
    for row in content["references"]
  ]
  lines += [
    (
      f"{row['w']:g}",
      f"{row['scale']:g}",
      *(str(row[name]) for name in differ),
      *(_number(name, row.get(f"{name}{part}")) for name, part in columns),
      str(row["num_samples"]),
      str(row["nfe"]),
    )
    for row in content["rows"]
  ]
  return _aligned([header, *lines])


def _aligned(lines):
  widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
  return "\n".join(
    "  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in lines
  )


def _footnote(about):
  measured = f"FID and IS are in the feature space of {about['extractor']}, not Inception's. FID against the training split."
  if "resize" in about:
    measured = f"In the features of {about['extractor']} ({about['resize']}), against {about['reference_images'] or 'unknown numbers of'} images of {about['reference']}."
    if not about["complete"]:
      measured += "\nThe weights are not complete: FID-768 and FD-1280 are Fréchet distances in earlier layers, not FID, and cannot be set beside it."
    if "judge" in about:
      measured += f"\nThe judge is {about['judge']}."
  if about["allow_few"]:
    measured += (
      "\nsweep.allow_few: a Fréchet distance of no more images than features means little."
    )
  facts = [
    ("sampler", "{} sampler"),
    ("num_steps", "T = {}"),
    ("ema", "EMA {:g}"),
    ("seed", "seed {}"),
    ("step", "step {}"),
  ]
  said = ", ".join(text.format(about[name]) for name, text in facts if name in about)
  checkpoint = f", checkpoint {about['checkpoint_hash'][:12]}" if "checkpoint_hash" in about else ""
  return f"{measured}\n'real' is the held-out split. {said}{checkpoint}."


def beside_paper(rows, paper):
  """{"source", "num_samples", "rows"}: this sweep's FID and IS beside published ones at the same w
  and T; None if none are of the whole Inception network.

  Args:
    paper: has source, num_samples, and rows of (T, w, FID, IS); T = 0 where it was not stated.
  """
  published = {(num_steps, w): (fid, score) for num_steps, w, fid, score in paper["rows"]}
  found = []
  for row in rows:
    theirs = published.get((row["num_steps"], row["w"]), published.get((0, row["w"])))
    if theirs is not None and row.get("complete") and row.get("fid") is not None:
      found.append(
        {
          "w": row["w"],
          "num_steps": row["num_steps"],
          "fid": row["fid"],
          "fid_paper": theirs[0],
          "inception_score": row["inception_score"],
          "inception_score_paper": theirs[1],
        }
      )
  return (
    {
      "source": paper["source"],
      "num_samples": paper["num_samples"],
      "own_num_samples": rows[0]["num_samples"],
      "rows": found,
    }
    if found
    else None
  )


def paper_table(beside):
  """The same as aligned text, with the difference in each cell."""
  lines = [("w", "T", "FID", "paper", "difference", "IS", "paper", "difference")]
  for row in beside["rows"]:
    cells = [
      text
      for name in ("fid", "inception_score")
      for text in (
        f"{row[name]:.2f}",
        f"{row[f'{name}_paper']:.2f}",
        f"{row[name] - row[f'{name}_paper']:+.2f}",
      )
    ]
    lines.append((f"{row['w']:g}", str(row["num_steps"]), *cells))
  text = f"\n{beside['source']}, {beside['num_samples']:,} samples at each w:\n{_aligned(lines)}"
  if beside["own_num_samples"] != beside["num_samples"]:
    text += f"\nFID falls with the number of samples: {beside['own_num_samples']:,} here cannot be compared with {beside['num_samples']:,}."
  return text


def write_curve(path, content):
  """curve.png: every Fréchet distance and score against w, and the first of them against each
  other.
  """
  about, metrics, rows = content["about"], content["metrics"], content["rows"]
  several = any(name.endswith(JUDGE) for name in (*metrics["frechet"], *metrics["scores"]))
  first, variants = metrics["frechet"][0], by_variant(rows)
  panels = [(title(name), figures.LOWER, {name: ""}) for name in metrics["frechet"]]
  if len(variants) == 1 and all(row.get(f"{first}_heldout") is not None for row in rows):
    panels[0][-1].update(
      {first: "to the training split", f"{first}_heldout": "to the held-out split"}
    )
  panels += [(title(name), figures.HIGHER, {name: ""}) for name in metrics["scores"]]
  if several or "precision" in " ".join(metrics["shares"]):
    panels += [
      (title(name), "", {name: ""}) for name in metrics["shares"] if not name.startswith("kid")
    ]
  trade = (
    ((metrics["scores"][0], title(metrics["scores"][0])), (first, title(first)))
    if metrics["scores"]
    else None
  )
  data = figures.printable(about["data"], otherwise="your images")
  space = about["extractor"] + ("" if "resize" in about else ", not Inception's")
  facts = [
    f"{about['num_samples']} samples per w",
    *(
      text.format(about[name])
      for name, text in AXES.items()
      if name in about and name == "num_steps"
    ),
  ]
  figures.write_curve(
    path,
    series=variants,
    panels=panels,
    trade=trade,
    real=next(iter(content["references"]), None),
    title=f"Classifier-free guidance on {data}: {', '.join(facts)}; features of {space}",
  )
