"""ImageNet 128x128, class-conditional: the paper's model (Ho & Salimans 2022, section 4.2, table 2).

Command:  python -m cfg.data.prepare DIR prepared/imagenet128 --resolution=128   # DIR has ILSVRC2012's tars, or Kaggle's files
          python -m cfg.main --config=configs/imagenet128.py
          Without data, to try it: --config.data.name=synthetic. What it costs, without training: --mode=dry_run.
Hardware: 32 GPUs of 80 GB, or a TPU slice.
Time:     691.2 million images at 1.79 TFLOP each. Estimated, not measured: 5 days on 8 H200 at 45 % of 790 TFLOP/s.

The paper's numbers to expect (table 2, T = 256): FID and IS in Inception's features, of 50,000 samples at each w. (This
version measures in a judge's features, named in every row; those numbers cannot be set beside these.)
          w    FID      IS
          0   7.27   82.45
        0.1   4.53  106.12
        0.3   2.43  158.47
          1   7.86  297.98
          4  21.53  421.03

Sizes and rates are those of the authors' related code (google-research/ddpm_w_distillation, i128_unet3), p_uncond
too; the number of steps and v are the paper's. Not stated anywhere: the shape of the warm-up (linear here), the
precision (bf16 here).
"""

from configs import imagenet64


def get_config(options="p_uncond=0.1"):
  """The paper's 128x128 model; `options` is "p_uncond=P"."""
  config = imagenet64.get_config(options)
  config.data.update(path="prepared/imagenet128", resolution=128)
  config.model.update(ch=256, emb_ch=1024, ch_mult=(1, 1, 2, 3, 4), num_res_blocks=2, num_heads=4, head_dim=None, dropout=0.0)
  config.optimizer.update(learning_rate=1e-4, warmup_steps=1_000)
  config.train.update(batch_size=256, accumulate=1, num_steps=2_700_000)
  config.preview.update(num_per_class=2)
  config.sampler.update(var_interp=0.2)
  config.sweep.update(batch_size=128)
  return config
