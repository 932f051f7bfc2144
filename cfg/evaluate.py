"""python -m cfg.evaluate IMAGES --reference=REF --inception=WEIGHTS: FID and the rest of given images, with what made each number.

IMAGES are an .npz with arr_0, a folder, a zip, what --mode=sample left, or a prepared data set. REF
is statistics, ours (--make_reference) or ADM's or EDM's, or any images. Spaces that the weights, or
the reference, do not have are left out.
"""

import argparse
import json
import pathlib

import numpy as np

import cfg
from cfg.base import files, progress, runtime, sharding
from cfg.base.errors import UserError, run_command
from cfg.data.preparing import inputs
from cfg.features import inception, placed, references
from cfg.interop import inception as weights
from cfg.metrics import reference, summary

# what rows must agree in to be set side by side
COMPARABLE = (
  "extractor_sha256",
  "resize",
  "reference_sha256",
  "num_samples",
  "num_blocks",
  "allow_few",
  "uint8",
  "judge_sha256",
  "judge_reference_sha256",
  "heldout_sha256",
)


class Network:
  """The Inception network of a file, on a mesh."""

  def __init__(self, path, *, mesh, batch_size):
    params, info = weights.read(path)
    self.extractor = inception.make_extractor(params=params, info=info)
    self.placed, self.batch_size = placed.Placed(self.extractor, mesh), batch_size

  def open_reference(self, path):
    """real.open_reference."""
    return references.open_reference(path, placed=self.placed, batch_size=self.batch_size)


def make_reference(path, *, network, out):
  """Write the statistics of the images at `path` to the file `out`."""
  images = inputs.open_images(path)
  measured, digest = references.measure_images(
    images, placed=network.placed, batch_size=network.batch_size
  )
  info = network.extractor.info
  about = {
    "name": pathlib.Path(path).name,
    **images.about,
    "images_sha256": digest,
    "image_shape": list(images.read(0).shape),
    "resize": info["resize"],
    "extractor_sha256": info["weights_sha256"],
    "extractor_file": info["file"],
    "cfg_version": cfg.__version__,
  }
  reference.write(out, reference.of(measured, about=about, sha256=""))


def block_of(count, *, num_blocks, seed=0):
  """The block of each image: equal ones, drawn at random, since images come sorted by class often
  enough.
  """
  return np.random.default_rng(seed).permutation(count) % num_blocks


