"""A trained network, opened from its work directory or its weights file."""

import dataclasses
import pathlib

import jax

from cfg.base import checkpoint, sharding, trees
from cfg.base import config as config_lib
from cfg.base.errors import UserError, nearest
from cfg.interop import weights
from cfg.models import unet


@dataclasses.dataclass(frozen=True)
class Trained:
  """A trained network, ready to sample from."""

  step: int
  model: object
  params: object
  ema: str
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  data_name: str
  checkpoint_hash: str
  config: object

  @property
  def meta(self):
    """What a weights file says of itself (interop.weights)."""
    return {
      "config": config_lib.to_json(self.config),
      "class_names": list(self.class_names),
      "image_shape": list(self.image_shape),
      "data_name": self.data_name,
      "step": self.step,
      "ema": self.ema,
    }


def open_trained(path, *, config=None, mesh=None, ema=None):
  """The averaged parameters of a work directory or a .safetensors file, on whatever devices there
  are.

  Neither the tree nor the mesh of the run that made it needs to be known.

  Args:
    path: a work directory (its newest intact checkpoint, or its weights.safetensors), or a
      .safetensors file.
    config: if given, must be of the run that is there.
    mesh: where to put the parameters, replicated; None for the first device.
    ema: which average, by decay; None for the first of train.ema_decays.

  Raises:
    UserError: no network there, another config's, or no such average.
  """
  path = pathlib.Path(path)
  file = path if path.suffix == ".safetensors" else path / weights.NAME
  if checkpoint.directory(path).is_dir():
    params, meta, sections = *_from_checkpoint(path, ema), config_lib.TRAINING_SECTIONS
  elif file.is_file():
    params, meta, sections = *weights.read(file), ("model",)
    if ema is not None and config_lib.ema_name(ema) != meta["ema"]:
      raise UserError(
        f"{str(file)!r} holds the EMA of decay {meta['ema']} alone, not {config_lib.ema_name(ema)}."
      )
  else:
    raise UserError(
      f"there is no checkpoint in {str(path)!r}: train first (--mode=train), or give the --workdir "
      f"of a trained model."
    )
  if config is not None:
    config_lib.check_same_run(config, meta["config"], workdir=path, sections=sections)
  stored = config_lib.from_json(meta["config"])
  image_shape, class_names = tuple(meta["image_shape"]), tuple(meta["class_names"])
  model = unet.from_config(
    (config or stored).model, num_classes=len(class_names), image_shape=image_shape
  )
  check_params(params, model=model, image_shape=image_shape, path=path)
  return Trained(
    step=meta["step"],
    model=model,
    params=jax.device_put(params, jax.devices()[0] if mesh is None else sharding.replicated(mesh)),
    ema=meta["ema"],
    class_names=class_names,
    image_shape=image_shape,
    data_name=meta["data_name"],
    checkpoint_hash=trees.tree_hash(params),
    config=stored,
  )


def _from_checkpoint(workdir, ema):
  """(params, meta) of the newest intact checkpoint."""
  with checkpoint.Checkpoints(workdir) as checkpoints:
    restored = checkpoints.restore()
  if restored is None:
    raise UserError(
      f"there is no checkpoint in {str(workdir)!r}: train first (--mode=train), or give the "
      f"--workdir of a trained model."
    )
  step, state, meta = restored
  name = config_lib.ema_name(meta["config"]["train"]["ema_decays"][0] if ema is None else ema)
  if name not in state["ema"]:
    raise UserError(
      f"there is no EMA of decay {name} in {str(workdir)!r}: {nearest(name, state['ema'])} Choose "
      f"one of them."
    )
  return state["ema"][name], {**meta, "step": step, "ema": name}


def check_params(params, *, model, image_shape, path):
  """Raise UserError unless `params` has the names and shapes of `model`'s."""
  shapes = jax.eval_shape(
    lambda key: unet.init_params(model, key=key, image_shape=image_shape), jax.random.key(0)
  )
  ours = {name: leaf.shape for name, leaf in trees.flatten(shapes).items()}
  theirs = {name: leaf.shape for name, leaf in trees.flatten(params).items()}
  wrong = sorted(name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name))
  if wrong:
    name = wrong[0]
    raise UserError(
      f"the parameters in {str(path)!r} are not those of the network its config describes: "
      f"{len(wrong)} differ, "
      f"{name} first ({theirs.get(name, 'absent')}, expected {ours.get(name, 'none')})."
    )


def export(path, out, *, ema=None):
  """Write the averaged parameters of a work directory to the .safetensors file `out`; returns the
  Trained.
  """
  out = pathlib.Path(out)
  if out.suffix != ".safetensors" or not out.parent.is_dir():
    raise UserError(
      f"--out={str(out)!r}: give a file name that ends in .safetensors, in a folder that is there."
    )
  trained = open_trained(path, ema=ema)
  weights.write(out, params=jax.device_get(trained.params), meta=trained.meta)
  return trained
