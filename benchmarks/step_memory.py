"""Does --mode=dry_run predict the memory that a training step takes?

Usage: python benchmarks/step_memory.py

Compiles the step of a narrower imagenet64 (a third of its width, float32, one device), then runs it
once and compares the predicted peak with the memory taken: the rise of the process's peak resident
memory since compilation, plus the state and batch that were there before. Linux only. Prints JSON.
"""

import ctypes
import json
import pathlib
import sys

import numpy as np

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from cfg.base import runtime  # noqa: E402


def resident(field):
  """VmRSS or VmHWM of this process in bytes."""
  lines = pathlib.Path("/proc/self/status").read_text().splitlines()
  return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main(batch_size=16, ch=64):
  runtime.start(cpu_devices=1)
  import jax

  from cfg.base import optim, sharding
  from cfg.models import unet
  from cfg.training import dry_run
  from cfg.training import step as train_step
  from configs import imagenet64

  config = imagenet64.get_config()
  config.model.update(ch=ch, emb_ch=4 * ch, head_dim=32, dtype="float32", dropout=0.0)
  config.train.update(batch_size=batch_size, accumulate=1)
  mesh = sharding.make_mesh(jax.devices()[:1])
  model = unet.from_config(config.model, num_classes=1000, image_shape=(64, 64, 3))
  costs = dry_run.Costs(config, model=model, image_shape=(64, 64, 3), mesh=mesh)
  predicted = costs.measure(batch_size)["peak"]
  optimizer = optim.make_optimizer(**config.optimizer)
  state = train_step.make_state(
    config, model=model, optimizer=optimizer, image_shape=(64, 64, 3), mesh=mesh
  )
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  rows = {
    "image": np.zeros((batch_size, 64, 64, 3), np.uint8),
    "label": np.zeros(batch_size, np.int32),
    "index": np.arange(batch_size, dtype=np.uint32),
  }
  batch = sharding.put_rows(mesh, rows)
  programs = dict(step.compile(costs.state, batch))
  jax.block_until_ready(state)
  ctypes.CDLL("libc.so.6").malloc_trim(0)  # what the compiler has freed goes back to the system
  before = resident("VmRSS")
  pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
  held = sum(
    leaf.nbytes for leaf in jax.tree.leaves((state, batch))
  )  # is there before, and in the prediction
  total = programs["micro-batch"](state.params, batch, jax.random.key(0))
  state, metrics = programs["update"](state, total)
  jax.block_until_ready(state)
  taken = held + resident("VmHWM") - before
  print(
    json.dumps(
      {
        "predicted_peak_gb": predicted / 1e9,
        "taken_gb": taken / 1e9,
        "ratio": predicted / taken,
        "of_it_state_gb": held / 1e9,
        "loss": float(metrics["loss"]),
      }
    )
  )


if __name__ == "__main__":
  main(*(int(argument) for argument in sys.argv[1:]))
