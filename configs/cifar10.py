"""CIFAR-10, 32x32, on one GPU.

Commands:
  # cifar-10-batches-bin is the extracted binary archive
  python -m cfg.data.prepare cifar-10-batches-bin prepared/cifar10 --resolution=32
  python -m cfg.main --config=configs/cifar10.py
  # to try it without data
  python -m cfg.main --config=configs/cifar10.py --config.data.name=synthetic
  # what it costs, without training
  python -m cfg.main --config=configs/cifar10.py --mode=dry_run

Hardware: one GPU. A CPU can start this run but not finish it; see cifar10_cpu.py.
Time: 51.2 million images at 0.040 TFLOP each. Estimated, not measured: 2 hours on an H200 at 45% of
790 TFLOP/s, which so small a network may not reach.

The paper has no CIFAR-10 experiment, so there are no published numbers to expect. The sizes are
those of DDPM's CIFAR-10 network (Ho et al. 2020, arXiv 2006.11239, appendix B: 128 channels times
1, 2, 2, 2, attention at 16x16, dropout 0.1, learning rate 2e-4, batch 128) with the paper's blocks.
The number of steps is half of DDPM's 800,000.
"""

from configs import digits


def get_config():
  """A class-conditional model of 32x32 images with label dropout."""
  config = digits.get_config()
  config.cpu_devices = 1
  config.data.update(
    name="prepared",
    path="prepared/cifar10",
    resolution=32,
    num_classes=10,
    num_images=4096,
    heldout_fraction=0.04,
  )
  config.model.update(
    ch=128,
    emb_ch=512,
    ch_mult=(1, 2, 2, 2),
    num_res_blocks=2,
    attn_resolutions=(16,),
    num_heads=None,
    head_dim=64,
    dropout=0.1,
    norm_groups=32,
    dtype="bfloat16",
  )
  config.optimizer.update(learning_rate=2e-4, warmup_steps=5_000)
  config.train.update(
    batch_size=128,
    num_steps=400_000,
    p_uncond=0.1,
    flip=True,
    ema_decays=(0.9999,),
    log_every_steps=100,
    checkpoint_every_steps=5_000,
  )
  config.heldout.update(every_steps=10_000, num_images=2000, batch_size=50)
  config.preview.update(every_steps=10_000, w=(0.0, 1.0, 3.0), num_classes=10, num_per_class=4)
  config.sampler.update(num_steps=256, var_interp=0.3)
  config.sweep.update(
    w=(0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0), num_samples=10_000, batch_size=250
  )
  config.judge.update(
    ch=64,
    levels=3,
    feature_dim=128,
    num_steps=10_000,
    batch_size=128,
    learning_rate=1e-3,
    warmup_steps=500,
    min_accuracy=0.0,
  )
  return config
