"""Sheets of pictures: labelled grids, and samples beside their nearest training images."""

import matplotlib.figure
import numpy as np

from cfg.base import images
from cfg.data import pipeline
from cfg.report import drawing

# rows of grid.png and nearest.png
MOST_ROWS = 16


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
  drawing.save(figure, path)


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
  drawing.save(figure, path)
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
