"""Laws and samples in the plane, a row for each way to draw and a column for each strength."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.figure
import numpy as np

from cfg.report import drawing

SHARES = (0.95, 0.5)  # of a law's mass within its contours
SHADES = (0.95, 0.8, 0.65, 0.5, 0.3, 0.1)  # and of the shades of the top row
MOST_POINTS = 400  # of a class in a panel
AREA = 5.0  # of a point of weight 1, in points^2


class Density(NamedTuple):
  """A law on a regular grid.

  Attributes:
    axes: two arrays [M].
    density: [M,M], indexed as (x, y).
  """

  axes: tuple[np.ndarray, ...]
  density: np.ndarray


class Points(NamedTuple):
  """Samples [N,2] and their weights [N], of mean 1; None for equal ones."""

  x: np.ndarray
  weight: np.ndarray | None = None


def write_plane(
  path,
  *,
  strengths: Sequence[float],
  laws: Mapping[float, Sequence[Density]],
  rows: Mapping[str, Mapping[float, Sequence[Points]]],
  title: str,
) -> None:
  """The laws as colour, and below them the samples of each row over the laws' contours.

  Args:
    path: of the PNG.
    strengths: w of each column.
    laws: {w: a Density of each class}.
    rows: {title of a row: {w: Points of each class}}.
    title: of the figure.
  """
  columns, count = len(strengths), 1 + len(rows)
  figure = matplotlib.figure.Figure(
    figsize=(2.3 * columns + 0.6, 2.3 * count + 0.5), layout="constrained", dpi=90
  )
  places = figure.subplots(count, columns, squeeze=False, sharex=True, sharey=True)
  for column, w in enumerate(strengths):
    places[0, column].set_title(f"w = {w:g} (scale = {1 + w:g})", fontsize=9)
    _colour(places[0, column], laws[w])
    for axes, points in zip(places[1:, column], rows.values()):
      _scatter(axes, points[w], laws[w])
  for axes, name in zip(places[:, 0], ("exact tilted law", *rows)):
    axes.set_ylabel(name, fontsize=9)
  reach = _reach(laws[min(strengths)])
  for axes in places.flat:
    axes.set(xticks=(), yticks=(), xlim=reach[0], ylim=reach[1], aspect="equal")
  figure.suptitle(title, fontsize=9)
  drawing.save(figure, path)


def _reach(laws):
  """The smallest and largest x and y that hold nearly all of the laws, a little wider."""
  ends = []
  for side in range(2):
    low, high = [], []
    for law in laws:
      mass = np.cumsum(law.density.sum(axis=1 - side))
      low.append(law.axes[side][np.searchsorted(mass / mass[-1], 0.002)])
      high.append(law.axes[side][np.searchsorted(mass / mass[-1], 0.998)])
    ends.append((min(low) - 0.2, max(high) + 0.2))
  return ends


def _colour(axes, laws):
  """Each class in its colour, the stronger the denser, and its contours."""
  for law, colour in zip(laws, drawing.COLOURS):
    levels = _levels(law, SHADES)
    for low in levels:
      axes.contourf(
        *law.axes, law.density.T, levels=[low, np.inf], colors=[colour], alpha=1 / len(SHADES)
      )
    _contours(axes, law, colour)


def _scatter(axes, points, laws):
  """The samples of each class in its colour, as large as they weigh, over the laws' contours."""
  for sample, law, colour in zip(points, laws, drawing.COLOURS):
    x = sample.x[:MOST_POINTS]
    weight = np.ones(len(x)) if sample.weight is None else sample.weight[:MOST_POINTS]
    axes.scatter(*x.T, s=AREA * weight, c=colour, alpha=0.35, linewidths=0)
    _contours(axes, law, "black")


def _contours(axes, law, colour):
  """The lines within which SHARES of the mass lie."""
  levels = _levels(law, SHARES)
  axes.contour(*law.axes, law.density.T, levels=levels, colors=[colour], linewidths=0.7)


def _levels(law, shares):
  """The densities above which these shares of the mass lie, of decreasing shares."""
  ordered = np.sort(law.density, axis=None)[::-1]
  mass = np.cumsum(ordered) / ordered.sum()
  return [ordered[np.searchsorted(mass, share)] for share in shares]
