"""What compiled programs cost on chips that are not here, by what was read from their texts."""

import jax
import jax.numpy as jnp

from cfg.base import flops, sharding
from cfg.guidance import MAIN
from cfg.inference import network, program
from cfg.inference.generator import Generator
from cfg.training import compiled
from cfg.training.chips import Topology


def update_on(
  topology: Topology, programs: list[tuple[str, str]], *, parts: int, products: float = 0
) -> dict:
  """What one update does on one device of a topology, by the texts of its programs.

  XLA estimates a TPU's cycles, but for custom calls, each of which is charged the larger of its
  bytes at the memory's rate and its FLOPs at half the chip's peak; of a GPU there is a floor alone,
  the larger of all bytes at the memory's rate and the `products` [FLOPs] at the peak. Neither has
  the collectives' time.

  Returns:
    {"bytes_moved", "collectives" {kind: (how many, bytes)}, "cycles", "seconds", "custom_seconds"
    (of "seconds", those charged), "groups" {part: its share of cycles or bytes, custom calls as one
    part of cycles}}.
  """
  chip = topology.chip
  times = {"micro-batch": parts}
  total = compiled.added([(times.get(name, 1), compiled.summary(text)) for name, text in programs])
  charged = 0.0
  groups = {name: cost[0 if chip.clock else 1] for name, cost in total.groups.items()}
  if chip.clock:
    charged = sum(n * max(b / chip.bandwidth, f / (chip.peak / 2)) for b, f, n in total.custom)
    groups["custom calls"] = charged * chip.clock
    seconds = total.cycles / chip.clock + charged
  else:
    seconds = max(total.bytes / chip.bandwidth, products / chip.peak)
  whole = sum(groups.values()) or 1
  return {
    "bytes_moved": total.bytes,
    "collectives": total.collectives,
    "cycles": total.cycles,
    "seconds": seconds,
    "custom_seconds": charged,
    "groups": {name: groups[name] / whole for name in sorted(groups, key=groups.get, reverse=True)},
  }


def sampler_on(topology, config, *, model, params, image_shape, mesh):
  """What the guided sampler does on one device of a topology, by compiling it for a batch of the
  sweep.

  Args:
    topology: of the mesh's devices.
    config: the whole config.
    model: of its objective.
    params: its parameters, or their shapes.
    image_shape: (H, W, C).
    mesh: of stand-ins for the devices.

  Returns:
    {"batch" (images a device at once), "levels", "nfe" (rows of the network for an image), "peak"
    (bytes), "bytes_level", "seconds_level" (at least), "utilisation" (at most), "images_s" (of all
    devices, at most)}; None for a classifier, or if a second network guides, which is not opened.
  """
  if config.train.objective != "denoise" or program.roles(config) != (MAIN,):
    return None
  drawing = network.program_of_model(config, model, image_shape=image_shape, guides={})
  batch = sharding.round_up(mesh, config.sweep.batch_size)
  generator = Generator(drawing, mesh=mesh, batch_size=batch)
  shape = jax.ShapeDtypeStruct
  compiled_ = (
    generator.compiled(True)
    .lower(
      {MAIN: params},
      None,
      shape((batch,), jnp.uint32),
      shape((batch,), jnp.int32),
      shape((), jnp.float32),
      jax.eval_shape(lambda: jax.random.key(0)),
    )
    .compile()
  )
  forward, _ = flops.of_network(model, image_shape=image_shape)
  levels, rows = len(drawing.logsnr), generator.nfe(1.0)[MAIN]
  here = batch // mesh.size
  products = forward * rows * here / levels
  told = update_on(topology, [("sampler", compiled_.as_text())], parts=1, products=products)
  return {
    "batch": here,
    "levels": levels,
    "nfe": rows,
    "peak": peak_of(compiled_),
    "bytes_level": told["bytes_moved"],
    "seconds_level": told["seconds"],
    "utilisation": products / (topology.chip.peak * told["seconds"]),
    "images_s": batch / (levels * told["seconds"]),
  }


def peak_of(program_):
  """Bytes a device of a compiled program: arguments, temporary memory, and what it returns."""
  memory = program_.memory_analysis()
  new = memory.output_size_in_bytes - memory.alias_size_in_bytes
  return memory.argument_size_in_bytes + memory.temp_size_in_bytes + new
