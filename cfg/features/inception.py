"""FID's Inception network as a feature extractor: its outputs, and what the numbers made of them
may be called.
"""

import functools
import pathlib

from cfg.base.errors import UserError
from cfg.features.extractor import Extractor, Metric, Source
from cfg.interop import inception as weights
from cfg.models import inception

ROLE = "inception"
# the last layer's first; only the Fréchet distance in pool_3 may be called FID
METRICS = (
  Metric("fid", "FID", "pool_3", "frechet", "lower"),
  Metric("frechet_1280", "FD-1280", "mixed_8", "frechet", "lower"),
  Metric("fid_768", "FID-768", "mixed_7", "frechet", "lower"),
  Metric("sfid", "sFID", "spatial", "frechet", "lower"),
  Metric("inception_score", "IS", "logits", "score", "higher"),
  Metric("inception_score_no_bias", "IS (no bias)", "logits_no_bias", "score", "higher"),
)
# in the first space that there is; others than pool_3 are in their names
PAIRWISE = {
  "pool_3": (
    Metric("precision", "precision", "pool_3", "precision", "higher"),
    Metric("recall", "recall", "pool_3", "recall", "higher"),
    Metric("kid", "KID", "pool_3", "kid", "lower", "{:.5f}"),
  ),
  "mixed_8": (
    Metric("precision_1280", "precision-1280", "mixed_8", "precision", "higher"),
    Metric("recall_1280", "recall-1280", "mixed_8", "recall", "higher"),
    Metric("kid_1280", "KID-1280", "mixed_8", "kid", "lower", "{:.5f}"),
  ),
}
# those of use in a sweep, where the network is complete
PUBLISHED = ("pool_3", "spatial", "logits", "logits_no_bias")
RESIZE = "TF1 bilinear to 299x299, no half-pixel shift"
INCOMPLETE = (
  "The weights are not complete: FID-768 and FD-1280 are Fréchet distances in earlier layers, not "
  "FID, and cannot be compared with it."
)


def make_extractor(*, params, info, published_only=False) -> Extractor:
  """Wrap parameters of models.inception, complete or not: `inception-2015-12-05-<hash of the
  weights>`.

  Args:
    params, info: from interop.inception.read.
    published_only: leave out the earlier layers where the network is complete.
  """
  outputs = PUBLISHED if published_only and info["complete"] else inception.available(params)
  note = {} if info["complete"] else {"note": INCOMPLETE}
  return Extractor(
    role=ROLE,
    name=f"inception-2015-12-05-{info['weights_sha256'][:8]}",
    apply=functools.partial(inception.apply, outputs=outputs),
    params=params,
    dims={output: inception.OUTPUTS[output].dim for output in outputs},
    metrics=_metrics(outputs),
    info={**info, "resize": RESIZE, **note},
  )


def _metrics(outputs):
  """Those that can be made of these outputs; the first also against held-out images."""
  first, *others = (metric for metric in METRICS if metric.output in outputs)
  heldout = (first.heldout(),) if first.kind == "frechet" else ()
  space = next((output for output in PAIRWISE if output in outputs), None)
  return (first, *heldout, *others, *PAIRWISE.get(space, ()))


def _wanted(config):
  return bool(config.get(ROLE, {}).get("path", ""))


def _check(config, *, dataset):
  del config
  if dataset.image_shape[-1] != 3:
    raise UserError(
      f"inception.path is for images in colour, and {dataset.name} has {dataset.image_shape[-1]} "
      f"channel: leave it empty."
    )


def _load(config, *, dataset, workdir=None):
  del dataset, workdir
  params, info = read(config.inception.path)
  return make_extractor(params=params, info=info, published_only=True)


def read(path):
  """interop.inception.read, which reads and hashes 95 MB: once for each state of the file."""
  path = pathlib.Path(path).expanduser()
  try:
    stat = path.stat()
  except OSError:
    return weights.read(path)  # it says what is wrong
  return _read(path, stat.st_mtime_ns, stat.st_size)


@functools.lru_cache(maxsize=1)
def _read(path, mtime_ns, size):
  del mtime_ns, size
  return weights.read(path)


# weights are all there is: its outline is the extractor itself
SOURCE = Source(
  wanted=_wanted, remedy="give inception.path", check=_check, outline=_load, load=_load
)
