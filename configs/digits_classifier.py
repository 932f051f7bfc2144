"""A classifier of noised digits, 8x8, to guide the model of digits.py by its gradient.

Commands:
  python -m cfg.main --config=configs/digits_classifier.py --mode=train
  # then the digits, trained as before, swept with it in place of the null label
  python -m cfg.main --config=configs/digits.py --mode=train
  python -m cfg.main --config=configs/digits.py --mode=sweep \
      --config.guidance.rule=classifier --config.guidance.guide=runs/digits_classifier

Hardware: two CPU cores, 2 GB of memory; nothing is downloaded.
Time: about a minute; measured: 107 seconds of CPU time over both cores, compilation included.

On the 359 held-out digits the accuracy is 98.6% at log-SNR above 3.2, 67% between -0.8 and 0, and
16% below -3.2, where little of a digit is left; the expected calibration error is 0.04.
docs/digits.md has more. A classifier has no samples: --mode=sweep and --mode=sample refuse it.
"""

from configs import digits


def get_config():
  """A noise-conditional classifier: the way down of a U-Net, and attention pooling."""
  config = digits.get_config()
  config.model.update(ch=32, emb_ch=128)
  config.optimizer.update(learning_rate=2e-3, weight_decay=0.05)
  config.train.update(objective="classify", num_steps=400, p_uncond=0.0)
  config.preview.every_steps = 0
  return config
