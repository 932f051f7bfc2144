"""The training loop: restore, step, watch, save."""

import logging
import pathlib
from collections.abc import Callable
from typing import Any

import jax
from clu import parameter_overview

from cfg.base import (
  checkpoint,
  defaults,
  files,
  flops,
  hosts,
  lock,
  logs,
  optim,
  paths,
  sharding,
  trees,
)
from cfg.base import config as config_lib
from cfg.base.config import ConfigDict
from cfg.base.errors import Stopped, UserError
from cfg.base.progress import Progress
from cfg.data import pipeline
from cfg.data.dataset import Dataset
from cfg.inference import checks
from cfg.inference.generator import NotFiniteSamples
from cfg.inference.meter import Meter
from cfg.interop import weights
from cfg.models import networks, unet
from cfg.training import not_finite
from cfg.training.guard import Guard, TooManySkipped
from cfg.training.heldout import Heldout
from cfg.training.previews import Previews
from cfg.training.quick_metrics import QuickMetrics
from cfg.training.state import TrainState, all_finite
from cfg.training.step import TrainStep, make_state
from cfg.training.step_log import StepLog, due
from cfg.training.stop import StopRequest
from cfg.training.throughput import Throughput

log = logging.getLogger(__name__)

NOTHING_UNLOGGED = {"steps": 0, "sums": {}}


def train(
  config: ConfigDict, *, dataset: Dataset, mesh: jax.sharding.Mesh, workdir: str | pathlib.Path
) -> None:
  """Train until config.train.num_steps, from the newest intact checkpoint if there is one.

  Args:
    config: the whole config.
    dataset: data.dataset_lib.Dataset.
    mesh: from sharding.make_mesh.
    workdir: gets checkpoints/, metrics.jsonl, tensorboard/, previews/.

  Raises:
    UserError: settings that cannot be used; the work directory holds the run of another config or
      of other data, or one that is past num_steps.
    NotFinite: train.most_skipped updates in a row were skipped, as their loss or gradient was not
      finite; what is needed to see why was kept.
    Stopped: SIGTERM or Ctrl-C came; the state was saved.
  """
  workdir = paths.as_path(workdir)
  if (workdir / weights.NAME).exists() and not checkpoint.directory(workdir).is_dir():
    raise UserError(
      f"the work directory {str(workdir)!r} holds imported weights, to sample from "
      f"(--mode=sample): train in another --workdir."
    )
  check_trainable(config, mesh=mesh)
  sharding.check_batch_size(mesh, "heldout.batch_size", config.heldout.batch_size)
  meta = hosts.agreed(checkpoint.read_meta(workdir))
  if meta is not None:
    check_continues(config, meta, dataset=dataset, workdir=workdir)
  model = networks.from_config(
    config.model,
    objective=config.train.objective,
    num_classes=dataset.num_classes,
    image_shape=dataset.image_shape,
    mesh=mesh,
  )
  workdir.mkdir(parents=True, exist_ok=True)
  with (
    lock.Lock(workdir / "writer.lock", what="is training") as held,
    checkpoint.Checkpoints(
      workdir,
      keep=config.train.keep_checkpoints,
      keep_every=config.train.keep_every_steps,
      may_write=held.check,
    ) as checkpoints,
  ):
    num_steps = config.train.num_steps
    if meta is not None and meta["step"] == num_steps and checkpoints.intact(num_steps):
      log.info("training is complete at step %d: %s", num_steps, workdir / "checkpoints")
      return
    _train_from(
      config, model=model, dataset=dataset, mesh=mesh, workdir=workdir, checkpoints=checkpoints
    )


def check_continues(
  config: ConfigDict, meta: dict[str, Any], *, dataset: Dataset, workdir: pathlib.Path
) -> None:
  """Raise UserError unless a run of `config` on `dataset` can go on from `meta`'s checkpoint."""
  config_lib.check_same_run(config, meta["config"], workdir=workdir)
  config_lib.check_same_data(dataset, meta, workdir=workdir)
  if meta["step"] > config.train.num_steps:
    raise UserError(
      f"the work directory {str(workdir)!r} is at step {meta['step']}, past train.num_steps = "
      f"{config.train.num_steps}. Raise train.num_steps or choose another --workdir."
    )


