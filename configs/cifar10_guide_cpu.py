"""CIFAR-10, 32x32: a small, little trained network, to guide the model of cifar10_cpu.py by.

Commands:
  python -m cfg.main --config=configs/cifar10_guide_cpu.py --mode=train
  # autoguidance
  python -m cfg.main --config=configs/cifar10_cpu.py --mode=sweep \\
    --config.guidance.rule=second_network --config.guidance.guide=runs/cifar10_guide_cpu

Hardware: two CPU cores.

Autoguidance (Karras et al. 2024, arXiv 2406.02507) takes a worse version of the network in place of
its null label: here a quarter of its parameters and of its training. docs/cifar10 has the weights
and what they do.
"""

from configs import cifar10_cpu


def get_config():
  """A narrower sibling of cifar10_cpu.py."""
  config = cifar10_cpu.get_config()
  config.model.update(ch=16, emb_ch=64, num_heads=2, norm_groups=4)
  config.train.update(num_steps=1_500, ema_decays=(0.995,), checkpoint_every_steps=500)
  config.heldout.every_steps = 500
  config.preview.every_steps = 1_500
  return config
