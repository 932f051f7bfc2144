"""Errors of the eps estimate on held-out images, in bins of log-SNR."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfg import losses, schedules
from cfg.base import images, sharding
from cfg.base.config import ConfigDict
from cfg.data import pipeline
from cfg.data.dataset import Dataset
from cfg.models import unet


def heldout_errors(params, batch, key, *, model, logsnr_fn, num_bins):
  """Eps-errors of rows at one fixed log-SNR in each of `num_bins` equal parts of u, with true and
  null labels.

  Row i draws its u's and eps's from its index, so every call sees the same noise.

  Returns:
    [B, num_bins, 2] f32; the last axis is (true label, null label). The mean over bins
    estimates the training objective, since the parts have equal probability.
  """
  x = images.to_unit(batch["image"])
  y = batch["label"]
  bins = jnp.arange(num_bins)

  def draw(index, part):
    key_u, key_eps = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, index), part))
    u = (part + jax.random.uniform(key_u)) / num_bins
    return logsnr_fn(u), jax.random.normal(key_eps, x.shape[1:])

  logsnr, eps = jax.vmap(jax.vmap(draw, (None, 0)), (0, None))(batch["index"], bins)
  count = x.shape[0] * num_bins
  rows = lambda a: a.reshape(count, *a.shape[2:])
  error = functools.partial(
    losses.eps_error,
    eps_fn=unet.make_eps_fn(model, params),
    x=jnp.repeat(x, num_bins, axis=0),
    eps=rows(eps),
    logsnr=rows(logsnr),
  )
  true = error(y=jnp.repeat(y, num_bins))
  null = error(y=jnp.full((count,), model.num_classes))
  return jnp.stack([true, null], axis=-1).reshape(x.shape[0], num_bins, 2)


class Heldout:
  """The mean of `heldout_errors` over the held-out images, or config.heldout.num_images of them.

  Args:
    config: the whole config; `heldout` and `schedule` are used.
    model: a UNet.
    dataset: data.dataset_lib.Dataset.
    mesh: from sharding.make_mesh.
  """

  def __init__(
    self, config: ConfigDict, *, model: unet.UNet, dataset: Dataset, mesh: jax.sharding.Mesh
  ) -> None:
    self._config = config.heldout
    self._mesh = mesh
    self._source = pipeline.every_nth(dataset.heldout, most=config.heldout.num_images)
    self._logsnr_fn = functools.partial(schedules.cosine_logsnr, **config.schedule)
    errors = functools.partial(
      heldout_errors, model=model, logsnr_fn=self._logsnr_fn, num_bins=config.heldout.num_bins
    )
    whole = sharding.replicated(mesh)
    rows = sharding.batch_sharding(mesh)
    self._errors = jax.jit(errors, in_shardings=(whole, rows, whole), out_shardings=rows)

  def __call__(self, params: Any) -> dict[str, float]:
    """{"heldout/loss_cond", "heldout/loss_null", and the same per bin, named by its log-SNRs}."""
    bins = self._config.num_bins
    key = jax.random.key(self._config.seed)
    total = np.zeros((bins, 2))
    for batch, valid in pipeline.epoch_batches(self._source, batch_size=self._config.batch_size):
      errors = self._errors(params, sharding.put_batch(self._mesh, batch), key)
      total += np.asarray(errors, np.float64)[:valid].sum(axis=0)
    mean = total / len(self._source)
    edges = np.round(self._logsnr_fn(np.linspace(0, 1, bins + 1), xp=np), 1)
    edges += 0.0  # no -0.0
    values = {}
    for column, name in enumerate(("cond", "null")):
      values[f"heldout/loss_{name}"] = float(mean[:, column].mean())
      for part in reversed(range(bins)):
        low, high = edges[part + 1], edges[part]
        values[f"heldout/loss_{name}/logsnr_{low:+.1f}_to_{high:+.1f}"] = float(mean[part, column])
    return values
