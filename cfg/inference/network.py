"""Trained networks, opened from work directories or weights files."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cfg.base import checkpoint, paths, sharding, trees
from cfg.base import config as config_lib
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError, nearest
from cfg.data.dataset import Dataset
from cfg.guidance import MAIN, EpsFn, LogProbFn
from cfg.inference import program
from cfg.interop import weights
from cfg.models import classifier, unet
from cfg.models import networks as models


@dataclasses.dataclass(frozen=True)
class Network:
  """A trained network, ready to sample from or to guide.

  Attributes:
    step: completed updates.
    model: a UNet or a Classifier.
    params: its averaged parameters.
    ema_decay: of that average.
    class_names: by label.
    image_shape: (H, W, C).
    data_name: of the data set that it was trained on.
    weights_sha256: trees.tree_hash of the parameters.
    config: that it was trained with.
  """

  step: int
  model: unet.UNet | classifier.Classifier
  params: Any
  ema_decay: float
  class_names: tuple[str, ...]
  image_shape: tuple[int, int, int]
  data_name: str
  weights_sha256: str
  config: ConfigDict

  @property
  def is_classifier(self) -> bool:
    """Whether it says what class an image is of; otherwise, what its noise is."""
    return isinstance(self.model, classifier.Classifier)

  @property
  def function(self) -> Callable[[Any], EpsFn | LogProbFn]:
    """parameters -> eps_fn or log_prob_fn, as program.Program takes it."""
    make = classifier.make_log_prob_fn if self.is_classifier else unet.make_eps_fn
    return functools.partial(make, self.model)

  @property
  def meta(self) -> dict[str, Any]:
    """What a weights file says of itself (interop.weights)."""
    return {
      "config": config_lib.to_json(self.config),
      "class_names": list(self.class_names),
      "image_shape": list(self.image_shape),
      "data_name": self.data_name,
      "step": self.step,
      "ema": config_lib.ema_name(self.ema_decay),
    }

  @property
  def facts(self) -> dict[str, Any]:
    """What decides a sample, and what a reader wants to know of the network: JSON values."""
    return {
      "weights_sha256": self.weights_sha256,
      "ema_decay": self.ema_decay,
      "step": self.step,
      "data": self.data_name,
      "dtype": str(jnp.dtype(self.model.dtype)),
    }


def load_networks(
  config: ConfigDict, *, workdir, mesh: Mesh, ema: float | None = None
) -> dict[str, Network]:
  """{role: Network} that the config's rule calls: the work directory's, and those of guidance.

  Raises:
    UserError: as `load_main` and `with_guides`.
  """
  main = load_main(config, workdir=workdir, mesh=mesh, ema=ema)
  return with_guides(config, main, mesh=mesh)


def load_main(config: ConfigDict, *, workdir, mesh: Mesh, ema: float | None = None) -> Network:
  """The work directory's diffusion model.

  Raises:
    UserError: as `load_network`, or it is a classifier.
  """
  main = load_network(workdir, config=config, mesh=mesh, ema=ema)
  if main.is_classifier:
    raise UserError(
      f"{str(workdir)!r} holds a classifier, which has no samples of its own: guide a diffusion "
      "model by it, --config.guidance.rule=classifier --config.guidance.guide=WORKDIR."
    )
  return main


def with_guides(config: ConfigDict, main: Network, *, mesh: Mesh) -> dict[str, Network]:
  """{role: Network} of `main` and those that the config's rule guides it by.

  Raises:
    UserError: as `load_network`, and a guide that is not for the same images, or a classifier in a
      diffusion model's place, or the reverse.
  """
  names = None if has_no_classes(main) else main.class_names
  guides = load_guides(config, mesh=mesh, class_names=names, image_shape=main.image_shape)
  return {MAIN: main, **guides}


def has_no_classes(network: Network) -> bool:
  """Whether it is a diffusion model without classes."""
  return isinstance(network.model, unet.UNet) and network.model.class_rows == 0


def class_names(networks: Mapping[str, Network]) -> tuple[str, ...]:
  """The classes that can be drawn: of a model without classes, those of what guides it."""
  main, *guides = networks.values()
  return guides[0].class_names if guides and has_no_classes(main) else main.class_names


def load_guides(
  config: ConfigDict,
  *,
  mesh: Mesh,
  class_names: Sequence[str] | None,
  image_shape: tuple[int, int, int],
) -> dict[str, Network]:
  """{role: Network} of the networks that guide one of these classes and images; None for one
  without classes.
  """
  classifiers = program.make_rule(config, null_label=0).classifiers
  guides = {}
  for role in program.roles(config)[1:]:
    path, ema = config.guidance[role], config.guidance[f"{role}_ema"]
    step = config.guidance[f"{role}_step"]
    guides[role] = load_network(path, mesh=mesh, ema=ema, step=step)
    check_kind(guides[role], role, config=config, classifier_wanted=role in classifiers)
    name = f"guidance.{role} is {path!r}, a network of"
    check_guide(guides[role], name, class_names=class_names, image_shape=image_shape)
    check_levels(guides[role], f"guidance.{role}", config=config)
  return guides


def check_kind(guide: Network, role: str, *, config: ConfigDict, classifier_wanted: bool) -> None:
  """Raise UserError unless `guide` is a classifier if the rule wants one, and not if not."""
  if guide.is_classifier == classifier_wanted:
    return
  section = config.guidance
  given, remedy = "a classifier", "a second diffusion model; or use guidance.rule=classifier"
  if classifier_wanted:
    given = "a diffusion model"
    remedy = "a classifier of noised images (configs/digits_classifier.py trains one)"
  raise UserError(
    f"guidance.{role} is {section[role]!r}, {given}, which guidance.rule {section.rule!r} cannot "
    f"use: give {remedy}."
  )


def check_guide(
  guide: Network, name: str, *, class_names: Sequence[str] | None, image_shape: tuple[int, int, int]
) -> None:
  """Raise UserError unless `guide` takes such images and classes. Imported weights know their
  classes by number alone.
  """
  if guide.image_shape != tuple(image_shape):
    size = lambda shape: "x".join(map(str, shape))
    raise UserError(
      f"{name} {size(guide.image_shape)} images, but the one it guides makes {size(image_shape)}: "
      "give one that was trained on the same images."
    )
  if class_names is None or has_no_classes(guide):
    return
  by_number = guide.data_name == "unknown" and len(guide.class_names) == len(class_names)
  if guide.class_names != tuple(class_names) and not by_number:
    several = lambda names: f"{len(names)}: {', '.join(names[:3])}, ..."
    raise UserError(
      f"{name} other classes ({several(guide.class_names)}) than the one it guides "
      f"({several(class_names)}): give one of the same classes in the same order, or one without "
      "classes."
    )


def check_levels(guide: Network, name: str, *, config: ConfigDict) -> None:
  """Raise UserError if `guide` would be asked at levels that it was not trained at."""
  _, _, logsnr = program.make_sampler(config)
  ends = guide.config.schedule
  if logsnr[0] < np.float32(ends.logsnr_min) or logsnr[-1] > np.float32(ends.logsnr_max):
    raise UserError(
      f"{name} was trained at log-SNR from {ends.logsnr_min:g} to {ends.logsnr_max:g}, but is "
      f"asked from {logsnr[0]:g} to {logsnr[-1]:g}: set sampler.logsnr_min and sampler.logsnr_max "
      "within its range."
    )


def make_program(config: ConfigDict, networks: Mapping[str, Network]) -> program.Program:
  """The Program of a config on these networks, by role."""
  main = networks[MAIN]
  guides = {role: network for role, network in networks.items() if role != MAIN}
  assert isinstance(main.model, unet.UNet), main.model
  return program_of_model(config, main.model, image_shape=main.image_shape, guides=guides)


def program_of_model(
  config: ConfigDict,
  model: unet.UNet,
  *,
  image_shape: tuple[int, int, int],
  guides: Mapping[str, Network],
) -> program.Program:
  """The Program of a config on a model, which may be in training, and the networks beside it."""
  main = functools.partial(unet.make_eps_fn, model)
  return program.from_config(
    config,
    image_shape=image_shape,
    null_label=model.num_classes,
    networks={MAIN: main, **{role: guide.function for role, guide in guides.items()}},
  )


def prepare(
  config: ConfigDict, model: unet.UNet, *, dataset: Dataset, mesh: Mesh
) -> tuple[program.Program, dict[str, Any]]:
  """The Program of a model in training on `dataset`, and the parameters of what guides it."""
  guides = load_guides(
    config, mesh=mesh, class_names=dataset.class_names, image_shape=dataset.image_shape
  )
  drawing = program_of_model(config, model, image_shape=dataset.image_shape, guides=guides)
  return drawing, parameters(guides)


def parameters(networks: Mapping[str, Network]) -> dict[str, Any]:
  """{role: parameters}, as Generator takes them."""
  return {role: network.params for role, network in networks.items()}


def facts(networks: Mapping[str, Network]) -> dict[str, Any]:
  """{"main/weights_sha256": ...}: what is to be said of each network."""
  return {
    f"{role}/{name}": value
    for role, network in networks.items()
    for name, value in network.facts.items()
  }


def load_network(
  path,
  *,
  config: ConfigDict | None = None,
  mesh: Mesh | None = None,
  ema: float | None = None,
  step: int | None = None,
) -> Network:
  """The averaged parameters of a work directory or a .safetensors file, on any devices.

  Neither the tree nor the mesh of the run that made it needs to be known.

  Args:
    path: a work directory (its newest intact checkpoint, or its weights.safetensors), or a
      .safetensors file.
    config: if given, must be of the run that is there.
    mesh: where to put the parameters, replicated; None for the first device.
    ema: which average, by decay; None for the first of train.ema_decays.
    step: which checkpoint of a work directory; None for the newest that is intact.

  Raises:
    UserError: no network there, another config's, or no such average or step.
  """
  path = paths.as_path(path)
  file = path if path.suffix == ".safetensors" else path / weights.NAME
  if checkpoint.directory(path).is_dir():
    params, meta = _from_checkpoint(path, ema, step)
    sections: tuple[str, ...] = config_lib.TRAINING_SECTIONS
  elif file.is_file():
    params, meta = weights.read(file)
    sections = ("model",)
    if step is not None and step != meta["step"]:
      raise UserError(f"{str(file)!r} holds the network of step {meta['step']} alone, not {step}.")
    if ema is not None and config_lib.ema_name(ema) != meta["ema"]:
      raise UserError(
        f"{str(file)!r} holds the EMA of decay {meta['ema']} alone, not {config_lib.ema_name(ema)}."
      )
  elif path.is_file():
    raise UserError(
      f"{str(path)!r} is neither a work directory nor a .safetensors file: no network can be "
      f"opened from it. (A judge measures samples: it has seen no noise, and can neither be "
      f"sampled from nor guide.)"
    )
  else:
    raise UserError(
      f"there is no checkpoint in {str(path)!r}: train first (--mode=train), or give the --workdir "
      f"of a trained model."
    )
  if config is not None:
    config_lib.check_same_run(config, meta["config"], workdir=path, sections=sections)
  stored = config_lib.from_json(meta["config"])
  if config is None:
    stored.model.attention = "auto"  # it was set for the devices that it was trained on
  image_shape, class_names = tuple(meta["image_shape"]), tuple(meta["class_names"])
  model = models.from_config(
    (config or stored).model,
    objective=stored.train.objective,
    num_classes=len(class_names),
    image_shape=image_shape,
    mesh=mesh,
  )
  check_params(params, model=model, image_shape=image_shape, path=path)
  return Network(
    step=meta["step"],
    model=model,
    params=jax.device_put(params, jax.devices()[0] if mesh is None else sharding.replicated(mesh)),
    ema_decay=float(meta["ema"]),
    class_names=class_names,
    image_shape=image_shape,
    data_name=meta["data_name"],
    weights_sha256=trees.tree_hash(params),
    config=stored,
  )


def _from_checkpoint(workdir, ema, step):
  """(params, meta) of the newest intact checkpoint, or of `step`: of its averages one is read."""

  def average(saved, meta):
    name = config_lib.ema_name(meta["config"]["train"]["ema_decays"][0] if ema is None else ema)
    if name not in saved["ema"]:
      raise UserError(
        f"there is no EMA of decay {name} in {str(workdir)!r}: {nearest(name, saved['ema'])} "
        f"Choose one of them."
      )
    return {"ema": {name: saved["ema"][name]}}

  with checkpoint.Checkpoints(workdir) as checkpoints:
    restored = checkpoints.restore(step=step, part=average)
  if restored is None:
    raise UserError(
      f"there is no checkpoint in {str(workdir)!r}: train first (--mode=train), or give the "
      f"--workdir of a trained model."
    )
  step, state, meta = restored
  ((name, params),) = state["ema"].items()
  return params, {**meta, "step": step, "ema": name}


def check_data(path: str | pathlib.Path, *, dataset: Dataset) -> None:
  """Raise UserError unless the network in the work directory `path` was trained on `dataset`; of a
  weights file alone, unless it has the data's classes and image shape.
  """
  path = paths.as_path(path)
  meta = checkpoint.read_meta(path)
  if meta is not None:
    config_lib.check_same_data(dataset, meta, workdir=path)
  elif (path / weights.NAME).is_file():
    meta = weights.read_meta(path / weights.NAME)
    if meta["data_name"] == "unknown" and len(meta["class_names"]) == dataset.num_classes:
      # imported weights know their classes by number alone
      meta = {**meta, "class_names": dataset.identity["class_names"]}
    facts = ("class_names", "image_shape")
    config_lib.check_same_data(dataset, meta, workdir=path, facts=facts)


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
