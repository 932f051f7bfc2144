"""python -m cfg.toy: what guidance really draws of three Gaussians whose tilted law is known."""

import argparse

from cfg.base import progress, runtime
from cfg.base.errors import UserError, run_command
from cfg.base.paths import path_argument
from cfg.laboratory import study, tables
from cfg.laboratory.study import Settings


def several(text: str, *, name: str, of: type) -> tuple:
  """The values of "1,2,4", none of "".

  Raises:
    UserError: it is something else.
  """
  try:
    return tuple(of(part) for part in text.split(",")) if text.strip() else ()
  except ValueError:
    kind = "whole numbers" if of is int else "numbers"
    raise UserError(f"--{name} is {text!r}: give {kind} with commas between, as 1,2,4.") from None


def joined(values) -> str:
  """The inverse of `several`."""
  return ",".join(f"{value:g}" for value in values)


def main(argv=None):
  """The command line."""
  default = Settings()
  parser = argparse.ArgumentParser(
    prog="python -m cfg.toy",
    description="The paper's figure 2: three Gaussians and their exact tilted laws, and beside "
    "them what guided samplers draw, with exact noise and with a small trained network's, what "
    "weighted samples draw, and groups of particles. Writes figure2.png and toy.json, and prints "
    "tables.",
  )
  parser.add_argument(
    "--out", type=path_argument("--out"), default="runs/toy", help="folder to write to"
  )
  parser.add_argument("--w", default=joined(default.w), help="guidance strengths")
  parser.add_argument(
    "--num_samples", type=int, default=default.num_samples, help="samples of a class"
  )
  parser.add_argument(
    "--num_steps", default=joined(default.num_steps), help="levels of the sampler, T"
  )
  parser.add_argument(
    "--particles", default=joined(default.particles), help='sizes of the groups; "" for none'
  )
  parser.add_argument(
    "--rules",
    default=",".join(default.rules),
    help='further rules, with exact noise; "" for the paper\'s alone',
  )
  parser.add_argument(
    "--train_steps", type=int, default=default.train_steps, help="of the network; 0 for none"
  )
  parser.add_argument("--seed", type=int, default=default.seed, help="of everything")
  options = parser.parse_args(argv)
  settings = Settings(
    w=several(options.w, name="w", of=float),
    num_samples=options.num_samples,
    num_steps=several(options.num_steps, name="num_steps", of=int),
    particles=several(options.particles, name="particles", of=int),
    rules=several(options.rules, name="rules", of=str),
    train_steps=options.train_steps,
    seed=options.seed,
  )
  study.check(settings)
  runtime.start(cpu_devices=1)
  print(tables.text(study.run(options.out, settings)))
  print(f"{options.out}: figure2.png, toy.json")


if __name__ == "__main__":
  progress.to_stderr()
  run_command(main)
