"""Which samplers of few evaluations draw what 256 ancestral steps draw.

Usage: python benchmarks/samplers.py --workdir=runs/digits [--w=1] [--seeds 0 1]
  [--only "ancestral, v = 0.6, u, schedule"] [--out=FILE.json]

The Fréchet distance, in the features of the work directory's judge, between samples of each
sampler with at most 32 and 16 evaluations of the network, and those of the paper's sampler with
T = 256, and between two seeds of the latter. The candidates draw with the second seed, so that
their noise is not the reference's, and so that both distances are taken from the same samples with
the same noise: their difference is paired. Errors are the jackknife's over 10 blocks of both sets.

Every sampler, at every spacing of the levels and between two pairs of ends: the schedule's, and
EDM's (sigma from 80 to 0.002). Prints a table, nearest first; "as near as a seed" is a distance of
at most the two seeds' plus its error.
"""

import argparse
import itertools
import math
import pathlib
import sys
import time

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

MOST = (32, 16)  # evaluations of a sample
STEPS, V, BATCH, BLOCKS = 256, 0.3, 250, 10
SEEDS = (0, 1)  # of the reference, of the candidates and the second set of 256 steps
SAMPLERS = {
  **{
    f"ancestral, v = {v:g}": dict(name="ancestral", var_interp=v)
    for v in (0.3, 0.4, 0.5, 0.6, 0.7, 1.0)
  },
  **{f"ddim, eta = {eta:g}": dict(name="ddim", eta=eta) for eta in (0.0, 0.3, 0.5, 0.7)},
  "heun": dict(name="heun"),
  "dpm_solver_pp_2m": dict(name="dpm_solver_pp_2m", eta=0.0),
  "dpm_solver_pp_2m, eta = 1": dict(name="dpm_solver_pp_2m", eta=1.0),
}
EDM_ENDS = (-2 * math.log(80.0), -2 * math.log(0.002))
# (spacing, ends) of the levels, and of the ends None the schedule's; the likelier ones first
GRIDS = {
  ("logsnr", "edm"): EDM_ENDS,
  ("edm", "edm"): EDM_ENDS,
  ("u", "schedule"): (None, None),
  ("logsnr", "schedule"): (None, None),
  ("u", "edm"): EDM_ENDS,
  ("edm", "schedule"): (None, None),
}


def candidates(config, most, only=()):
  """Yield (sampler, spacing, ends, config) of each at `most` evaluations a sample; Heun's T steps
  call the network 2 T - 1 times, and each call is two evaluations. `only`: of these names alone.
  """
  for ((spacing, ends), (low, high)), (sampler, values) in itertools.product(
    GRIDS.items(), SAMPLERS.items()
  ):
    if only and f"{sampler}, {spacing}, {ends}" not in only:
      continue
    single = config.copy_and_resolve_references()
    num_steps = most // (4 if sampler == "heun" else 2)
    single.sampler.update(
      **values, num_steps=num_steps, spacing=spacing, logsnr_min=low, logsnr_max=high
    )
    yield sampler, spacing, ends, single


def features(generator, params, *, extractor, num, w, seed):
  """[Gaussian of each block] of `num` samples, in the output that FID is measured in."""
  from cfg.metrics import statistics

  index = np.arange(num)
  labels, block_of = index % extractor.dims["judge_logits"], index // (num // BLOCKS)
  sums = statistics.Accumulator(extractor.metrics, dims=extractor.dims, block_of=block_of)
  for batch in generator.batches(params, index=index, labels=labels, w=w, seed=seed):
    count = batch.rows.stop - batch.rows.start
    sums.add({name: np.asarray(a)[:count] for name, a in batch.outputs.items()}, labels[batch.rows])
  return [block.gaussians["judge"] for block in sums.blocks]


def distance(blocks, reference):
  """(the Fréchet distance of two sets, [its values without each block of both])."""
  from cfg.metrics import scores, statistics

  of = lambda a, b: scores.frechet_distance(statistics.merge(a), statistics.merge(b))
  without = lambda blocks, i: blocks[:i] + blocks[i + 1 :]
  rest = [of(without(blocks, i), without(reference, i)) for i in range(len(blocks))]
  return of(blocks, reference), rest


