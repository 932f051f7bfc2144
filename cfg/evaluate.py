"""python -m cfg.evaluate IMAGES --reference=REF --inception=WEIGHTS: FID and the rest of given images, with what made each number.

IMAGES are an .npz with arr_0, a folder, a zip, what --mode=sample left, or a prepared data set. REF is statistics, ours
(--make_reference) or ADM's or EDM's, or any images. Spaces that the weights, or the reference, do not have are left out.
"""

import argparse
import functools
import hashlib
import json
import pathlib
import zipfile

import jax
import numpy as np

import cfg
from cfg import files, logs, runtime, sharding
from cfg.data import inputs
from cfg.errors import UserError, run_command
from cfg.evaluation import inception, reference
from cfg.interop import inception as weights
from cfg.models import inception as inception_lib

# reference images whose features are kept for precision, recall and KID, evenly spaced; ADM's evaluator has as many
KEPT = 10_000
# rows of features that are waited for before they are added: a sum of [D,D] costs as much for one
GATHERED = 512
# what rows must agree in to be set side by side
COMPARABLE = ("extractor_sha256", "resize", "reference_sha256", "num_samples", "num_blocks", "allow_few")


class Network:
  """The Inception network of a file, on a mesh."""

  def __init__(self, path, *, mesh, batch_size):
    params, self.info = weights.read(path)
    self.outputs = inception_lib.available(params)
    self.mesh, self.batch_size = mesh, sharding.round_up(mesh, batch_size)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    self._params = jax.device_put(params, whole)
    self._apply = jax.jit(functools.partial(inception_lib.apply, outputs=self.outputs), in_shardings=(whole, rows), out_shardings=rows)

  def batches(self, images):
    """({output: float32 [n, dim]}, pixels uint8 [n,H,W,3]) of inputs.Images, n at most batch_size, in order."""
    shape = images.read(0).shape
    for first in range(0, images.count, self.batch_size):
      rows = range(first, min(first + self.batch_size, images.count))
      pixels = np.stack([_of_shape(images, i, shape) for i in rows])
      padded = np.concatenate([pixels, np.repeat(pixels[-1:], self.batch_size - len(rows), axis=0)])
      found = self._apply(self._params, sharding.put_batch(self.mesh, padded))
      yield {name: np.asarray(a)[: len(rows)] for name, a in found.items()}, pixels


def _of_shape(images, i, shape):
  pixels = images.read(i)
  if pixels.shape != shape:
    raise UserError(f"{images.name(i)} is {pixels.shape[1]}x{pixels.shape[0]} and {images.name(0)} is {shape[1]}x{shape[0]}: all images must be of one size.")
  return pixels


def measure(images, *, network, num_blocks):
  """(BlockStatistics of each block, SHA-256 of all pixels) of inputs.Images."""
  block_of = inception.block_of(images.count, num_blocks=num_blocks)
  blocks = [inception.BlockStatistics.empty(network.outputs)] * num_blocks
  digest, waiting, done = hashlib.sha256(), [], 0
  with logs.Progress("inception", total=images.count, unit="images") as progress:
    for outputs, pixels in network.batches(images):
      digest.update(pixels)
      waiting.append(outputs)
      gathered = sum(len(next(iter(some.values()))) for some in waiting)
      if gathered >= GATHERED or done + gathered == images.count:
        rows = {name: np.concatenate([some[name] for some in waiting]) for name in network.outputs}
        mine = block_of[done : done + gathered]
        for block in np.unique(mine):
          part = inception.BlockStatistics.of({name: a[mine == block] for name, a in rows.items()})
          blocks[block] = blocks[block].merge(part)
        done, waiting = done + gathered, []
        progress.update(done)
  return blocks, digest.hexdigest()


def make_reference(path, *, network, out):
  """Write the statistics of the images at `path` to the file `out`."""
  images = inputs.open_images(path)
  (block,), digest = measure(images, network=network, num_blocks=1)
  about = {
    "name": pathlib.Path(path).name, **images.about, "num_images": images.count, "images_sha256": digest, "image_shape": list(images.read(0).shape),
    "resize": inception.RESIZE, "extractor_sha256": network.info["weights_sha256"], "extractor_file": network.info["file"], "cfg_version": cfg.__version__,
  }
  reference.write(out, about=about, gaussians=block.gaussians, features=_some(np.concatenate(block.features or [np.zeros((0, 1))])))


