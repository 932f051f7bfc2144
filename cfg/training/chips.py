"""Accelerators that are not there: what can be compiled for, and what their makers say of them."""

import importlib.util
import os
import pathlib
import re
from typing import NamedTuple

import jax

from cfg.base import flops
from cfg.base.errors import UserError, nearest

GIB = 2**30
TARGETS = pathlib.Path(__file__).parent / "targets"


class Chip(NamedTuple):
  """One device.

  Attributes:
    kind: a part of jax's device_kind, known to flops.peak.
    memory: bytes that a program can use.
    bandwidth: bytes/s of its memory.
    clock: Hz of XLA's estimated cycles; None where it estimates none.
    taken: the part of `memory` that is free for programs beside workspaces and fragments.
  """

  kind: str
  memory: float
  bandwidth: float
  clock: float | None = None
  taken: float = 0.9

  @property
  def peak(self) -> float:
    """Dense bf16 FLOP/s."""
    return flops.peak(self.kind)


class Topology(NamedTuple):
  """Chips and how they are connected.

  Attributes:
    chip: of which kind.
    platform: jax's.
    shape: jax's topology, as "v4:2x2x4", or "1x1x8" (slices, hosts, devices of a host).
    options: further ones of get_topology_desc.
  """

  chip: Chip
  platform: str
  shape: str
  options: dict


# memory that programs can use, as libtpu and nvidia-smi tell; bandwidth from the data sheets; the
# clock is the peak rate over the products that a chip's matrix units take up in a cycle
CHIPS = {
  "v4": Chip("TPU v4", 30.75 * GIB, 1.228e12, 1.05e9),
  "v5p": Chip("TPU v5p", 95.74 * GIB, 2.765e12, 1.75e9),
  "v5e": Chip("TPU v5e", 15.75 * GIB, 0.819e12, 1.5e9),
  "v6e": Chip("TPU v6", 31.25 * GIB, 1.64e12, 1.75e9),
  "h100": Chip("H100", 84_942_979_072, 3.352e12),
}
# chips of a slice -> its shape
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8"}
SQUARES = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
# a v4's or v5p's number counts its TensorCores, two a chip; libtpu calls the v5p v5
WITH_CORES = {"v4": "v4", "v5p": "v5"}
PER_HOST = 8  # GPUs
# what to expect of a whole step, of the paper's 64x64 model
EXPECT = {
  "tpu": "about 15 minutes of a processor and 13 to 19 GB for a network of 300 million parameters",
  "cuda": "about 90 seconds of a processor and 3 GB for a network of 300 million parameters, each "
  "time, and a few times",
}
EXTRAS = {"tpu": ("libtpu", "tpu"), "cuda": ("jax_cuda12_plugin", "cuda")}


def names() -> list[str]:
  """All of them."""
  cores = [f"{kind}-{2 * chips}" for kind in WITH_CORES for chips in CUBES]
  chips = [f"{kind}-{count}" for kind in ("v5e", "v6e") for count in SQUARES]
  return [*cores, *chips, "h100", *(f"h100x{count}" for count in (2, 4, 8, 16, 32, 64))]


def find(name: str) -> Topology:
  """The Topology called v4-32, v5e-8, v5p-16, v6e-8, h100, h100x8, ... Raises UserError if there is
  none.
  """
  if name not in names():
    raise UserError(f"--topology is {name!r}, which is none: {nearest(name, names())}")
  if name.startswith("h100"):
    count = int(name.partition("x")[2] or 1)
    hosts, devices = (1, count) if count <= PER_HOST else (count // PER_HOST, PER_HOST)
    target = (TARGETS / "h100_sxm.txtpb").read_text(encoding="utf-8")
    options = dict(topology=f"1x{hosts}x{devices}", target_config=target)
    return Topology(CHIPS["h100"], "cuda", "gpu", options)
  kind, number = re.fullmatch(r"(v\d[ep]?)-(\d+)", name).groups()
  count = int(number)
  if kind in WITH_CORES:
    megacore = dict(chip_config_name="megacore", chips_per_host_bounds=(2, 2, 1))
    return Topology(CHIPS[kind], "tpu", f"{WITH_CORES[kind]}:{CUBES[count // 2]}", megacore)
  alone = dict(chips_per_host_bounds=(1, 1, 1)) if count == 1 else {}
  return Topology(CHIPS[kind], "tpu", f"{kind}:{SQUARES[count]}", alone)


def devices(topology: Topology) -> list[jax.Device]:
  """Stand-ins for its devices, to compile for.

  Raises:
    UserError: the package that compiles for them is not installed, or cannot.
  """
  package, extra = EXTRAS[topology.platform]
  if importlib.util.find_spec(package) is None:
    raise UserError(
      f"--topology: what compiles for {topology.chip.kind} is not installed: get it with "
      f"pip install -e '.[{extra}]', which needs no such chip."
    )
  # of what libtpu asks on a real one; not what is compiled for
  for variable, value in (
    ("TPU_SKIP_MDS_QUERY", "1"),
    ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
    ("TPU_WORKER_HOSTNAMES", "localhost"),
    ("ALLOW_MULTIPLE_LIBTPU_LOAD", "1"),
  ):
    os.environ.setdefault(variable, value)
  from jax.experimental import topologies

  try:
    described = topologies.get_topology_desc(
      topology_name=topology.shape, platform=topology.platform, **topology.options
    )
  except Exception as e:  # plugins raise what they like
    said = " ".join(str(e).split())[:200]
    raise UserError(f"--topology: {topology.shape} cannot be compiled for here ({said}).") from e
  return list(described.devices)
