"""Reference statistics: what real images gave in a network's outputs, with what made them; ours,
ADM's and EDM's files.

Ours is an .npz of "about" (JSON), "<output>/mean", "<output>/cov", "<output>/count",
"<output>/prob_sum", "<output>/plogp_sum" and "features". ADM's and EDM's hold mu and sigma of
pool_3, ADM's also mu_s and sigma_s of the spatial features, and the images behind precision and
recall, arr_0.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from cfg.base import files
from cfg.base.errors import UserError
from cfg.metrics import statistics

FORMAT = "cfg-reference-1"
# images whose features are kept for precision, recall and KID; ADM's evaluator has as many
KEPT = 10_000
OTHERS = {"pool_3": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class Reference:
  """What is known of real images in a network's outputs.

  Attributes:
    about: facts, JSON-able; "extractor_sha256", "num_images", "images_sha256" and "correct" where
      they are known.
    gaussians: {output: statistics.Gaussian or Moments}.
    features: [M,D] of the output behind precision and recall, or None.
    images: uint8 [M,H,W,3] to take features of, or None.
    sha256: of the file; of the pixels where there is none.
    entropies: {output: statistics.ClassEntropy}; empty in files of others.
  """

  about: dict
  gaussians: dict
  features: np.ndarray | None
  images: np.ndarray | None
  sha256: str
  entropies: dict = dataclasses.field(default_factory=dict)


def of(measured, *, about, sha256):
  """The Reference of statistics.SampleStatistics: KEPT of the features, evenly spaced."""
  features = np.concatenate(measured.features) if measured.features else None
  if features is not None:
    features = features[
      np.linspace(0, len(features) - 1, min(KEPT, len(features))).round().astype(int)
    ]
  about = {
    **about,
    "num_images": measured.count,
    **({} if measured.correct is None else {"correct": measured.correct}),
  }
  return Reference(about, measured.gaussians, features, None, sha256, measured.entropies)


def write(path, found):
  """Write a Reference of our own measuring to our file; equal content makes an equal file."""
  arrays = {"about": np.asarray(json.dumps({"format": FORMAT, **found.about}, sort_keys=True))}
  for output, gaussian in found.gaussians.items():
    arrays |= {
      f"{output}/mean": gaussian.mean,
      f"{output}/cov": gaussian.cov,
      f"{output}/count": np.asarray(gaussian.count),
    }
  for output, entropy in found.entropies.items():
    arrays |= {
      f"{output}/prob_sum": entropy.prob_sum,
      f"{output}/plogp_sum": np.asarray(entropy.plogp_sum),
    }
  features = np.zeros((0, 1)) if found.features is None else found.features
  files.write_npz(pathlib.Path(path), {**arrays, "features": np.asarray(features, np.float32)})


def read(path, *, dims=None):
  """The Reference in a file of ours, ADM's or EDM's.

  Args:
    path: of the file.
    dims: {output: number of features} of the network that it is to be used with, where known.

  Raises:
    UserError: none of these, or a damaged one.
  """
  path = pathlib.Path(path).expanduser()
  try:
    arrays = files.read_npz(path)
    entropies = {}
    if "about" in arrays:
      about, gaussians, features, entropies = _ours(arrays)
    else:
      about = {"format": "published statistics", "name": path.name}
      gaussians = {
        space: statistics.Moments(arrays[mean], arrays[cov])
        for space, (mean, cov) in OTHERS.items()
        if mean in arrays and cov in arrays
      }
      features = None
    images = arrays.get("arr_0")
  except OSError as e:
    raise UserError(f"cannot read the reference {str(path)!r}: {e.strerror or e}.") from e
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(
      f"the reference {str(path)!r} cannot be used ({e}): make it again, or get it again."
    ) from e
  if not gaussians:
    raise UserError(
      f"the reference {str(path)!r} has {', '.join(arrays) or 'nothing'}: it must be a file of "
      f"--make_reference, or have mu and sigma as ADM's and EDM's."
    )
  for space, stats in gaussians.items():
    dim = (dims or {}).get(space, stats.mean.size)
    if (
      stats.mean.shape != (dim,)
      or stats.cov.shape != (dim, dim)
      or not np.isfinite(stats.cov).all()
    ):
      raise UserError(
        f"the reference {str(path)!r} has a mean of {list(stats.mean.shape)} and a covariance of "
        f"{list(stats.cov.shape)} in {space}, which has {dim} features."
      )
  with path.open("rb") as file:
    return Reference(
      about, gaussians, features, images, hashlib.file_digest(file, "sha256").hexdigest(), entropies
    )


def _ours(arrays):
  about = json.loads(str(arrays["about"]))
  if about.pop("format") != FORMAT:
    raise ValueError("its format is not known here")
  spaces = [name.removesuffix("/mean") for name in arrays if name.endswith("/mean")]
  gaussians = {}
  for space in spaces:
    count = int(arrays[f"{space}/count"])
    gaussians[space] = statistics.Gaussian(
      count, arrays[f"{space}/mean"], arrays[f"{space}/cov"] * (count - 1)
    )
  entropies = {
    name.removesuffix("/prob_sum"): statistics.ClassEntropy(
      about["num_images"], sums, float(arrays[name.replace("/prob_sum", "/plogp_sum")])
    )
    for name, sums in arrays.items()
    if name.endswith("/prob_sum")
  }
  return about, gaussians, arrays["features"] if len(arrays["features"]) else None, entropies
