"""GFLOP/s of 3x3 convolutions in XLA and in PyTorch: forward, input gradient, weight gradient.

Usage: python benchmarks/conv_rates.py

float32, two threads, each framework in a process of its own. These rates bound the ratios of
benchmarks/step_speed.py. Needs: pip install torch==2.13.0. Prints a table.
"""

import json
import os
import subprocess
import sys
import time

# (batch, side, channels in and out): of the three sizes of step_speed.py, and of imagenet64 at
# batch 2
SHAPES = [
  (64, 8, 32),
  (64, 4, 64),
  (16, 32, 64),
  (16, 16, 128),
  (8, 64, 64),
  (8, 32, 128),
  (2, 64, 192),
  (2, 32, 384),
]


def best_seconds(call, repeats=15):
  call()
  times = []
  for _ in range(repeats):
    start = time.perf_counter()
    call()
    times.append(time.perf_counter() - start)
  return min(times)


def of_xla():
  """[{"forward", "input", "weight"}: seconds] of SHAPES."""
  import jax

  conv = lambda x, k: jax.lax.conv_general_dilated(
    x, k, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  programs = {
    "forward": jax.jit(lambda x, k, g: conv(x, k)),
    "input": jax.jit(lambda x, k, g: jax.vjp(lambda x: conv(x, k), x)[1](g)[0]),
    "weight": jax.jit(lambda x, k, g: jax.vjp(lambda k: conv(x, k), k)[1](g)[0]),
  }

  def rates(batch, side, ch):
    keys = jax.random.split(jax.random.key(0), 3)
    x, g = (jax.random.normal(key, (batch, side, side, ch)) for key in keys[:2])
    k = jax.random.normal(keys[2], (3, 3, ch, ch))
    return {
      name: best_seconds(lambda f=f: f(x, k, g).block_until_ready()) for name, f in programs.items()
    }

  return [rates(*shape) for shape in SHAPES]


def of_torch():
  """The same; the better of the two memory formats."""
  import torch

  torch.set_num_threads(2)

  def rates(batch, side, ch, form):
    x, g = (torch.randn(batch, ch, side, side).to(memory_format=form) for _ in range(2))
    k = torch.randn(ch, ch, 3, 3).to(memory_format=form)
    backward = lambda mask: torch.ops.aten.convolution_backward(
      g, x, k, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
    )
    return {
      "forward": best_seconds(lambda: torch.nn.functional.conv2d(x, k, padding=1)),
      "input": best_seconds(lambda: backward([True, False, False])),
      "weight": best_seconds(lambda: backward([False, True, False])),
    }

  both = [
    [rates(*shape, form) for shape in SHAPES]
    for form in (torch.contiguous_format, torch.channels_last)
  ]
  return [{name: min(a[name], b[name]) for name in a} for a, b in zip(*both)]


def main():
  env = {**os.environ, "OMP_NUM_THREADS": "2", "JAX_PLATFORMS": "cpu"}
  run = lambda what: json.loads(
    subprocess.run(
      [sys.executable, __file__, what], capture_output=True, text=True, env=env, check=True
    ).stdout
  )
  xla, peer = run("xla"), run("torch")
  print(
    "| batch, side, channels | XLA forward | input grad. | weight grad. | PyTorch forward | input "
    "grad. | weight grad. |\n| --- | --- | --- | --- | --- | --- | --- |"
  )
  for (batch, side, ch), ours, theirs in zip(SHAPES, xla, peer):
    flop = 2 * batch * side * side * 9 * ch * ch
    cells = [
      f"{flop / found[name] / 1e9:.0f}"
      for found in (ours, theirs)
      for name in ("forward", "input", "weight")
    ]
    print(f"| {batch}, {side}x{side}, {ch} | {' | '.join(cells)} |")


if __name__ == "__main__":
  if len(sys.argv) == 2:
    print(json.dumps({"xla": of_xla, "torch": of_torch}[sys.argv[1]]()))
  else:
    main()
