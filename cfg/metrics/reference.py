"""Reference statistics: what real images gave in a network's outputs, with what made them; ours,
ADM's and EDM's files.

Ours is an .npz of "about" (JSON), which lists the outputs, and of "<output>/mean", "<output>/cov",
"<output>/count", "<output>/prob_sum", "<output>/plogp_sum" and "<output>/features". ADM's and EDM's
hold mu and sigma of pool_3, ADM's also mu_s and sigma_s of the spatial features, and the images
behind precision and recall, arr_0.
"""

import dataclasses
import hashlib
import json
import pathlib
import zipfile

import numpy as np

from cfg.base import files, paths, untrusted
from cfg.base.errors import UserError
from cfg.metrics import statistics

FORMAT = "cfg-reference-2"
# images whose features are kept for precision, recall and KID; ADM's evaluator has as many
KEPT = 10_000
OTHERS = {"pool_3": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
  """What is known of real images in a network's outputs.

  Attributes:
    about: facts, JSON-able; "extractor_sha256", "num_images", "images_sha256" and "correct",
      {output: number of images}, where they are known.
    gaussians: {output: statistics.Gaussian or Moments}.
    entropies: {output: statistics.ClassEntropy}; empty in files of others.
    features: {output: [M,D]}, where there is precision, recall or KID.
    images: uint8 [M,H,W,3] to take features of, or None.
    sha256: of the file; of the pixels where there is none.
  """

  about: dict
  gaussians: dict
  sha256: str
  entropies: dict = dataclasses.field(default_factory=dict)
  features: dict = dataclasses.field(default_factory=dict)
  images: np.ndarray | None = None


def of(measured: statistics.SampleStatistics, *, about: dict, sha256: str) -> Reference:
  """The Reference of measured images: KEPT of the features, evenly spaced."""
  facts = {**about, "num_images": measured.count}
  if measured.correct:
    facts["correct"] = measured.correct
  return Reference(
    about=facts,
    gaussians=measured.gaussians,
    sha256=sha256,
    entropies=measured.entropies,
    features={name: _evenly(np.concatenate(parts)) for name, parts in measured.features.items()},
  )


def _evenly(features):
  """KEPT rows, evenly spaced."""
  count = min(KEPT, len(features))
  return features[np.linspace(0, len(features) - 1, count).round().astype(int)]


def write(path, reference: Reference) -> None:
  """Write a Reference of our own measuring to our file; equal content makes an equal file.

  Raises:
    UserError: a statistic is not finite; nothing is written.
  """
  check_finite(reference, where=f"the images of {reference.about.get('name')!r}")
  about = {
    **reference.about,
    "format": FORMAT,
    "gaussians": list(reference.gaussians),
    "entropies": list(reference.entropies),
    "features": list(reference.features),
  }
  arrays = {"about": np.asarray(json.dumps(about, sort_keys=True))}
  for output, gaussian in reference.gaussians.items():
    arrays |= {
      f"{output}/mean": gaussian.mean,
      f"{output}/cov": gaussian.cov,
      f"{output}/count": np.asarray(gaussian.count),
    }
  for output, entropy in reference.entropies.items():
    arrays |= {
      f"{output}/prob_sum": entropy.prob_sum,
      f"{output}/plogp_sum": np.asarray(entropy.plogp_sum),
    }
  for output, features in reference.features.items():
    arrays[f"{output}/features"] = np.asarray(features, np.float32)
  files.write_npz(path, arrays)


def names(path) -> list[str] | None:
  """The names of the arrays in an .npz, without reading them; None if it is no .npz."""
  path = pathlib.Path(path)
  try:
    with untrusted.reading(), zipfile.ZipFile(path) as archive:
      stems = [pathlib.PurePosixPath(name) for name in archive.namelist()]
      arrays = [str(stem.with_suffix("")) for stem in stems if stem.suffix == ".npy"]
  except (OSError, ValueError):
    return None
  return arrays if path.suffix == ".npz" else None


def has_statistics(arrays) -> bool:
  """Whether an .npz with arrays of these names is a file of ours, ADM's or EDM's."""
  return "about" in arrays or any({mean, cov} <= {*arrays} for mean, cov in OTHERS.values())


def read(path, *, dims=None) -> Reference:
  """The Reference in a file of ours, ADM's or EDM's.

  Args:
    path: of the file.
    dims: {output: number of features} of the network that it is to be used with, where known.

  Raises:
    UserError: none of these, or a damaged one.
  """
  path = paths.as_path(path).expanduser()
  try:
    arrays = files.read_npz(path)
    with path.open("rb") as file:
      sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    with untrusted.reading():
      reference = _ours(arrays, sha256) if "about" in arrays else _others(arrays, path.name, sha256)
  except OSError as e:
    raise UserError(f"cannot read the reference {str(path)!r}: {e.strerror or e}.") from e
  except ValueError as e:
    raise UserError(
      f"the reference {str(path)!r} cannot be used ({e}): make it again, or get it again."
    ) from e
  if not reference.gaussians:
    raise UserError(f"the reference {str(path)!r} {without_statistics(arrays)}")
  for output, stats in reference.gaussians.items():
    dim = (dims or {}).get(output, stats.mean.size)
    if stats.mean.shape != (dim,) or stats.cov.shape != (dim, dim):
      raise UserError(
        f"the reference {str(path)!r} has a mean of {list(stats.mean.shape)} and a covariance of "
        f"{list(stats.cov.shape)} in {output}, which has {dim} features."
      )
  check_finite(reference, where=f"the reference {str(path)!r}")
  return reference


def without_statistics(arrays) -> str:
  """What to say of an .npz whose arrays are no statistics."""
  return (
    f"has {', '.join(arrays) or 'nothing'}: it must be a file of --make_reference, or have mu and "
    "sigma, as ADM's and EDM's have; of images, arr_0."
  )


def check_finite(reference: Reference, *, where: str) -> None:
  """Raise UserError if a mean or covariance has NaN or infinite numbers."""
  for output, stats in reference.gaussians.items():
    for what, values in (("mean", stats.mean), ("covariance", stats.cov)):
      if not np.isfinite(values).all():
        kind = "NaN" if np.isnan(values).any() else "infinite numbers"
        raise UserError(f"the {what} of {where} in {output} has {kind}: it cannot be used.")


def _ours(arrays, sha256):
  about = untrusted.parse_json(str(arrays["about"]))
  if (found := about.pop("format", None)) != FORMAT:
    raise ValueError(f"its format is {found!r}, not {FORMAT!r}")
  gaussians = {}
  for output in about.pop("gaussians"):
    count = int(arrays[f"{output}/count"])
    scatter = arrays[f"{output}/cov"] * (count - 1)
    gaussians[output] = statistics.Gaussian(count, arrays[f"{output}/mean"], scatter)
  entropies = {
    output: statistics.ClassEntropy(
      about["num_images"], arrays[f"{output}/prob_sum"], float(arrays[f"{output}/plogp_sum"])
    )
    for output in about.pop("entropies")
  }
  features = {output: arrays[f"{output}/features"] for output in about.pop("features")}
  return Reference(
    about=about, gaussians=gaussians, sha256=sha256, entropies=entropies, features=features
  )


def _others(arrays, name, sha256):
  gaussians = {
    output: statistics.Moments(arrays[mean], arrays[cov])
    for output, (mean, cov) in OTHERS.items()
    if mean in arrays and cov in arrays
  }
  return Reference(
    about={"format": "published statistics", "name": name},
    gaussians=gaussians,
    sha256=sha256,
    images=arrays.get("arr_0"),
  )
