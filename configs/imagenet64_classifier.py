"""A classifier of noised ImageNet 64x64, to guide the model of imagenet64.py: ADM's (Dhariwal &
Nichol 2021, arXiv 2105.05233, table 12).

Commands:
  # prepared/imagenet64 as for imagenet64.py
  python -m cfg.main --config=configs/imagenet64_classifier.py --mode=train
  python -m cfg.main --config=configs/imagenet64.py --mode=sweep \
      --config.guidance.rule=classifier --config.guidance.guide=runs/imagenet64_classifier
  # the classifier of 128x128
  python -m cfg.main --config=configs/imagenet64_classifier.py --mode=train \
      --workdir=runs/imagenet128_classifier \
      --config.data.resolution=128 --config.data.path=prepared/imagenet128 \
      "--config.model.ch_mult=(1,1,2,3,4)" --config.model.num_res_blocks=2 \
      --config.train.batch_size=256 \
      --config.optimizer.learning_rate=3e-4 --config.optimizer.weight_decay=0.05
  # what it costs, without training
  python -m cfg.main --config=configs/imagenet64_classifier.py --mode=dry_run

Hardware: 8 GPUs of 80 GB, 128 images per GPU (--mode=dry_run finds room for 256 where bf16 is
computed as f32). 65,438,568 parameters; 42,568,040 at 128x128.
Time: 307.2 million images at 0.109 TFLOP each. Estimated, not measured: 4 hours on 8 H200 at 45% of
790 TFLOP/s.

Sizes, rates, batch and number of steps are table 12's. Otherwise than there: time is continuous,
over the log-SNR of the diffusion model; the rate is constant after a warm-up, not annealed; images
are mirrored, not cropped at random; and the parameters are averaged. None has been trained here.
"""

from configs import imagenet64


def get_config():
  """ADM's 64x64 classifier."""
  config = imagenet64.get_config()
  config.model.update(ch=128, emb_ch=512, num_res_blocks=4, dropout=0.0)
  config.optimizer.update(learning_rate=6e-4, warmup_steps=1_000, weight_decay=0.2)
  config.train.update(
    objective="classify", batch_size=1024, accumulate=1, num_steps=300_000, p_uncond=0.0
  )
  config.preview.every_steps = 0
  return config
