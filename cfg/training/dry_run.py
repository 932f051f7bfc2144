"""What a config costs, without training: parameters, FLOPs, memory, and the largest micro-batch
that fits.
"""

import functools
import os

import jax
import jax.numpy as jnp

from cfg.base import config as config_lib
from cfg.base import flops, optim, sharding
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.data import sources
from cfg.models import networks, unet
from cfg.training.step import TrainStep, state_init

GB = 1e9


def dry_run(config: ConfigDict, *, mesh: jax.sharding.Mesh, memory_gb: float | None = None) -> dict:
  """Compile the training step of `config` on `mesh` and report its cost; nothing is allocated or
  trained.

  Args:
    config: the whole config.
    mesh: from sharding.make_mesh; on a CPU it may have any number of virtual devices.
    memory_gb: of one device, in units of 1e9 bytes; None for what the device has.

  Returns:
    {"parameters", "flops_forward", "flops_training" (per image), "num_devices", "backend",
    "micro_batch" (per device), "state_bytes" (per device, by part), "temp_bytes" (per device),
    "peak_bytes" (per device), "memory_bytes", "largest_micro_batch" (per device)}.

  Raises:
    UserError: a batch size that the devices cannot share, or fields that do not fit each other.
  """
  parts = config.train.accumulate
  sharding.check_batch_size(mesh, "train.batch_size", config.train.batch_size, parts=parts)
  num_classes, image_shape = sources.shape(config.data)
  model = networks.from_config(
    config.model, objective=config.train.objective, num_classes=num_classes, image_shape=image_shape
  )
  forward, training = flops.of_network(model, image_shape=image_shape)
  costs = Costs(config, model=model, image_shape=image_shape, mesh=mesh)
  micro = config.train.batch_size // (parts * mesh.size)
  memory = memory_gb * GB if memory_gb else device_memory(mesh)
  measured = costs.measure(micro)
  return {
    "parameters": unet.num_params(costs.state.params),
    "flops_forward": forward,
    "flops_training": training,
    "num_devices": mesh.size,
    "fsdp": mesh.shape["fsdp"],
    "backend": f"{jax.default_backend()} ({mesh.devices.flat[0].device_kind})",
    "batch_size": config.train.batch_size,
    "accumulate": parts,
    "micro_batch": micro,
    "state_bytes": costs.state_bytes(),
    "temp_bytes": measured["temp"],
    "peak_bytes": measured["peak"],
    "memory_bytes": int(memory),
    "largest_micro_batch": costs.largest(memory, known={micro: measured["peak"]}),
  }


class Costs:
  """Memory of one device for a config's step, by compiling it for shapes alone."""

  def __init__(self, config, *, model, image_shape, mesh):
    self._mesh = mesh
    self._image_shape = image_shape
    optimizer = optim.make_optimizer(**config.optimizer)
    init = state_init(config, model=model, optimizer=optimizer, image_shape=image_shape)
    self.state = jax.eval_shape(init, jax.random.key(0))
    self._parts = config.train.accumulate
    self._step = TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=self.state)

  def state_bytes(self):
    """{part: bytes a device}: what is there between the forward passes, and the gradients that
    every update makes.
    """
    size = lambda tree: sharding.bytes_per_device(tree, sharding.by_shape(self._mesh, tree))
    params = size(self.state.params)
    # the accumulator is the running total of loss and gradients
    accumulator = params + 4 if self._parts > 1 else 0
    return {
      "parameters": params,
      "optimizer": size(self.state.opt_state),
      "ema": size(self.state.ema),
      "step": size(self.state.step),
      "gradients": params,
      "accumulator": accumulator,
    }

  @functools.cache  # noqa: B019 (one for each dry run)
  def measure(self, micro_batch):
    """{"temp", "peak"}: bytes a device for a micro-batch of so many rows a device."""
    rows = micro_batch * self._mesh.size
    batch = {
      "image": jax.ShapeDtypeStruct((rows, *self._image_shape), jnp.uint8),
      "label": jax.ShapeDtypeStruct((rows,), jnp.int32),
      "index": jax.ShapeDtypeStruct((rows,), jnp.uint32),
    }
    bytes_ = self.state_bytes()
    resident = sum(bytes_.values()) - bytes_["gradients"]
    temp = 0
    peak = 0
    for _, program in self._step.compile(self.state, batch):
      memory = program.memory_analysis()
      new = memory.output_size_in_bytes - memory.alias_size_in_bytes
      # of the state, what this program does not see
      others = max(0, resident - memory.argument_size_in_bytes)
      temp = max(temp, memory.temp_size_in_bytes)
      peak = max(peak, memory.argument_size_in_bytes + memory.temp_size_in_bytes + new + others)
    return {"temp": temp, "peak": peak}

  def largest(self, memory, *, known):
    """The largest micro-batch a device of 1, 2, 3, 4, 6, 8, 12, 16, ... whose peak is within
    `memory` bytes; 0 if none.

    Peak memory is close to a line in the batch: one through two sizes says where to
    look, and the answer is compiled to be sure.
    """
    peaks = dict(known)
    first = next(iter(peaks))
    other = first // 2 or 2
    peaks[other] = self.measure(other)["peak"]
    slope = max((peaks[first] - peaks[other]) / (first - other), 1.0)
    estimate = first + (memory - peaks[first]) / slope
    sizes = sorted({n * 2**k for n in (1, 3) for k in range(40)})
    for size in reversed([size for size in sizes if size <= estimate * 1.02]):
      peak = peaks[size] if size in peaks else self.measure(size)["peak"]
      if peak <= memory:
        return size
    return 0


