"""Makes a feature extractor of FID's Inception network: its outputs, and what the numbers made of
them may be called.
"""

import functools

from cfg.features.extractor import Extractor
from cfg.models import inception

# Fréchet distances by the space they are in, the last layer's first; only that of pool_3 may be
# called FID
FRECHET = {"pool_3": "fid", "mixed_8": "frechet_1280", "mixed_7": "fid_768", "spatial": "sfid"}
SCORES = {"logits": "inception_score", "logits_no_bias": "inception_score_no_bias"}
# the space of precision, recall and KID: the first that there is; others than pool_3 are in their
# names
PAIRWISE = {"pool_3": "", "mixed_8": "_1280"}
# those of use in a sweep, where the network is complete
PUBLISHED = ("pool_3", "spatial", "logits", "logits_no_bias")
RESIZE = "TF1 bilinear to 299x299, no half-pixel shift"


def make_extractor(*, params, info, published_only=False):
  """Wrap parameters of models.inception, complete or not: `inception-2015-12-05-<hash of the
  weights>`.

  Args:
    params, info: from interop.inception.read.
    published_only: leave out the earlier layers where the network is complete.
  """
  outputs = PUBLISHED if published_only and info["complete"] else inception.available(params)
  of_ours = lambda names: {output: metric for output, metric in names.items() if output in outputs}
  frechet = of_ours(FRECHET)
  pairwise = next((output for output in PAIRWISE if output in outputs), None)
  return Extractor(
    name=f"inception-2015-12-05-{info['weights_sha256'][:8]}",
    apply=functools.partial(inception.apply, outputs=outputs),
    params=params,
    dims={output: inception.OUTPUTS[output].dim for output in outputs},
    frechet=frechet,
    scores=of_ours(SCORES),
    pairwise=pairwise,
    pairwise_suffix=PAIRWISE.get(pairwise, ""),
    leading=tuple(frechet)[:1],
    info={**info, "resize": RESIZE},
  )