def check(path, images, target, *, extractor, num_blocks, allow_few):
  """Raise UserError if there are too few images, for blocks or for a covariance."""
  if not 2 <= num_blocks <= images.count:
    raise UserError(
      f"--num_blocks is {num_blocks}: it must be at least 2, and at most the {images.count} images "
      f"of {str(path)!r}."
    )
  counts = {
    "it": images.count,
    "the reference": min(
      (g.count for g in target.gaussians.values() if g.count is not None), default=images.count
    ),
  }
  which = min(counts, key=counts.get)
  few = {
    name: least
    for name, least in summary.too_few(counts[which], extractor).items()
    if name in {extractor.frechet[o] for o in target.gaussians if o in extractor.frechet}
  }
  if few and not allow_few:
    needs = ", ".join(f"{name} needs {least:,}" for name, least in few.items())
    raise UserError(
      f"{str(path)!r} cannot be measured: {which} has {counts[which]:,} images; {needs}: a "
      f"covariance needs more images than features. Take more, or give --allow_few, for numbers "
      f"that mean little."
    )
  least = min(
    images.count - -(-images.count // num_blocks),
    len(target.features) if target.features is not None else images.count,
  )
  if extractor.pairwise is not None and least <= summary.NEIGHBOURS:
    raise UserError(
      f"{least} images are too few for precision and recall with {summary.NEIGHBOURS} neighbours: "
      f"draw more."
    )


def evaluate(path, target, *, network, num_blocks=5, allow_few=False, extrapolate=False):
  """The row of the images at `path` against a reference.Reference: every number, its error, and
  what made it.

  Raises:
    UserError: as `check`.
  """
  images, extractor = inputs.open_images(path), network.extractor
  check(path, images, target, extractor=extractor, num_blocks=num_blocks, allow_few=allow_few)
  blocks, digest = network.placed.measure(
    references.rows(images),
    block_of=block_of(images.count, num_blocks=num_blocks),
    batch_size=network.batch_size,
    what=extractor.name,
  )
  found = summary.summarise(
    blocks, extractor=extractor, train=target, allow_few=allow_few, extrapolate=extrapolate
  )
  return {
    "images": str(path),
    **found,
    "allow_few": allow_few,
    "images_sha256": digest,
    "image_shape": list(images.read(0).shape),
    "resize": extractor.info["resize"],
    "uint8": "as given",
    "extractor": extractor.name,
    "extractor_sha256": extractor.info["weights_sha256"],
    "extractor_complete": extractor.info["complete"],
    "reference": target.about.get("name"),
    "reference_about": target.about,
    "reference_sha256": target.sha256,
    "sampled": images.about,
    "cfg_version": cfg.__version__,
  }


def _number(value):
  """10 characters: KID is a few thousandths, FID up to hundreds."""
  return (
    f"{'-':>10}"
    if value is None
    else f"{value:10.4f}"
    if abs(value) >= 0.05 or value == 0
    else f"{value:10.1e}"
  )


def table(row):
  """The numbers of a row, aligned, and what they are."""
  names = [name for name in row if f"{name}_err" in row]
  width = max(map(len, names))
  lines = [f"{'':{width}}  {'value':>10}  {'±':>10}"]
  lines += [
    f"{name:{width}}  {_number(row[name])}  {_number(row[f'{name}_err'])}" for name in names
  ]
  lines.append(
    f"{row['num_samples']:,} images of {row['images']} against {row['reference']}, in the features "
    f"of {row['extractor']}; ±: standard error, from {row['num_blocks']} blocks."
  )
  if not row["extractor_complete"]:
    lines.append(
      "The weights are not complete: fid_768 and frechet_1280 are Fréchet distances in earlier "
      "layers, not FID, and cannot be set beside it."
    )
  if row["allow_few"]:
    lines.append("--allow_few: a Fréchet distance of no more images than features means little.")
  return "\n".join(lines)


def compare(first, second):
  """The numbers of two rows, or of two sweeps strength by strength, side by side, as text.

  Raises:
    UserError: they are not comparable.
  """
  ours, theirs = (_read_rows(path) for path in (first, second))
  if not (both := [w for w in ours if w in theirs]):
    raise UserError(
      f"{first!r} and {second!r} cannot be compared: they have no strength in common, or one is a "
      f"sweep and the other is not."
    )
  differ = [
    f"{name} is {ours[w].get(name)!r} and {theirs[w].get(name)!r}"
    for w in both[:1]
    for name in COMPARABLE
    if ours[w].get(name) != theirs[w].get(name)
  ]
  if differ:
    raise UserError(f"{first!r} and {second!r} cannot be compared: {'; '.join(differ)}.")
  names = [
    name for name in ours[both[0]] if f"{name}_err" in ours[both[0]] and name in theirs[both[0]]
  ]
  width = max(map(len, names))
  lines = []
  for w in both:
    lines.append(
      f"{'' if w is None else f'w = {w:g} (scale = {1 + w:g})':{width}}  {'first':>10}  "
      f"{'second':>10}  {'difference':>10}"
    )
    lines += [
      f"{name:{width}}  " + "  ".join(map(_number, _pair(ours[w][name], theirs[w][name])))
      for name in names
    ]
  return "\n".join(lines)


def _pair(a, b):
  return a, b, None if a is None or b is None else b - a


def _read_rows(path):
  """{None: the row of cfg.evaluate}, or {w: row} of a sweep."""
  try:
    content = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    rows = {row["w"]: row for row in content["rows"]} if "rows" in content else {None: content}
    if len(rows) < len(content.get("rows", rows)):
      raise UserError(
        f"{path!r} has several rows of one strength, of different samplers or averages: compare "
        f"sweeps of one."
      )
    for row in rows.values():
      row["extractor_sha256"], row["num_samples"]
    return rows
  except (OSError, ValueError, KeyError, TypeError, AttributeError) as e:
    raise UserError(
      f"{path!r} is no row of python -m cfg.evaluate, nor a sweep.json ({e}): give what --out or a "
      f"sweep wrote."
    ) from e


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
    help="an .npz with arr_0, a folder or zip of images, the folder of a sample run, or a prepared "
    "data set",
  )
  parser.add_argument(
    "--reference", help="statistics (of --make_reference, ADM's or EDM's .npz), or images as above"
  )
  parser.add_argument(
    "--inception", help="weights of the Inception network: see python -m cfg.interop.inception"
  )
  parser.add_argument("--out", help="the JSON file of the row, or the .npz of --make_reference")
  parser.add_argument(
    "--make_reference", action="store_true", help="write the images' statistics to --out"
  )
  parser.add_argument(
    "--compare",
    nargs=2,
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
    print(
      f"{options.out}: statistics of {options.images} in {', '.join(network.extractor.frechet)}"
    )
    return
  target = network.open_reference(options.reference)
  row = evaluate(
    options.images,
    target,
    network=network,
    num_blocks=options.num_blocks,
    allow_few=options.allow_few,
    extrapolate=options.extrapolate,
  )
  if options.out:
    files.write_json(pathlib.Path(options.out), row)
  print(table(row))


if __name__ == "__main__":
  progress.to_stderr()
  run_command(main)
