"""What a config costs, without training or sampling: parameters, FLOPs, memory, the largest
micro-batch that fits, and, on machines that are not here, what the compiled programs do.
"""

import functools
import logging
import os

import jax
import jax.numpy as jnp

from cfg.base import config as config_lib
from cfg.base import flops, optim, sharding
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.data import sources
from cfg.models import networks, unet
from cfg.training.chips import Topology
from cfg.training.estimates import peak_of, sampler_on, update_on
from cfg.training.step import TrainStep, as_used, state_init

GB = 1e9
log = logging.getLogger(__name__)


def dry_run(
  config: ConfigDict,
  *,
  mesh: jax.sharding.Mesh,
  memory_gb: float | None = None,
  topology: Topology | None = None,
) -> dict:
  """Compile the training step of `config` on `mesh` and report its cost; nothing is allocated or
  trained.

  Args:
    config: the whole config.
    mesh: from sharding.make_mesh; on a CPU it may have any number of virtual devices.
    memory_gb: of one device, in units of 1e9 bytes; None for what the device has.
    topology: that the mesh's devices stand for (chips.devices), if they are not there.

  Returns:
    {"parameters", "flops_forward", "flops_training" (per image), "num_devices", "backend",
    "micro_batch" (per device), "state_bytes" (per device, by part), "temp_bytes" (per device),
    "peak_bytes" (per device), "memory_bytes", "largest_micro_batch" (per device)}; of a topology
    also what `update_on` says, and "sampler", what `sampler_on` does. On TPUs, where a compilation
    takes long, the largest is None.

  Raises:
    UserError: a batch size that the devices cannot share, or fields that do not fit each other.
  """
  parts = config.train.accumulate
  sharding.check_batch_size(mesh, "train.batch_size", config.train.batch_size, parts=parts)
  num_classes, image_shape = sources.shape(config.data)
  model = networks.from_config(
    config.model,
    objective=config.train.objective,
    num_classes=num_classes,
    image_shape=image_shape,
    mesh=mesh,
  )
  forward, training = flops.of_network(model, image_shape=image_shape)
  costs = Costs(config, model=model, image_shape=image_shape, mesh=mesh)
  micro = config.train.batch_size // (parts * mesh.size)
  if memory_gb:
    memory = memory_gb * GB
  elif topology is not None:
    memory = topology.chip.memory * topology.chip.taken
  else:
    memory = device_memory(mesh)
  measured = costs.measure(micro)
  search = topology is None or topology.platform != "tpu"
  report = {
    "parameters": unet.num_params(costs.state.params),
    "flops_forward": forward,
    "flops_training": training,
    "num_devices": mesh.size,
    "fsdp": mesh.shape["fsdp"],
    "backend": f"{mesh.devices.flat[0].platform} ({mesh.devices.flat[0].device_kind})",
    "batch_size": config.train.batch_size,
    "accumulate": parts,
    "micro_batch": micro,
    "state_bytes": costs.state_bytes(),
    "temp_bytes": measured["temp"],
    "peak_bytes": measured["peak"],
    "memory_bytes": int(memory),
    "largest_micro_batch": (
      costs.largest(memory, known={micro: measured["peak"]}) if search else None
    ),
  }
  if topology is not None:
    products = training * micro * parts
    report |= update_on(topology, costs.programs(micro), parts=parts, products=products)
    report["utilisation"] = products / (topology.chip.peak * report["seconds"])
    report["utilisation_uncharged"] = report["utilisation"] / (
      1 - report["custom_seconds"] / report["seconds"]
    )
    log.info("compiling the sampler")
    report["sampler"] = sampler_on(
      topology, config, model=model, params=costs.state.params, image_shape=image_shape, mesh=mesh
    )
  return report