def device_memory(mesh: jax.sharding.Mesh) -> int:
  """Bytes of one device: what it says, or of a virtual CPU device its share of the machine."""
  stats = mesh.devices.flat[0].memory_stats()
  if stats and stats.get("bytes_limit"):
    return stats["bytes_limit"]
  return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // mesh.size


def table(report: dict) -> str:
  """The report as text."""
  gb = lambda n: f"{si(n)}B"
  on_cpu = report["backend"].startswith("cpu")
  state = {name.replace("_", " "): n for name, n in report["state_bytes"].items() if n >= 1000}
  rows = [
    ("parameters", f"{report['parameters']:,}"),
    (
      "FLOPs an image",
      f"{si(report['flops_forward'])}FLOP forward, {si(report['flops_training'])}FLOP with the "
      f"backward pass (nothing recomputed)",
    ),
    (
      "devices",
      f"{report['num_devices']} of {report['backend']}, parameters split over {report['fsdp']}",
    ),
    (
      "batch",
      f"{report['batch_size']} = {report['num_devices']} devices x {report['accumulate']} "
      f"micro-batches x {report['micro_batch']} images",
    ),
    (
      "state a device",
      f"{gb(sum(report['state_bytes'].values()))}: "
      f"{', '.join(f'{name} {gb(n)}' for name, n in state.items())}",
    ),
    (
      "temporary a device",
      f"{gb(report['temp_bytes'])}, gradients included, compiled for {report['backend']}",
    ),
    ("peak a device", gb(report["peak_bytes"])),
    (
      "fits",
      f"in {gb(report['memory_bytes'])} a device: micro-batches of "
      f"{report['largest_micro_batch'] or 'not even 1'} images a device",
    ),
  ]
  text = "\n".join(f"{name:>18}  {value}" for name, value in rows)
  if on_cpu:
    text += (
      "\nCompiled for a CPU: temporary memory, peak and what fits are estimates for other chips "
      "(there bf16 is computed as bf16). State is exact."
    )
  return text


def si(number: float) -> str:
  """210057239040 -> "210.1 G"."""
  power = min(4, max(0, (len(str(int(number))) - 1) // 3))
  scaled = number / 1000**power
  digits = 0 if power == 0 else 3 if scaled < 10 else 1
  return f"{scaled:.{digits}f} {['', 'k', 'M', 'G', 'T'][power]}"


def check(config: ConfigDict) -> None:
  """Raise UserError if the config cannot be trained at all."""
  if config_lib.class_rows(config) is not None:
    raise UserError(
      "this config is of imported weights, which are not trained: there is no training step to "
      "measure."
    )
  config_lib.check_values(config)
