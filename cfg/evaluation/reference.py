"""Reference statistics: what real images gave in Inception's spaces, with what made them; ours, ADM's and EDM's files.

Ours is an .npz of "about" (JSON), "<space>/mean", "<space>/cov", "<space>/count" and "features". ADM's and EDM's hold mu and
sigma of pool_3, ADM's also mu_s and sigma_s of the spatial features, and the images behind precision and recall, arr_0.
"""

import dataclasses
import hashlib
import json
import pathlib

import numpy as np

from cfg import files
from cfg.errors import UserError
from cfg.evaluation import statistics
from cfg.models import inception

FORMAT = "cfg-reference-1"
OTHERS = {"pool_3": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True)
class Reference:
  """Moments of real images in Inception's spaces.

  Attributes:
    about: facts, JSON-able; "extractor_sha256" where it is known.
    gaussians: {space: statistics.Gaussian or Moments}.
    features: [M,D] of evaluation.inception.pairwise_space, or None.
    images: uint8 [M,H,W,3] to take features of, or None.
    sha256: of the file.
  """

  about: dict
  gaussians: dict
  features: np.ndarray | None
  images: np.ndarray | None
  sha256: str


def write(path, *, about, gaussians, features):
  """Write our file; equal content makes an equal file."""
  arrays = {"about": np.asarray(json.dumps({"format": FORMAT, **about}, sort_keys=True))}
  for space, gaussian in gaussians.items():
    arrays |= {f"{space}/mean": gaussian.mean, f"{space}/cov": gaussian.cov, f"{space}/count": np.asarray(gaussian.count)}
  files.write_npz(pathlib.Path(path), {**arrays, "features": np.asarray(features, np.float32)})


def read(path):
  """The Reference in a file of ours, ADM's or EDM's.

  Raises:
    UserError: none of these, or a damaged one.
  """
  path = pathlib.Path(path).expanduser()
  try:
    arrays = files.read_npz(path)
    if "about" in arrays:
      about, gaussians, features = _ours(arrays)
    else:
      about = {"format": "published statistics", "name": path.name}
      gaussians = {space: statistics.Moments(arrays[mean], arrays[cov]) for space, (mean, cov) in OTHERS.items() if mean in arrays and cov in arrays}
      features = None
    images = arrays.get("arr_0")
  except OSError as e:
    raise UserError(f"cannot read the reference {str(path)!r}: {e.strerror or e}.") from e
  except (ValueError, KeyError, TypeError) as e:
    raise UserError(f"the reference {str(path)!r} cannot be used ({e}): make it again, or get it again.") from e
  if not gaussians:
    raise UserError(
      f"the reference {str(path)!r} has {', '.join(arrays) or 'nothing'}: it must be a file of --make_reference, or have mu and sigma as ADM's and EDM's."
    )
  for space, stats in gaussians.items():
    dim = inception.OUTPUTS[space].dim
    if stats.mean.shape != (dim,) or stats.cov.shape != (dim, dim) or not np.isfinite(stats.cov).all():
      raise UserError(f"the reference {str(path)!r} has a mean of {list(stats.mean.shape)} and a covariance of {list(stats.cov.shape)} in {space}, which has {dim} features.")
  with path.open("rb") as file:
    return Reference(about, gaussians, features, images, hashlib.file_digest(file, "sha256").hexdigest())


def _ours(arrays):
  about = json.loads(str(arrays["about"]))
  if about.pop("format") != FORMAT:
    raise ValueError("its format is not known here")
  spaces = [name.removesuffix("/mean") for name in arrays if name.endswith("/mean")]
  gaussians = {}
  for space in spaces:
    if space not in inception.OUTPUTS:
      raise ValueError(f"it has a space {space!r}")
    count = int(arrays[f"{space}/count"])
    gaussians[space] = statistics.Gaussian(count, arrays[f"{space}/mean"], arrays[f"{space}/cov"] * (count - 1))
  return about, gaussians, arrays["features"] if len(arrays["features"]) else None
