"""What an objective measures on held-out images, in bins of log-SNR."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfg import schedules
from cfg.base import images, sharding
from cfg.base.config import ConfigDict
from cfg.data import pipeline
from cfg.data.dataset import Dataset
from cfg.training import objective


def heldout_rows(params, batch, key, *, measure, logsnr_fn, num_bins):
  """Measures rows at one fixed log-SNR in each of `num_bins` equal parts of u.

  Row i draws its u's and eps's from its index, so every call sees the same noise.

  Args:
    params: of the network.
    batch: of pipeline.epoch_batches.
    key: of the noise.
    measure: (params, x, eps, logsnr, y) -> [B,K], an objective's, of a model.
    logsnr_fn: u -> lambda.
    num_bins: parts.

  Returns:
    [B, num_bins, K] f32. The mean over bins of a loss estimates the training objective, since the
    parts have equal probability.
  """
  x = images.to_unit(batch["image"])
  bins = jnp.arange(num_bins)

  def draw(index, part):
    key_u, key_eps = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), part))
    u = (part + jax.random.uniform(key_u)) / num_bins
    return logsnr_fn(u), jax.random.normal(key_eps, x.shape[1:])

  logsnr, eps = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(batch["index"], bins)
  count = x.shape[0] * num_bins
  rows = lambda a: a.reshape(count, *a.shape[2:])
  measured = measure(
    params,
    x=jnp.repeat(x, num_bins, axis=0),
    eps=rows(eps),
    logsnr=rows(logsnr),
    y=jnp.repeat(batch["label"], num_bins),
  )
  return measured.reshape(x.shape[0], num_bins, -1)


class Heldout:
  """The numbers of `heldout_rows` of the held-out images, or config.heldout.num_images of them.

  Args:
    config: the whole config; `heldout`, `schedule` and train.objective are used.
    model: a UNet or a Classifier.
    dataset: data.dataset_lib.Dataset.
    mesh: from sharding.make_mesh.
  """

  def __init__(
    self, config: ConfigDict, *, model: Any, dataset: Dataset, mesh: jax.sharding.Mesh
  ) -> None:
    self._config = config.heldout
    self._mesh = mesh
    self._source = pipeline.every_nth(dataset.heldout, most=config.heldout.num_images)
    self._logsnr_fn = functools.partial(schedules.cosine_logsnr, **config.schedule)
    trained_for = objective.of_config(config)
    self._numbers = trained_for.numbers
    measure = functools.partial(
      heldout_rows,
      measure=functools.partial(trained_for.measure, model=model),
      logsnr_fn=self._logsnr_fn,
      num_bins=config.heldout.num_bins,
    )
    whole = sharding.replicated(mesh)
    rows = sharding.batch_sharding(mesh)
    self._measure = jax.jit(measure, in_shardings=(whole, rows, whole), out_shardings=rows)

  def __call__(self, params: Any) -> dict[str, float]:
    """{"heldout/<name>"} of the objective's numbers, the means of the bins, and the same per bin,
    named by its log-SNRs.
    """
    bins = self._config.num_bins
    key = jax.random.key(self._config.seed)
    measured = []
    for batch, valid in pipeline.epoch_batches(self._source, batch_size=self._config.batch_size):
      rows = self._measure(params, sharding.put_rows(self._mesh, batch), key)
      measured.append(sharding.to_host(rows).astype(np.float64)[:valid])
    each_bin = [self._numbers(rows) for rows in np.concatenate(measured).swapaxes(0, 1)]
    edges = np.round(self._logsnr_fn(np.linspace(0, 1, bins + 1), xp=np), 1)
    edges += 0.0  # no -0.0
    values = {}
    for name in each_bin[0]:
      values[f"heldout/{name}"] = float(np.mean([numbers[name] for numbers in each_bin]))
      for part in reversed(range(bins)):
        low, high = edges[part + 1], edges[part]
        values[f"heldout/{name}/logsnr_{low:+.1f}_to_{high:+.1f}"] = each_bin[part][name]
    return values
