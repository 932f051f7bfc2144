"""Inception's images/s beside pytorch-fid's, and the time of a Fréchet distance beside scipy's.

Usage: python benchmarks/metrics_speed.py [extractor|frechet]

Batches of BATCH=16 images of 32x32, from uint8 to pool_3 including the resize, float32, two
cores: two virtual devices here, two threads there. pytorch-fid runs as it is, and with network
and images channels-last. With batches of 64 images both are slower. Then the Fréchet distance in
2048 features, float64: here the first distance to a reference, whose root is then kept, and later
ones; beside pytorch-fid's, which uses scipy.linalg.sqrtm, and torch-fidelity's, which uses
eigenvalues alone.

Everything runs in one process, in turn, ROUNDS=5 times after one warm-up; medians count.
`extractor` or `frechet` runs one of the two. On a shared machine set OPENBLAS_NUM_THREADS=1 for
the second, and read the processor times in brackets. Needs: pip install -e .[peers]. Prints a
table each; 8 minutes.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time

import inception_peers as peers
import numpy as np

BATCH, DIM, COUNT = int(os.environ.get("BATCH", "16")), 2048, 10_000
ROUNDS = int(os.environ.get("ROUNDS", "5"))


def in_turn(calls):
  """{name: (seconds, processor seconds)}: medians; the second hardly know of others on the machine,
  if nothing spins.
  """
  times = {name: [] for name in calls}
  for i in range(ROUNDS + 1):
    for name, call in calls.items():
      start = time.perf_counter(), time.process_time()
      call()
      spent = time.perf_counter() - start[0], time.process_time() - start[1]
      times[name] += [spent] if i else []
      print(
        f"{'warm-up' if i == 0 else f'round {i}':<8} {name:<28} {spent[0]:8.2f} s {spent[1]:8.2f} "
        f"s of processors",
        file=sys.stderr,
        flush=True,
      )
  return {name: tuple(map(statistics.median, zip(*some))) for name, some in times.items()}


def extractors(path):
  """{name: call} of one batch to pool_3."""
  import torch

  pixels = peers.golden.images(BATCH, seed=0)
  ours, theirs, last = (
    peers.cfg_network(path, ("pool_3",)),
    peers.pytorch_fid_network(path),
    peers.pytorch_fid_network(path),
  )
  last = last.to(memory_format=torch.channels_last)

  def run(network, memory_format):
    with torch.no_grad():
      x = (
        torch.from_numpy(pixels)
        .permute(0, 3, 1, 2)
        .float()
        .div(255)
        .contiguous(memory_format=memory_format)
      )
      return network(x)[0].squeeze(3).squeeze(2).numpy()

  return {
    "cfg": lambda: ours(pixels),
    "pytorch-fid": lambda: run(theirs, torch.contiguous_format),
    "pytorch-fid, channels last": lambda: run(last, torch.channels_last),
  }


def distances():
  """{name: call} of one Fréchet distance each, of 10,000 vectors whose spectrum falls as that of
  features does.
  """
  from pytorch_fid.fid_score import calculate_frechet_distance
  from torch_fidelity.metric_fid import fid_statistics_to_metric

  from cfg.metrics import scores
  from cfg.metrics import statistics as cfg_statistics

  rng = np.random.RandomState(0)
  mixing = rng.normal(size=(DIM, DIM)) * np.arange(1, DIM + 1) ** -0.7
  draw = lambda shift: cfg_statistics.Gaussian.of(
    np.maximum(rng.normal(size=(COUNT, DIM)) @ mixing + shift, 0)
  )
  samples, (mean, cov) = draw(0.0), (lambda g: (g.mean, g.cov))(draw(0.2))
  moments, kept = (samples.mean, samples.cov), cfg_statistics.Moments(mean, cov)
  theirs = [dict(mu=mu, sigma=sigma) for mu, sigma in (moments, (mean, cov))]
  return {
    "cfg, first": lambda: scores.frechet_distance(samples, cfg_statistics.Moments(mean, cov)),
    "cfg, those after it": lambda: scores.frechet_distance(samples, kept),
    "pytorch-fid (scipy)": lambda: calculate_frechet_distance(*moments, mean, cov),
    "torch-fidelity": lambda: fid_statistics_to_metric(*theirs, verbose=False),
  }


def main(which):
  if "extractor" in which:
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "random.pth"
      peers.write_weights(path)
      found = in_turn(extractors(path))
    print(
      "| to pool_3 | images/s | cfg is quicker by | in processor time |\n| --- | --- | --- | --- |"
    )
    for name, (wall, processors) in found.items():
      print(
        f"| {name} | {BATCH / wall:.1f} | {wall / found['cfg'][0]:.2f} | "
        f"{processors / found['cfg'][1]:.2f} |"
      )
  if "frechet" in which:
    found = in_turn(distances())
    print(
      "\n| Fréchet distance | s | processor s | cfg's first over it | those after over it |\n| --- "
      "| --- | --- | --- | --- |"
    )
    for name, (wall, processors) in found.items():
      shares = (
        f"{found[ours][0] / wall:.2f} ({found[ours][1] / processors:.2f})"
        for ours in ("cfg, first", "cfg, those after it")
      )
      print(f"| {name} | {wall:.2f} | {processors:.2f} | {' | '.join(shares)} |")


if __name__ == "__main__":
  main(sys.argv[1:] or ("extractor", "frechet"))