def check_trainable(config: ConfigDict, *, mesh: jax.sharding.Mesh) -> None:
  """Raise UserError unless the config's training settings can be used on this mesh."""
  train = config.train
  given = trees.flatten(config_lib.to_json(config), separator=".")
  for old_name, (new_name, _) in defaults.RENAMED.items():
    if old_name in given:
      raise UserError(f"{old_name} is called {new_name} now: change it in the config.")
  if config_lib.class_rows(config) is not None:
    raise UserError(
      "model.class_rows is set: such a network has no null label, and training here drops labels. "
      "Leave it None."
    )
  least = {
    "train.accumulate": (1, "the number of micro-batches of an update, at least 1"),
    "train.most_skipped": (1, "a number of updates in a row, at least 1"),
    "train.keep_checkpoints": (1, "how many of the newest checkpoints are kept, at least 1"),
    "train.keep_every_steps": (0, "a number of steps, 0 for none"),
    "train.log_every_steps": (0, "a number of steps, 0 for never"),
    "train.checkpoint_every_steps": (0, "a number of steps, 0 for the end alone"),
    "heldout.every_steps": (0, "a number of steps, 0 for never"),
    "meter.every_steps": (0, "a number of steps, 0 for never"),
    "preview.every_steps": (0, "a number of steps, 0 for never"),
    "watch.every_steps": (0, "a number of steps, 0 for never"),
  }
  for name, (lowest, meaning) in least.items():
    if given[name] < lowest:
      raise UserError(
        f"{name} is {given[name]}: it must be {meaning}. Set it with --config.{name}=..."
      )
  if train.objective == "classify":
    for section in ("preview", "watch", "meter"):
      if config[section].every_steps:
        raise UserError(
          f"{section}.every_steps is {config[section].every_steps}, but this config trains a "
          f"classifier (train.objective), which has no samples and no branches: set it to 0."
        )
  else:
    check_meter(config)
    # a rule or a sampler that cannot be is refused even if nothing is drawn while training
    checks.check_no_particles(config, "training")
    checks.check(config, config.watch.w if config.watch.every_steps else (), where="watch.w")
  sharding.check_batch_size(mesh, "train.batch_size", train.batch_size, parts=train.accumulate)


def check_meter(config: ConfigDict) -> None:
  """Raise UserError if the meter cannot be used while training as the config says."""
  if config.guidance.interval == "meter":
    for section in ("preview", "watch"):
      if config[section].every_steps:
        raise UserError(
          "guidance.interval is 'meter', which is of a trained network, but "
          f"{section}.every_steps draws while it trains: set that to 0, or make the interval a "
          "method of the sweep (config.methods)."
        )
  if not config.meter.every_steps:
    return
  if not config.meter.num_levels or not checks.has_branches(config):
    raise UserError(
      f"meter.every_steps is {config.meter.every_steps}, but there is nothing to measure: it needs "
      "meter.num_levels above 0, and a network with both branches (train.p_uncond above 0 and "
      "below 1). Set it to 0."
    )


def _train_from(config, *, model, dataset, mesh, workdir, checkpoints):
  """Train from the newest intact checkpoint, or from the start."""
  optimizer = optim.make_optimizer(**config.optimizer)
  state = make_state(
    config, model=model, optimizer=optimizer, image_shape=dataset.image_shape, mesh=mesh
  )
  num_steps = config.train.num_steps
  step, state, unlogged = _restore(
    state, checkpoints=checkpoints, workdir=workdir, num_steps=num_steps
  )
  throughput = make_throughput(config, model=model, image_shape=dataset.image_shape, mesh=mesh)
  throughput.restore(unlogged)
  step_fn = TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  metrics_log = logs.MetricsLog(workdir, step=step, means_after=step - unlogged["steps"])
  with metrics_log:
    watches = make_watches(
      config, model=model, dataset=dataset, mesh=mesh, workdir=workdir, metrics_log=metrics_log
    )
    stream = pipeline.train_stream(
      dataset.train,
      batch_size=config.train.batch_size,
      seed=config.seed,
      start_step=step,
      num_steps=num_steps,
      shard=(hosts.index(), hosts.count()),
      parts=config.train.accumulate,
      num_workers=config.train.data_workers,
      place=step_fn.place,
    )
    progress = Progress("train", total=num_steps, unit="steps", initial=step)
    guard = Guard(most=config.train.most_skipped)
    step_log = StepLog(
      every_steps=config.train.log_every_steps,
      metrics_log=metrics_log,
      progress=progress,
      throughput=throughput,
      guard=guard,
    )
    saves = (config.train.checkpoint_every_steps, config.train.keep_every_steps)
    is_finite = jax.jit(all_finite, out_shardings=sharding.replicated(mesh))
    unsaved = False  # whether a checkpoint is due
    with progress, stream, StopRequest(mesh) as stop:
      throughput.skip()
      try:
        for batch in throughput.waiting_for(stream):
          state, metrics = step_fn(state, batch)
          step += 1
          step_log(step, metrics)
          ended = step == num_steps
          if ended:
            unlogged = step_log.settle(step, last=True)
          acts = [act for every_steps, act in watches if due(step, every_steps, num_steps)]
          if acts:
            step_log.read()
            watch(acts, averaged(config, state, mesh=mesh), step)
            throughput.skip()
          last = stop.agreed(step) or ended
          unsaved |= last or any(due(step, every_steps, num_steps) for every_steps in saves)
          if unsaved:
            if not ended:
              unlogged = step_log.settle(step, last=last)
            # nothing good makes room for a state whose last update was skipped: it waits
            if last or guard.first is None:
              if not is_finite(state):
                raise TooManySkipped(guard.first or step, step)
              metrics_log.send()  # a run that resumes there needs what came before
              meta = describe(config, dataset=dataset, step=step, unlogged=unlogged)
              checkpoints.save(step, state=state, meta=meta)
              unsaved = False
              throughput.skip()
          if last and not ended:
            raise Stopped(
              f"{stop.reason} after step {step}, which was saved: run the same command to continue."
            )
      except TooManySkipped as e:
        step_log.end()
        raise not_finite.stopped(
          config,
          e,
          model=model,
          state=state,
          finite=bool(is_finite(state)),
          meta=describe(config, dataset=dataset, step=e.first - 1),
          dataset=dataset,
          mesh=mesh,
          workdir=workdir,
        ) from e


