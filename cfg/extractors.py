"""The feature extractor that a config asks for: trained once, kept in the work directory."""

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
from cfg.evaluation import judge, statistics
from cfg.models import judge as judge_lib

log = logging.getLogger(__name__)

SEPARATOR = "/"


def get_judge(config, *, dataset, workdir):
  """The judge of this data and config: read from `<workdir>/judge.npz`, or trained and written there.

  Raises:
    UserError: its held-out accuracy is below config.judge.min_accuracy.
  """
  path = pathlib.Path(workdir) / "judge.npz"
  section = config.judge
  model = judge_lib.Judge(
    num_classes=dataset.num_classes, ch=section.ch, levels=section.levels,
    feature_dim=section.feature_dim, dropout=section.dropout,
  )
  identity = _identity(config, dataset)
  stored = _read(path, identity)
  if stored is None:
    stored = _train(config, model=model, dataset=dataset)
    stored[1]["identity"] = identity
    _write(path, *stored)
  params, info = stored
  extractor = judge.make_extractor(model=model, params=params, dataset_name=dataset.name, info=info)
  log.info("%s: accuracy on the %d held-out images %.2f %%", extractor.name, len(dataset.heldout), 100 * info["heldout_accuracy"])
  if info["heldout_accuracy"] < section.min_accuracy:
    raise UserError(
      f"the judge {extractor.name} agrees with {100 * info['heldout_accuracy']:.2f} % of the held-out labels, below "
      f"judge.min_accuracy = {section.min_accuracy}: its verdicts would mean little. Train it longer (judge.num_steps), "
      "make it larger (judge.ch), or lower judge.min_accuracy."
    )
  return extractor


def _identity(config, dataset):
  """What decides the judge's weights, as a hash."""
  fields = config_lib.to_json(config)
  facts = {
    "seed": fields["seed"], "data": fields["data"],
    "judge": {k: v for k, v in fields["judge"].items() if k != "min_accuracy"},
    "class_names": dataset.class_names, "image_shape": dataset.image_shape, "train": len(dataset.train),
  }
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
    stats = placed.measure(source, batch_size=section.batch_size)
    info[f"{name}_accuracy"] = stats.correct / stats.count
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
    for batch, valid in pipeline.epoch_batches(source, batch_size=batch_size):
      features, probs = self(sharding.put_batch(self.mesh, batch["image"]), count=valid)
      total = total.merge(statistics.SampleStatistics.of(features=features, probs=probs, labels=batch["label"][:valid]))
    return total


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