def measure(args):
  """Yield {"seeds": ..., "rows": [...]} after each row: everything that was measured so far."""
  from cfg.base import sharding
  from cfg.data import sources
  from cfg.features import judge_files
  from cfg.guidance import MAIN
  from cfg.inference.generator import Generator
  from cfg.inference.network import load_network, make_program, parameters
  from cfg.metrics import paired, scores

  mesh = sharding.make_mesh()
  network = load_network(args.workdir, mesh=mesh)
  networks = {MAIN: network}
  dataset = sources.load(network.config.data)
  extractor = judge_files.load(network.config, dataset=dataset, workdir=args.workdir)
  if args.num % (BLOCKS * dataset.num_classes):
    raise SystemExit(f"--num has to be a multiple of {BLOCKS * dataset.num_classes}")

  def generator_of(config):
    return Generator(
      make_program(config, networks), mesh=mesh, batch_size=BATCH, extractor=extractor
    )

  def draw(name, generator, seed):
    start = time.perf_counter()
    blocks = features(
      generator, parameters(networks), extractor=extractor, num=args.num, w=args.w, seed=seed
    )
    print(f"{name}: {time.perf_counter() - start:.1f} s", file=sys.stderr, flush=True)
    return blocks

  config = network.config.copy_and_resolve_references()
  config.sampler.update(name="ancestral", num_steps=STEPS, var_interp=V, spacing="u")
  whole = generator_of(config)
  reference, again = [draw(f"{STEPS} steps, seed {seed}", whole, seed) for seed in args.seeds]
  between, between_without = distance(again, reference)
  err = scores.jackknife_error(between_without)
  result = {
    "w": args.w,
    "seeds_drawn": args.seeds,
    "num_samples": args.num,
    "weights_sha256": network.weights_sha256,
    "extractor": extractor.name,
    "limit": network.config.sampler.limit,
    "reference": f"{STEPS} ancestral steps, v = {V}",
    "reference_evaluations": sum(whole.nfe(args.w).values()),
    "seeds": {"distance": between, "distance_err": err},
  }
  rows = []
  choices = [
    choice for most in args.evaluations for choice in candidates(network.config, most, args.only)
  ]
  for sampler, spacing, ends, config in choices:
    generator = generator_of(config)
    evaluations = sum(generator.nfe(args.w).values())
    about = dict(
      sampler=sampler,
      spacing=spacing,
      ends=ends,
      num_steps=config.sampler.num_steps,
      evaluations=evaluations,
    )
    blocks = draw(f"{sampler}, {spacing}, ends {ends}, {evaluations}", generator, args.seeds[1])
    value, without = distance(blocks, reference)
    further = paired.difference(
      first=between, second=value, first_without=between_without, second_without=without,
      paired=True,
    )  # fmt: skip
    rows.append(
      {
        **about,
        "distance": value,
        "distance_err": scores.jackknife_error(without),
        "difference": further.value,
        "difference_err": further.err,
        "difference_verdict": further.verdict,
        "reaches": value <= between + err,
      }
    )
    yield {**result, "rows": sorted(rows, key=lambda row: row["distance"])}


def table(result):
  """The table in Markdown."""
  seeds, (first, second) = result["seeds"], result["seeds_drawn"]
  yield (
    f"w = {result['w']:g}, {result['num_samples']:,} samples, {result['extractor']}, limit "
    f"{result['limit']!r}; {result['reference']}: between seeds {first} and {second} "
    f"{seeds['distance']:.3f} +- {seeds['distance_err']:.3f}\n"
  )
  yield "| sampler | spacing | ends | evaluations | distance | more than a seed | as near |"
  yield "| --- | --- | --- | --- | --- | --- | --- |"
  for row in result["rows"]:
    yield (
      f"| {row['sampler']} | {row['spacing']} | {row['ends']} | {row['evaluations']} | "
      f"{row['distance']:.3f} +- {row['distance_err']:.3f} | {row['difference']:+.3f} +- "
      f"{row['difference_err']:.3f} | {'yes' if row['reaches'] else 'no'} |"
    )


def main():
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  parser.add_argument("--workdir", required=True, help="of a trained model with its judge")
  parser.add_argument("--w", type=float, default=1.0)
  parser.add_argument("--num", type=int, default=1000, help="samples of each")
  parser.add_argument(
    "--evaluations", type=int, nargs="*", default=MOST, help="of a sample, at most so many each"
  )
  parser.add_argument("--seeds", type=int, nargs=2, default=SEEDS, help="reference, candidates")
  parser.add_argument("--only", nargs="*", default=(), help="names of candidates: all without it")
  parser.add_argument("--out", help="a JSON file of everything, written after each row")
  args = parser.parse_args()
  args.workdir = pathlib.Path(args.workdir)
  from cfg.base import files, runtime

  runtime.start(cpu_devices=2)
  result = {}
  for result in measure(args):
    if args.out:
      files.write_json(args.out, result)
  print("\n".join(table(result)))


if __name__ == "__main__":
  main()