class Costs:
  """Memory of one device for a config's step, by compiling it for shapes alone."""

  def __init__(self, config, *, model, image_shape, mesh):
    self._mesh = mesh
    self._model = model
    self._image_shape = image_shape
    self._texts = {}
    optimizer = optim.make_optimizer(**config.optimizer)
    init = state_init(config, model=model, optimizer=optimizer, image_shape=image_shape)
    self.state = jax.eval_shape(init, jax.random.key(0))
    self._parts = config.train.accumulate
    self._step = TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=self.state)

  def programs(self, micro_batch):
    """[(name, text)] of the programs that `measure` compiled for it."""
    return [(name, text()) for name, text in self._texts[micro_batch]]

  def state_bytes(self):
    """{part: bytes a device}: what is there between the forward passes, and the gradients that
    every update makes.
    """
    size = lambda tree: sharding.bytes_per_device(tree, sharding.by_shape(self._mesh, tree))
    params = size(self.state.params)
    used = jax.eval_shape(functools.partial(as_used, model=self._model), self.state.params)
    # the accumulator is the running total of loss and gradients
    accumulator = params + 4 if self._parts > 1 else 0
    return {
      "parameters": params,
      "optimizer": size(self.state.opt_state),
      "ema": size(self.state.ema),
      "step": size(self.state.step),
      "gradients": size(used),
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
    log.info("compiling the step for %d images a device", micro_batch)
    programs = self._step.compile(self.state, batch)
    self._texts[micro_batch] = [(name, each.as_text) for name, each in programs]
    for _, each in programs:
      memory = each.memory_analysis()
      # of the state, what this program does not see
      others = max(0, resident - memory.argument_size_in_bytes)
      temp = max(temp, memory.temp_size_in_bytes)
      peak = max(peak, peak_of(each) + others)
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
    ("fits", _fits(report)),
    *(_update_rows(report) if "collectives" in report else ()),
  ]
  text = "\n".join(f"{name:>18}  {value}" for name, value in rows)
  if on_cpu:
    text += (
      "\nCompiled for a CPU: temporary memory, peak and what fits are estimates for other chips "
      "(there bf16 is computed as bf16). State is exact."
    )
  return text


def _fits(report):
  memory = f"{si(report['memory_bytes'])}B a device"
  if report["largest_micro_batch"] is None:
    fits = report["peak_bytes"] <= report["memory_bytes"]
    return f"{'in' if fits else 'NOT in'} {memory}"
  largest = report["largest_micro_batch"] or "not even 1"
  return f"in {memory}: micro-batches of {largest} images a device"


def _update_rows(report):
  """Rows of the table for `update_on`."""
  moved = sorted(report["collectives"].items())
  said = [f"{count} {kind} of {si(size)}B" for kind, (count, size) in moved]
  groups = list(report["groups"].items())[:3]
  rows = [
    ("bytes an update", f"{si(report['bytes_moved'])}B read and written by a device's kernels"),
    ("collectives", ", ".join(said) or "none"),
    ("dearest", ", ".join(f"{name} {share:.0%}" for name, share in groups)),
  ]
  milliseconds = f"{1e3 * report['seconds']:.3g} ms"
  if report["cycles"]:
    charged = 1e3 * report["custom_seconds"]
    what = f"by XLA's estimate of {si(report['cycles'])}cycles" + (
      f", {charged:.0f} ms charged for custom calls" if charged else ""
    )
  else:
    what = "by memory's rate or the products at the peak, whichever takes longer"
  use = f"at most {report['utilisation']:.0%} of the peak rate"
  if report["custom_seconds"]:
    use += f" ({report['utilisation_uncharged']:.0%} without that charge)"
  rows.append(("an update", f"at least {milliseconds}, {what}, without collectives: {use}"))
  if sampler := report["sampler"]:
    rows.append(
      (
        "sampling",
        f"{sampler['batch']} images a device at once: peak {si(sampler['peak'])}B; a level reads "
        f"and writes {si(sampler['bytes_level'])}B and takes at least "
        f"{1e3 * sampler['seconds_level']:.3g} ms, at most {sampler['utilisation']:.0%} of the "
        f"peak rate; with {sampler['levels']} levels at most {sampler['images_s']:.3g} images/s",
      )
    )
  return rows


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
