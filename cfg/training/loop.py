"""The training loop: restore, step, watch, save."""

import logging
import pathlib
import signal

import jax
from clu import parameter_overview

from cfg.base import checkpoint, files, flops, logs, optim, sharding
from cfg.base import config as config_lib
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.data import pipeline
from cfg.interop import weights
from cfg.models import unet
from cfg.training import watch
from cfg.training.step import TrainStep, make_state

log = logging.getLogger(__name__)


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
  if (workdir / weights.NAME).exists() and not checkpoint.directory(workdir).is_dir():
    raise UserError(
      f"the work directory {str(workdir)!r} holds imported weights, to sample from "
      f"(--mode=sample): train in another --workdir."
    )
  check_trainable(config, mesh=mesh)
  sharding.check_batch_size(mesh, "heldout.batch_size", config.heldout.batch_size)
  model = unet.from_config(
    config.model, num_classes=dataset.num_classes, image_shape=dataset.image_shape
  )
  with checkpoint.Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
    meta = checkpoint.read_meta(workdir)
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
    _train_from(
      config, model=model, dataset=dataset, mesh=mesh, workdir=workdir, checkpoints=checkpoints
    )


def check_trainable(config, *, mesh):
  """Raise UserError unless the config's training settings can be used on this mesh."""
  train = config.train
  if train.accumulate < 1:
    raise UserError(
      f"train.accumulate is {train.accumulate}: it must be the number of micro-batches of an "
      f"update, at least 1."
    )
  if config.model.class_rows is not None:
    raise UserError(
      "model.class_rows is set: such a network has no null label, and training here drops labels. "
      "Leave it None."
    )
  sharding.check_batch_size(mesh, "train.batch_size", train.batch_size, parts=train.accumulate)


def _train_from(config, *, model, dataset, mesh, workdir, checkpoints):
  optimizer = optim.make_optimizer(**config.optimizer)
  state = make_state(
    config, model=model, optimizer=optimizer, image_shape=dataset.image_shape, mesh=mesh
  )
  restored = checkpoints.restore(target=state)
  if restored is not None:
    step, state, _ = restored
    checkpoints.discard_after(step)
    log.info("continuing at step %d of %d", step, config.train.num_steps)
  else:
    step = 0
    files.write_text(
      workdir / "parameters.txt",
      parameter_overview.get_parameter_overview(state.params, include_stats=False) + "\n",
    )
    log.info(
      "the network has %s parameters, listed in %s",
      f"{unet.num_params(state.params):,}",
      workdir / "parameters.txt",
    )

  watcher = watch.Watcher(config, model=model, dataset=dataset, mesh=mesh, workdir=workdir)
  step_fn = TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  stream = pipeline.train_stream(
    dataset.train,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start_step=step,
    num_steps=config.train.num_steps,
    host_index=jax.process_index(),
    host_count=jax.process_count(),
    num_workers=config.train.get("data_workers", 0),
    place=step_fn.place,
  )
  progress = Progress("train", total=config.train.num_steps, unit="steps", initial=step)
  with logs.MetricsLog(workdir, step=step) as metrics_log, progress, stream, StopRequest() as stop:
    meter = make_meter(config, model=model, image_shape=dataset.image_shape, mesh=mesh)
    observer = watch.Observer(
      config.train, watcher=watcher, metrics_log=metrics_log, progress=progress, meter=meter
    )
    for batch in meter.waiting_for(stream):
      state, metrics = step_fn(state, batch)
      step += 1
      observer(step, state, metrics)
      if (
        watch.due(step, config.train.checkpoint_every_steps, config.train.num_steps)
        or stop.signal is not None
      ):
        checkpoints.save(step, state=state, meta=describe(config, dataset=dataset, step=step))
        observer.skip_time()
      if stop.signal is not None and step < config.train.num_steps:
        raise Stopped(
          f"stopped by signal {stop.signal} after step {step}, which was saved: run the same "
          f"command to continue."
        )


def make_meter(config, *, model, image_shape, mesh):
  """The Meter of a run; the model's FLOPs are counted where the chip's peak is known."""
  peak = flops.peak(mesh.devices.flat[0].device_kind)
  cost = flops.of_network(model, image_shape=image_shape)[1] if peak else 0
  return logs.Meter(
    batch_size=config.train.batch_size, num_devices=mesh.size, flops_per_image=cost, peak_flops=peak
  )


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
