"""What guidance, its gauge and an interval cost a sample, in time.

Usage: python benchmarks/guidance_cost.py [digits] [64x64]

The compiled sampler with random weights, over two virtual devices: the digits' own network and
sampler, 64 images of T = 16; and a narrow network of 64x64 (that of step_speed.py), 2 images of
T = 4. A guided sample (w = 1) over an unguided one; over a guided one whose rule does not measure
|eps_cond - eps_uncond|^2; and guidance between log-SNR -3 and 3 alone over guidance everywhere.
ROUNDS=10 times in turn after a warm-up: the median ratio of a round and, in brackets, its
quartiles, also of processor time, which hardly knows of others on the machine. Beside them the
ratio of evaluations. Prints a table; 3 minutes on two CPU cores.
"""

import os
import pathlib
import sys

import numpy as np
import rounds
from step_speed import COMMON, SIZES

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

ROUNDS = int(os.environ.get("ROUNDS", "10"))
CASES = {"digits": (64, 16), "64x64": (2, 4)}  # images, T
INSIDE = (-3.0, 3.0)


def make_config(case):
  """(config, image shape) of a case."""
  from configs import digits

  config = digits.get_config()
  config.sampler.num_steps = CASES[case][1]
  if case == "digits":
    return config, (8, 8, 1)
  size = {**COMMON, **SIZES[case]}
  config.model.update({name: value for name, value in size.items() if name in config.model})
  return config, (size["side"], size["side"], size["channels"])


def random_params(model, image_shape):
  """Parameters that are nowhere zero."""
  import jax

  from cfg.models import unet

  init = lambda key: unet.init_params(model, key=key, image_shape=image_shape)
  params = jax.jit(init)(jax.random.key(0))
  rng = np.random.default_rng(0)
  return jax.tree.map(lambda p: p + rng.normal(scale=0.02, size=p.shape).astype(p.dtype), params)


def unmeasured(rule):
  """The same rule without what it measures on the way."""

  def apply(networks, **given):
    guided = rule.apply(networks, **given)

    def bare(z, logsnr, memory):
      guess, memory = guided(z, logsnr, memory)
      return guess._replace(aux={}), memory

    return bare

  return rule._replace(apply=apply)


def programs(case):
  """({name: Program}, parameters)."""
  from cfg import guidance
  from cfg.inference import network
  from cfg.models import unet

  config, image_shape = make_config(case)
  model = unet.from_config(config.model, num_classes=10, image_shape=image_shape)
  plain = network.program_of_model(config, model, image_shape=image_shape, guides={})
  low, high = INSIDE
  inside = guidance.interval(plain.rule, logsnr_min=low, logsnr_max=high)
  return {
    "guided": plain,
    "unguided": plain.at(0.0),
    "unmeasured": plain._replace(rule=unmeasured(plain.rule)),
    "interval": plain._replace(rule=inside),
  }, random_params(model, image_shape)


def measure(case):
  """({name: times}, {name: evaluations of a sample})."""
  from cfg.base import sharding
  from cfg.guidance import MAIN
  from cfg.inference import program
  from cfg.inference.generator import Generator

  drawings, params = programs(case)
  batch, _ = CASES[case]
  index = np.arange(batch)

  def caller(drawing):
    # a program's own w: none of them is asked for its unguided form
    generator = Generator(drawing, mesh=sharding.make_mesh(), batch_size=batch)
    samples = dict(index=index, labels=index % 10, w=1.0, seed=0)

    def call():
      for out in generator.batches({MAIN: params}, **samples):
        np.asarray(out.images)
        {name: np.asarray(values) for name, values in out.aux.items()}

    return call

  calls = {name: caller(drawing) for name, drawing in drawings.items()}
  evaluations = {name: program.nfe(drawing)[MAIN] for name, drawing in drawings.items()}
  return rounds.in_turn(calls, rounds=ROUNDS, title=case), evaluations


ROWS = (
  ("guided over unguided", "guided", "unguided"),
  ("the gauge over none", "guided", "unmeasured"),
  ("an interval over none", "interval", "guided"),
)


def main(cases):
  from cfg.base import runtime

  runtime.start(cpu_devices=2)
  print("| network | images, T | | evaluations | time | processor time |")
  print("| --- | --- | --- | --- | --- | --- |")
  for case in cases:
    times, evaluations = measure(case)
    batch, num_steps = CASES[case]
    share = evaluations["interval"] / num_steps - 1
    for name, first, second in ROWS:
      more = f" ({share:.0%} of the steps inside)" if first == "interval" else ""
      print(
        f"| {case} | {batch}, {num_steps} | {name}{more} | "
        f"{evaluations[first] / evaluations[second]:.3f} | "
        f"{rounds.cell(times[first], times[second])} | "
        f"{rounds.cell(times[first], times[second], clock=1)} |",
        flush=True,
      )


if __name__ == "__main__":
  unknown = set(sys.argv[1:]) - CASES.keys()
  if unknown:
    raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
  main(sys.argv[1:] or CASES)
