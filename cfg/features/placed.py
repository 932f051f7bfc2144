"""A feature extractor on the devices: images to outputs, sets of images to statistics."""

import hashlib
from collections.abc import Iterable

import jax
import numpy as np

from cfg.base import sharding
from cfg.base.progress import Progress
from cfg.features.extractor import Extractor
from cfg.metrics import statistics


class PlacedExtractor:
  """An extractor.Extractor on a mesh: images split over the devices, its parameters replicated."""

  def __init__(self, extractor: Extractor, mesh: jax.sharding.Mesh):
    self.extractor = extractor
    self.mesh = mesh
    whole = sharding.replicated(mesh)
    rows = sharding.batch_sharding(mesh)
    self._params = jax.device_put(extractor.params, whole)
    self._apply = jax.jit(extractor.apply, in_shardings=(whole, rows), out_shardings=rows)

  def __call__(self, pixels):
    """{output: [n, dim]} of uint8 [n,H,W,C], all on the devices."""
    return self._apply(self._params, pixels)

  def measure(
    self, rows: Iterable, *, block_of, batch_size: int, what: str
  ) -> tuple[list[statistics.SampleStatistics], str]:
    """(SampleStatistics of each block, SHA-256 of all pixels) of an iterator over
    {"image", perhaps "label"}.

    Args:
      rows: as data sources and inputs.Images give them; all of one size.
      block_of: [N] the block of each.
      batch_size: rounded up to the mesh.
      what: for the progress bar.
    """
    total = len(block_of)
    digest = hashlib.sha256()
    batch_size = sharding.round_up(self.mesh, batch_size)
    sums = statistics.Accumulator(
      self.extractor.metrics, dims=self.extractor.dims, block_of=block_of
    )
    with Progress(what, total=total, unit="images") as progress:
      for outputs, labels in self._one_ahead(iter(rows), total, batch_size, digest):
        sums.add(outputs, labels)
        progress.update(sums.count)
    return sums.blocks, digest.hexdigest()

  def _one_ahead(self, rows, total, batch_size, digest):
    pending = None
    for first in range(0, total, batch_size):
      batch = [next(rows) for _ in range(min(batch_size, total - first))]
      pixels = np.stack([row["image"] for row in batch])
      digest.update(np.ascontiguousarray(pixels))
      padded = np.concatenate([pixels, np.repeat(pixels[-1:], batch_size - len(batch), axis=0)])
      outputs = self(sharding.put_rows(self.mesh, padded))
      # the devices work while the host reads and adds
      if pending is not None:
        yield _on_host(*pending)
      pending = (outputs, batch)
    yield _on_host(*pending)

  def accuracy(self, source, *, batch_size: int) -> float:
    """The share of a data source's labels that it agrees with."""
    (stats,), _ = self.measure(
      each(source),
      block_of=np.zeros(len(source), int),
      batch_size=batch_size,
      what=self.extractor.name,
    )
    (output,) = self.extractor.outputs("accuracy")
    assert stats.correct is not None  # a data source has labels
    return stats.correct[output] / stats.count


def each(source):
  """Every row of a data source, in order."""
  return (source[i] for i in range(len(source)))


def _on_host(outputs, rows):
  labels = [row["label"] for row in rows] if "label" in rows[0] else None
  return {name: a[: len(rows)] for name, a in sharding.to_host(outputs).items()}, labels
