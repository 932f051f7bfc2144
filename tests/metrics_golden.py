"""What metrics are compared on, here and with torch-fidelity: images, weights and small feature
sets, all from seeds.

`python benchmarks/metrics.py --write_golden` writes what torch-fidelity makes of them to
tests/data/metrics_peers.npz: numbers alone, and the one direction that the last layer must not see.
"""

import inception_reference
import numpy as np
import paths

from cfg.base import files

PATH = paths.DATA / "metrics_peers.npz"
SIDE = 32
SPLITS = 10
WHOLE = 40  # images of each set that the golden's comparison from images on is of
SCALE = 40  # of the logits: the Inception Score lies between 3 and 8


def images(count, *, seed, noise=0):
  """uint8 [count,32,32,3]: crops of scikit-learn's two photographs at five zooms, colours permuted,
  half of them mirrored.
  """
  from sklearn.datasets import load_sample_images

  rng, photos, found = np.random.RandomState(seed), load_sample_images().images, []
  for _ in range(count):
    photo, zoom = photos[rng.randint(2)], 1 + rng.randint(5)
    top, left = (rng.randint(side - SIDE * zoom) for side in photo.shape[:2])
    crop = photo[top : top + SIDE * zoom : zoom, left : left + SIDE * zoom : zoom][
      ..., rng.permutation(3)
    ]
    found.append(crop[:, :: 1 - 2 * rng.randint(2)] + rng.randint(-noise, noise + 1, crop.shape))
  return np.clip(found, 0, 255).astype(np.uint8)


def image_sets(count):
  """{"samples", "reference"}: the samples are noisy."""
  return {"samples": images(count, seed=0, noise=30), "reference": images(count, seed=1)}


def state_dict(direction=None):
  """The tests' random weights of the Inception network, whose features have nearly one direction:
  the last layer is made blind to it, and scaled.
  """
  state = inception_reference.state_dict()
  direction = (files.read_npz(PATH)["direction"] if direction is None else direction).astype(
    np.float64
  )
  weight = state["fc.weight"].astype(np.float64)
  blind = weight - np.outer(weight @ direction, direction) / (direction @ direction)
  return state | {"fc.weight": (SCALE * blind).astype(np.float32)}


def small():
  """{"samples": [120,24], "reference": [150,24], "logits": [120,30]}, float64: correlated features,
  and logits of an Inception Score of about 5.
  """
  rng = np.random.RandomState(0)
  mixing = rng.normal(size=(24, 24)) / 24**0.5
  samples, reference = (
    0.9 * rng.normal(size=(120, 24)) @ mixing + 0.4,
    rng.normal(size=(150, 24)) @ mixing,
  )
  return {"samples": samples, "reference": reference, "logits": rng.normal(0, 2.5, (120, 30))}


def cfg_metrics(samples, reference, logits):
  """{metric: number} of features [N,D] and [M,D] and logits [N,K], by this project; KID is of the
  first N of both.
  """
  from cfg.metrics import pairwise, scores, statistics

  score = lambda rows: scores.inception_score(statistics.ClassEntropy.of(statistics.softmax(rows)))
  precision, recall = pairwise.precision_recall(samples, reference, k=3)
  gaussians = map(statistics.Gaussian.of, (samples, reference))
  return {
    "fid": scores.frechet_distance(*gaussians, allow_few=True),
    "inception_score": score(logits),
    f"inception_score_{SPLITS}_splits": float(
      np.mean([score(rows) for rows in np.split(logits, SPLITS)])
    ),
    "kid": pairwise.kid(
      samples, reference[: len(samples)], num_subsets=2, subset_size=len(samples)
    ).kid,
    "precision": precision,
    "recall": recall,
  }
