"""The Inception network of FID in PyTorch's functions, with random weights: `python
tests/inception_reference.py` writes tests/data/inception.npz.

It is written after pytorch-fid's and torch-fidelity's ports and knows nothing of
cfg: names and shapes are the ports', batch norms are not folded. The weights
and images come from a seed, so that the file holds outputs alone, every STEPth of them.
"""

import numpy as np
import paths

PATH = paths.DATA / "inception.npz"
STEP = 8
EPS = 1e-3

# {TensorFlow's scope in a block: (the port's name, kernel [out, in, height, width])}; x is the
# block's input, p and c are its parameters
KIND_A = {
  "conv": ("branch1x1", "64 x 1 1"),
  "tower/conv": ("branch5x5_1", "48 x 1 1"),
  "tower/conv_1": ("branch5x5_2", "64 48 5 5"),
  "tower_1/conv": ("branch3x3dbl_1", "64 x 1 1"),
  "tower_1/conv_1": ("branch3x3dbl_2", "96 64 3 3"),
  "tower_1/conv_2": ("branch3x3dbl_3", "96 96 3 3"),
  "tower_2/conv": ("branch_pool", "p x 1 1"),
}
KIND_B = {
  "conv": ("branch3x3", "384 x 3 3"),
  "tower/conv": ("branch3x3dbl_1", "64 x 1 1"),
  "tower/conv_1": ("branch3x3dbl_2", "96 64 3 3"),
  "tower/conv_2": ("branch3x3dbl_3", "96 96 3 3"),
}
KIND_C = {
  "conv": ("branch1x1", "192 x 1 1"),
  "tower/conv": ("branch7x7_1", "c x 1 1"),
  "tower/conv_1": ("branch7x7_2", "c c 1 7"),
  "tower/conv_2": ("branch7x7_3", "192 c 7 1"),
  "tower_1/conv": ("branch7x7dbl_1", "c x 1 1"),
  "tower_1/conv_1": ("branch7x7dbl_2", "c c 7 1"),
  "tower_1/conv_2": ("branch7x7dbl_3", "c c 1 7"),
  "tower_1/conv_3": ("branch7x7dbl_4", "c c 7 1"),
  "tower_1/conv_4": ("branch7x7dbl_5", "192 c 1 7"),
  "tower_2/conv": ("branch_pool", "192 x 1 1"),
}
KIND_D = {
  "tower/conv": ("branch3x3_1", "192 x 1 1"),
  "tower/conv_1": ("branch3x3_2", "320 192 3 3"),
  "tower_1/conv": ("branch7x7x3_1", "192 x 1 1"),
  "tower_1/conv_1": ("branch7x7x3_2", "192 192 1 7"),
  "tower_1/conv_2": ("branch7x7x3_3", "192 192 7 1"),
  "tower_1/conv_3": ("branch7x7x3_4", "192 192 3 3"),
}
KIND_E = {
  "conv": ("branch1x1", "320 x 1 1"),
  "tower/conv": ("branch3x3_1", "384 x 1 1"),
  "tower/mixed/conv": ("branch3x3_2a", "384 384 1 3"),
  "tower/mixed/conv_1": ("branch3x3_2b", "384 384 3 1"),
  "tower_1/conv": ("branch3x3dbl_1", "448 x 1 1"),
  "tower_1/conv_1": ("branch3x3dbl_2", "384 448 3 3"),
  "tower_1/mixed/conv": ("branch3x3dbl_3a", "384 384 1 3"),
  "tower_1/mixed/conv_1": ("branch3x3dbl_3b", "384 384 3 1"),
  "tower_2/conv": ("branch_pool", "192 x 1 1"),
}
STEM = {
  "conv": ("Conv2d_1a_3x3", "32 3 3 3"),
  "conv_1": ("Conv2d_2a_3x3", "32 32 3 3"),
  "conv_2": ("Conv2d_2b_3x3", "64 32 3 3"),
  "conv_3": ("Conv2d_3b_1x1", "80 64 1 1"),
  "conv_4": ("Conv2d_4a_3x3", "192 80 3 3"),
}
# (TensorFlow's block, the port's, kind, values of x, p and c)
BLOCKS = [
  ("mixed", "Mixed_5b", KIND_A, dict(x=192, p=32)),
  ("mixed_1", "Mixed_5c", KIND_A, dict(x=256, p=64)),
  ("mixed_2", "Mixed_5d", KIND_A, dict(x=288, p=64)),
  ("mixed_3", "Mixed_6a", KIND_B, dict(x=288)),
  ("mixed_4", "Mixed_6b", KIND_C, dict(x=768, c=128)),
  ("mixed_5", "Mixed_6c", KIND_C, dict(x=768, c=160)),
  ("mixed_6", "Mixed_6d", KIND_C, dict(x=768, c=160)),
  ("mixed_7", "Mixed_6e", KIND_C, dict(x=768, c=192)),
  ("mixed_8", "Mixed_7a", KIND_D, dict(x=768)),
  ("mixed_9", "Mixed_7b", KIND_E, dict(x=1280)),
  ("mixed_10", "Mixed_7c", KIND_E, dict(x=2048)),
]


