"""The pictures of a sweep: curves against the strength, labelled grids, nearest training images."""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.figure
import matplotlib.font_manager
import matplotlib.text
import numpy as np

from cfg.base import files, images
from cfg.data import pipeline
from cfg.metrics.metric import Metric

# rows of grid.png and nearest.png
MOST_ROWS = 16
# longest class name shown in a figure, in characters
LONGEST = 24
EAST_ASIAN = (
  "Noto Sans CJK SC",
  "Noto Sans CJK JP",
  "Source Han Sans SC",
  "WenQuanYi Zen Hei",
  "WenQuanYi Micro Hei",
  "Droid Sans Fallback",
  "Microsoft YaHei",
  "SimHei",
  "PingFang SC",
  "Heiti TC",
  "Hiragino Sans GB",
  "Hiragino Sans",
  "Yu Gothic",
  "Malgun Gothic",
  "Arial Unicode MS",
)
BLUE, ORANGE, GREY = "#1f5fa8", "#d9741a", "#6b6b6b"
COLOURS = (BLUE, ORANGE, "#3a923a", "#8e4fa8", "#b03a3a", "#7a5230", "#c25a9b", GREY)
DOTS = dict(marker="o", markersize=4, linewidth=1.5, capsize=2)
# candidate legend positions: matplotlib's name -> centre, in axes coordinates
PLACES = {
  "upper right": (0.75, 0.9),
  "upper left": (0.25, 0.9),
  "lower right": (0.75, 0.1),
  "lower left": (0.25, 0.1),
  "center right": (0.75, 0.5),
  "center left": (0.25, 0.5),
}
COLUMNS = 3


class Panel(NamedTuple):
  """A plot of metrics against w that share an axis: {metric: name of its line}; `better` is
  "lower", "higher" or "".
  """

  title: str
  better: str
  lines: Mapping[Metric, str]


