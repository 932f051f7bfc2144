"""CIFAR-10, 32x32: what a reader with one GPU will really run.

Command:  python -m cfg.data.prepare cifar-10-batches-bin prepared/cifar10 --resolution=32   # the binary archive, extracted
          python -m cfg.main --config=configs/cifar10.py
          Without data, to try it: --config.data.name=synthetic. What it costs, without training: --mode=dry_run.
Hardware: one GPU. A CPU can start it, not finish it.
Time:     51.2 million images at 0.040 TFLOP each. Estimated, not measured: 2 hours on an H200 at 45
  % of 790 TFLOP/s,
          and so small a network may not reach that.

The paper has no CIFAR-10 experiment: there are no numbers of its to expect. The sizes are those of
DDPM's CIFAR-10 network (Ho et al. 2020, arXiv 2006.11239, appendix B: 128 channels times 1, 2, 2,
2, attention at 16x16, dropout 0.1, learning rate 2e-4, batch 128) with the paper's blocks; the
steps are half of DDPM's 800,000.
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
    heldout_every_steps=10_000,
    preview_every_steps=10_000,
    checkpoint_every_steps=5_000,
  )
  config.heldout.update(num_images=2000, batch_size=50)
  config.preview.update(w=(0.0, 1.0, 3.0), num_classes=10, num_per_class=4)
  config.sampler.update(num_steps=256)
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
