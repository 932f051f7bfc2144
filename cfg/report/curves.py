"""Curves: of metrics against the strength and against each other, of information by level."""

import itertools
from collections.abc import Mapping
from typing import NamedTuple

import matplotlib.figure
import matplotlib.ticker
import numpy as np

from cfg.metrics.metric import Metric
from cfg.report import drawing

COLUMNS = 3
# of the axis in methods.png
MOST_OF_BEST = 2.5
DASHES = ("-", "--", ":", "-.")
MOST_IN_PANEL = 6  # lines whose legend has room in each panel of curve.png


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
  crowded = len(series) > MOST_IN_PANEL
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
    if crowded and (legend := place.get_legend()):
      legend.remove()
  if crowded:
    _legend_below(figure)
  figure.suptitle(title, fontsize=10)
  drawing.save(figure, path)


def _legend_below(figure):
  """That of the first panel, below all."""
  handles, labels = figure.axes[0].get_legend_handles_labels()
  figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=9, frameon=False)


def _style(i):
  """Colour and dashes of line i: no two of the first 32 are alike."""
  count = len(drawing.COLOURS)
  return {
    **drawing.DOTS,
    "color": drawing.COLOURS[i % count],
    "linestyle": DASHES[i // count % len(DASHES)],
  }


def _values(rows, metric):
  get = lambda name: np.array(
    [np.nan if row.get(name) is None else row[name] for row in rows], float
  )
  return get(metric.key), get(metric.err)


def _against_strength(axes, panel, *, series, real, symbol):
  styles = map(_style, itertools.count())
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
          label=", ".join(words) or "samples",
          **next(styles),
        )
  if real is not None and real.get(first) is not None:
    axes.axhline(
      real[first],
      color=drawing.GREY,
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
  drawing.place_legend(axes)


def write_methods(path, *, series, pairs, real, title) -> None:
  """One metric against another, a line each method, as the paper's figures compare two.

  Args:
    path: of the PNG.
    series: {label: rows}, in the order of their strengths.
    pairs: [(x, y)] of Metric, a panel each.
    real: a row of real images, or None.
    title: of the figure.
  """
  columns = min(2, len(pairs))
  rows = -(-len(pairs) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(6.5 * columns, 5 * rows + 1), layout="constrained", dpi=120
  )
  axes = figure.subplots(rows, columns, squeeze=False).ravel()
  for place, (x, y) in zip(axes, pairs):
    _lines(place, x, y, series=series, real=real)
    _cut(place, y, series=series)
    place.grid(alpha=0.25)
  for place in axes[len(pairs) :]:
    place.set_visible(False)
  _legend_below(figure)
  figure.suptitle(title, fontsize=10)
  drawing.save(figure, path)


def _cut(axes, y, *, series):
  """End the axis of y at MOST_OF_BEST times the worst of the lines' lowest values, where they go
  further: strong guidance would leave no room for the rest.
  """
  lowest = [np.nanmin(_values(rows, y)[0]) for rows in series.values()]
  top = MOST_OF_BEST * max(lowest)
  if axes.get_ylim()[1] > top > 0:
    axes.set_ylim(top=top)
    axes.set_title(f"{axes.get_title()}, up to {top:.2g}")


def _trade(axes, x, y, *, series, real):
  _lines(axes, x, y, series=series, real=real)
  drawing.place_legend(axes)
  first = next(iter(series.values()))
  label_strengths(axes, first, _values(first, x)[0], _values(first, y)[0])


def _lines(axes, x, y, *, series, real):
  for i, (label, rows) in enumerate(series.items()):
    across, across_err = _values(rows, x)
    up, up_err = _values(rows, y)
    axes.errorbar(across, up, up_err, across_err, label=label or None, **_style(i))
  if real is not None and real.get(x.key) is not None and real.get(y.key) is not None:
    axes.plot(
      real[x.key],
      real[y.key],
      "*",
      color=drawing.GREY,
      markersize=10,
      label=f"real held-out images, N={real['num_samples']}",
    )
  axes.set(xlabel=x.title, ylabel=y.title, title=f"{y.title} against {x.title}")
  axes.locator_params(axis="x", nbins=5)
  axes.set_ylim(bottom=0)


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


class Steps(NamedTuple):
  """A line of steps.png: rows of one sampler that differ in T and w; lines of one `colour` are
  dashed by their `dash`, both any names.
  """

  colour: str
  dash: str
  rows: list[Mapping]


def write_steps(path, *, series, metric, title, symbol="w") -> None:
  """A metric against the evaluations of a sample, on logarithmic axes, a panel each strength.

  Args:
    path: of the PNG.
    series: {label: Steps}.
    metric: whose values are all above 0.
    title: of the figure.
    symbol: what the strength is called.
  """
  strengths = sorted({row["w"] for line in series.values() for row in line.rows})
  columns = min(2, len(strengths))
  height = -(-len(strengths) // columns)
  figure = matplotlib.figure.Figure(
    figsize=(6.5 * columns, 4 * height + 1), layout="constrained", dpi=120
  )
  places = figure.subplots(height, columns, squeeze=False).ravel()
  colours = list(dict.fromkeys(line.colour for line in series.values()))
  dashes = list(dict.fromkeys(line.dash for line in series.values()))
  for axes, w in zip(places, strengths):
    for label, line in series.items():
      rows = sorted((row for row in line.rows if row["w"] == w), key=lambda row: row["nfe"])
      axes.errorbar(
        [row["nfe"] for row in rows],
        *_values(rows, metric),
        label=label or "samples",
        color=drawing.COLOURS[colours.index(line.colour) % len(drawing.COLOURS)],
        **{**drawing.DOTS, "linestyle": DASHES[dashes.index(line.dash) % len(DASHES)]},
      )
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set(xlabel="evaluations of the network", ylabel=metric.title, title=f"{symbol} = {w:g}")
    axes.xaxis.set_major_formatter(matplotlib.ticker.ScalarFormatter())
    axes.grid(alpha=0.25)
  for axes in places[len(strengths) :]:
    axes.set_visible(False)
  _legend_below(figure)
  figure.suptitle(title, fontsize=10)
  drawing.save(figure, path)


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
  for colour, (label, (logsnr, nats)) in zip(drawing.COLOURS * len(lines), lines.items()):
    axes.plot(logsnr, nats, color=colour, linewidth=1.5, label=label)
  axes.axhline(bound, color=drawing.GREY, linestyle="--", linewidth=1, label=f"log K = {bound:.2f}")
  axes.set(xlabel="log-SNR", ylabel="information up to there, nats")
  axes.set_title(title, fontsize=10)
  axes.set_ylim(bottom=0)
  axes.grid(alpha=0.25)
  drawing.place_legend(axes)
  drawing.save(figure, path)
