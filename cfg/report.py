"""What a sweep leaves for a reader: the table, the curve, the grid, the nearest training images."""

import csv
import functools
import io
import json
import pathlib

import matplotlib.figure
import matplotlib.font_manager
import matplotlib.text
import numpy as np

from cfg import files, images
from cfg.data import pipeline

# rows of grid.png and nearest.png
MOST_ROWS = 16
FILES = ("sweep.json", "sweep.csv", "curve.png", "grid.png", "nearest.png")
# of a name in a picture
LONGEST = 24
EAST_ASIAN = (
  "Noto Sans CJK SC", "Noto Sans CJK JP", "Source Han Sans SC", "WenQuanYi Zen Hei", "WenQuanYi Micro Hei", "Droid Sans Fallback", "Microsoft YaHei",
  "SimHei", "PingFang SC", "Heiti TC", "Hiragino Sans GB", "Hiragino Sans", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS",
)
BLUE, ORANGE, GREY = "#1f5fa8", "#d9741a", "#6b6b6b"


def write(workdir, *, rows, references, pictures, about, dataset):
  """Write FILES to `workdir`.

  Args:
    workdir: a Path.
    rows: a dict per strength, in order of w.
    references: dicts of real images judged the same way.
    pictures: {w: uint8 [K,H,W,C]}, picture i of each strength from the same noise, of class i mod the
      number of classes.
    about: the provenance that all rows share.
    dataset: data.sources.Dataset.

  Returns:
    The content of sweep.json.
  """
  content = {"about": about, "rows": rows, "references": references}
  nearest = write_nearest(workdir / "nearest.png", pictures=pictures, dataset=dataset)
  content["nearest_training_image"] = nearest
  write_csv(workdir / "sweep.csv", rows)
  write_curve(workdir / "curve.png", rows=rows, references=references, about=about)
  columns = list(pictures)
  count = min(dataset.num_classes, MOST_ROWS, len(pictures[columns[0]]))
  write_grid(
    workdir / "grid.png", np.stack([pictures[w][:count] for w in columns], axis=1),
    row_names=class_titles(dataset.class_names, range(count)), column_names=[f"{w:g}" for w in columns],
    column_title="guidance strength w  (scale = 1 + w); the same noise along a row",
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
  """One line per strength; the columns of sweep.json's rows."""
  text = io.StringIO()
  writer = csv.DictWriter(text, fieldnames=list(rows[0]), lineterminator="\n")
  writer.writeheader()
  writer.writerows(rows)
  files.write_text(path, text.getvalue())


def one_line(row):
  """A strength in a sentence, for the log."""
  return (
    f"w = {row['w']:g} (scale {row['scale']:g}): FID {row['fid']:.3f} ± {row['fid_err']:.3f}, "
    f"IS {row['inception_score']:.3f} ± {row['inception_score_err']:.3f}, label accuracy {100 * row['label_accuracy']:.1f} %"
  )


def table(content):
  """The sweep as aligned text."""
  about = content["about"]
  header = ("w", "scale", "FID", "±", "FID held-out", "±", "IS", "±", "label acc.", "N", "NFE")
  number = lambda value, digits: "-" if value is None else f"{value:.{digits}f}"
  lines = []
  for row in content["references"]:
    lines.append(("real", "", number(row["fid"], 3), "", "", "", number(row["inception_score"], 3), "",
                  f"{100 * row['label_accuracy']:.1f} %", str(row["num_samples"]), ""))
  for row in content["rows"]:
    lines.append((
      f"{row['w']:g}", f"{row['scale']:g}", number(row["fid"], 3), number(row["fid_err"], 3),
      number(row["fid_heldout"], 3), number(row["fid_heldout_err"], 3), number(row["inception_score"], 3),
      number(row["inception_score_err"], 3), f"{100 * row['label_accuracy']:.1f} %", str(row["num_samples"]), str(row["nfe"]),
    ))
  widths = [max(len(line[i]) for line in [header, *lines]) for i in range(len(header))]
  text = "\n".join("  ".join(cell.rjust(width) for cell, width in zip(line, widths)) for line in [header, *lines])
  return (
    f"{text}\nFID and IS are in the feature space of {about['extractor']}, not Inception's. FID against the training split.\n"
    f"'real' is the held-out split. {about['sampler']} sampler, T = {about['num_steps']}, EMA {about['ema']:g}, "
    f"seed {about['seed']}, step {about['step']}, checkpoint {about['checkpoint_hash'][:12]}."
  )


def write_curve(path, *, rows, references, about):
  """FID against w, IS against w, and FID against IS as in the paper's figures 4 and 5."""
  get = lambda name: np.array([np.nan if r[name] is None else r[name] for r in rows], float)
  w, fid, score = get("w"), get("fid"), get("inception_score")
  fid_err, score_err = get("fid_err"), get("inception_score_err")
  figure = matplotlib.figure.Figure(figsize=(13, 4), layout="constrained", dpi=120)
  by_fid, by_is, trade = figure.subplots(1, 3)
  dots = dict(marker="o", markersize=4, linewidth=1.5, capsize=2)

  by_fid.errorbar(w, fid, fid_err, color=BLUE, label="to the training split", **dots)
  if not np.isnan(get("fid_heldout")).any():
    by_fid.errorbar(w, get("fid_heldout"), get("fid_heldout_err"), color=ORANGE, label="to the held-out split", **dots)
  by_is.errorbar(w, score, score_err, color=BLUE, label="samples", **dots)
  trade.errorbar(score, fid, fid_err, score_err, color=BLUE, **dots)
  for row, (x, y) in zip(rows, zip(score, fid)):
    low = y < 0.25 * fid.max()  # the curve runs flat there: the label goes below it
    trade.annotate(f"w={row['w']:g}", (x, y), xytext=(0, -12) if low else (-7, -3), textcoords="offset points",
                   fontsize=8, ha="center" if low else "right")
  for real in references:
    label = f"real held-out images, N={real['num_samples']}"
    if real["fid"] is not None:
      by_fid.axhline(real["fid"], color=GREY, linestyle="--", linewidth=1, label=label)
      trade.plot(real["inception_score"], real["fid"], "*", color=GREY, markersize=10, label=label)
    by_is.axhline(real["inception_score"], color=GREY, linestyle="--", linewidth=1, label=label)

  space = about["extractor"]
  by_fid.set(xlabel="guidance strength w", ylabel="FID (lower is better)", title="FID against w")
  by_is.set(xlabel="guidance strength w", ylabel="Inception Score (higher is better)", title="IS against w")
  trade.set(xlabel="Inception Score", ylabel="FID", title="FID against IS")
  trade.locator_params(axis="x", nbins=5)
  for axes in (by_fid, trade):
    axes.set_ylim(bottom=0)
  for axes in (by_fid, by_is, trade):
    axes.grid(alpha=0.25)
    if axes.get_legend_handles_labels()[0]:
      axes.legend(fontsize=8, frameon=False)
  figure.suptitle(
    f"Classifier-free guidance on {printable(about['data'], otherwise='your images')}: {about['num_samples']} samples per w, T = {about['num_steps']}; "
    f"FID and IS in the features of {space}, not Inception's", fontsize=10,
  )
  save(figure, path)


def write_grid(path, pictures, *, row_names, column_names, row_title, column_title):
  """uint8 [rows, columns, H,W,C] as a labelled sheet."""
  rows, columns, height, width, channels = pictures.shape
  factor = max(1, round(48 / height))
  sheet = images.tile(pictures.reshape(rows * columns, height, width, channels), rows=rows)
  inch = factor * (height + 1) / 100
  # room for the words, at about so much a character
  words = 0.6 + 0.09 * max(map(len, row_names)), 0.09 * len(column_title)
  figure = matplotlib.figure.Figure(figsize=(max(columns * inch, words[1]) + words[0], rows * inch + 0.9), layout="constrained", dpi=150)
  axes = figure.subplots()
  axes.imshow(sheet, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
  centres = lambda count, size: np.arange(count) * (size + 1) + (size - 1) / 2
  axes.set_xticks(centres(columns, width), column_names)
  axes.set_yticks(centres(rows, height), row_names)
  axes.xaxis.tick_top()
  axes.xaxis.set_label_position("top")
  axes.set_xlabel(column_title)
  axes.set_ylabel(row_title)
  axes.tick_params(length=0)
  for spine in axes.spines.values():
    spine.set_visible(False)
  save(figure, path)


def write_nearest(path, *, pictures, dataset, count=3):
  """Samples beside their nearest training images; a small-data FID rewards memorising, so look.

  The distance is the root-mean-square difference of pixels in [-1, 1]. Returns the
  median over the pictures of each strength shown, and over as many held-out images.
  """
  chosen = {w: pictures[w] for w in nearest_strengths(list(pictures))}
  number = len(next(iter(chosen.values())))
  held = pipeline.every_nth(dataset.heldout, most=number)
  queries = {**{f"w = {w:g}": p for w, p in chosen.items()}, "real held-out": np.stack([held[i]["image"] for i in range(len(held))])}
  found = {name: nearest_training(q, dataset.train, count=count) for name, q in queries.items()}

  shown = min(number, dataset.num_classes, MOST_ROWS)
  figure = matplotlib.figure.Figure(figsize=(3.1 * len(queries), 0.62 * shown + 0.9), layout="constrained", dpi=130)
  for axes, (name, query) in zip(figure.subplots(1, len(queries), squeeze=False)[0], queries.items()):
    axes.set_title(f"{name}\nmedian of {number}: {np.median(found[name][0][:, 0]):.2f}", fontsize=9)
    query, distance, neighbours = query[:shown], found[name][0][:shown], found[name][1][:shown]
    sheet = np.concatenate([query[:, None], neighbours], axis=1)
    height, width = sheet.shape[2:4]
    axes.imshow(images.tile(sheet.reshape(-1, *sheet.shape[2:]), rows=len(query)), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks(np.arange(count + 1) * (width + 1) + (width - 1) / 2, ["image", *(f"near {k + 1}" for k in range(count))], fontsize=7)
    axes.set_yticks(np.arange(len(query)) * (height + 1) + (height - 1) / 2, [f"{d:.2f}" for d in distance[:, 0]], fontsize=7)
    axes.tick_params(length=0)
  figure.suptitle("an image, then its nearest training images; at the left the RMS distance of pixels in [-1, 1] to the first", fontsize=9)
  save(figure, path)
  return {name: float(np.median(distance[:, 0])) for name, (distance, _) in found.items()}


def nearest_strengths(strengths):
  """The least and the middle strength."""
  ordered = sorted(strengths)
  return sorted({ordered[0], ordered[len(ordered) * 2 // 3]})


def nearest_training(query, source, *, count, batch_size=1024):
  """(RMS distances [Q,count], images [Q,count,H,W,C]) of the training images nearest to each query, read in one pass."""
  flat = lambda a: (np.asarray(a, np.float64) / 127.5 - 1).reshape(len(a), -1)
  best = np.full((len(query), count), np.inf)
  found = np.zeros((len(query), count, *query.shape[1:]), np.uint8)
  for batch, valid in pipeline.epoch_batches(source, batch_size=batch_size):
    candidates = batch["image"][:valid]
    a, b = flat(query), flat(candidates)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distance = np.concatenate([best, np.sqrt(np.clip(squared, 0, None) / a.shape[1])], axis=1)
    both = np.concatenate([found, np.broadcast_to(candidates, (len(query), *candidates.shape))], axis=1)
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(distance, order, axis=1)
    found = both[np.arange(len(query))[:, None], order]
  return best, found


def save(figure, path):
  """Write a matplotlib figure as PNG, under a temporary name first."""
  for text in figure.findobj(matplotlib.text.Text):
    text.set_fontfamily(_families())
  with files.replacing(path) as tmp:
    figure.savefig(tmp, format="png", bbox_inches="tight", pad_inches=0.1)


@functools.cache
def _families():
  """matplotlib's own font, and those of East Asian writing that are installed."""
  return ["DejaVu Sans", *(name for name in EAST_ASIAN if name in set(matplotlib.font_manager.get_font_names()))]


def class_titles(class_names, labels):
  """What the classes of these labels are called in a picture."""
  return [printable(class_names[label], otherwise=f"class {label}") for label in labels]


def printable(name, *, otherwise):
  """A name for a picture, at most LONGEST characters of it; `otherwise` where no font that is installed can write it."""
  fonts = [matplotlib.font_manager.get_font(matplotlib.font_manager.findfont(family)) for family in _families()]
  if not all(any(font.get_char_index(ord(character)) for font in fonts) for character in name):
    return otherwise
  name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
  return name.replace("$", "\\$")  # no mathematics
