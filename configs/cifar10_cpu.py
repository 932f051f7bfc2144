"""CIFAR-10, 32x32, on two CPU cores: a small model of photographs on a fixed budget.

Commands:
  # cifar-10-batches-bin is the extracted binary archive
  python -m cfg.data.prepare cifar-10-batches-bin prepared/cifar10 --resolution=32
  python -m cfg.main --config=configs/cifar10_cpu.py --mode=train
  # or in stages, each of which continues where the last one ended
  python -m cfg.main --config=configs/cifar10_cpu.py --mode=train --config.train.num_steps=2000

Hardware: two CPU cores.
Time: two hours; 64 to 69 images/s, about a second per step, on an otherwise idle machine.

docs/cifar10 has the weights and the results. The network has 3.2 million parameters and takes 0.85
GFLOP per forward pass. Diffusion models of CIFAR-10 usually see 100 million images or more; this
one sees a few hundred thousand. Expect the colours, layout and rough shapes of the classes, but no
sharp objects. The paper has no such experiment.
"""

from configs import cifar10


def get_config():
  """A narrow sibling of cifar10.py."""
  config = cifar10.get_config()
  config.cpu_devices = 2
  config.model.update(
    ch=32,
    emb_ch=128,
    ch_mult=(1, 2, 4),
    num_res_blocks=1,
    attn_resolutions=(8,),
    num_heads=4,
    head_dim=None,
    dropout=0.0,
    norm_groups=8,
    dtype="float32",
  )
  config.optimizer.update(learning_rate=1e-3, warmup_steps=300)
  config.train.update(
    batch_size=64,
    num_steps=6_000,
    ema_decays=(0.999, 0.9995),
    log_every_steps=20,
    checkpoint_every_steps=250,
  )
  config.heldout.update(every_steps=1_000, num_images=500, batch_size=50)
  config.preview.update(every_steps=1_000, num_per_class=2)
  config.sampler.update(num_steps=64, var_interp=0.3)
  config.sweep.update(num_samples=2_000, batch_size=100)
  config.judge.update(ch=32, num_steps=2_000)
  return config
