"""ImageNet 64x64, the paper's model, trained on one card of 12 GB: the run of configs/imagenet64.py
in many small steps.

Command:  python -m cfg.main --config=configs/imagenet64_12gb.py   # on the images that configs/imagenet64.py says how to prepare
          :p_uncond=0.2 after the file's name selects another of the paper's three, as in
          configs/imagenet64.py.
Hardware: one GPU of 12 GB. Each update is made of 256 micro-batches of 8 images; blocks are
  recomputed in the backward
          pass; activations are bf16. --mode=dry_run --memory_gb=12 says what is left (compiled
          where it is run).
Time:     the paper's 400,000 updates are 819.2 million images: years on such a card. Set --config.train.batch_size and
          num_steps to what there is time for; the result is then not the paper's.

Expect the numbers of configs/imagenet64.py, after as many images.
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
