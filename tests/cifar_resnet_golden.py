"""A ResNet-8 of random weights, and what PyTorch makes of it: `python tests/cifar_resnet_golden.py`
writes tests/data/cifar_resnet8.npz.

The weights and the images come from a seed here and in the tests, so that the file
holds outputs alone. The functions of torch.nn.functional are those that
akamaster/pytorch_resnet_cifar10 is made of, called in its order.
"""

import numpy as np
import paths

PATH = paths.DATA / "cifar_resnet8.npz"


def state_dict(num_blocks=1, seed=0):
  """{name: float32 array}; variances down to 1e-3, so that the epsilon of batch normalisation
  shows.
  """
  rng = np.random.RandomState(seed)  # its stream never changes, whatever the version of numpy
  arrays = {}

  def add(conv, norm, inputs, width):
    arrays[f"{conv}.weight"] = rng.normal(0, (2 / (9 * inputs)) ** 0.5, (width, inputs, 3, 3))
    var = 10 ** rng.uniform(-3, 0, width)
    arrays[f"{norm}.weight"], arrays[f"{norm}.bias"] = (
      rng.uniform(0.5, 1.5, width) * var**0.5,
      rng.normal(0, 0.3, width),
    )
    arrays[f"{norm}.running_mean"], arrays[f"{norm}.running_var"] = rng.normal(0, 0.3, width), var

  add("conv1", "bn1", 3, 16)
  inputs = 16
  for level, width in enumerate((16, 32, 64)):
    for i in range(num_blocks):
      name = f"layer{level + 1}.{i}"
      add(f"{name}.conv1", f"{name}.bn1", inputs, width)
      add(f"{name}.conv2", f"{name}.bn2", width, width)
      inputs = width
  arrays["linear.weight"], arrays["linear.bias"] = (
    rng.normal(0, 0.3, (10, 64)),
    rng.normal(0, 1, 10),
  )
  return {name: a.astype(np.float32) for name, a in arrays.items()}


def images(count=8, seed=1):
  """uint8 [count,32,32,3]: noise of another contrast and tint in each."""
  rng = np.random.RandomState(seed)
  low = rng.randint(0, 200, (count, 1, 1, 3))
  return (
    low
    + rng.randint(0, 56, (count, 32, 32, 3))
    * rng.randint(0, 2, (count, 8, 8, 1)).repeat(4, 1).repeat(4, 2)
  ).astype(np.uint8)


def torch_outputs(state, pixels, num_blocks=1):
  """(features [N,64], logits [N,10]) by PyTorch, in float32."""
  import torch
  import torch.nn.functional as F

  state = {name: torch.tensor(a) for name, a in state.items()}

  def norm(h, name):
    return F.batch_norm(
      h, *(state[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
    )

  def conv(h, name, stride=1):
    return F.conv2d(h, state[f"{name}.weight"], stride=stride, padding=1)

  column = lambda values: torch.tensor(values)[:, None, None]
  x = torch.tensor(pixels).permute(0, 3, 1, 2).float() / 255
  h = F.relu(
    norm(conv((x - column([0.485, 0.456, 0.406])) / column([0.229, 0.224, 0.225]), "conv1"), "bn1")
  )
  for level, width in enumerate((16, 32, 64)):
    for i in range(num_blocks):
      name, down = f"layer{level + 1}.{i}", level > 0 and i == 0
      out = F.relu(norm(conv(h, f"{name}.conv1", 2 if down else 1), f"{name}.bn1"))
      out = norm(conv(out, f"{name}.conv2"), f"{name}.bn2")
      h = F.relu(
        out + (F.pad(h[:, :, ::2, ::2], (0, 0, 0, 0, width // 4, width // 4)) if down else h)
      )
  features = F.avg_pool2d(h, 8).flatten(1)
  return features.numpy(), F.linear(features, state["linear.weight"], state["linear.bias"]).numpy()


if __name__ == "__main__":
  features, logits = torch_outputs(state_dict(), images())
  np.savez(PATH, features=features, logits=logits)
