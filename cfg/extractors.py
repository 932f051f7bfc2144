"""The feature extractor that a config asks for: trained once and kept in the work directory, or read from a published file."""

import dataclasses
import hashlib
import json
import logging
import pathlib

import jax
import numpy as np

from cfg import checkpoint, files, logs, optim, sharding
from cfg import config as config_lib
from cfg.data import pipeline
from cfg.errors import UserError
from cfg.evaluation import cifar_resnet, judge, statistics
from cfg.interop import cifar_resnet as cifar_resnet_files
from cfg.models import cifar_resnet as cifar_resnet_lib
from cfg.models import judge as judge_lib

log = logging.getLogger(__name__)

SEPARATOR = "/"
# what to do about an accuracy that is too low
TRAINED_REMEDY = "Train it longer (judge.num_steps), make it larger (judge.ch)"
PUBLISHED_REMEDY = "See that the data are CIFAR-10 in its own order of classes, give another file (judge.path)"


def get_judge(config, *, dataset, workdir):
  """The judge of this data and config: the published classifier in the file config.judge.path, or if that is "" one trained on the data.

  What took time is kept in `workdir`: judge.npz is the trained one, <name>.json the accuracy of a published one.

  Raises:
    UserError: its held-out accuracy is below config.judge.min_accuracy, or the file is not for such images.
  """
  get, remedy = (_published, PUBLISHED_REMEDY) if _path(config) else (_trained, TRAINED_REMEDY)
  check(config, dataset=dataset)
  extractor = get(config, dataset=dataset, workdir=pathlib.Path(workdir))
  accuracy = extractor.info["heldout_accuracy"]
  log.info("%s: accuracy on the %d held-out images %.2f %%", extractor.name, len(dataset.heldout), 100 * accuracy)
  if accuracy < config.judge.min_accuracy:
    raise UserError(
      f"the judge {extractor.name} agrees with {100 * accuracy:.2f} % of the held-out labels, below "
      f"judge.min_accuracy = {config.judge.min_accuracy}: its verdicts would mean little. {remedy}, or lower judge.min_accuracy."
    )
  return extractor


def check(config, *, dataset):
  """Raise UserError if config.judge.path is not for such images."""
  shape, num_classes = cifar_resnet_lib.IMAGE_SHAPE, cifar_resnet_lib.NUM_CLASSES
  if _path(config) and (tuple(dataset.image_shape), dataset.num_classes) != (shape, num_classes):
    raise UserError(
      f"judge.path is {config.judge.path!r}, a classifier of {'x'.join(map(str, shape))} images in {num_classes} classes, but {dataset.name} has "
      f"{dataset.num_classes} classes of {'x'.join(map(str, dataset.image_shape))}: leave judge.path empty, so that a judge is trained on them."
    )


def feature_dim(config):
  """The feature dimension of the judge, known before it is there."""
  return cifar_resnet_lib.WIDTHS[-1] if _path(config) else config.judge.feature_dim


def _path(config):
  """judge.path; a work directory may hold a config that is older than the field."""
  return config.judge.get("path", "")


def _trained(config, *, dataset, workdir):
  """The judge in judge.npz, trained and written if it is not there."""
  path, section = workdir / "judge.npz", config.judge
  model = judge_lib.Judge(
    num_classes=dataset.num_classes, ch=section.ch, levels=section.levels,
    feature_dim=section.feature_dim, dropout=section.dropout,
  )
  identity = _identity(
    config, dataset, seed=config.seed, train=len(dataset.train),
    judge={k: v for k, v in config_lib.to_json(config)["judge"].items() if k not in ("min_accuracy", "path")},
  )
  stored = _read(path, identity)
  if stored is None:
    stored = _train(config, model=model, dataset=dataset)
    stored[1]["identity"] = identity
    _write(path, *stored)
  params, info = stored
  return judge.make_extractor(model=model, params=params, dataset_name=dataset.name, info=info)


def _published(config, *, dataset, workdir):
  """The classifier in config.judge.path, its held-out accuracy read from <name>.json, or measured and written there."""
  model, params = cifar_resnet_files.read(config.judge.path)
  about = {"weights_sha256": checkpoint.tree_hash(params), "file": pathlib.Path(config.judge.path).name}
  extractor = cifar_resnet.make_extractor(model=model, params=params, info=about)
  path = workdir / f"{extractor.name}.json"
  identity = _identity(config, dataset, heldout=len(dataset.heldout), weights=about["weights_sha256"])
  stored = _read_accuracy(path, identity)
  if stored is None:
    placed = Placed(extractor, sharding.make_mesh(jax.devices()[:1]))
    stored = {"heldout_accuracy": placed.accuracy(dataset.heldout, batch_size=config.judge.batch_size), "identity": identity}
    files.write_json(path, stored)
  return dataclasses.replace(extractor, info={**about, **stored})


