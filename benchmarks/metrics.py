"""All metrics and the whole Inception network, beside torch-fidelity's and pytorch-fid's.

Usage: python benchmarks/metrics.py

COUNT=300 noisy and as many clean crops of scikit-learn's two photographs, 32x32, pass as uint8
through this project's network and torch-fidelity's, both with one file of random weights, and
each side computes every metric from its own outputs. pytorch-fid's network, which resizes
differently, gets 64 images that were resized here. Prints two tables, and exits with 1 if a
metric is off by more than 1e-3 or an output by more than 1e-4, relative. --write_golden writes
tests/data/metrics_peers.npz instead: torch-fidelity's numbers, for the tests. Needs: pip install
-e .[peers]. 4 minutes on the CPU.
"""

import argparse
import os
import pathlib
import sys
import tempfile

import inception_peers as peers
import numpy as np

golden = peers.golden
COUNT = int(os.environ.get("COUNT", "300"))
BATCH, RESIZED = 50, 64
METRIC_TOLERANCE, OUTPUT_TOLERANCE = 1e-3, 1e-4
OUTPUTS = ("spatial", "mixed_7", "pool_3", "logits", "logits_no_bias")


def outputs(network, pixels):
  """{output: [N, dim]} of all images."""
  found = []
  for first in range(0, len(pixels), BATCH):
    found.append(network(pixels[first : first + BATCH]))
    print(
      f"{first + len(found[-1]['pool_3'])} of {len(pixels)} images", file=sys.stderr, flush=True
    )
  return {name: np.concatenate([some[name] for some in found]) for name in OUTPUTS}


def torch_fidelity_metrics(samples, reference, logits):
  """metrics_golden.cfg_metrics by torch-fidelity, in the precision of what it is given."""
  import torch
  from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

  samples, reference, logits = map(torch.from_numpy, (samples, reference, logits))
  score = lambda splits: metric_isc.isc_features_to_metric(logits, splits, shuffle=False)[
    metric_isc.KEY_METRIC_ISC_MEAN
  ]
  moments = map(metric_fid.fid_features_to_statistics, (samples, reference))
  count = len(samples)
  kid = metric_kid.kid_features_to_metric(
    samples, reference[:count], kid_subsets=1, kid_subset_size=count, verbose=False
  )
  prc = metric_prc.prc_features_to_metric(samples, reference, prc_neighborhood=3, verbose=False)
  return {
    "fid": metric_fid.fid_statistics_to_metric(*moments, verbose=False)[metric_fid.KEY_METRIC_FID],
    "inception_score": score(1),
    f"inception_score_{golden.SPLITS}_splits": score(golden.SPLITS),
    "kid": kid[metric_kid.KEY_METRIC_KID_MEAN],
    "precision": prc[metric_prc.KEY_METRIC_PRECISION],
    "recall": prc[metric_prc.KEY_METRIC_RECALL],
  }


def measured(metrics, found):
  """`metrics` of {set: outputs}; scores are of the logits without bias, as torch-fidelity's."""
  return metrics(
    found["samples"]["pool_3"], found["reference"]["pool_3"], found["samples"]["logits_no_bias"]
  )


def row_error(found, wanted):
  """|found - wanted| / |wanted|, the largest of the rows."""
  return float((np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max())


def output_errors(ours, theirs):
  """{output: the largest relative error of a row}, of probabilities too."""
  from scipy.special import softmax

  both = {
    name: [np.concatenate([found[part][name] for part in found]) for found in (ours, theirs)]
    for name in OUTPUTS
  }
  both["probabilities"] = [softmax(logits.astype(np.float64), axis=1) for logits in both["logits"]]
  return {f"{name}, torch-fidelity": row_error(*pair) for name, pair in both.items()}


def resized_error(path, pixels, features):
  """{name: the largest relative error of pool_3} beside pytorch-fid, which is given our resized
  images.
  """
  import torch

  from cfg.models import inception

  x = (np.asarray(inception.resize(pixels.astype(np.float32))) - 128) / 128
  with torch.no_grad():
    theirs = peers.pytorch_fid_network(path, resize_input=False, normalize_input=False)(
      torch.from_numpy(x).permute(0, 3, 1, 2)
    )
  return {
    "pool_3 of resized images, pytorch-fid": row_error(features, theirs[0].numpy()[:, :, 0, 0])
  }


def compare(path):
  """Print both tables; whether all are within the tolerances."""
  sets = golden.image_sets(COUNT)
  networks = {
    "cfg": peers.cfg_network(path, OUTPUTS),
    "torch-fidelity": peers.torch_fidelity_network(path),
  }
  found = {
    name: {part: outputs(network, pixels) for part, pixels in sets.items()}
    for name, network in networks.items()
  }
  ours, theirs = (
    measured(*pair) for pair in zip((golden.cfg_metrics, torch_fidelity_metrics), found.values())
  )
  worst = {name: abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in ours}
  print(
    f"\n| {COUNT} images against {COUNT} | cfg | torch-fidelity | relative difference |\n| --- | "
    f"--- | --- | --- |"
  )
  for name in ours:
    print(f"| {name} | {ours[name]:.7g} | {theirs[name]:.7g} | {worst[name]:.1e} |")
  errors = output_errors(*found.values())
  errors |= resized_error(
    path, sets["samples"][:RESIZED], found["cfg"]["samples"]["pool_3"][:RESIZED]
  )
  print("\n| output | largest relative error of an image |\n| --- | --- |")
  for name, error in errors.items():
    print(f"| {name} | {error:.1e} |")
  # not >: a number that is none must fail
  return all(w <= METRIC_TOLERANCE for w in worst.values()) and all(
    e <= OUTPUT_TOLERANCE for e in errors.values()
  )


def write_golden(path):
  """Write torch-fidelity's numbers, small and from images on, and the direction of its features
  that state_dict takes away.
  """
  from cfg.base import files

  sets = golden.image_sets(golden.WHOLE)
  peers.write_weights(path, direction=np.ones(2048))
  first = peers.torch_fidelity_network(path)
  direction = (
    np.concatenate([outputs(first, pixels)["pool_3"] for pixels in sets.values()])
    .mean(axis=0)
    .astype(np.float16)
  )
  peers.write_weights(path, direction=direction)
  network = peers.torch_fidelity_network(path)
  whole = measured(
    torch_fidelity_metrics, {part: outputs(network, pixels) for part, pixels in sets.items()}
  )
  numbers = {"small": torch_fidelity_metrics(**golden.small()), "whole": whole}
  arrays = {
    f"{part}/{name}": np.asarray(number)
    for part, found in numbers.items()
    for name, number in found.items()
  }
  files.write_npz(golden.PATH, {"direction": direction} | arrays)
  print(numbers)


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument(
    "--write_golden", action="store_true", help="write torch-fidelity's numbers for the tests"
  )
  options = parser.parse_args()
  with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder) / "random.pth"
    if options.write_golden:
      write_golden(path)
      return
    peers.write_weights(path)
    if not compare(path):
      sys.exit(
        f"a metric is off by more than {METRIC_TOLERANCE}, or an output by more than "
        f"{OUTPUT_TOLERANCE}"
      )


if __name__ == "__main__":
  main()