def convolutions():
  """{TensorFlow's scope: (the port's name, kernel [out, in, height, width])} of all 94."""
  found = {scope: (name, tuple(map(int, kernel.split()))) for scope, (name, kernel) in STEM.items()}
  for block, port, kind, values in BLOCKS:
    for scope, (name, kernel) in kind.items():
      found[f"{block}/{scope}"] = (
        f"{port}.{name}",
        tuple(values.get(n) or int(n) for n in kernel.split()),
      )
  return found


def state_dict(seed=0):
  """{the port's name: float32 array}: the second moment is kept from layer to layer; variances down
  to 1e-3, so that the epsilon shows.
  """
  rng = np.random.RandomState(seed)  # its stream never changes, whatever the version of numpy
  uniform = lambda shape, deviation: (
    (rng.random_sample(shape).astype(np.float32) - np.float32(0.5))
    * np.float32(12**0.5 * deviation)
  )
  arrays = {}
  for name, shape in convolutions().values():
    arrays[f"{name}.conv.weight"] = uniform(shape, (2 / np.prod(shape[1:])) ** 0.5)
    var = 10 ** rng.uniform(-3, 0, shape[0])
    arrays[f"{name}.bn.weight"], arrays[f"{name}.bn.bias"] = (
      rng.uniform(0.7, 1.3, shape[0]) * (var + EPS) ** 0.5,
      rng.normal(0, 0.2, shape[0]),
    )
    arrays[f"{name}.bn.running_mean"], arrays[f"{name}.bn.running_var"] = (
      rng.normal(0, 0.2, shape[0]),
      var,
    )
  arrays["fc.weight"], arrays["fc.bias"] = uniform((1008, 2048), 2048**-0.5), rng.normal(0, 1, 1008)
  return {name: a.astype(np.float32) for name, a in arrays.items()}


