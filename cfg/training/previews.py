"""Pictures of the same noises while a network trains."""

import functools
import pathlib
from typing import Any

import jax
import numpy as np

from cfg.base import images, paths, sharding
from cfg.base.config import ConfigDict
from cfg.data.dataset import Dataset
from cfg.guidance import MAIN
from cfg.inference import checks, network
from cfg.inference.generator import Generator
from cfg.models import unet


class Previews:
  """A row of pictures per class, the same noises at each of config.preview.w side by side.

  Args:
    config: the whole config.
    model: a UNet.
    dataset: data.dataset.Dataset.
    mesh: from sharding.make_mesh.
    workdir: gets previews/step_*.png.
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
    # without label dropout there is nothing to mix, and with nothing else only w = -1
    usable = functools.partial(checks.usable, config)
    self.strengths = usable(config.preview.w) or usable((0.0, -1.0))
    self._seed = config.seed
    self._side = dataset.image_shape[0]
    self._folder = paths.as_path(workdir) / "previews"
    self._rows = min(model.num_classes, config.preview.num_classes)
    self._labels = np.repeat(np.arange(self._rows), config.preview.num_per_class)
    count = min(len(self._labels), config.sweep.batch_size)
    drawing, self._guides = network.prepare(config, model, dataset=dataset, mesh=mesh)
    self._generator = Generator(drawing, mesh=mesh, batch_size=sharding.round_up(mesh, count))

  def __call__(self, params: Any, step: int) -> np.ndarray:
    """Write the pictures of `step`; returns them as one, uint8 [H,W,C]."""
    index = np.arange(len(self._labels))
    every = {MAIN: params, **self._guides}
    panels = []
    for w in self.strengths:
      pictures = self._generator(every, index=index, labels=self._labels, w=w, seed=self._seed)
      panels.append(images.tile(pictures, rows=self._rows))
    gap = np.full((panels[0].shape[0], 4, panels[0].shape[2]), 255, np.uint8)
    sheet = panels[0]
    for panel in panels[1:]:
      sheet = np.concatenate([sheet, gap, panel], axis=1)
    sheet = images.enlarge(sheet, factor=max(1, 64 // self._side // 2))
    self._folder.mkdir(exist_ok=True)
    images.write_png(self._folder / f"step_{step:08d}.png", sheet)
    return sheet
