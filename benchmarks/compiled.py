"""What the compiled training step does on chips that are not here: a ledger, and its table.

Usage:
  python benchmarks/compiled.py measure [CASE ...] [--keep DIR] [--label TEXT]
  python benchmarks/compiled.py table

`measure` compiles the CASEs (all but the narrow ones if none is given) and adds a line for each to
benchmarks/compiled.jsonl; it needs '.[cuda]' for those of GPUs and '.[tpu]' for those of TPUs, and
no accelerator. `--keep` writes the programs' texts there, too. `table` prints the first and the
last line of each case, as in benchmarks/compiled.md.
"""

import argparse
import ast
import datetime
import gzip
import importlib
import importlib.metadata
import json
import os
import pathlib
import resource
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
LEDGER = ROOT / "benchmarks/compiled.jsonl"
NARROW = ("model.ch=64", "model.emb_ch=256", "model.num_res_blocks=1")
# case: (config, topology, micro-batch of a device, fields)
CASES = {
  "imagenet64-h100-32": ("imagenet64", "h100", 32, ()),
  "imagenet64-h100-128": ("imagenet64", "h100", 128, ()),
  "imagenet64-h100x8-fsdp8": ("imagenet64", "h100x8", 32, ("train.fsdp=8",)),
  "imagenet64-v4-32": ("imagenet64", "v4-32", 32, ()),
  "imagenet64-v5e-8": ("imagenet64", "v5e-8", 16, ()),
  "imagenet128-h100-32": ("imagenet128", "h100", 32, ()),
  "narrow-h100": ("imagenet64", "h100", 32, NARROW),
  "narrow-h100x8-fsdp8": ("imagenet64", "h100x8", 32, (*NARROW, "train.fsdp=8")),
  "narrow-v5e-8": ("imagenet64", "v5e-8", 16, NARROW),
}


def config_of(case):
  """(the whole config, the Topology) of a case: one micro-batch an update."""
  from cfg.training import chips

  name, topology, micro, fields = CASES[case]
  topology = chips.find(topology)
  config = importlib.import_module(f"configs.{name}").get_config()
  config.train.accumulate = 1
  for field in fields:
    path, _, value = field.partition("=")
    section, _, key = path.partition(".")
    config[section][key] = ast.literal_eval(value)
  config.data.name = "synthetic"  # the same shapes, and no files
  devices = chips.devices(topology)
  config.train.batch_size = micro * len(devices)
  return config, topology, devices


def versions():
  """{package: version} of what decides a program."""
  names = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax")
  found = {}
  for name in names:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found


def measure(case, *, keep=None):
  """The figures of a case, JSON values."""
  from cfg.base import flops, sharding
  from cfg.data import sources
  from cfg.models import networks
  from cfg.training import dry_run

  start = time.perf_counter(), time.process_time()
  config, topology, devices = config_of(case)
  mesh = sharding.make_mesh(devices, fsdp=config.train.fsdp)
  num_classes, image_shape = sources.shape(config.data)
  model = networks.from_config(
    config.model, objective="denoise", num_classes=num_classes, image_shape=image_shape, mesh=mesh
  )
  costs = dry_run.Costs(config, model=model, image_shape=image_shape, mesh=mesh)
  micro = CASES[case][2]
  memory = costs.measure(micro)
  programs = costs.programs(micro)
  if keep:
    for name, text in programs:
      file = pathlib.Path(keep) / f"{case}.{name}.txt.gz"
      file.write_bytes(gzip.compress(text.encode()))
  told = dry_run.update_on(topology, programs, parts=1)
  _, training = flops.of_network(model, image_shape=image_shape)
  return {
    "case": case,
    "micro_batch": micro,
    "peak": memory["peak"],
    "temp": memory["temp"],
    "state": sum(costs.state_bytes().values()),
    "parameters": costs.state_bytes()["parameters"],
    "flops": training * micro,
    "peak_rate": topology.chip.peak,
    **told,
    "compile_s": round(time.perf_counter() - start[0]),
    "processor_s": round(time.process_time() - start[1]),
    "host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 1),
  }


def commit():
  """The commit of this tree, with a + if it was changed since."""
  git = lambda *args: subprocess.run(
    ["git", "-C", str(ROOT), *args], capture_output=True, text=True, check=True
  ).stdout.strip()
  return git("rev-parse", "--short", "HEAD") + ("+" if git("status", "--porcelain", "cfg") else "")


def table(lines):
  """The first and the last line of each case, side by side."""
  cases = {}
  for line in lines:
    cases.setdefault(line["case"], []).append(line)
  rows = [
    "| case | at | peak, GB | bytes a step, GB | cycles, M | collectives a device gets |",
    "| --- | --- | --- | --- | --- | --- |",
  ]
  for case, found in cases.items():
    for line in found if len(found) == 1 else (found[0], found[-1]):
      moved = [
        f"{count} {kind} of {size / 1e9:.2f} GB"
        for kind, (count, size) in sorted(line["collectives"].items())
        if size >= 5e6
      ]
      cells = (
        case,
        line["label"],
        f"{line['peak'] / 1e9:.1f}",
        f"{line['bytes_moved'] / 1e9:.1f}",
        f"{line['cycles'] / 1e6:.0f}" if line["cycles"] else "",
        ", ".join(moved) or "none",
      )
      rows.append(f"| {' | '.join(cells)} |")
  return "\n".join(rows)


def main():
  parser = argparse.ArgumentParser(usage=__doc__)
  parser.add_argument("command", choices=["measure", "table"])
  parser.add_argument("cases", nargs="*")
  parser.add_argument("--keep")
  parser.add_argument("--label", default="")
  args = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  if args.command == "table":
    print(table(map(json.loads, LEDGER.read_text(encoding="utf-8").splitlines())))
  else:
    for case in args.cases or [case for case in CASES if not case.startswith("narrow")]:
      line = {
        **measure(case, keep=args.keep),
        "label": args.label or commit(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(),
      }
      with LEDGER.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
