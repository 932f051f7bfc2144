"""Guided images/s beside diffusers' scheduler loop with a PyTorch U-Net of the same shape.

Usage: python benchmarks/sampler_speed.py [digits] [8x8] [64x64]

float32, on CORES=2 cores: as many virtual devices here, and threads there. Both draw images of T
levels with DDIM and guidance w = 1 (scale 2), two evaluations of the network a level, clip x_hat,
and give uint8 on the host. Here that is the compiled sampler; there DDIMScheduler in the loop of
diffusers' pipelines, which doubles the batch, around benchmarks/torch_unet.py: eager,
channels-last, and channels-last under torch.compile. Sizes are those of step_speed.py, and the
digits' own network.

All in one process, ROUNDS=10 times in turn after a warm-up: medians, and the median ratio of a
round with its quartiles. A ratio above 1 means that this project is faster; the best variant of
PyTorch counts. On a machine that others use take CORES=1 and read the processor times: two threads
of OpenMP wait for each other at every operation, and waiting counts as theirs. COMPILE=0 leaves out
torch.compile. Needs: pip install torch==2.13.0 diffusers==0.42.1. Prints a table; 6 minutes on two
cores alone.
"""

import os
import pathlib
import sys

import numpy as np
import rounds
from guidance_cost import random_params
from step_speed import COMMON, SIZES

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

ROUNDS, COMPILE = int(os.environ.get("ROUNDS", "10")), os.environ.get("COMPILE", "1") != "0"
CORES = int(os.environ.get("CORES", "2"))
W, CLASSES = 1.0, 10
CASES = {"digits": (64, 16), "8x8": (64, 8), "64x64": (4, 3)}  # images, T
DIGITS = dict(
  side=8,
  channels=1,
  ch=16,
  emb_ch=64,
  ch_mult=(1, 2),
  num_res_blocks=1,
  attn_resolutions=(4,),
  num_heads=2,
  norm_groups=8,
)
VARIANTS = {
  "eager": (False, False),
  "channels last": (True, False),
  "channels last, compiled": (True, True),
}


def shape_of(case):
  """The arguments of benchmarks/torch_unet.UNet, but the classes."""
  size = DIGITS if case == "digits" else {**COMMON, **SIZES[case]}
  return {name: value for name, value in size.items() if name != "batch"}


def cfg_call(case):
  """(call, parameters of the network) of this project's sampler."""
  from cfg.base import sharding
  from cfg.guidance import MAIN
  from cfg.inference import network
  from cfg.inference.generator import Generator
  from cfg.models import unet
  from configs import digits

  batch, num_steps = CASES[case]
  size, config = shape_of(case), digits.get_config()
  config.model.update({name: value for name, value in size.items() if name in config.model})
  config.sampler.update(name="ddim", num_steps=num_steps)
  image_shape = (size["side"], size["side"], size["channels"])
  model = unet.from_config(config.model, num_classes=CLASSES, image_shape=image_shape)
  drawing = network.program_of_model(config, model, image_shape=image_shape, guides={})
  generator = Generator(drawing, mesh=sharding.make_mesh(), batch_size=batch)
  assert generator.nfe(W) == {MAIN: 2 * num_steps}
  params, index = random_params(model, image_shape), np.arange(batch)

  def call():
    images = generator({MAIN: params}, index=index, labels=index % CLASSES, w=W, seed=0)
    assert images.shape == (batch, *image_shape)

  return call, unet.num_params(params)


def torch_call(case, *, channels_last, compiled):
  """(call, parameters of the network) of diffusers' loop."""
  import torch
  from diffusers import DDIMScheduler
  from torch_unet import UNet

  torch.set_num_threads(CORES)
  batch, num_steps = CASES[case]
  size = shape_of(case)
  form = torch.channels_last if channels_last else torch.contiguous_format
  model = UNet(num_classes=CLASSES, **size).eval().to(memory_format=form)
  network = torch.compile(model) if compiled else model
  scheduler = DDIMScheduler(
    beta_schedule="squaredcos_cap_v2", timestep_spacing="trailing", clip_sample=True
  )
  cumulative = scheduler.alphas_cumprod
  logsnr = torch.log(cumulative) - torch.log1p(-cumulative)
  labels = torch.arange(batch) % CLASSES
  y = torch.cat([torch.full_like(labels, CLASSES), labels])
  scale = 1 + W

  @torch.no_grad()
  def call():
    scheduler.set_timesteps(num_steps)
    assert len(scheduler.timesteps) == num_steps
    z = torch.randn(batch, size["channels"], size["side"], size["side"]).to(memory_format=form)
    z = z * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
      both = scheduler.scale_model_input(torch.cat([z, z]), t)
      uncond, cond = network(both, logsnr[t].expand(2 * batch), y).chunk(2)
      eps = uncond + scale * (cond - uncond)
      z = scheduler.step(eps, t, z).prev_sample
    images = (z.clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    assert images.shape == (batch, size["side"], size["side"], size["channels"])

  return call, sum(p.numel() for p in model.parameters())


def main(cases):
  os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-CORES:])
  from cfg.base import runtime

  runtime.start(cpu_devices=CORES)
  print("| network | images, T | parameters | | images/s | cfg is faster by | in processor time |")
  print("| --- | --- | --- | --- | --- | --- | --- |")
  for case in cases:
    batch, num_steps = CASES[case]
    calls, parameters = {}, set()
    made = {"cfg": cfg_call(case)} | {
      name: torch_call(case, channels_last=last, compiled=compiled)
      for name, (last, compiled) in VARIANTS.items()
      if COMPILE or not compiled
    }
    for name, (call, count) in made.items():
      calls[name] = call
      parameters.add(count)
    (count,) = parameters  # or the networks differ
    times = rounds.in_turn(calls, rounds=ROUNDS, title=case)
    for name, spent in times.items():
      faster = " | ".join(rounds.cell(spent, times["cfg"], clock) for clock in (0, 1))
      print(
        f"| {case} | {batch}, {num_steps} | {count:,} | "
        f"{name if name == 'cfg' else f'diffusers, {name}'} | "
        f"{batch / rounds.median(spent):.1f} | {'1 | 1' if name == 'cfg' else faster} |",
        flush=True,
      )


if __name__ == "__main__":
  unknown = set(sys.argv[1:]) - CASES.keys()
  if unknown:
    raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
  main(sys.argv[1:] or CASES)
