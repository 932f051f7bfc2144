"""From parameters to images and what a feature extractor makes of them: the guided sampler of a
config, one program over the mesh.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from cfg import guidance, sampling, schedules
from cfg.base import images, sharding
from cfg.base.errors import UserError
from cfg.models import unet


def generate(params, index, y, w, key, *, model, step_fn, logsnr, image_shape, clip_x, guided):
  """Images of P's algorithm 2 as uint8 [B,H,W,C]; image i is a function of (params, key, index[i],
  y[i], w).

  Args:
    params: of `model`.
    index: [B] uint32 sample numbers.
    y: [B] int32 labels.
    w: the paper's guidance strength, f32 scalar, traced: one program for all strengths.
    key: typed PRNG key of the whole run.
    model: a UNet.
    step_fn: from sampling.make_step.
    logsnr: [T] from schedules.sampling_grid.
    image_shape: (H, W, C).
    clip_x: clip x_hat after the mix.
    guided: mix two branches; False calls the conditional one alone, whatever w.
  """
  eps_fn = unet.make_eps_fn(model, params)
  if guided:
    eps_fn = guidance.classifier_free(eps_fn, w=w, null_label=model.num_classes)
  x = sampling.sample(
    eps_fn=eps_fn,
    step_fn=step_fn,
    keys=sampling.sample_keys(key=key, index=index),
    y=y,
    logsnr=logsnr,
    image_shape=image_shape,
    clip_x=clip_x,
  )
  return images.to_uint8(x)


def generate_and_extract(params, extractor_params, index, y, w, key, *, extract, **fixed):
  """(images, {output: [B, dim]}): `generate`, and an extractor's outputs of its images, which need
  not leave the devices.
  """
  pictures = generate(params, index, y, w, key, **fixed)
  return pictures, {} if extract is None else extract(extractor_params, pictures)


def nfe(config, *, guided=True):
  """Calls of the network for each sample."""
  return config.sampler.num_steps * (2 if guided else 1)


def make_sampler(config):
  """(step_fn, logsnr [T]) of the config's sampler and schedule.

  Raises:
    UserError: there is no such sampler.
  """
  try:
    step_fn = sampling.make_step(sampler=config.sampler.name, var_interp=config.sampler.var_interp)
    return step_fn, schedules.sampling_grid(num_steps=config.sampler.num_steps, **config.schedule)
  except ValueError as e:
    raise UserError(f"the config's sampler section cannot be used: {e}.") from e


class Generator:
  """Draws any number of samples in sharded batches of one shape, with one compilation.

  Args:
    model: a UNet.
    config: the whole config; `sampler` and `schedule` are used.
    image_shape: (H, W, C).
    mesh: from sharding.make_mesh.
    batch_size: images a call of the program; a multiple of the mesh's size.
    guided: see `generate`.
    extractor: an extractor.Extractor whose outputs `batches` gives with the images, or None.
  """

  def __init__(self, *, model, config, image_shape, mesh, batch_size, guided=True, extractor=None):
    self.mesh = mesh
    self.batch_size = batch_size
    self.nfe = nfe(config, guided=guided)
    step_fn, logsnr = make_sampler(config)
    program = functools.partial(
      generate_and_extract,
      extract=None if extractor is None else extractor.apply,
      model=model,
      step_fn=step_fn,
      logsnr=logsnr,
      image_shape=tuple(image_shape),
      clip_x=config.sampler.clip_x,
      guided=guided,
    )
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    self._extractor_params = None if extractor is None else jax.device_put(extractor.params, whole)
    self.program = jax.jit(
      program, in_shardings=(whole, whole, rows, rows, whole, whole), out_shardings=rows
    )

  def batches(self, params, *, index, labels, w, seed):
    """Yield (rows, images, outputs): a slice of `index`, uint8 [batch_size,H,W,C] and {output:
    [batch_size,dim]}, both on the devices.

    The last batch repeats its last sample; its slice covers only the real ones.
    """
    key, pending = jax.random.key(seed), None
    index, labels = np.asarray(index, np.uint32), np.asarray(labels, np.int32)
    for first in range(0, len(index), self.batch_size):
      rows = np.minimum(np.arange(first, first + self.batch_size), len(index) - 1)
      local = sharding.put_batch(self.mesh, {"index": index[rows], "labels": labels[rows]})
      out = self.program(
        params, self._extractor_params, local["index"], local["labels"], jnp.float32(w), key
      )
      # one batch ahead: the devices work while the host reads
      if pending is not None:
        yield pending
      pending = slice(first, min(first + self.batch_size, len(index))), *out
    if pending is not None:
      yield pending

  def __call__(self, params, *, index, labels, w, seed):
    """All the images at once on the host: uint8 [N,H,W,C]."""
    out = [
      np.asarray(batch)[: rows.stop - rows.start]
      for rows, batch, _ in self.batches(params, index=index, labels=labels, w=w, seed=seed)
    ]
    return np.concatenate(out)
