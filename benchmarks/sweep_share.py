"""How much time measuring adds to a sweep.

Usage: python benchmarks/sweep_share.py

The CIFAR-10 network of docs/cifar10 (0.85 GFLOP per forward pass, two passes per sampler step)
draws BATCH=16 images with T = 16 and T = 64: alone, and with the whole Inception network (random
weights) in the same program, its outputs copied to the host, written to disk and added to the
sums as the sweep does. ROUNDS=3 times in turn; medians count. Then the numbers of one strength,
once: FID and sFID with their errors, scores, precision, recall and KID of 2,100 made-up samples.
Prints a table; 10 minutes on two CPU cores.
"""

import functools
import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

BATCH, ROUNDS = int(os.environ.get("BATCH", "16")), int(os.environ.get("ROUNDS", "3"))
STEPS, SAMPLES, BLOCKS = (16, 64), 2100, 5


def inception_extractor():
  """The whole network with random weights."""
  from cfg.base import trees
  from cfg.features import inception
  from cfg.models import inception as inception_lib

  rng = np.random.default_rng(0)
  flat = {
    name: rng.normal(size=shape, scale=0.05).astype(np.float32)
    for name, shape in inception_lib.layout().items()
  }
  params = trees.unflatten(flat)
  return inception.make_extractor(
    params=params, info={"weights_sha256": "0" * 64, "complete": True}, published_only=True
  )


def seconds_of_batches(extractor, network, *, num_steps, folder):
  """{name: median seconds for BATCH images}, alone and measured."""
  from cfg.base import files, sharding
  from cfg.guidance import MAIN
  from cfg.inference.generator import Generator
  from cfg.inference.network import make_program, parameters
  from cfg.metrics import statistics as cfg_statistics

  config = network.config.copy_and_resolve_references()
  config.sampler.update(name="ddim", num_steps=num_steps)
  networks = {MAIN: network}
  make_generator = functools.partial(
    Generator, make_program(config, networks), mesh=sharding.make_mesh(), batch_size=BATCH
  )
  generators = {
    "sampling alone": make_generator(),
    "sampling and measuring": make_generator(extractor=extractor),
  }
  index = np.arange(BATCH)
  times = {name: [] for name in generators}
  for i in range(ROUNDS + 1):
    for name, generator in generators.items():
      start = time.perf_counter()
      for batch in generator.batches(
        parameters(networks), index=index, labels=index % 10, w=1.0, seed=0
      ):
        arrays = {output: np.asarray(a) for output, a in batch.outputs.items()} or {
          "pictures": np.asarray(batch.images)
        }
        if batch.outputs:
          files.write_npz(pathlib.Path(folder) / "batch.npz", arrays)
          cfg_statistics.SampleStatistics.of(extractor.metrics, arrays)
      times[name] += [time.perf_counter() - start] if i else []
      print(
        f"T = {num_steps}, {'warm-up' if i == 0 else f'round {i}'}: {name} "
        f"{time.perf_counter() - start:.1f} s",
        file=sys.stderr,
        flush=True,
      )
  return {name: statistics.median(seconds) for name, seconds in times.items()}


def seconds_of_numbers(extractor):
  """Seconds for all numbers of one strength, from sums to errors."""
  from cfg.metrics import reference, summary
  from cfg.metrics import statistics as cfg_statistics

  rng = np.random.default_rng(0)
  outputs = lambda: {
    output: rng.normal(size=(SAMPLES, dim)).astype(np.float32)
    for output, dim in extractor.dims.items()
  }
  accumulate = functools.partial(cfg_statistics.Accumulator, extractor.metrics, dims=extractor.dims)
  real = accumulate(block_of=np.zeros(SAMPLES, int))
  real.add(outputs())
  target = reference.of(real.blocks[0], about={}, sha256="")
  sums = accumulate(block_of=np.arange(SAMPLES) // (SAMPLES // BLOCKS))
  sums.add(outputs())
  start = time.perf_counter()
  summary.summarise(sums.blocks, metrics=extractor.metrics, train=target, heldout=target)
  return time.perf_counter() - start


def main():
  from cfg.base import runtime

  runtime.start(cpu_devices=2)
  from cfg.base import sharding
  from cfg.inference.network import load_network

  weights = ROOT / "docs/cifar10/cifar10_cpu.safetensors"
  network = load_network(weights, mesh=sharding.make_mesh())
  extractor = inception_extractor()
  print("| T | s an image, sampling | and measuring | measuring adds |\n| --- | --- | --- | --- |")
  with tempfile.TemporaryDirectory() as folder:
    for num_steps in STEPS:
      alone, both = seconds_of_batches(
        extractor, network, num_steps=num_steps, folder=folder
      ).values()
      print(
        f"| {num_steps} | {alone / BATCH:.2f} | {both / BATCH:.2f} | "
        f"{100 * (both / alone - 1):.0f} % |",
        flush=True,
      )
  print(
    f"\nthe numbers of one strength, once, of {SAMPLES:,} samples: "
    f"{seconds_of_numbers(extractor):.0f} s"
  )


if __name__ == "__main__":
  main()