def write_curve(path, *, series, panels, trade, real, title, symbol="w") -> None:
  """Metrics against w, and one against another as in the paper's figures 4 and 5.

  Args:
    path: of the PNG.
    series: {label: rows}, a line each; {"": rows} where there is but one.
    panels: of Panel.
    trade: (Metric, Metric) of the last plot, x and y; None for no such plot.
    real: a row of real images, or None.
    title: of the figure.
    symbol: what the strength is called.
  """
  count = len(panels) + (trade is not None)
  columns = 2 if count == 4 else min(count, COLUMNS)
  rows = -(-count // columns)
  figure = matplotlib.figure.Figure(figsize=(13, 3.6 * rows + 0.4), layout="constrained", dpi=120)
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for place, panel in zip(axes, panels):
    _against_strength(place, panel, series=series, real=real, symbol=symbol)
  if trade is not None:
    _trade(axes[count - 1], *trade, series=series, real=real)
  for place in axes[count:]:
    place.set_visible(False)
  for place in axes[:count]:
    place.grid(alpha=0.25)
  figure.suptitle(title, fontsize=10)
  save(figure, path)


def place_legend(axes):
  """In the place where the fewest points of lines lie (loc="best" would take seconds on a slow
  machine).
  """
  if not axes.get_legend_handles_labels()[0]:
    return
  axes.autoscale_view()
  inside = axes.transAxes.inverted()
  points = [inside.transform(line.get_transform().transform(_dense(line))) for line in axes.lines]
  near = np.concatenate(points)[:, None] - list(PLACES.values())
  crowd = np.sum(np.all(np.abs(near) < [0.28, 0.13], axis=2), axis=0)
  axes.legend(fontsize=8, frameon=False, loc=list(PLACES)[int(crowd.argmin())])


def _dense(line):
  """Points along a line, 20 to a segment; of markers alone, those."""
  vertices = line.get_xydata()
  if line.get_linestyle() == "None":
    return vertices
  return np.concatenate(
    [vertices, *(np.linspace(a, b, 20) for a, b in zip(vertices, vertices[1:]))]
  )


def _values(rows, metric):
  get = lambda name: np.array(
    [np.nan if row.get(name) is None else row[name] for row in rows], float
  )
  return get(metric.key), get(metric.err)


def _against_strength(axes, panel, *, series, real, symbol):
  colours = iter(COLOURS * len(series))
  first = next(iter(panel.lines)).key
  for metric, name in panel.lines.items():
    for label, rows in series.items():
      value, error = _values(rows, metric)
      if not np.isnan(value).any():
        words = [word for word in (name if len(panel.lines) > 1 else "", label) if word]
        axes.errorbar(
          [row["w"] for row in rows],
          value,
          error,
          color=next(colours),
          label=", ".join(words) or "samples",
          **DOTS,
        )
  if real is not None and real.get(first) is not None:
    axes.axhline(
      real[first],
      color=GREY,
      linestyle="--",
      linewidth=1,
      label=f"real held-out images, N={real['num_samples']}",
    )
  axes.set(
    xlabel=f"guidance strength {symbol}",
    ylabel=f"{panel.title} ({panel.better} is better)" if panel.better else panel.title,
    title=f"{panel.title} against {symbol}",
  )
  if panel.better == "lower":
    axes.set_ylim(bottom=0)
  place_legend(axes)


def _trade(axes, x, y, *, series, real):
  for colour, (label, rows) in zip(COLOURS * len(series), series.items()):
    across, across_err = _values(rows, x)
    up, up_err = _values(rows, y)
    axes.errorbar(across, up, up_err, across_err, color=colour, label=label or None, **DOTS)
  if real is not None and real.get(x.key) is not None and real.get(y.key) is not None:
    axes.plot(
      real[x.key],
      real[y.key],
      "*",
      color=GREY,
      markersize=10,
      label=f"real held-out images, N={real['num_samples']}",
    )
  axes.set(xlabel=x.title, ylabel=y.title, title=f"{y.title} against {x.title}")
  axes.locator_params(axis="x", nbins=5)
  axes.set_ylim(bottom=0)
  place_legend(axes)
  first = next(iter(series.values()))
  label_strengths(axes, first, _values(first, x)[0], _values(first, y)[0])


def label_strengths(axes, rows, across, up):
  """w beside its point; where labels would lie upon each other, the first of them."""
  axes.figure.draw_without_rendering()  # places the axes
  side = "left" if up[-1] < up[0] else "right"  # the side of the label that touches its point
  kept = []
  for row, place in zip(rows, zip(across, up)):
    low = place[1] < 0.25 * np.nanmax(up)  # the curve runs flat there: the label goes below it
    text = axes.annotate(
      f"w={row['w']:g}",
      place,
      xytext=(0, -13) if low else (7 if side == "left" else -7, 4),
      textcoords="offset points",
      fontsize=8,
      ha="center" if low else side,
    )
    box = text.get_window_extent()
    if any(box.overlaps(other) for other in kept):
      text.remove()
    else:
      kept.append(box)


def write_information(path, *, lines, bound, title) -> None:
  """Mean information up to each level of log-SNR.

  Args:
    path: of the PNG.
    lines: {label: (log-SNR [T], nats [T])}.
    bound: of exact branches without guidance: the log of the number of classes.
    title: of the figure.
  """
  figure = matplotlib.figure.Figure(figsize=(6.5, 4), layout="constrained", dpi=120)
  axes = figure.subplots()
  for colour, (label, (logsnr, nats)) in zip(COLOURS * len(lines), lines.items()):
    axes.plot(logsnr, nats, color=colour, linewidth=1.5, label=label)
  axes.axhline(bound, color=GREY, linestyle="--", linewidth=1, label=f"log K = {bound:.2f}")
  axes.set(xlabel="log-SNR", ylabel="information up to there, nats")
  axes.set_title(title, fontsize=10)
  axes.set_ylim(bottom=0)
  axes.grid(alpha=0.25)
  place_legend(axes)
  save(figure, path)


def write_grid(path, pictures, *, row_names, column_names, row_title, column_title):
  """uint8 [rows, columns, H,W,C] as a labelled sheet."""
  rows, columns, height, width, channels = pictures.shape
  factor = max(1, round(48 / height))
  sheet = images.tile(pictures.reshape(rows * columns, height, width, channels), rows=rows)
  inch = factor * (height + 1) / 100
  # room for the words, at about so much a character
  words = 0.6 + 0.09 * max(map(len, row_names)), 0.09 * len(column_title)
  figure = matplotlib.figure.Figure(
    figsize=(max(columns * inch, words[1]) + words[0], rows * inch + 0.9),
    layout="constrained",
    dpi=150,
  )
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
  queries = {
    **{f"w = {w:g}": p for w, p in chosen.items()},
    "real held-out": np.stack([held[i]["image"] for i in range(len(held))]),
  }
  nearest = {name: nearest_training(q, dataset.train, count=count) for name, q in queries.items()}

  shown = min(number, dataset.num_classes, MOST_ROWS)
  figure = matplotlib.figure.Figure(
    figsize=(3.1 * len(queries), 0.62 * shown + 0.9), layout="constrained", dpi=130
  )
  for axes, (name, query) in zip(
    figure.subplots(1, len(queries), squeeze=False)[0], queries.items()
  ):
    axes.set_title(
      f"{name}\nmedian of {number}: {np.median(nearest[name][0][:, 0]):.2f}", fontsize=9
    )
    distance, neighbours = nearest[name]
    query = query[:shown]
    sheet = np.concatenate([query[:, None], neighbours[:shown]], axis=1)
    height, width = sheet.shape[2:4]
    axes.imshow(
      images.tile(sheet.reshape(-1, *sheet.shape[2:]), rows=len(query)),
      cmap="gray",
      vmin=0,
      vmax=255,
      interpolation="nearest",
    )
    axes.set_xticks(
      np.arange(count + 1) * (width + 1) + (width - 1) / 2,
      ["image", *(f"near {k + 1}" for k in range(count))],
      fontsize=7,
    )
    axes.set_yticks(
      np.arange(len(query)) * (height + 1) + (height - 1) / 2,
      [f"{d:.2f}" for d in distance[:shown, 0]],
      fontsize=7,
    )
    axes.tick_params(length=0)
  figure.suptitle(
    "an image, then its nearest training images; at the left the RMS distance of pixels in [-1, 1] "
    "to the first",
    fontsize=9,
  )
  save(figure, path)
  return {name: float(np.median(distance[:, 0])) for name, (distance, _) in nearest.items()}


def nearest_strengths(strengths):
  """The least and the middle strength."""
  ordered = sorted(strengths)
  return sorted({ordered[0], ordered[len(ordered) * 2 // 3]})


def nearest_training(query, source, *, count, batch_size=1024):
  """(RMS distances [Q,count], images [Q,count,H,W,C]) of the training images nearest to each query,
  read in one pass.
  """
  flat = lambda a: (np.asarray(a, np.float64) / 127.5 - 1).reshape(len(a), -1)
  best = np.full((len(query), count), np.inf)
  nearest = np.zeros((len(query), count, *query.shape[1:]), np.uint8)
  for batch, valid in pipeline.epoch_batches(source, batch_size=batch_size):
    candidates = batch["image"][:valid]
    a, b = flat(query), flat(candidates)
    squared = (a**2).sum(1)[:, None] + (b**2).sum(1)[None] - 2 * a @ b.T
    distance = np.concatenate([best, np.sqrt(np.clip(squared, 0, None) / a.shape[1])], axis=1)
    both = np.concatenate(
      [nearest, np.broadcast_to(candidates, (len(query), *candidates.shape))], axis=1
    )
    order = np.argsort(distance, axis=1, kind="stable")[:, :count]
    best = np.take_along_axis(distance, order, axis=1)
    nearest = both[np.arange(len(query))[:, None], order]
  return best, nearest


def save(figure, path):
  """Write a matplotlib figure as PNG, under a temporary name first."""
  for text in figure.findobj(matplotlib.text.Text):
    text.set_fontfamily(_families())
  with files.replacing(path) as tmp:
    figure.savefig(tmp, format="png", bbox_inches="tight", pad_inches=0.1)


@functools.cache
def _families():
  """matplotlib's own font, and those of East Asian writing that are installed."""
  return [
    "DejaVu Sans",
    *(name for name in EAST_ASIAN if name in set(matplotlib.font_manager.get_font_names())),
  ]


def class_titles(class_names, labels):
  """What the classes of these labels are called in a picture."""
  return [printable(class_names[label], otherwise=f"class {label}") for label in labels]


def printable(name, *, otherwise):
  """A name for a picture, at most LONGEST characters of it; `otherwise` where no font that is
  installed can write it.
  """
  fonts = [
    matplotlib.font_manager.get_font(matplotlib.font_manager.findfont(family))
    for family in _families()
  ]
  if not all(any(font.get_char_index(ord(character)) for font in fonts) for character in name):
    return otherwise
  name = name if len(name) <= LONGEST else f"{name[: LONGEST - 1]}…"
  return name.replace("$", "\\$")  # no mathematics
