"""Curves by level of log-SNR: what the branches know, and two classifiers' gradients."""

import matplotlib.figure
import numpy as np

from cfg.report import drawing


def write_meter(path, *, meters, title) -> None:
  """M1 and M2 up to each level, with bands of one standard error.

  Args:
    path: of the PNG.
    meters: {label: metrics.meter.summarise's numbers}; "" of a single one.
    title: of the figure.
  """
  figure = matplotlib.figure.Figure(figsize=(6.5, 4.2), layout="constrained", dpi=120)
  axes = figure.subplots()
  colours = iter(drawing.COLOURS * len(meters))
  for label, meter in meters.items():
    for name in ("M1", "M2"):
      values, err = _column(meter, f"{name}_by_level")
      words = [f"{name} = {meter[name]:.2f}", label]
      _band(
        axes,
        meter["logsnr"],
        values,
        err,
        colour=next(colours),
        label=", ".join(filter(None, words)),
      )
  first = next(iter(meters.values()))
  entropy = first["label_entropy"]
  axes.axhline(
    entropy,
    color=drawing.GREY,
    linestyle="--",
    linewidth=1,
    label=f"all that labels tell: {entropy:.2f}",
  )
  if first["end_level"] is not None:
    axes.axvline(
      first["end_level"],
      color=drawing.GREY,
      linestyle=":",
      linewidth=1,
      label=f"M2 reaches its end: {first['end_level']:g}",
    )
  axes.set(xlabel="log-SNR", ylabel="nats up to there")
  _finish(figure, [axes], path, title)


def write_directions(path, *, directions, title) -> None:
  """Norms of the gradients of a classifier and of the implicit one, and the angle between them.

  Args:
    path: of the PNG.
    directions: metrics.meter.directions' numbers.
    title: of the figure.
  """
  figure = matplotlib.figure.Figure(figsize=(10, 3.8), layout="constrained", dpi=120)
  norms, angles = figure.subplots(1, 2)
  edges = np.array(directions["logsnr"])
  middle = (edges[1:] + edges[:-1]) / 2
  labels = {"classifier_norm": "the classifier that guides", "implicit_norm": "the implicit one"}
  for colour, (name, label) in zip(drawing.COLOURS, labels.items()):
    _band(norms, middle, *_column(directions, name), colour=colour, label=label)
  norms.set(xlabel="log-SNR", ylabel="mean norm of sigma grad log p(y|z)")
  norms.set_ylim(0, 1.25 * norms.get_ylim()[1])  # room for the legend
  _band(angles, middle, *_column(directions, "angle"), colour=drawing.BLUE, label="mean angle")
  angles.axhline(90, color=drawing.GREY, linestyle="--", linewidth=1, label="nothing in common: 90")
  angles.set(xlabel="log-SNR", ylabel="angle between the two, degrees", ylim=(0, 180))
  angles.set_yticks(range(0, 181, 30))
  _finish(figure, [norms, angles], path, title)


def _column(content, name):
  """A list of numbers and their errors, as arrays; errors that are not there are 0."""
  err = [value or 0.0 for value in content[f"{name}_err"]]
  return np.array(content[name]), np.array(err)


def _band(axes, logsnr, values, err, *, colour, label):
  """A line with a band of one error on each side."""
  axes.plot(logsnr, values, color=colour, linewidth=1.5, label=label)
  axes.fill_between(logsnr, values - err, values + err, color=colour, alpha=0.2, linewidth=0)


def _finish(figure, places, path, title):
  for axes in places:
    axes.grid(alpha=0.25)
    drawing.place_legend(axes)
  figure.suptitle(title, fontsize=10)
  drawing.save(figure, path)
