"""Algorithm 1 as a sharded step, and the loop around it."""

import functools
import logging
import pathlib
import signal

import jax
import jax.numpy as jnp
import optax
from clu import parameter_overview

from cfg import checkpoint, files, images, logs, losses, optim, schedules, sharding, train_state, watch
from cfg import config as config_lib
from cfg.data import pipeline
from cfg.errors import UserError
from cfg.models import unet

log = logging.getLogger(__name__)

# what each key derived from the run's seed is for
INIT, EXAMPLES, DROPOUT = range(3)


def train_step(state, batch, seed_key, *, model, optimizer, logsnr_fn, p_uncond, flip):
  """One update of P's algorithm 1 (arXiv 2207.12598): pure, a function of (state, batch, seed).

  Args:
    state: TrainState.
    batch: {"image": uint8 [B,H,W,C], "label": int32 [B], "index": uint32 [B]}; `index` is the
      position in the stream, and flip, log-SNR, eps and label drop of a row come from it alone.
    seed_key: jax.random.key(config.seed).
    model: a UNet.
    optimizer: from optim.make_optimizer.
    logsnr_fn: u -> lambda.
    p_uncond: probability of dropping a label.
    flip: mirror images at random.

  Returns:
    (TrainState, {"loss", "grad_norm"}).
  """
  examples_key = jax.random.fold_in(seed_key, EXAMPLES)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(examples_key, batch["index"])
  key_flip, key_loss = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
  x = images.to_unit(batch["image"])
  if flip:
    x = images.random_flip(keys=key_flip, x=x)
  dropout_key = jax.random.fold_in(jax.random.fold_in(seed_key, DROPOUT), state.step)

  def loss_fn(params):
    eps_fn = unet.make_eps_fn(model, params, dropout_key=dropout_key if model.dropout else None)
    loss, _ = losses.classifier_free_loss(
      eps_fn=eps_fn, keys=key_loss, x=x, y=batch["label"],
      logsnr_fn=logsnr_fn, p_uncond=p_uncond, null_label=model.num_classes,
    )
    return jnp.mean(loss)

  loss, grads = jax.value_and_grad(loss_fn)(state.params)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  step = state.step + 1
  ema = train_state.update_ema(state.ema, params=params, step=step)
  metrics = {"loss": loss, "grad_norm": optax.tree.norm(grads)}
  return train_state.TrainState(step=step, params=params, ema=ema, opt_state=opt_state), metrics


def make_state(config, *, model, optimizer, image_shape, mesh):
  """The initial TrainState, made on the devices."""

  def init(key):
    params = unet.init_params(model, key=key, image_shape=image_shape)
    return train_state.create(params=params, optimizer=optimizer, ema_decays=config.train.ema_decays)

  return jax.jit(init, out_shardings=sharding.replicated(mesh))(jax.random.fold_in(jax.random.key(config.seed), INIT))


def make_train_step(config, *, model, optimizer, mesh):
  """`train_step` jitted over the mesh: (state, batch, seed_key), the state donated."""
  step = functools.partial(
    train_step, model=model, optimizer=optimizer,
    logsnr_fn=functools.partial(schedules.cosine_logsnr, **config.schedule),
    p_uncond=config.train.p_uncond, flip=config.train.flip,
  )
  whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  return jax.jit(step, in_shardings=(whole, rows, whole), out_shardings=(whole, whole), donate_argnums=0)


class StopRequest:
  """Turns SIGTERM and Ctrl-C into a flag that the loop reads, so that it can save first."""

  def __enter__(self):
    self.signal = None
    self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_):
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _note(self, number, frame):
    del frame
    if self.signal is not None:  # asked twice: at once
      raise KeyboardInterrupt
    self.signal = number


class Stopped(UserError):
  """The run was asked to stop, and saved its state."""


