"""Forward pass and training step beside a PyTorch U-Net of the same shape.

Usage: python benchmarks/step_speed.py [SIZE ...]

float32, two threads, one machine, one run. At each size every variant runs in a process of its own,
in turn: cfg with one and with two virtual devices; PyTorch eager, channels-last, under
torch.compile, and both. ROUNDS=2 repeats everything twice; the best median of each variant counts.
Needs: pip install torch==2.13.0. Prints a table; about 5 minutes per size and round.

A training step is loss, gradients, clipping, Adam and one EMA.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

COMMON = dict(num_res_blocks=2, num_heads=4)
SIZES = {
  "8x8": dict(
    side=8,
    batch=64,
    channels=1,
    ch=32,
    emb_ch=128,
    ch_mult=(1, 2),
    attn_resolutions=(4,),
    norm_groups=8,
  ),
  "32x32": dict(
    side=32,
    batch=16,
    channels=3,
    ch=64,
    emb_ch=256,
    ch_mult=(1, 2, 2),
    attn_resolutions=(16,),
    norm_groups=32,
  ),
  "64x64": dict(
    side=64,
    batch=8,
    channels=3,
    ch=64,
    emb_ch=256,
    ch_mult=(1, 2, 3),
    attn_resolutions=(16,),
    norm_groups=32,
  ),
}
SECONDS = 5  # of measuring, for each number


def median_seconds(call):
  """The median time of `call`, after two calls to warm up."""
  call(), call()
  times, end = [], time.perf_counter() + SECONDS
  while len(times) < 3 or time.perf_counter() < end:
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return statistics.median(times)


def set_up(size, devices):
  """(mesh, model, state, TrainStep, a batch) of this project; call it before jax is started."""
  from cfg.base import runtime

  runtime.start(cpu_devices=devices)
  import numpy as np

  from cfg.base import optim, sharding
  from cfg.models import unet
  from cfg.training import step as train_step
  from configs import digits

  s = {**COMMON, **SIZES[size]}
  config = digits.get_config()
  config.model.update(
    {
      k: s[k]
      for k in (
        "ch",
        "emb_ch",
        "ch_mult",
        "num_res_blocks",
        "attn_resolutions",
        "num_heads",
        "norm_groups",
      )
    }
  )
  shape, batch = (s["side"], s["side"], s["channels"]), s["batch"]
  mesh = sharding.make_mesh()
  model = unet.from_config(config.model, num_classes=10, image_shape=shape)
  optimizer = optim.make_optimizer(**config.optimizer)
  state = train_step.make_state(
    config, model=model, optimizer=optimizer, image_shape=shape, mesh=mesh
  )
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  images = np.random.default_rng(0).integers(0, 256, (batch, *shape), np.uint8)
  return (
    mesh,
    model,
    state,
    step,
    {
      "image": images,
      "label": np.zeros(batch, np.int32),
      "index": np.arange(batch, dtype=np.uint32),
    },
  )


def run_cfg(size, devices):
  """{"forward", "step", "parameters"} of this project."""
  mesh, model, state, step, rows = set_up(size, devices)
  import jax
  import numpy as np

  from cfg.base import sharding
  from cfg.models import unet

  whole, split = sharding.replicated(mesh), sharding.batch_sharding(mesh)
  forward = jax.jit(
    lambda p, *z: unet.make_eps_fn(model, p)(*z),
    in_shardings=(whole, split, split, split),
    out_shardings=split,
  )
  inputs = sharding.put_rows(
    mesh,
    (
      rows["image"] / np.float32(127.5) - 1,
      np.zeros(len(rows["label"]), np.float32),
      rows["label"],
    ),
  )
  result = {
    "parameters": unet.num_params(state.params),
    "forward": median_seconds(lambda: jax.block_until_ready(forward(state.params, *inputs))),
  }

  def update():
    nonlocal state
    state, metrics = step(state, step.place(rows))
    jax.block_until_ready((state, metrics))

  return {**result, "step": median_seconds(update)}


def run_torch(size, channels_last, compiled):
  """{"forward", "step", "parameters"} of PyTorch."""
  import torch
  from torch_unet import UNet

  torch.set_num_threads(2)
  s = {**COMMON, **SIZES[size]}
  batch, shape = s.pop("batch"), (s["channels"], s["side"], s["side"])
  model = UNet(num_classes=10, **s)
  form = torch.channels_last if channels_last else torch.contiguous_format
  model = model.to(memory_format=form)
  parameters = list(model.parameters())
  ema = [p.detach().clone() for p in parameters]
  optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)
  image = torch.randint(0, 256, (batch, *shape)).float().div(127.5).sub(1).to(memory_format=form)
  y = torch.zeros(batch, dtype=torch.long)
  network = torch.compile(model) if compiled else model

  def forward():
    with torch.no_grad():
      network(image, torch.zeros(batch), y)

  def update():
    logsnr = -2 * torch.log(torch.tan(1.5707 * torch.rand(batch) + 4.54e-5))
    eps = torch.randn_like(image)
    alpha, sigma = (
      torch.sigmoid(logsnr).sqrt()[:, None, None, None],
      torch.sigmoid(-logsnr).sqrt()[:, None, None, None],
    )
    labels = torch.where(torch.rand(batch) < 0.1, 10, y)
    loss = F.mse_loss(network(alpha * image + sigma * eps, logsnr, labels), eps)
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    with torch.no_grad():
      torch._foreach_lerp_(ema, parameters, 1e-4)

  from torch.nn import functional as F  # noqa: N812

  return {
    "parameters": sum(p.numel() for p in parameters),
    "forward": median_seconds(forward),
    "step": median_seconds(update),
  }


VARIANTS = {
  "cfg, 1 device": ("cfg", 1),
  "cfg, 2 devices": ("cfg", 2),
  "torch": ("torch", 0, 0),
  "torch, channels last": ("torch", 1, 0),
  "torch, compiled": ("torch", 0, 1),
  "torch, compiled, channels last": ("torch", 1, 1),
}


def measure(size, variant):
  """One variant in a process of its own, on two threads."""
  env = {**os.environ, "OMP_NUM_THREADS": "2", "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, __file__, size, variant], capture_output=True, text=True, env=env
  )
  if done.returncode:
    raise SystemExit(f"{variant} at {size} failed:\n{done.stderr[-3000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def main(sizes):
  results = {}
  for size in sizes:
    found = results[size] = {}
    for _ in range(int(os.environ.get("ROUNDS", "1"))):
      for variant in VARIANTS:
        one = measure(size, variant)
        best = found.setdefault(variant, one)
        found[variant] = {name: min(best[name], value) for name, value in one.items()}
        print(
          f"{size:>6} {variant:<32} forward {one['forward'] * 1e3:8.1f} ms   step "
          f"{one['step'] * 1e3:8.1f} ms",
          file=sys.stderr,
          flush=True,
        )
    assert len({v["parameters"] for v in found.values()}) == 1, "the networks differ"
  print(
    "| size | batch | parameters | | cfg | PyTorch | ratio |\n| --- | --- | --- | --- | --- | --- "
    "| --- |"
  )
  for size, found in results.items():
    for what in ("forward", "step"):
      best = {
        peer: min((v[what], name) for name, v in found.items() if name.startswith(peer))
        for peer in ("cfg", "torch")
      }
      ours, theirs = best["cfg"], best["torch"]
      cell = lambda b: f"{b[0] * 1e3:.1f} ms ({b[1].partition(', ')[2] or 'eager'})"
      count = next(iter(found.values()))["parameters"]
      print(
        f"| {size} | {SIZES[size]['batch']} | {count:,} | {what} | {cell(ours)} | {cell(theirs)} | "
        f"**{theirs[0] / ours[0]:.2f}** |"
      )


if __name__ == "__main__":
  if len(sys.argv) == 3 and sys.argv[2] in VARIANTS:
    kind, *options = VARIANTS[sys.argv[2]]
    print(json.dumps({"cfg": run_cfg, "torch": run_torch}[kind](sys.argv[1], *options)))
  else:
    main(sys.argv[1:] or SIZES)
