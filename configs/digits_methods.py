"""The digits, guided in every way: the paper's curve beside those of other methods.

Commands:
  python -m cfg.main --config=configs/digits_classifier.py --mode=train
  python -m cfg.main --config=configs/digits_methods.py --workdir=runs/digits

Hardware: two CPU cores.

Every method takes about 64 evaluations of networks for each guided sample: one that needs fewer at
each level has more levels. All share their noise. docs/digits.md has the results.
"""

from configs import digits

CLASSIFIER = "runs/digits_classifier"  # the work directory of configs/digits_classifier.py
EARLIER = "runs/digits"  # and of this config, whose own earlier checkpoint guides


def get_config():
  """digits.py, swept over methods."""
  config = digits.get_config()
  config.sampler.var_interp = 0.3  # the paper's
  config.sweep.evaluations = 64
  weak = dict(rule="second_network", guide=EARLIER, guide_step=200)
  config.methods = {
    "classifier_free": dict(sweep=dict(w=(0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0))),
    "classifier": dict(
      guidance=dict(rule="classifier", guide=CLASSIFIER),
      sweep=dict(w=(0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)),
    ),
    "low_temperature": dict(
      # the standard deviation of a pixel among the training images of a class is 0.41
      guidance=dict(rule="temporal_rescaling", data_std=0.4),
      sweep=dict(w=(0.0, 0.1, 0.2, 0.5, 1.0)),
    ),
    "interval": dict(
      guidance=dict(logsnr_max=1.0), sweep=dict(w=(0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0))
    ),
    "meter_interval": dict(
      guidance=dict(interval="meter"), sweep=dict(w=(0.0, 0.1, 0.2, 0.5, 1.0, 2.0))
    ),
    "autoguidance": dict(guidance=weak, sweep=dict(w=(0.0, 0.2, 0.5, 1.0, 2.0))),
    "classifier_free_ddim": dict(
      sampler=dict(name="ddim"), sweep=dict(w=(0.0, 0.1, 0.3, 0.5, 1.0))
    ),
    # of deterministic samplers alone
    "truncation_ddim": dict(
      guidance=dict(rule="truncation"),
      sampler=dict(name="ddim"),
      sweep=dict(w=(0.0, 0.25, 0.5, 0.75)),
    ),
  }
  # the first is what the others are compared with
  config.sweep.methods = (
    "classifier_free",
    "classifier",
    "low_temperature",
    "interval",
    "meter_interval",
    "autoguidance",
    "classifier_free_ddim",
    "truncation_ddim",
  )
  return config
