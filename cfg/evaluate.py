"""python -m cfg.evaluate IMAGES --reference=REF --inception=WEIGHTS: FID and the rest of given
images, with what made each number.

IMAGES are an .npz with arr_0, a folder, a zip, what --mode=sample left, or a prepared data set. REF
is statistics, ours (--make_reference) or ADM's or EDM's, or any images. Spaces that the weights, or
the reference, do not have are left out. The options are read with argparse, as those of all
commands but cfg.main, whose config file needs absl's flags.
"""

import argparse
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

import cfg
from cfg.base import files, progress, runtime, sharding
from cfg.base.errors import UserError, run_command
from cfg.base.paths import path_argument
from cfg.features import inception, reference_files, references
from cfg.features.placed import PlacedExtractor
from cfg.features.references import Measured
from cfg.metrics import reference, summary
from cfg.metrics.metric import Metric, fact, roles
from cfg.report import differences, table

# facts that rows must agree in to be compared, besides those of each role
DECIDING = ("strength", "num_samples", "num_blocks", "allow_few", "sweep.allow_few", "uint8")
FEW_REMEDY = "Take more, or give --allow_few, for numbers that mean little"


class Network:
  """The Inception network of a file, on a mesh."""

  def __init__(self, path, *, mesh, batch_size: int):
    params, info = inception.read(path)
    self.extractor = inception.make_extractor(params=params, info=info)
    self.placed = PlacedExtractor(self.extractor, mesh)
    self.batch_size = batch_size


def make_reference(path, *, network: Network, out) -> None:
  """Write the statistics of the images at `path` to the file `out`."""
  images = reference_files.open_images(path)
  extractor = network.extractor
  reference_files.check_count(
    images.count, repr(str(path)), extractor=extractor, allow_few=True, remedy="Take more"
  )
  measured, digest = reference_files.measure_images(
    images, placed=network.placed, batch_size=network.batch_size
  )
  about = {
    "name": pathlib.Path(path).name,
    **images.about,
    "images_sha256": digest,
    "image_shape": list(images.read(0).shape),
    "resize": extractor.info["resize"],
    "extractor_sha256": extractor.info["weights_sha256"],
    "extractor_file": extractor.info["file"],
    "cfg_version": cfg.__version__,
  }
  reference.write(out, reference.of(measured, about=about, sha256=""))


def block_of(count: int, *, num_blocks: int, seed: int = 0) -> np.ndarray:
  """The block of each image: equal ones, drawn at random, since images come sorted by class often
  enough.
  """
  return np.random.default_rng(seed).permutation(count) % num_blocks


def check_blocks(path, images, *, extractor, num_blocks: int, allow_few: bool) -> None:
  """Raise UserError if there are too few images, for blocks or for a covariance."""
  if not 2 <= num_blocks <= images.count:
    raise UserError(
      f"--num_blocks is {num_blocks}: it must be at least 2, and at most the {images.count} images "
      f"of {str(path)!r}."
    )
  reference_files.check_count(
    images.count, repr(str(path)), extractor=extractor, allow_few=allow_few, remedy=FEW_REMEDY
  )
  without_largest = images.count - -(-images.count // num_blocks)
  reference_files.check_count(
    without_largest,
    f"{str(path)!r}, without one of the {num_blocks} blocks that errors are made of,",
    extractor=extractor,
    allow_few=True,
    remedy="Take more",
  )


def evaluate(
  path,
  reference_path,
  *,
  network: Network,
  num_blocks: int = 5,
  allow_few: bool = False,
  extrapolate: bool = False,
) -> dict:
  """The row of the images at `path` against those, or the statistics, at `reference_path`: every
  number, its error, and what made it. Both are looked at before any image is measured.

  Raises:
    UserError: one of them cannot be used, or has too few images.
  """
  extractor = network.extractor
  images = reference_files.open_images(path)
  source = reference_files.open_reference(reference_path, extractor=extractor)
  check_blocks(path, images, extractor=extractor, num_blocks=num_blocks, allow_few=allow_few)
  reference_files.check_reference(
    source, reference_path, extractor=extractor, allow_few=allow_few, remedy=FEW_REMEDY
  )
  target = reference_files.measure_reference(
    source,
    name=pathlib.Path(reference_path).name,
    placed=network.placed,
    batch_size=network.batch_size,
  )
  blocks, digest = network.placed.measure(
    reference_files.rows(images),
    block_of=block_of(images.count, num_blocks=num_blocks),
    batch_size=network.batch_size,
    what=extractor.name,
  )
  numbers = summary.summarise(
    blocks, metrics=extractor.metrics, train=target, allow_few=allow_few, extrapolate=extrapolate
  )
  return {
    "images": str(path),
    **numbers,
    "allow_few": allow_few,
    "images_sha256": digest,
    "image_shape": list(images.read(0).shape),
    "uint8": "as given",
    **references.facts([Measured(extractor=extractor, train=target)]),
    "reference_about": target.about,
    "sampled": images.about,
    "cfg_version": cfg.__version__,
    "metrics": table.to_json(m for m in extractor.metrics if m.key in numbers),
  }


def compare(first: str, second: str) -> str:
  """The numbers of two rows, or of two sweeps strength by strength, side by side, and how well the
  differences are known, as text.

  Raises:
    UserError: they are not comparable.
  """
  ours, metrics = _read_rows(first)
  theirs, their_metrics = _read_rows(second)
  strengths = [w for w in ours if w in theirs]
  if not strengths:
    raise UserError(
      f"{first!r} and {second!r} cannot be compared: they have no strength in common, or one is a "
      f"sweep and the other is not."
    )
  facts = [
    deciding_facts(rows[strengths[0]], [*metrics, *their_metrics]) for rows in (ours, theirs)
  ]
  differ = [
    f"{name} is {value!r} and {facts[1][name]!r}"
    for name, value in facts[0].items()
    if value != facts[1][name]
  ]
  if differ:
    raise UserError(f"{first!r} and {second!r} cannot be compared: {'; '.join(differ)}.")
  common = [metric for metric in metrics if metric in their_metrics]
  compared = [differences.between(ours[w], theirs[w], common) for w in strengths]
  tables = [differences.difference_table(comparison, common) for comparison in compared]
  return "\n".join([*tables, *differences.notes(compared, common)])


def deciding_facts(row: Mapping, metrics: Sequence[Metric]) -> dict:
  """What a row must share with another to be compared with it: how its numbers were measured, and
  in what. What made the images may differ.
  """
  by_role = [fact(role, name) for role in roles(metrics) for name in references.DECIDING]
  return {name: row.get(name) for name in (*DECIDING, *by_role)}


def _read_rows(path):
  """({None: the row of cfg.evaluate}, or {w: row} of a sweep; their metrics)."""
  try:
    content = files.read_json(path)
    metrics = table.from_json(content["metrics"])
    if "rows" not in content:
      return {None: content}, metrics
    rows = {row["w"]: row for row in content["rows"]}
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{path!r} is no row of python -m cfg.evaluate, nor a sweep.json ({e}): give what --out or a "
      f"sweep wrote."
    ) from e
  if len(rows) < len(content["rows"]):
    raise UserError(
      f"{path!r} has several rows of one strength, of different samplers or averages: compare "
      f"sweeps of one."
    )
  return rows, metrics


