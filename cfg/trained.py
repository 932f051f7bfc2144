"""A trained network, opened from its work directory."""

import dataclasses

import jax

from cfg import checkpoint, sharding, train_state
from cfg import config as config_lib
from cfg.errors import UserError, nearest
from cfg.models import unet


@dataclasses.dataclass(frozen=True)
class Trained:
  """The network of a work directory, ready to sample from."""

  step: int
  model: object
  params: object
  ema: str
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  data_name: str
  checkpoint_hash: str


def open_trained(config, *, workdir, mesh, ema=None):
  """The averaged parameters of the newest intact checkpoint in `workdir`.

  Args:
    config: must be the one it was trained with.
    workdir: the work directory.
    mesh: where to put the parameters, replicated.
    ema: which average, by decay; None for the first of train.ema_decays.

  Raises:
    UserError: no checkpoint, another config's, or no such average.
  """
  restored = None
  if checkpoint.directory(workdir).is_dir():
    with checkpoint.Checkpoints(workdir) as checkpoints:
      restored = checkpoints.restore()
  if restored is None:
    raise UserError(f"there is no checkpoint in {str(workdir)!r}: train first (--mode=train), or give the --workdir of a trained model.")
  step, state, meta = restored
  config_lib.check_same_run(config, meta["config"], workdir=workdir)
  averages = state["ema"]
  name = next(iter(meta["config"]["train"]["ema_decays"])) if ema is None else ema
  name = train_state.ema_name(name)
  if name not in averages:
    raise UserError(f"there is no EMA of decay {name} in {str(workdir)!r}: {nearest(name, averages)} Choose one of them.")
  image_shape = tuple(meta["image_shape"])
  return Trained(
    step=step,
    model=unet.from_config(config.model, num_classes=len(meta["class_names"]), image_shape=image_shape),
    params=jax.device_put(averages[name], sharding.replicated(mesh)),
    ema=name,
    class_names=tuple(meta["class_names"]),
    image_shape=image_shape,
    data_name=meta["data_name"],
    checkpoint_hash=checkpoint.tree_hash(averages[name]),
  )