def _some(features):
  return features[np.linspace(0, len(features) - 1, min(KEPT, len(features))).round().astype(int)]


def open_reference(path, *, network):
  """The reference.Reference at `path`, a file of statistics or images that are measured now.

  Raises:
    UserError: neither, or statistics of another network.
  """
  path = pathlib.Path(path).expanduser()
  if not _has_statistics(path):
    images = inputs.open_images(path)
    (block,), digest = measure(images, network=network, num_blocks=1)
    features = _some(np.concatenate(block.features)) if block.features else None
    return reference.Reference({"name": path.name, **images.about}, block.gaussians, features, None, digest)
  found = reference.read(path)
  theirs = found.about.get("extractor_sha256", network.info["weights_sha256"])
  if theirs != network.info["weights_sha256"]:
    raise UserError(
      f"the reference {str(path)!r} was made with the weights {theirs[:8]}, these are {network.info['weights_sha256'][:8]} ({network.info['file']}): "
      "use the same file, or make the reference again."
    )
  if found.features is None and found.images is not None and inception.pairwise_space(network.outputs):
    pixels = found.images
    images = inputs.Images(len(pixels), pixels.__getitem__, lambda i: f"{path.name}[{i}]", {})
    (block,), _ = measure(images, network=network, num_blocks=1)
    return reference.Reference(found.about, found.gaussians, _some(np.concatenate(block.features)), None, found.sha256)
  return found


def _has_statistics(path):
  if not (path.is_file() and path.suffix == ".npz" and zipfile.is_zipfile(path)):
    return False
  with zipfile.ZipFile(path) as archive:
    return bool({"about.npy", "mu.npy"} & set(archive.namelist()))


