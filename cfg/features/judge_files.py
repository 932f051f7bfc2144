"""The judge that a config asks for: trained on the data once and kept in the work directory, or a
published classifier.
"""

import dataclasses
import json
import logging
import pathlib

import jax
import numpy as np

from cfg.base import config as config_lib
from cfg.base import files, optim, paths, sharding, trees, untrusted
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.data import pipeline
from cfg.features import cifar_resnet, judge
from cfg.features.extractor import Extractor, Source, classifier
from cfg.features.placed import PlacedExtractor
from cfg.interop import cifar_resnet as cifar_resnet_weights
from cfg.models.cifar_resnet import IMAGE_SHAPE, NUM_CLASSES, WIDTHS
from cfg.models.judge import Judge

log = logging.getLogger(__name__)

ROLE = "judge"
# what to do about an accuracy that is too low
TRAINED_REMEDY = "Train it longer (judge.num_steps), make it larger (judge.ch)"
PUBLISHED_REMEDY = (
  "See that the data are CIFAR-10 in its own order of classes, give another file (judge.path)"
)


def load(config, *, dataset, workdir) -> Extractor:
  """The judge of this data and config: the published classifier in the file config.judge.path, or
  if that is "" one trained on the data.

  What took time is kept in `workdir`: judge.npz is the trained one, <name>.json the accuracy of a
  published one.

  Raises:
    UserError: its held-out accuracy is below config.judge.min_accuracy, or the file is not for such
      images.
  """
  check(config, dataset=dataset)
  workdir = paths.as_path(workdir)
  if _path(config):
    extractor = published(config, dataset=dataset, workdir=workdir)
    remedy = PUBLISHED_REMEDY
  else:
    extractor = trained(config, dataset=dataset, workdir=workdir)
    remedy = TRAINED_REMEDY
  accuracy = extractor.info["heldout_accuracy"]
  log.info(
    "%s: accuracy on the %d held-out images %.2f%%",
    extractor.name,
    len(dataset.heldout),
    100 * accuracy,
  )
  if accuracy < config.judge.min_accuracy:
    raise UserError(
      f"the judge {extractor.name} agrees with {accuracy:.2%} of the held-out labels, below "
      f"judge.min_accuracy = {config.judge.min_accuracy}: its verdicts would mean little. "
      f"{remedy}, or lower judge.min_accuracy."
    )
  return extractor


def wanted(config) -> bool:
  """Whether samples are judged by a classifier of the data's classes."""
  return bool(_path(config) or config.judge.num_steps)


def check(config, *, dataset) -> None:
  """Raise UserError if config.judge.path is not for such images."""
  images = (tuple(dataset.image_shape), dataset.num_classes)
  if _path(config) and images != (IMAGE_SHAPE, NUM_CLASSES):
    raise UserError(
      f"judge.path is {config.judge.path!r}, a classifier of {_shape(IMAGE_SHAPE)} images in "
      f"{NUM_CLASSES} classes, but {dataset.name} has {dataset.num_classes} classes of "
      f"{_shape(dataset.image_shape)}: leave judge.path empty, so that a judge is trained on them."
    )


def outline(config, *, dataset) -> Extractor:
  """The judge before it is trained or read: dimensions and metrics."""
  return classifier(
    name="judge",
    model=None,
    params=None,
    prepare=None,
    feature_dim=WIDTHS[-1] if _path(config) else config.judge.feature_dim,
    num_classes=dataset.num_classes,
    info={},
  )


def _shape(image_shape):
  return "x".join(map(str, image_shape))


def _path(config):
  """judge.path; a work directory may hold a config that is older than the field."""
  return config.judge.path


def trained(config, *, dataset, workdir) -> Extractor:
  """The judge in judge.npz, trained and written if it is not there."""
  path = workdir / "judge.npz"
  section = config.judge
  model = Judge(
    num_classes=dataset.num_classes,
    ch=section.ch,
    levels=section.levels,
    feature_dim=section.feature_dim,
    dropout=section.dropout,
  )
  identity = config_lib.data_identity(
    config,
    dataset,
    seed=config.seed,
    train=len(dataset.train),
    judge={
      k: v
      for k, v in config_lib.to_json(config)["judge"].items()
      if k not in ("min_accuracy", "path")
    },
  )
  stored = _read(path, identity)
  if stored is None:
    stored = _train(config, model=model, dataset=dataset)
    stored[1].update(identity=identity, data_name=dataset.name)
    _write(path, *stored)
  params, info = stored
  # the name that the data had then: a folder that was renamed since holds the same images
  return judge.make_extractor(model=model, params=params, dataset_name=info["data_name"], info=info)


