"""What real images gave in the outputs of extractors: measured once and kept, or from a file."""

import dataclasses
import functools
import logging
import pathlib
from collections.abc import Iterable

import numpy as np

from cfg.base import config as config_lib
from cfg.base import hosts, paths
from cfg.base.errors import UserError
from cfg.data import pipeline
from cfg.features.extractor import Extractor, combine
from cfg.features.placed import PlacedExtractor, each
from cfg.features.reference_files import (
  check_count,
  check_reference,
  measure_reference,
  open_reference,
)
from cfg.metrics import reference
from cfg.metrics.metric import fact
from cfg.metrics.reference import Reference

log = logging.getLogger(__name__)

# facts of a role that two rows must agree in for their numbers to be comparable
DECIDING = ("sha256", "resize", "train_sha256", "heldout_sha256")


@dataclasses.dataclass(frozen=True, eq=False)
class Measured:
  """An extractor, and what real images gave in it; `heldout` is None where there are none."""

  extractor: Extractor
  train: Reference
  heldout: Reference | None = None


def measure_all(
  config, settings, *, dataset, extractors: Iterable[Extractor], mesh, workdir, heldout=True
) -> tuple[Measured, ...]:
  """The Measured of each extractor; its references are kept in `workdir`/real.

  Of the training split all images are measured, or as many as the extractor's section of the config
  says (num_reference, 0: all); a file of statistics or images in that section (reference) takes
  their place. Of the held-out split as many are measured as a strength has samples.

  Args:
    config: the whole config.
    settings: of the sweep; num_samples and batch_size are used.
    dataset: data.dataset_lib.Dataset.
    extractors: from select.extractors.
    mesh: from sharding.make_mesh.
    workdir: of the run.
    heldout: whether held-out images are measured.
  """
  folder = paths.as_path(workdir) / "real"
  measured = []
  for extractor in extractors:
    placed = PlacedExtractor(extractor, mesh)
    splits = _Splits(config, dataset=dataset, placed=placed, settings=settings, folder=folder)
    path = _section(config, extractor).get("reference", "")
    if path:
      source = open_reference(path, extractor=extractor)
      train = measure_reference(
        source, name=pathlib.Path(path).name, placed=placed, batch_size=settings.batch_size
      )
    else:
      train = splits.measure("train", most=_most_train(config, extractor))
    measured.append(
      Measured(
        extractor=extractor,
        train=train,
        heldout=splits.measure("heldout", most=settings.num_samples) if heldout else None,
      )
    )
  return tuple(measured)


def combined(measured: Iterable[Measured]) -> Measured:
  """One Measured of several, for what is measured in all their outputs at once."""
  measured = tuple(measured)
  heldout = None
  if all(m.heldout is not None for m in measured):
    heldout = _union([m.heldout for m in measured])
  return Measured(
    extractor=combine(m.extractor for m in measured),
    train=_union([m.train for m in measured]),
    heldout=heldout,
  )


def facts(measured: Iterable[Measured]) -> dict:
  """{"<role>/name", "<role>/sha256", "<role>/train_sha256", ...}: what numbers were measured in and
  against, for rows.
  """
  values: dict = {}
  for extractor, train, heldout in ((m.extractor, m.train, m.heldout) for m in measured):
    own = {
      "name": extractor.name,
      "sha256": extractor.info["weights_sha256"],
      "train": train.about.get("name"),
      "train_sha256": train.about.get("images_sha256", train.sha256),
      "train_images": train.about.get("num_images"),
    }
    if heldout is not None:
      own["heldout_sha256"] = heldout.about["images_sha256"]
    for name in ("resize", "complete", "note"):
      if name in extractor.info:
        own[name] = extractor.info[name]
    values |= {fact(extractor.role, name): value for name, value in own.items()}
  return values


def check(config, settings, *, dataset, extractors: Iterable[Extractor]) -> None:
  """Raise UserError if real images cannot give the numbers; none is measured.

  Args:
    config: the whole config.
    settings: of the sweep; num_samples and allow_few are used.
    dataset: data.dataset_lib.Dataset.
    extractors: from select.outlines.
  """
  for extractor in extractors:
    allow_few = settings.allow_few and not extractor.judges
    remedy = "Use more images"
    if extractor.judges:
      remedy += ", or a judge with fewer features (judge.feature_dim of one that is trained here)"
    elif not allow_few:
      remedy += ", or set sweep.allow_few"
    path = _section(config, extractor).get("reference", "")
    if path:
      source = open_reference(path, extractor=extractor)
      check_reference(source, path, extractor=extractor, allow_few=allow_few, remedy=remedy)
    else:
      most = _most_train(config, extractor)
      check_count(
        len(dataset.train) if most is None else min(most, len(dataset.train)),
        "the training split",
        extractor=extractor,
        allow_few=allow_few,
        remedy=remedy,
      )
    # without enough of them the distances to held-out images are left out
    check_count(
      min(len(dataset.heldout), settings.num_samples),
      "the held-out split",
      extractor=extractor,
      allow_few=True,
      remedy="Hold out more (data.heldout_fraction)",
    )


class _Splits:
  """The splits of a data set in one network, each kept in a file."""

  def __init__(self, config, *, dataset, placed, settings, folder):
    self._dataset = dataset
    self._data = config_lib.data_identity(config, dataset)
    self._placed = placed
    self._batch_size = settings.batch_size
    self._folder = folder

  def measure(self, split, *, most):
    """The Reference of at most so many images of a split; read if it was measured before."""
    extractor = self._placed.extractor
    source = pipeline.every_nth(getattr(self._dataset, split), most=most)
    identity = {
      "data": self._data,
      "split": split,
      "num_images": len(source),
      "extractor_sha256": extractor.info["weights_sha256"],
    }
    path = self._folder / f"{extractor.name}-{split}.npz"
    kept = hosts.found(functools.partial(_kept, path, identity))
    if kept is not None:
      return kept
    (measured,), digest = self._placed.measure(
      each(source),
      block_of=np.zeros(len(source), int),
      batch_size=self._batch_size,
      what=f"real images ({split})",
    )
    about = {
      **identity,
      "name": f"{self._dataset.name} {split}",
      "images_sha256": digest,
      "extractor": extractor.name,
    }
    with hosts.together():
      self._folder.mkdir(exist_ok=True)
      reference.write(path, reference.of(measured, about=about, sha256=""))
    return reference.read(path)


def _kept(path, identity):
  """The Reference in a file, or None if it is not there, not whole, or of other images."""
  if not path.exists():
    return None
  try:
    kept = reference.read(path)
  except UserError as e:
    log.warning("%s Its images are measured again.", e)
    return None
  return kept if all(kept.about.get(name) == value for name, value in identity.items()) else None


def _union(references):
  """One Reference of several networks' outputs."""
  merge = lambda field: {
    output: value for r in references for output, value in getattr(r, field).items()
  }
  about = {
    "correct": {output: n for r in references for output, n in r.about.get("correct", {}).items()}
  }
  counts = [r.about["num_images"] for r in references if "num_images" in r.about]
  if counts:
    about["num_images"] = counts[-1]
  return Reference(
    about=about,
    gaussians=merge("gaussians"),
    sha256="",
    entropies=merge("entropies"),
    features=merge("features"),
  )


def _section(config, extractor):
  """The section of the config that an extractor comes from."""
  return config.get(extractor.role, {})


def _most_train(config, extractor):
  """How many images of the training split are measured at most; None: all."""
  return _section(config, extractor).get("num_reference", 0) or None