def images(count=2, shape=(40, 57), seed=1):
  """uint8 [count,*shape,3]: patches and noise of another contrast and tint in each."""
  rng = np.random.RandomState(seed)
  patches = (
    rng.randint(0, 2, (count, -(-shape[0] // 8), -(-shape[1] // 8), 1))
    .repeat(8, 1)
    .repeat(8, 2)[:, : shape[0], : shape[1]]
  )
  return (
    rng.randint(0, 120, (count, 1, 1, 3)) + rng.randint(0, 136, (count, *shape, 3)) * patches
  ).astype(np.uint8)


def torch_resize(pixels):
  """float32 [N,3,299,299]: bilinear at i * size / 299, by torch's grid_sample."""
  import torch
  import torch.nn.functional as F

  height, width = pixels.shape[1:3]
  # grid_sample's -1 and 1 are the outer edges of the image, its pixels' centres half a pixel within
  place = lambda size: (2 * torch.arange(299, dtype=torch.float64) * size / 299 + 1) / size - 1
  grid = torch.stack(torch.meshgrid(place(width), place(height), indexing="xy"), dim=-1)
  x = torch.tensor(pixels).permute(0, 3, 1, 2).double()
  return F.grid_sample(
    x,
    grid.expand(len(pixels), -1, -1, -1),
    mode="bilinear",
    padding_mode="border",
    align_corners=False,
  ).float()


def torch_outputs(state, pixels):
  """{output: [N, D]} by PyTorch, in float32, under our names."""
  import torch
  import torch.nn.functional as F

  state = {name: torch.tensor(a) for name, a in state.items()}

  def conv(name, x, padding=0, stride=1):
    x = F.conv2d(x, state[f"{name}.conv.weight"], stride=stride, padding=padding)
    norm = (
      state[f"{name}.bn.{part}"] for part in ("running_mean", "running_var", "weight", "bias")
    )
    return F.relu(F.batch_norm(x, *norm, eps=EPS))

  def block(port, kind, x):
    go = lambda name, x, *args: conv(f"{port}.{name}", x, *args)
    average = lambda x: F.avg_pool2d(x, 3, stride=1, padding=1, count_include_pad=False)
    if kind is KIND_A:
      double = go("branch3x3dbl_3", go("branch3x3dbl_2", go("branch3x3dbl_1", x), 1), 1)
      parts = [
        go("branch1x1", x),
        go("branch5x5_2", go("branch5x5_1", x), 2),
        double,
        go("branch_pool", average(x)),
      ]
    elif kind is KIND_B:
      double = go("branch3x3dbl_3", go("branch3x3dbl_2", go("branch3x3dbl_1", x), 1), 0, 2)
      parts = [go("branch3x3", x, 0, 2), double, F.max_pool2d(x, 3, stride=2)]
    elif kind is KIND_C:
      across, down = (0, 3), (3, 0)
      single = go("branch7x7_3", go("branch7x7_2", go("branch7x7_1", x), across), down)
      double = go("branch7x7dbl_3", go("branch7x7dbl_2", go("branch7x7dbl_1", x), down), across)
      double = go("branch7x7dbl_5", go("branch7x7dbl_4", double, down), across)
      parts = [go("branch1x1", x), single, double, go("branch_pool", average(x))]
    elif kind is KIND_D:
      single = go("branch3x3_2", go("branch3x3_1", x), 0, 2)
      double = go("branch7x7x3_3", go("branch7x7x3_2", go("branch7x7x3_1", x), (0, 3)), (3, 0))
      parts = [single, go("branch7x7x3_4", double, 0, 2), F.max_pool2d(x, 3, stride=2)]
    else:
      single, double = go("branch3x3_1", x), go("branch3x3dbl_2", go("branch3x3dbl_1", x), 1)
      fork = lambda name, x: [go(f"{name}a", x, (0, 1)), go(f"{name}b", x, (1, 0))]
      pooled = F.max_pool2d(x, 3, stride=1, padding=1) if port == "Mixed_7c" else average(x)
      parts = [
        go("branch1x1", x),
        *fork("branch3x3_2", single),
        *fork("branch3x3dbl_3", double),
        go("branch_pool", pooled),
      ]
    return torch.cat(parts, 1)

  with torch.no_grad():
    x = (torch_resize(pixels) - 128) / 128
    x = conv("Conv2d_2b_3x3", conv("Conv2d_2a_3x3", conv("Conv2d_1a_3x3", x, 0, 2)), 1)
    x = F.max_pool2d(
      conv("Conv2d_4a_3x3", conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, stride=2))), 3, stride=2
    )
    after = {}
    for name, port, kind, _ in BLOCKS:
      if name == "mixed_6":
        spatial = conv(f"{port}.branch1x1", x)[:, :7].permute(0, 2, 3, 1).flatten(1)
      after[name] = x = block(port, kind, x)
    features = x.mean((2, 3))
    no_bias = features @ state["fc.weight"].T
    found = {
      "spatial": spatial,
      "mixed_7": after["mixed_7"].mean((2, 3)),
      "mixed_8": after["mixed_8"].mean((2, 3)),
      "pool_3": features,
      "logits": no_bias + state["fc.bias"],
      "logits_no_bias": no_bias,
    }
  return {name: a.numpy() for name, a in found.items()}


if __name__ == "__main__":
  np.savez(
    PATH, **{name: a[:, ::STEP] for name, a in torch_outputs(state_dict(), images()).items()}
  )
