"""A classifier of noised CIFAR-10, 32x32, to guide the model of cifar10.py.

Commands:
  # prepared/cifar10 as for cifar10.py
  python -m cfg.main --config=configs/cifar10_classifier.py --mode=train
  python -m cfg.main --config=configs/cifar10.py --mode=sweep \
      --config.guidance.rule=classifier --config.guidance.guide=runs/cifar10_classifier
  # what it costs, without training
  python -m cfg.main --config=configs/cifar10_classifier.py --mode=dry_run

Hardware: one GPU. 4,206,602 parameters.
Time: 15.4 million images at 2.5 GFLOP each. Not measured; within an hour on any recent GPU, by the
arithmetic alone in minutes.

The architecture is that of ADM's classifiers (arXiv 2105.05233), at half the width of cifar10.py.
It has not been trained here, and there are no published numbers to expect.
"""

from configs import cifar10


def get_config():
  """A noise-conditional classifier of ten classes."""
  config = cifar10.get_config()
  config.model.update(ch=64, emb_ch=256)
  config.optimizer.update(learning_rate=3e-4, warmup_steps=1_000, weight_decay=0.05)
  config.train.update(objective="classify", batch_size=256, num_steps=60_000, p_uncond=0.0)
  config.preview.every_steps = 0
  return config
