"""Images and statistics that a user gives: looked at and checked, then measured."""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator

import numpy as np

from cfg.base.errors import UserError
from cfg.data.preparing import inputs, trees
from cfg.data.preparing.inputs import Images
from cfg.features.extractor import Extractor, Metric
from cfg.features.placed import PlacedExtractor
from cfg.metrics import reference, summary
from cfg.metrics.reference import Reference
from cfg.metrics.statistics import SampleStatistics


def check_reference(
  source: Reference | Images, path, *, extractor: Extractor, allow_few: bool, remedy: str
) -> None:
  """Raise UserError if `open_reference` found too few images for the numbers."""
  what = f"the reference {str(path)!r}"
  if isinstance(source, Images):
    check_count(source.count, what, extractor=extractor, allow_few=allow_few, remedy=remedy)
    return
  counts = [g.count for g in source.gaussians.values() if g.count is not None]
  metrics = [m for m in extractor.metrics if m.output in source.gaussians]
  if counts:
    check_count(
      min(counts), what, extractor=extractor, metrics=metrics, allow_few=allow_few, remedy=remedy
    )


def check_count(
  count: int,
  what: str,
  *,
  extractor: Extractor,
  allow_few: bool,
  remedy: str,
  metrics: Iterable[Metric] | None = None,
) -> None:
  """Raise UserError if so many images are too few for the extractor's metrics, or for `metrics` of
  them.
  """
  metrics = extractor.metrics if metrics is None else tuple(metrics)
  least = summary.least_images(metrics)
  few = summary.too_few(count, metrics=metrics, dims=extractor.dims)
  if few and not allow_few:
    dims = ", ".join(f"{key} ({images - 1:,})" for key, images in few.items())
    raise UserError(
      f"{count:,} images of {what} are too few: a covariance needs more images than there are "
      f"features, in {dims}. {remedy}."
    )
  if count < least:
    raise UserError(
      f"{count:,} images of {what} are too few: at least {least} are needed. {remedy}."
    )


def open_reference(path, *, extractor: Extractor) -> Reference | Images:
  """What is at `path`: statistics, read and checked; or images, of which none is measured yet.

  Raises:
    UserError: neither, or statistics of another network, or in none of the extractor's outputs.
  """
  path = pathlib.Path(path).expanduser()
  arrays = reference.names(path)
  if arrays is None or (not reference.has_statistics(arrays) and "arr_0" in arrays):
    return open_images(path)
  if not reference.has_statistics(arrays):
    raise UserError(f"the reference {str(path)!r} {reference.without_statistics(arrays)}")
  statistics = reference.read(path, dims=extractor.dims)
  ours = extractor.info["weights_sha256"]
  theirs = statistics.about.get("extractor_sha256", ours)
  file = extractor.info.get("file", extractor.name)
  if theirs != ours:
    raise UserError(
      f"the reference {str(path)!r} was made with the weights {theirs[:8]}, these are {ours[:8]} "
      f"({file}): use the same file, or make the reference again."
    )
  if not statistics.gaussians.keys() & set(extractor.outputs("frechet")):
    raise UserError(
      f"nothing can be measured against {str(path)!r}: the weights ({file}) have "
      f"no {' and no '.join(statistics.gaussians)}, which is all that the reference has. Use "
      "weights that have it, or give the real images themselves."
    )
  return statistics


def open_images(path) -> Images:
  """inputs.open_images of something that may hold images.

  Raises:
    UserError: nothing is there, or something else.
  """
  path = pathlib.Path(path).expanduser()
  if not path.exists():
    raise UserError(f"{str(path)!r} was not found.")
  known = path.is_dir() or path.suffix == ".npz"
  if not known and not trees.is_archive(path):
    raise UserError(
      f"{str(path)!r} is no set of images: give an .npz with arr_0 (uint8 [N,H,W,3]), a folder, "
      "zip or tar of images, or a prepared data set."
    )
  return inputs.open_images(path)


def measure_reference(
  source: Reference | Images, *, name: str, placed: PlacedExtractor, batch_size: int
) -> Reference:
  """The Reference of what `open_reference` found, and its name: images are measured, and features
  taken of the images that ADM's files bring.
  """
  if isinstance(source, Images):
    measured, digest = measure_images(source, placed=placed, batch_size=batch_size)
    return reference.of(measured, about={"name": name, **source.about}, sha256=digest)
  pixels = source.images
  wanted = placed.extractor.outputs("precision", "recall", "kid")
  if pixels is None or source.features or not wanted:
    return source
  images = Images(len(pixels), pixels.__getitem__, lambda i: f"arr_0[{i}]", {})
  measured, _ = measure_images(images, placed=placed, batch_size=batch_size)
  features = reference.of(measured, about={}, sha256="").features
  return dataclasses.replace(source, features=features, images=None)


def measure_images(
  images: Images, *, placed: PlacedExtractor, batch_size: int
) -> tuple[SampleStatistics, str]:
  """(their statistics, SHA-256 of all pixels)."""
  (measured,), digest = placed.measure(
    rows(images),
    block_of=np.zeros(images.count, int),
    batch_size=batch_size,
    what=placed.extractor.name,
  )
  return measured, digest


def rows(images: Images) -> Iterator[dict]:
  """{"image"} of each, in order.

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