def evaluate(path, target, *, network, num_blocks=5, allow_few=False, extrapolate=False):
  """The row of the images at `path` against a reference.Reference: every number, its error, and what made it.

  Raises:
    UserError: too few images, for blocks or for a covariance.
  """
  images = inputs.open_images(path)
  if not 2 <= num_blocks <= images.count:
    raise UserError(f"--num_blocks is {num_blocks}: it must be at least 2, and at most the {images.count} images of {str(path)!r}.")
  outputs = [name for name in network.outputs if name not in inception.FRECHET or name in target.gaussians]
  counts = {"it": images.count, "the reference": min((g.count for g in target.gaussians.values() if g.count is not None), default=images.count)}
  which = min(counts, key=counts.get)
  too_few = inception.few(counts[which], outputs)
  if too_few and not allow_few:
    needs = ", ".join(f"{name} needs {least:,}" for name, least in too_few.items())
    raise UserError(
      f"{str(path)!r} cannot be measured: {which} has {counts[which]:,} images; {needs}: a covariance needs more images than features. Take more, or give --allow_few, for numbers that mean little."
    )
  space = inception.pairwise_space(outputs)
  least = min(images.count - -(-images.count // num_blocks), len(target.features) if target.features is not None else images.count)
  if space is not None and least <= inception.NEIGHBOURS:
    raise UserError(f"{least} images are too few for precision and recall with {inception.NEIGHBOURS} neighbours: draw more.")
  blocks, digest = measure(images, network=network, num_blocks=num_blocks)
  found = inception.compare(
    blocks, {"gaussians": target.gaussians, "features": target.features}, outputs=outputs, allow_few=allow_few, extrapolate=extrapolate
  )
  return {
    "images": str(path), **found, "num_samples": images.count, "num_blocks": num_blocks, "allow_few": allow_few,
    "images_sha256": digest, "image_shape": list(images.read(0).shape), "resize": inception.RESIZE, "uint8": "as given",
    "extractor": f"inception-2015-12-05-{network.info['weights_sha256'][:8]}", "extractor_sha256": network.info["weights_sha256"],
    "extractor_complete": network.info["complete"], "reference": target.about.get("name"), "reference_about": target.about,
    "reference_sha256": target.sha256, "sampled": images.about, "cfg_version": cfg.__version__,
  }


def _number(value):
  """10 characters: KID is a few thousandths, FID up to hundreds."""
  return f"{'-':>10}" if value is None else f"{value:10.4f}" if abs(value) >= 0.05 or value == 0 else f"{value:10.1e}"


def table(row):
  """The numbers of a row, aligned, and what they are."""
  names = [name for name in row if f"{name}_err" in row]
  width = max(map(len, names))
  lines = [f"{'':{width}}  {'value':>10}  {'±':>10}"]
  lines += [f"{name:{width}}  {_number(row[name])}  {_number(row[f'{name}_err'])}" for name in names]
  lines.append(f"{row['num_samples']:,} images of {row['images']} against {row['reference']}, in the features of {row['extractor']}; ±: jackknife (of KID over its subsets), {row['num_blocks']} blocks.")
  if not row["extractor_complete"]:
    lines.append("The weights are not complete: fid_768 and frechet_1280 are Fréchet distances in earlier layers, not FID, and cannot be set beside it.")
  if row["allow_few"]:
    lines.append("--allow_few: a Fréchet distance of no more images than features means little.")
  return "\n".join(lines)


def compare(first, second):
  """Two rows' numbers side by side, as text.

  Raises:
    UserError: they are not comparable.
  """
  rows = [_read_row(path) for path in (first, second)]
  differ = [f"{name} is {rows[0].get(name)!r} and {rows[1].get(name)!r}" for name in COMPARABLE if rows[0].get(name) != rows[1].get(name)]
  if differ:
    raise UserError(f"{first!r} and {second!r} cannot be compared: {'; '.join(differ)}.")
  names = [name for name in rows[0] if f"{name}_err" in rows[0] and name in rows[1]]
  width = max(map(len, names))
  lines = [f"{'':{width}}  {'first':>10}  {'second':>10}  {'difference':>10}"]
  lines += [f"{name:{width}}  {_number(rows[0][name])}  {_number(rows[1][name])}  {_number(rows[1][name] - rows[0][name])}" for name in names]
  return "\n".join(lines)


def _read_row(path):
  try:
    row = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    row["extractor_sha256"], row["num_samples"]
    return row
  except (OSError, ValueError, KeyError, TypeError) as e:
    raise UserError(f"{path!r} is no row of python -m cfg.evaluate ({e}): give what --out wrote.") from e


def main(argv=None):
  """The command line."""
  parser = argparse.ArgumentParser(prog="python -m cfg.evaluate", description="FID, sFID, Inception Score, precision, recall and KID of images, each with its error and what made it.")
  parser.add_argument("images", nargs="?", help="an .npz with arr_0, a folder or zip of images, the folder of a sample run, or a prepared data set")
  parser.add_argument("--reference", help="statistics (of --make_reference, ADM's or EDM's .npz), or images as above")
  parser.add_argument("--inception", help="weights of the Inception network: see python -m cfg.interop.inception")
  parser.add_argument("--out", help="the JSON file of the row, or the .npz of --make_reference")
  parser.add_argument("--make_reference", action="store_true", help="write the images' statistics to --out")
  parser.add_argument("--compare", nargs=2, metavar=("A", "B"), help="two rows side by side, if they can be compared")
  parser.add_argument("--batch_size", type=int, default=64, help="images at once, on all devices together")
  parser.add_argument("--num_blocks", type=int, default=5, help="of images, drawn at random, for the errors")
  parser.add_argument("--allow_few", action="store_true", help="Fréchet distances of fewer images than features")
  parser.add_argument("--extrapolate", action="store_true", help="also Fréchet distances at infinitely many images, where blocks are large enough")
  options = parser.parse_args(argv)
  if options.compare:
    print(compare(*options.compare))
    return
  needed = ("images", "inception", "out") if options.make_reference else ("images", "inception", "reference")
  if missing := [name for name in needed if not getattr(options, name)]:
    raise UserError(f"give {', '.join('IMAGES' if name == 'images' else f'--{name}' for name in missing)}: --help has the rest.")
  if options.out and not pathlib.Path(options.out).absolute().parent.is_dir():
    raise UserError(f"cannot write {options.out!r}: its folder is not there. Make it first.")
  if options.batch_size < 1:
    raise UserError(f"--batch_size is {options.batch_size}: it must be at least 1.")
  runtime.start(cpu_devices=1)
  network = Network(options.inception, mesh=sharding.make_mesh(), batch_size=options.batch_size)
  if options.make_reference:
    make_reference(options.images, network=network, out=options.out)
    print(f"{options.out}: statistics of {options.images} in {', '.join(network.outputs)}")
    return
  target = open_reference(options.reference, network=network)
  row = evaluate(
    options.images, target, network=network, num_blocks=options.num_blocks, allow_few=options.allow_few, extrapolate=options.extrapolate
  )
  if options.out:
    files.write_json(pathlib.Path(options.out), row)
  print(table(row))


if __name__ == "__main__":
  logs.to_stderr()
  run_command(main)
