"""What the compiled training step does on chips that are not here: a ledger, and its table.

Usage:
  python benchmarks/compiled.py measure [CASE ...] [--keep DIR] [--label TEXT]
  python benchmarks/compiled.py check [CASE ...]
  python benchmarks/compiled.py table

`measure` compiles the CASEs (those of whole networks if none is given) and adds a line for each to
benchmarks/compiled.jsonl; it needs '.[cuda]' for those of GPUs and '.[tpu]' for those of TPUs, and
no accelerator. `--keep` writes the programs' texts there, too. `check` compiles the CASEs (the
small ones if none is given) and fails if one needs more memory, bytes, cycles or collectives than
RISE times the last line of the same compiler; it skips those that nothing compiles here, or that
have no such line. `table` prints the first and the last line of each case, as in
benchmarks/compiled.md.
"""

import argparse
import ast
import datetime
import gzip
import importlib
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
RISE = 1.05
# of what decides a program, what does most
COMPILER = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin")
NARROW = ("model.ch=64", "model.emb_ch=256", "model.num_res_blocks=1")
# what CI compiles: two levels, the second with attention of 1024 positions
SMALL = (*NARROW, "model.ch_mult=(1, 2)", "model.attn_resolutions=(32,)")
# for TPUs the second level alone, since compiling for one takes ten times as long
SMALLEST = (*NARROW, "model.ch_mult=(1,)", "model.attn_resolutions=(32,)", "data.resolution=32")
# case: (config, topology, micro-batch of a device, fields); an update has one micro-batch, unless
# train.accumulate is among the fields
CASES = {
  "imagenet64-h100-32": ("imagenet64", "h100", 32, ()),
  "imagenet64-h100-64": ("imagenet64", "h100", 64, ()),
  "imagenet64-h100-128": ("imagenet64", "h100", 128, ()),
  "imagenet64-h100x64": ("imagenet64", "h100x64", 32, ()),
  "imagenet64-h100x8-fsdp8": ("imagenet64", "h100x8", 32, ("train.fsdp=8",)),
  "imagenet64-v4-32": ("imagenet64", "v4-32", 32, ()),
  "imagenet64-v4-32-64x2": ("imagenet64", "v4-32", 64, ("train.accumulate=2",)),
  "imagenet64-v5e-8": ("imagenet64", "v5e-8", 16, ()),
  "imagenet128-h100-32": ("imagenet128", "h100", 32, ()),
  "narrow-h100": ("imagenet64", "h100", 32, NARROW),
  "narrow-h100x8-fsdp8": ("imagenet64", "h100x8", 32, (*NARROW, "train.fsdp=8")),
  "narrow-v5e-8": ("imagenet64", "v5e-8", 16, NARROW),
  "small-h100": ("imagenet64", "h100", 32, SMALL),
  "small-h100x8-fsdp8": ("imagenet64", "h100x8", 32, (*SMALL, "train.fsdp=8")),
  "small-v5e-8": ("imagenet64", "v5e-8", 16, SMALLEST),
}


def config_of(case):
  """(the whole config, the Topology, its devices) of a case."""
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
  config.train.batch_size = micro * len(devices) * config.train.accumulate
  return config, topology, devices


def versions(case):
  """{package: version} of what decides the case's program."""
  from cfg.training import kept

  other = "jax-cuda12-plugin" if on_tpu(case) else "libtpu"
  return {name: version for name, version in kept.versions().items() if name != other}


def on_tpu(case):
  """Whether a TPU is compiled for."""
  return CASES[case][1].startswith("v")


def measure(case, *, keep=None):
  """The figures of a case, JSON values."""
  from cfg.base import flops, sharding
  from cfg.data import sources
  from cfg.models import networks
  from cfg.training import dry_run, estimates

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
  parts = config.train.accumulate
  _, training = flops.of_network(model, image_shape=image_shape)
  products = training * micro * parts
  told = estimates.update_on(topology, programs, parts=parts, products=products)
  return {
    "case": case,
    "micro_batch": micro,
    "accumulate": parts,
    "peak": memory["peak"],
    "temp": memory["temp"],
    "state": sum(costs.state_bytes().values()),
    "parameters": costs.state_bytes()["parameters"],
    "flops": products,
    "peak_rate": topology.chip.peak,
    **told,
    "programs": {
      name: {
        key: value
        for key, value in estimates.update_on(topology, [(name, text)], parts=1).items()
        if key in ("bytes_moved", "cycles", "custom_seconds", "collectives")
      }
      for name, text in programs
    },
    "compile_s": round(time.perf_counter() - start[0]),
    "processor_s": round(time.process_time() - start[1]),
    "host_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 1),
  }


