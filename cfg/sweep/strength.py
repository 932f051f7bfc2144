"""One strength of a sweep: drawn, measured, kept batch by batch; a kill costs one batch."""

import pathlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from cfg.base import files, hosts, sharding
from cfg.base.config import ConfigDict
from cfg.features.references import Measured
from cfg.inference import network
from cfg.inference.generator import Generator
from cfg.metrics import gauge, statistics, summary
from cfg.sweep.variant import Variant

# pictures kept of each strength, for the grid and the nearest training images
KEPT = 100
PICTURES = "pictures"
GAP = "gap"  # of rules that measure it: |eps_cond - eps_uncond|^2, by sample and level


def measure_strength(
  variant: Variant,
  w: float,
  *,
  settings: ConfigDict,
  measured: Measured,
  generator: Generator,
  may_write: Callable[[], None],
  on_images: Callable[[int, bool], None],
) -> tuple[dict[str, Any], np.ndarray]:
  """(metrics of metrics.summary and metrics.gauge, kept pictures uint8 [K,H,W,C]) of one strength.

  What each batch gave is kept in a folder until `forget`: a call that finds batches there
  continues after them.

  Args:
    variant: what is drawn.
    w: the strength.
    settings: the sweep's, num_samples a multiple of blocks times classes.
    measured: what `generator` measures in, and what real images gave there.
    generator: of the variant's program.
    may_write: called before a batch is kept; raises if another process has taken over.
    on_images: called with the number of images that are done, and whether the last of them were
      kept by an earlier call.
  """
  extractor = measured.extractor
  index = np.arange(settings.num_samples)
  labels = index % variant.num_classes
  block_of = index // (settings.num_samples // settings.num_blocks)
  sums = statistics.Accumulator(extractor.metrics, dims=extractor.dims, block_of=block_of)
  folder = _folder(variant, w)
  folder.mkdir(parents=True, exist_ok=True)
  pictures, gaps = [], []

  def add(batch, *, kept):
    pictures.append(batch.pop(PICTURES))
    if GAP in batch:
      gaps.append(batch.pop(GAP))
    rows = slice(sums.count, sums.count + len(next(iter(batch.values()))))
    sums.add(batch, labels[rows])
    on_images(sums.count, kept)

  with hosts.together():
    for batch in _stored(folder, outputs=extractor.dims, most=settings.num_samples):
      add(batch, kept=True)
  done = sums.count
  hosts.check_equal({f"samples kept in {folder.name}": done}, what="what they see of the sweep")
  samples = dict(index=index[done:], labels=labels[done:], w=w, seed=settings.seed)
  for drawn in generator.batches(network.parameters(variant.networks), **samples):
    count = drawn.rows.stop - drawn.rows.start
    first = done + drawn.rows.start
    outputs = sharding.to_host(dict(drawn.outputs))
    batch = {name: a[:count] for name, a in outputs.items()}
    # pictures that are not kept stay on the devices
    pictures_left = max(0, min(count, KEPT - first))
    batch[PICTURES] = (
      sharding.to_host(drawn.images)[:pictures_left]
      if pictures_left
      else np.zeros((0, *drawn.images.shape[1:]), np.uint8)
    )
    if GAP in drawn.aux:
      batch[GAP] = sharding.to_host(drawn.aux[GAP]).T[:count]
    may_write()
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
  if sum(map(len, gaps)) == len(index):
    values |= gauge.summarise(
      gap=np.concatenate(gaps),
      logsnr=generator.program.logsnr,
      y=labels,
      block_of=block_of,
      w=w,
      refused=no_tilt(variant),
    )
  return values, np.concatenate(pictures)


def no_tilt(variant: Variant) -> str:
  """Why the samples of a variant have no weights towards p(x|c) p(c|x)^w, or ""."""
  if not variant.program.rule.tilts:
    return "the rule is not the mix of two branches at one w"
  if variant.program.sampler.goes_back:
    return "noise was added on the way (sampler.churn)"
  if variant.config.sampler.limit != "none":
    return "x_hat was limited on the way (sampler.limit)"
  return ""


def forget(variant: Variant, w: float) -> None:
  """Remove the batches that `measure_strength` kept."""
  if hosts.is_writer():
    files.remove_tree(_folder(variant, w))


def _folder(variant, w):
  """Where the batches of a strength are kept."""
  return variant.path(w, ".partial")


def _name(first, last):
  """The file of the samples [first, last)."""
  return f"{first:08d}-{last:08d}.npz"


def _stored(folder: pathlib.Path, *, outputs: Iterable[str], most: int) -> Iterator[dict]:
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
    if batch.keys() - {GAP} != {*outputs, PICTURES}:
      continue
    if any(len(batch[name]) != end - first for name in outputs):
      continue
    last = end
    yield batch