def _identity(config, dataset, **more):
  """A hash of the data and of what else decides what is kept."""
  facts = {"data": config_lib.to_json(config)["data"], "class_names": dataset.class_names, "image_shape": dataset.image_shape, **more}
  return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _train(config, *, model, dataset):
  section = config.judge
  optimizer = optim.make_optimizer(
    learning_rate=section.learning_rate, warmup_steps=section.warmup_steps, grad_clip=1.0, weight_decay=section.weight_decay,
    decay_steps=section.num_steps,
  )
  stream = pipeline.train_stream(
    dataset.train, batch_size=section.batch_size, seed=config.seed + 1, start_step=0, num_steps=section.num_steps
  )
  with logs.Progress("judge", total=section.num_steps, unit="steps") as progress:
    params = judge.fit(
      model=model, optimizer=optimizer, seed=config.seed, num_steps=section.num_steps,
      image_shape=dataset.image_shape, stream=stream, on_step=progress.update,
    )
  info = {"weights_sha256": checkpoint.tree_hash(params)}
  extractor = judge.make_extractor(model=model, params=params, dataset_name=dataset.name, info=info)
  placed = Placed(extractor, sharding.make_mesh(jax.devices()[:1]))
  for name, source in (("train", dataset.train), ("heldout", dataset.heldout)):
    info[f"{name}_accuracy"] = placed.accuracy(source, batch_size=section.batch_size)
  return params, info


class Placed:
  """An extractor on a mesh: images split over the devices, its parameters replicated."""

  def __init__(self, extractor, mesh):
    self.extractor, self.mesh = extractor, mesh
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    self._params = jax.device_put(extractor.params, whole)
    self._apply = jax.jit(extractor.apply, in_shardings=(whole, rows), out_shardings=(rows, rows))

  def empty(self):
    """Statistics of no images."""
    return statistics.SampleStatistics.empty(
      feature_dim=self.extractor.feature_dim, num_classes=self.extractor.num_classes
    )

  def __call__(self, images, *, count):
    """(features [count,D], probabilities [count,K]) on the host, of the first `count` of a batch on the devices."""
    features, probs = self._apply(self._params, images)
    return np.asarray(features)[:count], np.asarray(probs)[:count]

  def measure(self, source, *, batch_size):
    """SampleStatistics of every image of a data source, judged as samples are."""
    total = self.empty()
    with logs.Progress("judge", total=len(source), unit="images") as progress:
      for batch, valid in pipeline.epoch_batches(source, batch_size=batch_size):
        features, probs = self(sharding.put_batch(self.mesh, batch["image"]), count=valid)
        total = total.merge(statistics.SampleStatistics.of(features=features, probs=probs, labels=batch["label"][:valid]))
        progress.update(total.count)
    return total

  def accuracy(self, source, *, batch_size):
    """The share of a data source's labels that it agrees with."""
    stats = self.measure(source, batch_size=batch_size)
    return stats.correct / stats.count


def _write(path, params, info):
  files.write_npz(path, {**config_lib.flatten(params, separator=SEPARATOR), "info": np.asarray(json.dumps(info))})


def _read(path, identity):
  """(params, info), or None if the file is not there, not whole, or another config's."""
  if not path.exists():
    return None
  try:
    arrays = files.read_npz(path)
    info = json.loads(str(arrays.pop("info")))
  except (OSError, ValueError, KeyError) as e:
    log.warning("%s cannot be used (%s): the judge is trained anew", path, e)
    return None
  if info.get("identity") != identity:
    log.info("%s was made for another config: the judge is trained anew", path)
    return None
  params = config_lib.unflatten(arrays, separator=SEPARATOR)
  if checkpoint.tree_hash(params) != info["weights_sha256"]:
    log.warning("%s differs from its hash: the judge is trained anew", path)
    return None
  return params, info


def _read_accuracy(path, identity):
  """What `_published` wrote, or None if it is not there, not whole, or of other data."""
  try:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return stored if stored["identity"] == identity else None
  except (OSError, ValueError, KeyError, TypeError):
    return None
