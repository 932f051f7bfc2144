"""ImageNet 64x64, the paper's model, on one GPU of 12 GB: the run of imagenet64.py in small steps.

Commands:
  # imagenet64.py says how to prepare the images, and what :p_uncond=P after the file's name selects
  python -m cfg.main --config=configs/imagenet64_12gb.py
  # how much memory is left; compiled for the device that this is run on
  python -m cfg.main --config=configs/imagenet64_12gb.py --mode=dry_run --memory_gb=12

Hardware: one GPU of 12 GB. Each update consists of 256 micro-batches of 8 images; blocks are
recomputed in the backward pass; activations are bf16.
Time: the paper's 400,000 updates are 819.2 million images, which would take years on such a GPU.
Set --config.train.batch_size and --config.train.num_steps to what you have time for; the result is
then not the paper's.

Expect the numbers of imagenet64.py, after as many images.
"""

from configs import imagenet64


def get_config(options="p_uncond=0.1"):
  """imagenet64 with accumulation and recomputation; `options` is "p_uncond=P"."""
  config = imagenet64.get_config(options)
  config.cpu_devices = 1
  config.model.update(remat=True)
  config.train.update(accumulate=256, log_every_steps=1, checkpoint_every_steps=100)
  config.heldout.update(batch_size=4)
  config.sweep.update(batch_size=16)
  return config