def train(config, *, dataset, mesh, workdir):
  """Train until config.train.num_steps, from the newest intact checkpoint if there is one.

  Args:
    config: the whole config.
    dataset: data.sources.Dataset.
    mesh: from sharding.make_mesh.
    workdir: gets checkpoints/, metrics.jsonl, tensorboard/, previews/.

  Raises:
    UserError: the work directory holds another config's run, or one that is past num_steps.
    Stopped: SIGTERM or Ctrl-C came; the state was saved.
  """
  workdir = pathlib.Path(workdir)
  sharding.check_batch_size(mesh, "train.batch_size", config.train.batch_size)
  sharding.check_batch_size(mesh, "heldout.batch_size", config.heldout.batch_size)
  model = unet.from_config(config.model, num_classes=dataset.num_classes, image_shape=dataset.image_shape)
  with checkpoint.Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
    meta = checkpoints.read_meta()
    if meta is not None:
      config_lib.check_same_run(config, meta["config"], workdir=workdir)
      if meta["step"] > config.train.num_steps:
        raise UserError(
          f"the work directory {str(workdir)!r} is at step {meta['step']}, past train.num_steps = "
          f"{config.train.num_steps}. Raise train.num_steps or choose another --workdir."
        )
      if meta["step"] == config.train.num_steps and checkpoints.intact(meta["step"]):
        log.info("training is complete at step %d: %s", meta["step"], workdir / "checkpoints")
        return
    _train_from(config, model=model, dataset=dataset, mesh=mesh, workdir=workdir, checkpoints=checkpoints)


def _train_from(config, *, model, dataset, mesh, workdir, checkpoints):
  optimizer = optim.make_optimizer(**config.optimizer)
  state = make_state(config, model=model, optimizer=optimizer, image_shape=dataset.image_shape, mesh=mesh)
  restored = checkpoints.restore(target=state, sharding=sharding.replicated(mesh))
  if restored is not None:
    step, state, _ = restored
    checkpoints.discard_after(step)
    log.info("continuing at step %d of %d", step, config.train.num_steps)
  else:
    step = 0
    files.write_text(workdir / "parameters.txt", parameter_overview.get_parameter_overview(state.params, include_stats=False) + "\n")
    log.info("the network has %s parameters, listed in %s", f"{unet.num_params(state.params):,}", workdir / "parameters.txt")

  stream = pipeline.train_stream(
    dataset.train, batch_size=config.train.batch_size, seed=config.seed, start_step=step,
    num_steps=config.train.num_steps, host_index=jax.process_index(), host_count=jax.process_count(),
  )
  watcher = watch.Watcher(config, model=model, dataset=dataset, mesh=mesh, workdir=workdir)
  step_fn = make_train_step(config, model=model, optimizer=optimizer, mesh=mesh)
  progress = logs.Progress("train", total=config.train.num_steps, unit="steps", initial=step)
  with logs.MetricsLog(workdir, step=step) as metrics_log, progress, StopRequest() as stop:
    observer = watch.Observer(config.train, watcher=watcher, metrics_log=metrics_log, progress=progress)
    seed_key = jax.random.key(config.seed)
    for batch in stream:
      state, metrics = step_fn(state, sharding.put_batch(mesh, batch), seed_key)
      step += 1
      observer(step, state, metrics)
      if watch.due(step, config.train.checkpoint_every_steps, config.train.num_steps) or stop.signal is not None:
        checkpoints.save(step, state=state, meta=describe(config, dataset=dataset, step=step))
        observer.skip_time()
      if stop.signal is not None and step < config.train.num_steps:
        raise Stopped(f"stopped by signal {stop.signal} after step {step}, which was saved: run the same command to continue.")


def describe(config, *, dataset, step):
  """What a checkpoint says of itself, as JSON values: enough to sample from it without its data."""
  return {
    "step": step,
    "stream_position": step * config.train.batch_size,
    "config": config_lib.to_json(config),
    "data_name": dataset.name,
    "class_names": list(dataset.class_names),
    "image_shape": list(dataset.image_shape),
  }
