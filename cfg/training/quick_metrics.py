"""FID and the rest of few samples while a network trains."""

import pathlib
from typing import Any

import jax
import numpy as np

from cfg.base import sharding
from cfg.base.config import ConfigDict
from cfg.data.dataset import Dataset
from cfg.features import references, select
from cfg.guidance import MAIN
from cfg.inference import network
from cfg.inference.generator import Generator
from cfg.metrics import statistics, summary
from cfg.models import unet


class QuickMetrics:
  """FID and the rest of few samples, in the sweep's networks. Biased upwards: comparable along one
  run alone, hence the names of the numbers.

  Args:
    config: the whole config; `watch` says how many samples, at which strengths.
    model: a UNet.
    dataset: data.dataset.Dataset.
    mesh: from sharding.make_mesh.
    workdir: what real images gave is kept in it, as by a sweep.

  Raises:
    UserError: there is no network to measure in, or a judge that is not accurate enough.
  """

  def __init__(
    self,
    config: ConfigDict,
    *,
    model: unet.UNet,
    dataset: Dataset,
    mesh: jax.sharding.Mesh,
    workdir: str | pathlib.Path,
  ) -> None:
    self._strengths = config.watch.w
    self._index = np.arange(config.watch.num_samples)
    self._labels = self._index % model.num_classes
    extractors = select.extractors(config, dataset=dataset, workdir=workdir)
    settings = config.sweep.copy_and_resolve_references()
    settings.num_samples = config.watch.num_samples
    self._real = references.combined(
      references.measure_all(
        config,
        settings,
        dataset=dataset,
        extractors=extractors,
        mesh=mesh,
        workdir=workdir,
        heldout=False,
      )
    )
    count = min(config.watch.num_samples, config.sweep.batch_size)
    drawing, self._guides = network.prepare(config, model, dataset=dataset, mesh=mesh)
    self._generator = Generator(
      drawing, mesh=mesh, extractor=self._real.extractor, batch_size=sharding.round_up(mesh, count)
    )

  def __call__(self, params: Any) -> dict[str, float]:
    """{"biased_n<N>/w<w>/<metric>": number} of the same noises each time."""
    values = {}
    for w in self._strengths:
      measured = summary.of_few(
        self._measure(params, w), metrics=self._real.extractor.metrics, train=self._real.train
      )
      prefix = f"biased_n{len(self._index)}/w{w:g}"
      values |= {f"{prefix}/{name}": value for name, value in measured.items()}
    return values

  def _measure(self, params, w):
    """statistics.SampleStatistics of the samples at strength w."""
    block_of = np.zeros(len(self._index), int)
    extractor = self._real.extractor
    sums = statistics.Accumulator(extractor.metrics, dims=extractor.dims, block_of=block_of)
    every = {MAIN: params, **self._guides}
    for batch in self._generator.batches(
      every, index=self._index, labels=self._labels, w=w, seed=0
    ):
      count = batch.rows.stop - batch.rows.start
      outputs = {name: a[:count] for name, a in sharding.to_host(dict(batch.outputs)).items()}
      sums.add(outputs, self._labels[batch.rows])
    (block,) = sums.blocks
    return block
