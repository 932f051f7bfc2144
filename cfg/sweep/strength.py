"""One strength of a sweep: sampled, measured, and kept batch by batch, so that a kill costs at most
the batch at hand.
"""

import shutil

import numpy as np

from cfg.base import files
from cfg.metrics import statistics, summary

# pictures kept of each strength, for the grid and the nearest training images
KEPT = 100
PICTURES = "pictures"


def measure(settings, w, *, trained, measured, sampler, folder, on_images):
  """(metrics of evaluation.summary, kept pictures uint8 [K,H,W,C]) of one strength.

  Args:
    settings: the sweep's, num_samples a multiple of blocks times classes.
    w: the paper's guidance strength.
    trained: a trained.Trained.
    measured: a references.Measured: what `sampler` measures in, and what real images gave there.
    sampler: a generate.Generator.
    folder: for what each batch gave; emptied by `forget` when the row is written. A call that finds
      batches there goes on after them.
    on_images: called with the number of images that are done, and whether the last of them were
      kept by an earlier call.
  """
  extractor = measured.extractor
  index = np.arange(settings.num_samples)
  labels = index % trained.model.num_classes
  sums = statistics.Accumulator(
    extractor.metrics,
    dims=extractor.dims,
    block_of=index // (settings.num_samples // settings.num_blocks),
  )
  folder.mkdir(parents=True, exist_ok=True)
  pictures = []

  def add(batch, *, kept):
    pictures.append(batch.pop(PICTURES))
    rows = slice(sums.count, sums.count + len(next(iter(batch.values()))))
    sums.add(batch, labels[rows])
    on_images(sums.count, kept)

  for batch in _stored(folder, outputs=extractor.dims, most=settings.num_samples):
    add(batch, kept=True)
  done, keep = sums.count, min(settings.num_samples, KEPT)
  for rows, images, outputs in sampler.batches(
    trained.params, index=index[done:], labels=labels[done:], w=w, seed=settings.seed
  ):
    count, first = rows.stop - rows.start, done + rows.start
    batch = {name: np.asarray(a)[:count] for name, a in outputs.items()}
    # only the pictures that are kept leave the devices
    batch[PICTURES] = np.asarray(images[: max(0, min(count, keep - first))])
    files.write_npz(folder / _name(first, first + count), batch)
    add(batch, kept=False)
  values = summary.summarise(
    sums.blocks,
    metrics=extractor.metrics,
    train=measured.train,
    heldout=measured.heldout,
    allow_few=settings.allow_few,
    extrapolate=settings.extrapolate,
  )
  return values, np.concatenate(pictures)


def forget(folder):
  """Remove what `measure` kept."""
  shutil.rmtree(folder, ignore_errors=True)


def _name(first, last):
  return f"{first:08d}-{last:08d}.npz"


def _stored(folder, *, outputs, most):
  """Yield what the batches before the first that is missing or damaged gave."""
  last = 0
  for path in sorted(folder.glob("*.npz")):
    first, end = map(int, path.stem.split("-"))
    if first != last or end > most:
      continue
    try:
      batch = files.read_npz(path)
    except (OSError, ValueError):
      continue
    if batch.keys() != {*outputs, PICTURES} or any(
      len(batch[name]) != end - first for name in outputs
    ):
      continue
    last = end
    yield batch
