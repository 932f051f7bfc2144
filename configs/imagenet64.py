"""ImageNet 64x64, class-conditional: the paper's model (Ho & Salimans 2022, section 4.1, table 1).

Commands:
  # DIR holds ILSVRC2012's tars or Kaggle's files
  python -m cfg.data.prepare DIR prepared/imagenet64 --resolution=64
  # downloads the network that FID and IS are defined by
  python -m cfg.interop.inception inception.safetensors
  python -m cfg.main --config=configs/imagenet64.py
  # another p_uncond; the paper has 0.1, 0.2 and 0.5
  python -m cfg.main --config=configs/imagenet64.py:p_uncond=0.2 --workdir=runs/imagenet64_p02
  # to try it without data
  python -m cfg.main --config=configs/imagenet64.py --config.data.name=synthetic
  # what it costs, without training
  python -m cfg.main --config=configs/imagenet64.py --mode=dry_run

The preparation crops images to their central square and area-averages them, like the paper's. If
the result is not in prepared/imagenet64, set --config.data.path. TFDS's imagenet_resized/64x64 is
something else: see docs/data.md. Without Inception's weights, add --config.inception.path= and
--config.judge.num_steps=20000 for numbers in the features of a judge.

Hardware: 8 GPUs of 80 GB, or a TPU v4-32. Each update consists of 2 micro-batches, of 128 images
per H100 or 64 per TPU chip; what fits other machines is in benchmarks/compiled.md and said by
--mode=dry_run --topology=NAME. On a larger slice set --config.train.accumulate=1, with less memory
raise it: the update is the same. For one GPU of 12 GB see imagenet64_12gb.py.
Time: 819.2 million images at 0.63 TFLOP each. Estimated, not measured: 2 days on 8 H200 at 45% of
790 TFLOP/s.

The numbers to expect are those of TABLE_1. The sweep prints the differences: FID and IS in
Inception's features, of 50,000 samples at each w, against the whole training split as prepared. The
paper does not say which split it used, nor how many splits for IS.

Sizes and rates are those of the authors' related code (google-research/ddpm_w_distillation,
i64_unet3); the number of steps and v are the paper's. Not stated anywhere: the shape of the warm-up
(linear here) and the precision (bf16 here).
"""

from configs import digits

# w: FID at p_uncond = 0.1, 0.2, 0.5, then IS; 50,000 samples; T is not stated with it, 256 in the
# authors' code
TABLE_1 = {
  0.0: (1.80, 1.80, 2.21, 53.71, 52.90, 47.61),
  0.1: (1.55, 1.62, 1.91, 66.11, 64.58, 56.10),
  0.2: (2.04, 2.10, 2.08, 78.91, 76.99, 65.60),
  0.3: (3.03, 2.93, 2.65, 92.80, 88.64, 74.92),
  0.4: (4.30, 4.00, 3.44, 106.20, 101.11, 84.27),
  0.5: (5.74, 5.19, 4.34, 119.30, 112.15, 92.95),
  0.6: (7.19, 6.48, 5.27, 131.10, 122.13, 102.00),
  0.7: (8.62, 7.73, 6.23, 141.80, 131.60, 109.80),
  0.8: (10.08, 8.90, 7.25, 151.60, 140.82, 116.90),
  0.9: (11.41, 10.09, 8.21, 161.00, 150.26, 124.60),
  1.0: (12.60, 11.21, 9.13, 170.10, 158.29, 131.10),
  2.0: (21.03, 18.79, 16.16, 225.50, 212.98, 183.00),
  3.0: (24.83, 22.36, 19.75, 250.40, 237.65, 208.90),
  4.0: (26.22, 23.84, 21.48, 260.20, 248.97, 225.10),
}


def get_config(options="p_uncond=0.1"):
  """The paper's 64x64 model; `options` is "p_uncond=P"."""
  config = digits.get_config()
  config.cpu_devices = 8
  config.data.update(
    name="prepared",
    path="prepared/imagenet64",
    resolution=64,
    num_classes=1000,
    num_images=4096,
    heldout_fraction=0.01,
  )
  config.model.update(
    ch=192,
    emb_ch=768,
    ch_mult=(1, 2, 3, 4),
    num_res_blocks=3,
    attn_resolutions=(32, 16, 8),
    num_heads=None,
    head_dim=64,
    dropout=0.1,
    norm_groups=32,
    dtype="bfloat16",
  )
  config.optimizer.update(learning_rate=3e-4, warmup_steps=10_000)
  config.train.update(
    batch_size=2048,
    accumulate=2,
    num_steps=400_000,
    p_uncond=parse_options(options),
    flip=True,
    ema_decays=(0.9999,),
    log_every_steps=100,
    checkpoint_every_steps=5_000,
  )
  config.heldout.update(every_steps=10_000, num_images=2048, batch_size=64)
  config.preview.update(every_steps=10_000, w=(0.0, 1.0, 4.0), num_classes=8, num_per_class=4)
  config.sampler.update(num_steps=256, var_interp=0.3)
  config.sweep.update(w=tuple(i / 10 for i in range(41)), num_samples=50_000, batch_size=512)
  config.inception.update(path="inception.safetensors")
  config.judge.update(
    ch=64,
    levels=4,
    feature_dim=256,
    num_steps=0,
    batch_size=256,
    learning_rate=1e-3,
    warmup_steps=500,
    min_accuracy=0.0,
  )
  config.paper.update(published(config.train.p_uncond))
  return config


def published(p_uncond):
  """TABLE_1 of one p_uncond; no rows if the paper does not have it."""
  columns = (0.1, 0.2, 0.5)
  if p_uncond not in columns:
    return dict(source="", num_samples=0, rows=())
  i = columns.index(p_uncond)
  rows = tuple((0, w, row[i], row[3 + i]) for w, row in TABLE_1.items())
  return dict(
    source=f"Ho & Salimans 2022 (arXiv 2207.12598), table 1, p_uncond = {p_uncond:g}",
    num_samples=50_000,
    rows=rows,
  )


def parse_options(options):
  """ "p_uncond=0.2" -> 0.2. Raises ValueError for anything else."""
  name, _, value = options.partition("=")
  if name != "p_uncond":
    raise ValueError(f"the option after the config's colon is {options!r}: it must be p_uncond=P")
  return float(value)
