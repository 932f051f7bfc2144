"""Real images in a network's outputs: read from a file of statistics, or measured once and kept."""

import logging
import pathlib
import zipfile

import numpy as np

from cfg.base import config as config_lib
from cfg.base.errors import UserError
from cfg.data import pipeline
from cfg.data.preparing import inputs
from cfg.features import placed as features
from cfg.metrics import reference

log = logging.getLogger(__name__)


def references(config, settings, *, dataset, placed, workdir):
  """(train, heldout): the reference.Reference of each split in one network's outputs.

  Both are kept in `workdir`/real. Of the held-out split, as many images as a strength has samples
  are measured; of the training split all, by Inception inception.num_reference (0: all).
  inception.reference, a file of statistics, takes the latter's place.

  Args:
    settings: of the sweep.
    placed: a features.Placed.
  """
  extractor, judged = placed.extractor, placed.extractor.classes is not None
  most = {
    "train": None if judged else config.inception.num_reference,
    "heldout": settings.num_samples,
  }
  found = []
  for split in most:
    if split == "train" and not judged and config.inception.reference:
      found.append(
        open_reference(config.inception.reference, placed=placed, batch_size=settings.batch_size)
      )
      continue
    source = pipeline.every_nth(getattr(dataset, split), most=most[split])
    facts = {
      "data": config_lib.data_identity(config, dataset),
      "split": split,
      "num_images": len(source),
      "extractor_sha256": extractor.info["weights_sha256"],
    }
    path = pathlib.Path(workdir) / "real" / f"{extractor.name}-{split}.npz"
    found.append(
      _kept(path, facts)
      or _measure(
        path,
        facts,
        source=source,
        placed=placed,
        name=f"{dataset.name} {split}",
        batch_size=settings.batch_size,
      )
    )
  return tuple(found)


def _kept(path, facts):
  """What `_measure` wrote, or None if it is not there, not whole, or of other images."""
  if not path.exists():
    return None
  try:
    found = reference.read(path)
  except UserError as e:
    log.warning("%s Its images are measured again.", e)
    return None
  return found if all(found.about.get(name) == value for name, value in facts.items()) else None


def _measure(path, facts, *, source, placed, name, batch_size):
  rows = features.each(source)
  (measured,), digest = placed.measure(
    rows,
    block_of=np.zeros(len(source), int),
    batch_size=batch_size,
    what=f"real images ({facts['split']})",
  )
  about = {**facts, "name": name, "images_sha256": digest, "extractor": placed.extractor.name}
  path.parent.mkdir(exist_ok=True)
  reference.write(path, reference.of(measured, about=about, sha256=""))
  return reference.read(path)


def open_reference(path, *, placed, batch_size):
  """The reference.Reference at `path`: a file of statistics, or images that are measured now.

  Raises:
    UserError: neither, or statistics of another network.
  """
  path = pathlib.Path(path).expanduser()
  if not _has_statistics(path):
    images = inputs.open_images(path)
    measured, digest = measure_images(images, placed=placed, batch_size=batch_size)
    return reference.of(measured, about={"name": path.name, **images.about}, sha256=digest)
  found = reference.read(path, dims=placed.extractor.dims)
  info = placed.extractor.info
  theirs = found.about.get("extractor_sha256", info["weights_sha256"])
  if theirs != info["weights_sha256"]:
    raise UserError(
      f"the reference {str(path)!r} was made with the weights {theirs[:8]}, these are "
      f"{info['weights_sha256'][:8]} ({info['file']}): "
      "use the same file, or make the reference again."
    )
  if found.features is None and found.images is not None and placed.extractor.pairwise is not None:
    pixels = found.images
    images = inputs.Images(len(pixels), pixels.__getitem__, lambda i: f"{path.name}[{i}]", {})
    measured, _ = measure_images(images, placed=placed, batch_size=batch_size)
    return reference.Reference(
      found.about,
      found.gaussians,
      reference.of(measured, about={}, sha256="").features,
      None,
      found.sha256,
    )
  return found


def together(found):
  """One Reference of several networks' outputs, for what is measured in all of them at once."""
  union = lambda field: {
    name: value for one in found for name, value in getattr(one, field).items()
  }
  about = {
    name: one.about[name]
    for one in found
    for name in ("num_images", "correct")
    if name in one.about
  }
  return reference.Reference(
    about,
    union("gaussians"),
    next((one.features for one in found if one.features is not None), None),
    None,
    "",
    union("entropies"),
  )


def _has_statistics(path):
  if not (path.is_file() and path.suffix == ".npz" and zipfile.is_zipfile(path)):
    return False
  with zipfile.ZipFile(path) as archive:
    return bool({"about.npy", "mu.npy"} & set(archive.namelist()))


def measure_images(images, *, placed, batch_size):
  """(statistics.SampleStatistics, SHA-256 of all pixels) of inputs.Images."""
  (measured,), digest = placed.measure(
    rows(images),
    block_of=np.zeros(images.count, int),
    batch_size=batch_size,
    what=placed.extractor.name,
  )
  return measured, digest


def rows(images):
  """{"image"} of each of inputs.Images, in order.

  Raises:
    UserError: their sizes differ.
  """
  shape = None
  for i in range(images.count):
    pixels = images.read(i)
    shape = shape or pixels.shape
    if pixels.shape != shape:
      raise UserError(
        f"{images.name(i)} is {pixels.shape[1]}x{pixels.shape[0]} and {images.name(0)} is "
        f"{shape[1]}x{shape[0]}: all images must be of one size."
      )
    yield {"image": pixels}