def _restore(state, *, checkpoints, workdir, num_steps):
  """(step, state, unlogged) of the newest intact checkpoint; where there is none, of the start.

  `unlogged` is of StepLog.settle.
  """
  restored = checkpoints.restore(target=state)
  if restored is None:
    checkpoints.discard_after(0)  # what a first save that was killed left
    _describe_network(state, workdir)
    return 0, state, NOTHING_UNLOGGED
  step, state, meta = restored
  checkpoints.discard_after(step)
  log.info("continuing at step %d of %d", step, num_steps)
  # earlier versions kept no sums
  return step, state, meta.get("unlogged", NOTHING_UNLOGGED)


def make_watches(config, *, model, dataset, mesh, workdir, metrics_log):
  """[(every_steps, (params, step) -> None)] of what is measured and drawn while training.

  It is all made before the first step: a judge that turns out to be poor, or a file that is not
  there, must not end a run half-way.
  """
  given = dict(model=model, dataset=dataset, mesh=mesh)
  watches: list[tuple[int, Callable[[Any, int], None]]] = []
  if config.heldout.every_steps:
    heldout = Heldout(config, **given)
    act = lambda params, step: metrics_log.scalars(step, heldout(params))
    watches.append((config.heldout.every_steps, act))
  if config.meter.every_steps:
    meter = Meter(config, **given)
    act = lambda params, step: metrics_log.scalars(step, meter.scalars(params))
    watches.append((config.meter.every_steps, act))
  if config.watch.every_steps:
    quick = QuickMetrics(config, **given, workdir=workdir)
    act = lambda params, step: metrics_log.scalars(step, quick(params))
    watches.append((config.watch.every_steps, act))
  if config.preview.every_steps:
    previews = Previews(config, **given, workdir=workdir)
    act = lambda params, step: metrics_log.image(step, "preview", previews(params, step))
    watches.append((config.preview.every_steps, act))
  return watches


def watch(acts, params: Any, step: int) -> None:
  """Measure and draw what is due; of a network that is not done yet samples need not be finite."""
  for act in acts:
    try:
      act(params, step)
    except NotFiniteSamples as e:
      log.warning("step %d: %s", step, e)


def averaged(config: ConfigDict, state: TrainState, *, mesh) -> Any:
  """The first moving average, whole on each device, however it is split."""
  ema_decay = config.train.ema_decays[0]
  return jax.device_put(state.ema[config_lib.ema_name(ema_decay)], sharding.replicated(mesh))


def make_throughput(config, *, model, image_shape, mesh) -> Throughput:
  """The Throughput of a run; the model's FLOPs are counted where the chip's peak is known."""
  peak = flops.peak(mesh.devices.flat[0].device_kind)
  cost = flops.of_network(model, image_shape=image_shape)[1] if peak else 0
  return Throughput(
    batch_size=config.train.batch_size, num_devices=mesh.size, flops_per_image=cost, peak_flops=peak
  )


def _describe_network(state, workdir):
  """Write parameters.txt."""
  path = workdir / "parameters.txt"
  overview = parameter_overview.get_parameter_overview(state.params, include_stats=False)
  files.write_text(path, overview + "\n")
  log.info(
    "the network has %s parameters, listed in %s", f"{unet.num_params(state.params):,}", path
  )


def describe(
  config: ConfigDict, *, dataset: Dataset, step: int, unlogged: dict[str, Any] = NOTHING_UNLOGGED
) -> dict[str, Any]:
  """What a checkpoint says of itself, as JSON values: enough to sample from it without its data.

  `unlogged` is of StepLog.settle.
  """
  return {
    "step": step,
    "stream_position": step * config.train.batch_size,
    "config": config_lib.to_json(config),
    "data_name": dataset.name,
    **dataset.identity,
    "unlogged": unlogged,
  }
