"""What imagenet64's training step would do on more and more devices: a model on compiled figures.

Usage: python benchmarks/scaling.py

Reads benchmarks/compiled.jsonl, compiles nothing, and prints a table for TPU v4 slices and H100s
with the paper's batch of 2048. Of each kind two compiled sizes give a line in the rows of a
micro-batch, for time and for memory; a third compiled size stands beside it as a check. Nothing of
this was run.

The model: an update takes its micro-batches, one update of the parameters, and one all-reduce of
the gradients, one after the other.
  TPU: XLA's cycles, and custom calls charged as in cfg/training/estimates.py.
  GPU: the products at half the dense peak, and all bytes at the memory's rate, one after the other.
  All-reduce: 2 (n - 1) / n of the gradients (float32 with several micro-batches, else kernels in
  bfloat16) at the network's rate. TPU v4: 150 GB/s, half of the 300 GB/s of its six links (Jouppi
  et al. 2023, arXiv 2304.01433). H100: in a host of eight at 450 GB/s (NVLink 4, one way), of the
  eighth that is left between hosts at 50 GB/s (one 400 Gb/s adapter for each GPU).
"""

import compiled

BATCH = 2048
# kind: (topology, cases of the line, the case that checks it, the largest micro-batch to take)
KINDS = {
  "TPU v4": ("v4-8", ("imagenet64-v4-32", "imagenet64-v4-32-64x2"), None, 64),
  "H100": ("h100", ("imagenet64-h100-32", "imagenet64-h100-128"), "imagenet64-h100-64", 128),
}
DEVICES = {"TPU v4": (4, 8, 16, 32, 64, 128, 256), "H100": (1, 2, 4, 8, 16, 32, 64)}
PARAMETERS = 295_900_803
HOST = 8
V4_LINKS, NVLINK, ADAPTER = 150e9, 450e9, 50e9


def last(case):
  """The last line of the ledger for a case, or None."""
  return next((line for line in reversed(compiled.ledger()) if line["case"] == case), None)


def seconds(line, chip):
  """(of a micro-batch, of the update), each without the network."""
  programs = line["programs"]
  if chip.clock:
    times = {
      name: each["cycles"] / chip.clock + each["custom_seconds"] for name, each in programs.items()
    }
  else:
    times = {name: each["bytes_moved"] / chip.bandwidth for name, each in programs.items()}
    times["micro-batch"] += line["flops"] / line["accumulate"] / (chip.peak / 2)
  return times["micro-batch"], times["update"]


def all_reduce(kind, devices, size):
  """Seconds."""
  ring = lambda n: 2 * (n - 1) / n
  if kind == "TPU v4":
    return ring(devices) * size / V4_LINKS
  inside = min(devices, HOST)
  return ring(inside) * size / NVLINK + ring(devices // inside) * size / inside / ADAPTER


def main():
  from cfg.training import chips

  for kind, (topology, cases, check, largest) in KINDS.items():
    chip = chips.find(topology).chip
    low, high = map(last, cases)
    rows = [line["micro_batch"] for line in (low, high)]
    times = [seconds(line, chip)[0] for line in (low, high)]
    slope = (times[1] - times[0]) / (rows[1] - rows[0])
    micro = lambda n, first=(rows[0], times[0]), slope=slope: first[1] + slope * (n - first[0])
    growth = (high["peak"] - low["peak"]) / (rows[1] - rows[0])
    peak = lambda n, low=low, growth=growth: low["peak"] + growth * (n - low["micro_batch"])
    update = max(seconds(line, chip)[1] for line in (low, high))
    if line := last(check):
      told = micro(line["micro_batch"]), peak(line["micro_batch"])
      print(
        f"{kind}: micro-batch of {line['micro_batch']}: {1e3 * told[0]:.1f} ms by the line, "
        f"{1e3 * seconds(line, chip)[0]:.1f} compiled; peak {told[1] / 1e9:.1f} and "
        f"{line['peak'] / 1e9:.1f} GB\n"
      )
    print(
      f"| {kind}, devices | micro-batches | peak, GB | micro-batches, update, all-reduce, ms "
      "| images/s | of the peak rate | of a device's, at the fewest |"
    )
    print("| --- | --- | --- | --- | --- | --- | --- |")
    alone = None
    for devices in DEVICES[kind]:
      here = BATCH // devices
      parts = -(-here // largest)
      size = PARAMETERS * (2 if parts == 1 else 4)
      each = parts * micro(here // parts), update, all_reduce(kind, devices, size)
      rate = BATCH / sum(each)
      alone = alone or rate / devices
      flops = low["flops"] / low["accumulate"] / rows[0]
      cells = (
        str(devices),
        f"{parts} of {here // parts}",
        f"{peak(here // parts) / 1e9:.1f}",
        " + ".join(f"{1e3 * s:.0f}" for s in each),
        f"{rate:,.0f}",
        f"{flops * rate / devices / chip.peak:.0%}",
        f"{rate / devices / alone:.0%}",
      )
      print(f"| {' | '.join(cells)} |")
    print()


if __name__ == "__main__":
  main()
