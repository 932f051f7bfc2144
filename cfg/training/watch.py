"""Seeing that a run learns: held-out errors in bins of log-SNR, pictures of fixed noises, FID of
few samples.
"""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np

from cfg import losses, schedules
from cfg.base import config as config_lib
from cfg.base import images, sharding
from cfg.data import pipeline
from cfg.features import references, select
from cfg.inference.generator import Generator
from cfg.metrics import statistics, summary
from cfg.models import unet


def heldout_errors(params, batch, key, *, model, logsnr_fn, num_bins):
  """Eps-errors of rows at one fixed log-SNR in each of `num_bins` equal parts of u, with true and
  null labels.

  Row i draws its u's and eps's from its index, so every call sees the same noise.

  Returns:
    [B, num_bins, 2] f32; the last axis is (true label, null label). The mean over bins
    estimates the training objective, since the parts have equal probability.
  """
  x, y = images.to_unit(batch["image"]), batch["label"]
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


class Watcher:
  """Seeing that it learns: held-out errors in bins of log-SNR, and grids of the same noises."""

  def __init__(self, config, *, model, dataset, mesh, workdir):
    self._config, self._model, self._dataset, self._mesh = config, model, dataset, mesh
    self._folder = pathlib.Path(workdir) / "previews"
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    # steps from one FewSamples to the next; 0: never. A work directory may hold a config that is
    # older than the section
    self.few_every = config.get("watch", {}).get("every_steps", 0)
    # now: it must not be in the middle of a run that a judge turns out to be poor, or a file not to
    # be there
    self.few_samples = (
      FewSamples(config, model=model, dataset=dataset, mesh=mesh, workdir=workdir)
      if self.few_every
      else None
    )
    self._logsnr_fn = functools.partial(schedules.cosine_logsnr, **config.schedule)
    errors = functools.partial(
      heldout_errors, model=model, logsnr_fn=self._logsnr_fn, num_bins=config.heldout.num_bins
    )
    self._errors = jax.jit(errors, in_shardings=(whole, rows, whole), out_shardings=rows)
    pictures = min(model.num_classes, config.preview.num_classes) * config.preview.num_per_class
    self._generator = Generator(
      model=model,
      config=config,
      image_shape=dataset.image_shape,
      mesh=mesh,
      batch_size=sharding.round_up(mesh, min(pictures, config.sweep.batch_size)),
    )

  def place(self, params):
    """A whole copy of `params` on each device, however they are split."""
    return jax.device_put(params, sharding.replicated(self._mesh))

  def heldout(self, params):
    """{"heldout/loss_cond", "heldout/loss_null", and the same per bin, named by its log-SNRs}."""
    config, bins = self._config.heldout, self._config.heldout.num_bins
    source = pipeline.every_nth(self._dataset.heldout, most=config.num_images)
    key = jax.random.key(self._config.heldout.seed)
    total, count = np.zeros((bins, 2)), 0
    for batch, valid in pipeline.epoch_batches(source, batch_size=config.batch_size):
      errors = self._errors(params, sharding.put_batch(self._mesh, batch), key)
      total += np.asarray(errors, np.float64)[:valid].sum(axis=0)
      count += valid
    mean = total / count
    edges = (
      np.round(
        schedules.cosine_logsnr(np.linspace(0, 1, bins + 1), **self._config.schedule, xp=np), 1
      )
      + 0.0
    )  # no -0.0
    values = {}
    for column, name in enumerate(("cond", "null")):
      values[f"heldout/loss_{name}"] = float(mean[:, column].mean())
      for part in reversed(range(bins)):
        low, high = edges[part + 1], edges[part]
        values[f"heldout/loss_{name}/logsnr_{low:+.1f}_to_{high:+.1f}"] = float(mean[part, column])
    return values

  def preview(self, params, step):
    """Write previews/step_*.png: a row per class; the same noises at each of preview.w, side by
    side.
    """
    config = self._config.preview
    rows = min(self._model.num_classes, config.num_classes)
    labels = np.repeat(np.arange(rows), config.num_per_class)
    index = np.arange(len(labels))
    panels = []
    # without label dropout there is nothing to mix
    strengths = config.w if self._config.train.p_uncond > 0 else (0.0,)
    for w in strengths:
      pictures = self._generator(params, index=index, labels=labels, w=w, seed=self._config.seed)
      panels.append(images.tile(pictures, rows=rows))
    gap = np.full((panels[0].shape[0], 4, panels[0].shape[2]), 255, np.uint8)
    sheet = panels[0]
    for panel in panels[1:]:
      sheet = np.concatenate([sheet, gap, panel], axis=1)
    sheet = images.enlarge(sheet, factor=max(1, 64 // self._dataset.image_shape[0] // 2))
    self._folder.mkdir(exist_ok=True)
    images.write_png(self._folder / f"step_{step:08d}.png", sheet)
    return sheet


class FewSamples:
  """FID and the rest of few samples while training, in the sweep's networks. Biased upwards:
  comparable along one run alone, hence the name.

  Args:
    config: the whole config; `watch` says how many samples, at which strengths.
    others: as of Watcher. What real images gave is kept in `workdir`, as by a sweep.
  """

  def __init__(self, config, *, model, dataset, mesh, workdir):
    self._config, self._num_classes = config.watch, model.num_classes
    settings = config.sweep.copy_and_resolve_references()
    settings.num_samples = config.watch.num_samples
    self._measured = references.combined(
      references.measure_all(
        config,
        settings,
        dataset=dataset,
        extractors=select.extractors(config, dataset=dataset, workdir=workdir),
        mesh=mesh,
        workdir=workdir,
        heldout=False,
      )
    )
    self._generator = Generator(
      model=model,
      config=config,
      image_shape=dataset.image_shape,
      mesh=mesh,
      extractor=self._measured.extractor,
      batch_size=sharding.round_up(mesh, min(config.watch.num_samples, config.sweep.batch_size)),
    )

  def __call__(self, params):
    """{"biased_n<N>/w<w>/<metric>": number} of the same noises each time."""
    index, values = np.arange(self._config.num_samples), {}
    labels = index % self._num_classes
    extractor = self._measured.extractor
    for w in self._config.w:
      sums = statistics.Accumulator(
        extractor.metrics, dims=extractor.dims, block_of=np.zeros(len(index), int)
      )
      for rows, _, outputs in self._generator.batches(
        params, index=index, labels=labels, w=w, seed=0
      ):
        sums.add(
          {name: np.asarray(a)[: rows.stop - rows.start] for name, a in outputs.items()},
          labels[rows],
        )
      (measured,) = sums.blocks
      found = summary.of_few(measured, metrics=extractor.metrics, train=self._measured.train)
      values |= {f"biased_n{len(index)}/w{w:g}/{name}": value for name, value in found.items()}
    return values


class Observer:
  """What the training loop shows and writes of each step; never waits for the step just dispatched.

  Step n is dispatched before the metrics of step n - 1 are read.
  """

  def __init__(self, config, *, watcher, metrics_log, progress, meter):
    self._config, self._watcher, self._log, self._progress, self._meter = (
      config,
      watcher,
      metrics_log,
      progress,
      meter,
    )
    self._pending = None

  def __call__(self, step, state, metrics):
    """After step `step` was dispatched: log, measure and draw what is due."""
    if self._pending is not None:
      self._meter.add(jax.device_get(self._pending))
    self._pending = metrics
    config, is_due = self._config, lambda every: due(step, every, self._config.num_steps)
    params = lambda: self._watcher.place(state.ema[config_lib.ema_name(config.ema_decays[0])])
    if is_due(config.log_every_steps):
      self._log.scalars(step, self._meter.flush())
    if is_due(config.heldout_every_steps):
      self._log.scalars(step, self._watcher.heldout(params()))
      self.skip_time()
    if self._watcher.few_every and is_due(self._watcher.few_every):
      self._log.scalars(step, self._watcher.few_samples(params()))
      self.skip_time()
    if is_due(config.preview_every_steps):
      self._log.image(step, "preview", self._watcher.preview(params(), step))
      self.skip_time()
    self._progress.update(step, **self._meter.shown)

  def skip_time(self):
    """What was done since the last step does not count as training time."""
    self._meter.skip()


def due(step, every, last):
  """Whether something done every so many steps (0: only at the end) is to be done after `step`."""
  return step == last or (every > 0 and step % every == 0)
