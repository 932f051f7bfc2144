"""CIFAR-10, 32x32: the model of cifar10_cpu.py, guided in four ways at 16 evaluations a sample.

Commands:
  mkdir -p runs/cifar10_methods
  cp docs/cifar10/cifar10_cpu.safetensors runs/cifar10_methods/weights.safetensors
  python -m cfg.main --config=configs/cifar10_methods_cpu.py --mode=sweep \\
    --workdir=runs/cifar10_methods --config.judge.path=resnet56.npz

Hardware: two CPU cores.

docs/cifar10 has the results. The judge is a published classifier (docs/metrics.md); without
judge.path a small one is trained.
"""

from configs import cifar10_cpu

GUIDE = "docs/cifar10/cifar10_guide_cpu.safetensors"  # of configs/cifar10_guide_cpu.py


def get_config():
  """cifar10_cpu.py, swept over methods."""
  config = cifar10_cpu.get_config()
  config.sampler.name = "ddim"
  config.sweep.update(evaluations=16, num_samples=1_000, batch_size=100)
  config.meter.update(num_levels=28, num_images=250)
  guided = (0.5, 1.0, 2.0, 4.0)
  config.methods = {
    "classifier_free": dict(sweep=dict(w=(0.0, *guided))),
    # sigma from 0.19 to 1.61 (Kynkaanniemi et al. 2024, arXiv 2404.07724)
    "interval": dict(guidance=dict(logsnr_min=-0.95, logsnr_max=3.32), sweep=dict(w=guided)),
    "meter_interval": dict(guidance=dict(interval="meter"), sweep=dict(w=guided)),
    "autoguidance": dict(guidance=dict(rule="second_network", guide=GUIDE), sweep=dict(w=guided)),
  }
  config.sweep.methods = ("classifier_free", "interval", "meter_interval", "autoguidance")
  return config
