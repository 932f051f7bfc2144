"""Your own images, one sub-folder per class: from the files to a swept model, with any number of
classes and images.

Commands:
  # DIR/<class>/<image>
  python -m cfg.main --config=configs/folder.py --config.data.path=DIR --workdir=runs/mine
  # images of another side than 64
  python -m cfg.main --config=configs/folder.py:resolution=128 --config.data.path=DIR
  # what it costs and how large a micro-batch fits, without training
  python -m cfg.main --config=configs/folder.py --config.data.path=DIR --mode=dry_run

With DIR/train/<class>/<image> and val/ or test/ beside it, the latter is held out; otherwise a
twentieth of each class is.

Files are decoded each time they are read (--config.train.data_workers=8 uses eight processes). If
the log's data wait exceeds a few percent, decode them once, which also leaves out and lists the
files that cannot be read:
  python -m cfg.data.prepare DIR prepared/mine --resolution=64
and add --config.data.name=prepared --config.data.path=prepared/mine.

Hardware: one GPU. On a CPU make the model small, for example --config.model.ch=32
--config.model.emb_ch=128 --config.model.norm_groups=8 --config.model.head_dim=32
--config.model.dtype=float32 --config.train.batch_size=32.
Time: 25.6 million images, at 64x64 0.20 TFLOP each. Not measured.

FID and IS are in the features of a classifier trained on the same images. Its accuracy on held-out
images is logged and stored in judge.npz; where it is poor, so are the numbers. A hundred images per
class can be memorised: look at nearest.png and at FID held-out. The paper has no such experiment.

Images are mirrored at random. Set --config.train.flip=False if that changes their meaning (writing,
maps).
"""

from configs import digits

# widths of the levels, times model.ch, by their number; those of 4 to 6 are ADM's (Dhariwal &
# Nichol 2021, arXiv 2105.05233)
CH_MULT = {
  1: (1,),
  2: (1, 2),
  3: (1, 2, 2),
  4: (1, 2, 3, 4),
  5: (1, 1, 2, 3, 4),
  6: (1, 1, 2, 2, 4, 4),
}


def get_config(options="resolution=64"):
  """A model for images of any side; `options` is "resolution=R"."""
  config = digits.get_config()
  resolution = parse_options(options)
  sides = level_sides(resolution)
  config.cpu_devices = 1
  config.data.update(name="folder", resolution=resolution, num_images=4096, heldout_fraction=0.05)
  config.model.update(
    ch=128,
    emb_ch=512,
    ch_mult=CH_MULT[len(sides)],
    num_res_blocks=2,
    attn_resolutions=tuple(side for side in sides if side <= 16),
    num_heads=None,
    head_dim=64,
    dropout=0.1,
    norm_groups=32,
    dtype="bfloat16",
  )
  config.optimizer.update(learning_rate=2e-4, warmup_steps=2_000)
  config.train.update(
    batch_size=128,
    num_steps=200_000,
    p_uncond=0.1,
    flip=True,
    ema_decays=(0.9999,),
    log_every_steps=100,
    checkpoint_every_steps=2_500,
  )
  config.heldout.update(every_steps=5_000, num_images=2048, batch_size=64)
  config.preview.update(every_steps=5_000, w=(0.0, 1.0, 3.0), num_classes=8, num_per_class=4)
  config.sampler.update(num_steps=256, var_interp=0.3)
  config.sweep.update(
    w=(0.0, 0.1, 0.2, 0.3, 0.5, 1.0, 2.0, 3.0, 4.0), num_samples=10_000, batch_size=128
  )
  config.judge.update(
    ch=64,
    levels=3,
    feature_dim=64,
    num_steps=5_000,
    batch_size=128,
    learning_rate=1e-3,
    warmup_steps=500,
    min_accuracy=0.0,
  )
  return config


def level_sides(resolution):
  """The sides of the network's levels: halved down to 8, as far as whole numbers and CH_MULT go."""
  sides = [resolution]
  while sides[-1] > 8 and sides[-1] % 2 == 0 and len(sides) < max(CH_MULT):
    sides.append(sides[-1] // 2)
  return sides


def parse_options(options):
  """ "resolution=64" -> 64. Raises ValueError for anything else."""
  name, _, value = options.partition("=")
  if name != "resolution" or not value.isdecimal() or int(value) < 1:
    raise ValueError(
      f"the option after the config's colon is {options!r}: it must be resolution=R, the images' "
      f"side in pixels"
    )
  return int(value)
