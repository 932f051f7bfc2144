"""The classifiers of akamaster/pytorch_resnet_cifar10 in our terms: their files read, their
parameters renamed.

Theirs are PyTorch's layouts (convolutions [O,I,H,W], linear maps [O,I]), ours are
Flax's. The depth is told from the names; everything else is fixed.
"""

import pathlib

import numpy as np

from cfg.base import trees
from cfg.base.errors import UserError
from cfg.interop import arrays as arrays_lib
from cfg.interop import torch_file
from cfg.models import cifar_resnet


def read(path):
  """(model, params) of a classifier: the upstream .th file, or an .npz of the same arrays under the
  same names.

  Raises:
    UserError: not such a file, or of another network; it names the arrays.
  """
  path = pathlib.Path(path).expanduser()
  arrays = arrays_lib.read_npz(path) if path.suffix == ".npz" else torch_file.read(path)
  try:
    return convert(arrays)
  except UserError as e:
    raise UserError(
      f"{str(path)!r} is not a ResNet of akamaster/pytorch_resnet_cifar10 (CIFAR-10, shortcuts "
      f"without parameters): {e}"
    ) from e


def convert(arrays):
  """(model, params) from {name: array} in their names, which may lie under "state_dict." and begin
  with "module.".

  Raises:
    UserError: missing, further, or wrongly shaped arrays.
  """
  inside = {
    name.removeprefix("state_dict."): a
    for name, a in arrays.items()
    if name.startswith("state_dict.")
  }
  arrays = {name.removeprefix("module."): np.asarray(a) for name, a in (inside or arrays).items()}
  # a count of training steps
  arrays = {name: a for name, a in arrays.items() if not name.endswith(".num_batches_tracked")}
  model = cifar_resnet.CifarResNet(
    num_blocks=len({name.split(".")[1] for name in arrays if name.startswith("layer1.")}) or 1
  )
  wanted = layout(model.num_blocks)
  arrays_lib.check(arrays, {name: shape for name, (_, shape) in wanted.items()})
  return model, trees.unflatten({ours: _ours(arrays[name]) for name, (ours, _) in wanted.items()})


def layout(num_blocks):
  """{their name: (our path, their shape)} of every array."""
  found = {}

  def conv_and_norm(conv, norm, our_conv, our_norm, inputs, width):
    found[f"{conv}.weight"] = f"{our_conv}/kernel", (width, inputs, 3, 3)
    for theirs, ours in (
      ("weight", "scale"),
      ("bias", "bias"),
      ("running_mean", "mean"),
      ("running_var", "var"),
    ):
      found[f"{norm}.{theirs}"] = f"{our_norm}/{ours}", (width,)

  inputs = cifar_resnet.WIDTHS[0]
  conv_and_norm("conv1", "bn1", "conv_in", "norm_in", cifar_resnet.IMAGE_SHAPE[-1], inputs)
  for level, width in enumerate(cifar_resnet.WIDTHS):
    for i in range(num_blocks):
      theirs, ours = f"layer{level + 1}.{i}", f"level{level}_{i}"
      conv_and_norm(
        f"{theirs}.conv1", f"{theirs}.bn1", f"{ours}/conv1", f"{ours}/norm1", inputs, width
      )
      conv_and_norm(
        f"{theirs}.conv2", f"{theirs}.bn2", f"{ours}/conv2", f"{ours}/norm2", width, width
      )
      inputs = width
  found["linear.weight"] = "logits/kernel", (cifar_resnet.NUM_CLASSES, inputs)
  found["linear.bias"] = "logits/bias", (cifar_resnet.NUM_CLASSES,)
  return found


def _ours(array):
  """float32, a kernel's axes in Flax's order."""
  axes = {4: (2, 3, 1, 0), 2: (1, 0), 1: (0,)}[array.ndim]
  return np.ascontiguousarray(np.asarray(array, np.float32).transpose(axes))
