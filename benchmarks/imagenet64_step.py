"""One real optimizer step of the paper's full 64x64 model on a CPU.

Usage: python benchmarks/imagenet64_step.py

Batch 2 of synthetic images, float32 (a CPU computes bf16 no faster), with EMA: parameters,
gradients, both moments and the average are all allocated. Needs about 10 GB of memory. Prints JSON.
"""

import json
import pathlib
import resource
import sys
import time

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))


def main(batch_size=2, steps=3):
  from cfg.base import runtime

  runtime.start(cpu_devices=1)
  import jax

  from cfg.base import optim, sharding
  from cfg.data import pipeline, sources
  from cfg.models import unet
  from cfg.training import step as train_step
  from configs import imagenet64

  config = imagenet64.get_config()
  config.data.name, config.model.dtype = "synthetic", "float32"
  config.train.update(batch_size=batch_size, accumulate=1)
  mesh, dataset = sharding.make_mesh(), sources.load(config.data)
  model = unet.from_config(
    config.model, num_classes=dataset.num_classes, image_shape=dataset.image_shape
  )
  optimizer = optim.make_optimizer(**config.optimizer)
  state = train_step.make_state(
    config, model=model, optimizer=optimizer, image_shape=dataset.image_shape, mesh=mesh
  )
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  seconds, losses = [], []
  for batch in pipeline.train_stream(
    dataset.train, batch_size=batch_size, seed=0, start_step=0, num_steps=steps
  ):
    start = time.perf_counter()
    state, metrics = step(state, step.place(batch))
    losses.append(float(metrics["loss"]))
    jax.block_until_ready(state)
    seconds.append(round(time.perf_counter() - start, 2))
  print(
    json.dumps(
      {
        "parameters": unet.num_params(state.params),
        "batch": batch_size,
        "seconds": seconds,
        "loss": losses,
        "step": int(state.step),
        "peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
        "jax": jax.__version__,
      }
    )
  )


if __name__ == "__main__":
  main(*(int(argument) for argument in sys.argv[1:]))
