"""A run that stopped as its loss or gradients were not finite: what it leaves, looked at again."""

import pathlib
from collections.abc import Mapping
from typing import Any

from jax.sharding import Mesh

from cfg.base import checkpoint, files, hosts, optim, paths
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.data import pipeline
from cfg.data.dataset import Dataset
from cfg.models import networks
from cfg.training import step as step_lib
from cfg.training.diagnosis import Diagnosis, diagnose
from cfg.training.guard import TooManySkipped
from cfg.training.state import TrainState

FOLDER = "not_finite"  # of the work directory, with a checkpoint of the step before


class NotFinite(UserError):
  """Training stopped: the numbers are not finite."""

  exit_code = 70  # EX_SOFTWARE of sysexits.h: starting it again does not help


def stopped(
  config: ConfigDict,
  skipped: TooManySkipped,
  *,
  model: Any,
  state: TrainState,
  finite: bool,
  meta: Mapping[str, Any],
  dataset: Dataset,
  mesh: Mesh,
  workdir: pathlib.Path,
) -> NotFinite:
  """The error of a run that stops, after its state was kept in FOLDER for `reproduce`.

  Args:
    config: the run's.
    skipped: the steps without an update.
    model: the network.
    state: after the last update: that before `skipped.first`.
    finite: whether all of the state is; if not it is not kept.
    meta: the checkpoint's, of the step before `skipped.first`.
    dataset: the run's.
    mesh: the run's.
    workdir: the work directory.
  """
  first = skipped.first
  found = of_step(config, first, model=model, params=state.params, dataset=dataset, mesh=mesh)
  folder = workdir / FOLDER
  with hosts.together():
    if hosts.is_writer():
      files.remove_tree(folder)
  count = skipped.last - first + 1
  why = f"the state after it is not finite, and was not kept: {found}"
  if finite:
    with checkpoint.Checkpoints(folder) as checkpoints:
      checkpoints.save(first - 1, state=state, meta=meta)
    files.write_text(folder / "README.txt", f"step {first}: {found}\n")
    why = (
      f"the last {count} updates were skipped, as their loss or gradient is not finite. In step "
      f"{first} {found}. The state before it is in {str(folder)!r}, and the same command with "
      "--mode=reproduce looks at it again"
    )
  return NotFinite(
    f"training stopped at step {skipped.last}: {why}. The checkpoints are as they were. A lower "
    "optimizer.learning_rate, more warm-up, a lower grad_clip or float32 may help, in another "
    "--workdir."
  )


def reproduce(
  config: ConfigDict, *, dataset: Dataset, mesh: Mesh, workdir: pathlib.Path
) -> tuple[int, Diagnosis]:
  """(step, what is not finite in it) of the step that a run stopped at, computed anew.

  Raises:
    UserError: no run stopped there.
  """
  folder = paths.as_path(workdir) / FOLDER
  if not checkpoint.directory(folder).is_dir():
    raise UserError(
      f"{str(folder)!r} is not there: no training of {str(workdir)!r} stopped for numbers that are "
      f"not finite. Choose the --workdir of one that did."
    )
  model = networks.from_config(
    config.model,
    objective=config.train.objective,
    num_classes=dataset.num_classes,
    image_shape=dataset.image_shape,
    mesh=mesh,
  )
  state = step_lib.make_state(
    config,
    model=model,
    optimizer=optim.make_optimizer(**config.optimizer),
    image_shape=dataset.image_shape,
    mesh=mesh,
  )
  with checkpoint.Checkpoints(folder) as checkpoints:
    restored = checkpoints.restore(target=state)
  if restored is None:
    raise UserError(f"{str(folder)!r} holds no checkpoint: train again.")
  before, state, _ = restored
  found = of_step(config, before + 1, model=model, params=state.params, dataset=dataset, mesh=mesh)
  return before + 1, found


def of_step(
  config: ConfigDict, step: int, *, model: Any, params: Any, dataset: Dataset, mesh: Mesh
) -> Diagnosis:
  """The Diagnosis of a step, of which these are the parameters before."""
  parts = config.train.accumulate
  with pipeline.train_stream(
    dataset.train,
    batch_size=config.train.batch_size,
    seed=config.seed,
    start_step=step - 1,
    num_steps=step,
    shard=(hosts.index(), hosts.count()),
    parts=parts,
    place=lambda batch: step_lib.place(batch, parts, mesh=mesh),
  ) as stream:
    return diagnose(config, model=model, params=params, batches=next(stream), mesh=mesh)