def rises(found, known):
  """[what of a line rose above RISE times another's]."""
  pairs = {name: (found[name], known[name]) for name in ("peak", "bytes_moved", "cycles")}
  for kind, (count, size) in found["collectives"].items():
    before = known["collectives"].get(kind, (0, 0))
    pairs |= {f"{kind}, number": (count, before[0]), f"{kind}, bytes": (size, before[1])}
  return [
    f"{name} {now:,}, was {then:,}" for name, (now, then) in pairs.items() if now > RISE * then
  ]


def check(cases):
  """Compile them and compare with the ledger; the number of those that rose."""
  from cfg.base.errors import UserError

  lines = ledger()
  failed = 0
  for case in cases:
    try:
      here = versions(case)
      found = measure(case)
    except UserError as e:
      print(f"{case}: skipped, nothing compiles for it here ({e})", flush=True)
      continue
    compiler = lambda line: [line.get(name) for name in COMPILER]
    same = [
      line
      for line in lines
      if line["case"] == case and compiler(line["versions"]) == compiler(here)
    ]
    if not same:
      print(f"{case}: skipped, the ledger has no line of {here}", flush=True)
      continue
    risen = rises(found, same[-1])
    failed += bool(risen)
    said = "; ".join(risen) or "no more than the ledger has"
    if same[-1]["versions"] != here:
      said += f" (it has {same[-1]['versions']}, here are {here})"
    print(f"{case}: {said}; {found['compile_s']} s", flush=True)
  return failed


def ledger():
  """Its lines."""
  return [json.loads(line) for line in LEDGER.read_text(encoding="utf-8").splitlines()]


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
    "| case | at | peak, GB | bytes a step, GB | cycles, M | utilisation (uncharged) "
    "| collectives a device gets |",
    "| --- | --- | --- | --- | --- | --- | --- |",
  ]
  for case, found in cases.items():
    for line in found if len(found) == 1 else (found[0], found[-1]):
      moved = [
        f"{count} {kind} of {size / 1e9:.2f} GB"
        for kind, (count, size) in sorted(line["collectives"].items())
        if size >= 5e6
      ]
      least = lambda seconds, line=line: f"{line['flops'] / line['peak_rate'] / seconds:.0%}"
      use = ""
      if line["cycles"]:
        charged = line["custom_seconds"]
        use = f"{least(line['seconds'])} ({least(line['seconds'] - charged)})"
      cells = (
        case,
        line["label"],
        f"{line['peak'] / 1e9:.1f}",
        f"{line['bytes_moved'] / 1e9:.1f}",
        f"{line['cycles'] / 1e6:.0f}" if line["cycles"] else "",
        use,
        ", ".join(moved) or "none",
      )
      rows.append(f"| {' | '.join(cells)} |")
  return "\n".join(rows)


def main():
  parser = argparse.ArgumentParser(usage=__doc__)
  parser.add_argument("command", choices=["measure", "check", "table"])
  parser.add_argument("cases", nargs="*")
  parser.add_argument("--keep")
  parser.add_argument("--label", default="")
  args = parser.parse_args()
  os.environ["JAX_PLATFORMS"] = "cpu"
  if args.command == "table":
    print(table(ledger()))
  elif args.command == "check":
    sys.exit(check(args.cases or [case for case in CASES if case.startswith("small")]))
  else:
    for case in args.cases or [case for case in CASES if case.startswith("imagenet")]:
      line = {
        **measure(case, keep=args.keep),
        "label": args.label or commit(),
        "date": datetime.date.today().isoformat(),
        "versions": versions(case),
      }
      with LEDGER.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
      print(json.dumps(line), flush=True)


if __name__ == "__main__":
  main()