def main(argv=None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cfg.evaluate",
    description="FID, sFID, Inception Score, precision, recall and KID of images, each with its "
    "error and what made it.",
  )
  parser.add_argument(
    "images",
    nargs="?",
    type=path_argument("IMAGES"),
    help="an .npz with arr_0, a folder or zip of images, the folder of a sample run, or a prepared "
    "data set",
  )
  parser.add_argument(
    "--reference",
    type=path_argument("--reference"),
    help="statistics (of --make_reference, ADM's or EDM's .npz), or images as above",
  )
  parser.add_argument(
    "--inception",
    type=path_argument("--inception"),
    help="weights of the Inception network: see python -m cfg.interop.inception",
  )
  parser.add_argument(
    "--out",
    type=path_argument("--out"),
    help="the JSON file of the row, or the .npz of --make_reference",
  )
  parser.add_argument(
    "--make_reference", action="store_true", help="write the images' statistics to --out"
  )
  parser.add_argument(
    "--compare",
    nargs=2,
    type=path_argument("--compare"),
    metavar=("A", "B"),
    help="two rows, or two sweep.json, side by side, if they can be compared",
  )
  parser.add_argument(
    "--batch_size",
    type=int,
    help="images at once, on all devices together; default: 64 for each accelerator, 8 for each "
    "CPU core",
  )
  parser.add_argument(
    "--num_blocks", type=int, default=5, help="of images, drawn at random, for the errors"
  )
  parser.add_argument(
    "--allow_few", action="store_true", help="Fréchet distances of fewer images than features"
  )
  parser.add_argument(
    "--extrapolate",
    action="store_true",
    help="also Fréchet distances at infinitely many images, where blocks are large enough",
  )
  options = parser.parse_args(argv)
  if options.compare:
    print(compare(*options.compare))
    return
  needed = (
    ("images", "inception", "out")
    if options.make_reference
    else ("images", "inception", "reference")
  )
  if missing := [name for name in needed if not getattr(options, name)]:
    raise UserError(
      f"give {', '.join('IMAGES' if name == 'images' else f'--{name}' for name in missing)}: "
      f"--help has the rest."
    )
  if options.out and not pathlib.Path(options.out).absolute().parent.is_dir():
    raise UserError(f"cannot write {options.out!r}: its folder is not there. Make it first.")
  if options.batch_size is not None and options.batch_size < 1:
    raise UserError(f"--batch_size is {options.batch_size}: it must be at least 1.")
  runtime.start(cpu_devices=runtime.cores())
  mesh = sharding.make_mesh()
  # on a CPU memory is mapped anew for every batch: large ones are slower
  batch_size = options.batch_size or mesh.size * (
    8 if mesh.devices.flat[0].platform == "cpu" else 64
  )
  network = Network(options.inception, mesh=mesh, batch_size=batch_size)
  if options.make_reference:
    make_reference(options.images, network=network, out=options.out)
    spaces = ", ".join(network.extractor.outputs("frechet"))
    print(f"{options.out}: statistics of {options.images} in {spaces}")
    return
  row = evaluate(
    options.images,
    options.reference,
    network=network,
    num_blocks=options.num_blocks,
    allow_few=options.allow_few,
    extrapolate=options.extrapolate,
  )
  if options.out:
    files.write_json(pathlib.Path(options.out), row)
  print(table.image_table(row))


if __name__ == "__main__":
  progress.to_stderr()
  run_command(main)