def published(config, *, dataset, workdir) -> Extractor:
  """The classifier in config.judge.path, its held-out accuracy read from <name>.json, or measured
  and written there.
  """
  model, params = cifar_resnet_weights.read(config.judge.path)
  about = {"weights_sha256": trees.tree_hash(params), "file": pathlib.Path(config.judge.path).name}
  extractor = cifar_resnet.make_extractor(model=model, params=params, info=about)
  path = workdir / f"{extractor.name}.json"
  identity = config_lib.data_identity(
    config, dataset, heldout=len(dataset.heldout), weights=about["weights_sha256"]
  )
  stored = _read_accuracy(path, identity)
  if stored is None:
    placed = PlacedExtractor(extractor, sharding.make_mesh(jax.local_devices()[:1]))
    stored = {
      "heldout_accuracy": placed.accuracy(dataset.heldout, batch_size=config.judge.batch_size),
      "identity": identity,
    }
    files.write_json(path, stored)
  return dataclasses.replace(extractor, info={**about, **stored})


def _train(config, *, model, dataset):
  section = config.judge
  optimizer = optim.make_optimizer(
    learning_rate=section.learning_rate,
    warmup_steps=section.warmup_steps,
    grad_clip=1.0,
    weight_decay=section.weight_decay,
    decay_steps=section.num_steps,
  )
  stream = pipeline.train_stream(
    dataset.train,
    batch_size=section.batch_size,
    seed=(config.seed + 1) % 2**32,  # of a seed from 0 to 2^32 - 1
    start_step=0,
    num_steps=section.num_steps,
  )
  with Progress("judge", total=section.num_steps, unit="steps") as progress:
    params = judge.fit(
      model=model,
      optimizer=optimizer,
      seed=config.seed,
      num_steps=section.num_steps,
      image_shape=dataset.image_shape,
      stream=stream,
      on_step=progress.update,
    )
  info = {"weights_sha256": trees.tree_hash(params)}
  extractor = judge.make_extractor(model=model, params=params, dataset_name=dataset.name, info=info)
  placed = PlacedExtractor(extractor, sharding.make_mesh(jax.local_devices()[:1]))
  for name, source in (("train", dataset.train), ("heldout", dataset.heldout)):
    info[f"{name}_accuracy"] = placed.accuracy(source, batch_size=section.batch_size)
  return params, info


def _write(path, params, info):
  files.write_npz(path, {**trees.flatten(params), "info": np.asarray(json.dumps(info))})


def _read(path, identity):
  """(params, info), or None if the file is not there, not whole, or another config's."""
  if not path.exists():
    return None
  try:
    arrays = files.read_npz(path)
    info = untrusted.parse_json(str(arrays.pop("info")))
    needed = {"identity", "data_name", "weights_sha256", "heldout_accuracy"}
    if not isinstance(info, dict) or not needed <= info.keys():
      raise ValueError("its info is not what was written")
    params = trees.unflatten(arrays)
  except (OSError, ValueError, KeyError) as e:
    log.warning("%s cannot be used (%s): the judge is trained anew", path, e)
    return None
  if info["identity"] != identity:
    log.info("%s was made for another config: the judge is trained anew", path)
    return None
  if trees.tree_hash(params) != info["weights_sha256"]:
    log.warning("%s differs from its hash: the judge is trained anew", path)
    return None
  return params, info


def _read_accuracy(path, identity):
  """What `published` wrote, or None if it is not there, not whole, or of other data."""
  try:
    stored = files.read_json(path)
    return stored if stored["identity"] == identity and "heldout_accuracy" in stored else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


SOURCE = Source(
  wanted=wanted,
  remedy="give judge.path or train a judge (judge.num_steps)",
  check=check,
  outline=outline,
  load=load,
)
