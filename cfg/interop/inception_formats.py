"""Other people's files of the Inception network of 2015-12-05 as {"mixed_3/tower/conv_1/kernel":
float32 array}, batch norms folded.

Names and layouts of the frozen graph and of the port are those of
toshas/torch-fidelity (util_convert_inception_weights.py), which made one of the other.
"""

import numpy as np

from cfg.base.errors import UserError
from cfg.interop import arrays as arrays_lib
from cfg.interop import graph_def, torch_file
from cfg.models import inception

EPS = float(np.float32(1e-3))  # of the batch norms; a frozen graph tells its own

# torchvision's names; of a block's towers too, in our order
TORCH_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")
TORCH_BLOCKS = tuple(
  f"Mixed_{name}" for name in ("5b", "5c", "5d", "6a", "6b", "6c", "6d", "6e", "7a", "7b", "7c")
)
TORCH_TOWERS = {
  **dict.fromkeys((0, 1, 2), ("branch1x1", "branch5x5", "branch3x3dbl")),
  3: ("branch3x3", "branch3x3dbl"),
  **dict.fromkeys((4, 5, 6, 7), ("branch1x1", "branch7x7", "branch7x7dbl")),
  8: (None, "branch3x3", "branch7x7x3"),
  **dict.fromkeys((9, 10), ("branch1x1", "branch3x3", "branch3x3dbl")),
}


def read_folded(path):
  """An .npz of "<scope>/folded_weights" [h,w,in,out] and "<scope>/folded_bias", "softmax/weights"
  and "softmax/biases"; some may be missing.

  Raises:
    UserError: as all readers here: not such a file, other names or shapes.
  """
  names = {}
  for name in inception.layout():
    scope, _, leaf = name.rpartition("/")
    theirs = (
      {"kernel": "weights", "bias": "biases"}
      if scope == "softmax"
      else {"kernel": "folded_weights", "bias": "folded_bias"}
    )
    names[f"{scope}/{theirs[leaf]}"] = name
  arrays = arrays_lib.read_npz(path)
  arrays_lib.check(
    arrays, {theirs: inception.layout()[ours] for theirs, ours in names.items()}, optional=names
  )
  return {names[theirs]: np.asarray(a, np.float32) for theirs, a in arrays.items()}


def read_graph(path):
  """A frozen TensorFlow graph: constants "<scope>/conv2d_params", "<scope>/batchnorm/..."; all must
  be there, others do not matter.
  """
  nodes = graph_def.parse(path.read_bytes())
  flat = {}
  for scope, shape in _scopes().items():
    if scope == "softmax":
      flat["softmax/kernel"] = graph_def.constant(nodes, "softmax/weights", shape=shape)
      flat["softmax/bias"] = graph_def.constant(nodes, "softmax/biases", shape=shape[-1:])
      continue
    norm = f"{scope}/batchnorm"
    op, attributes = nodes.get(norm, (None, {}))
    if (
      op != "BatchNormWithGlobalNormalization"
      or not {"variance_epsilon", "scale_after_normalization"} <= attributes.keys()
    ):
      raise UserError(f"it has no batch norm {norm}.")
    beta, gamma, mean, var = (
      graph_def.constant(nodes, f"{norm}/{part}", shape=shape[-1:])
      for part in ("beta", "gamma", "moving_mean", "moving_variance")
    )
    if not attributes["scale_after_normalization"].b:
      gamma = np.ones_like(gamma)
    kernel = graph_def.constant(nodes, f"{scope}/conv2d_params", shape=shape)
    flat |= fold(
      scope,
      kernel=kernel,
      gamma=gamma,
      beta=beta,
      mean=mean,
      var=var,
      eps=attributes["variance_epsilon"].f,
    )
  return flat


def read_torch(path):
  """The port's state dict: "<torch_name>.conv.weight" [out,in,h,w] and "<torch_name>.bn.*",
  "fc.weight" [1008,2048] and "fc.bias".
  """
  arrays = {
    name: np.asarray(a)
    for name, a in torch_file.read(path).items()
    if not name.endswith(".num_batches_tracked")
  }
  parts = {"gamma": "weight", "beta": "bias", "mean": "running_mean", "var": "running_var"}
  shapes = {}
  for scope, shape in _scopes().items():
    theirs = torch_name(scope)
    if scope == "softmax":
      shapes |= {f"{theirs}.weight": shape[::-1], f"{theirs}.bias": shape[-1:]}
    else:
      shapes |= {
        f"{theirs}.conv.weight": (shape[3], shape[2], *shape[:2]),
        **{f"{theirs}.bn.{part}": shape[-1:] for part in parts.values()},
      }
  arrays_lib.check(arrays, shapes)
  flat = {
    "softmax/kernel": np.float32(arrays["fc.weight"].T),
    "softmax/bias": np.float32(arrays["fc.bias"]),
  }
  for scope in _scopes().keys() - {"softmax"}:
    theirs = torch_name(scope)
    norm = {ours: arrays[f"{theirs}.bn.{part}"] for ours, part in parts.items()}
    flat |= fold(
      scope, kernel=arrays[f"{theirs}.conv.weight"].transpose(2, 3, 1, 0), **norm, eps=EPS
    )
  return flat


def _scopes():
  """{scope: shape of its kernel}, the softmax among them."""
  return {
    name.removesuffix("/kernel"): shape
    for name, shape in inception.layout().items()
    if name.endswith("/kernel")
  }


def torch_name(scope):
  """The port's name of a convolution: mixed_9/tower_1/mixed/conv_1 is Mixed_7b.branch3x3dbl_3b."""
  if scope == "softmax":
    return "fc"
  number = lambda name: int(name.partition("_")[2] or 0)
  block, *rest = scope.split("/")
  if not rest:
    return TORCH_STEM[number(block)]
  i = number(block)
  towers = TORCH_TOWERS[i]
  if len(rest) == 1:
    return f"{TORCH_BLOCKS[i]}.{towers[0]}"
  tower, layer = number(rest[0]), number(rest[-1])
  if tower + 1 == len(towers):
    return f"{TORCH_BLOCKS[i]}.branch_pool"
  place = (
    f"{1 + len(inception.BLOCKS[i]['towers'][tower])}{'ab'[layer]}"
    if "mixed" in rest
    else 1 + layer
  )
  return f"{TORCH_BLOCKS[i]}.{towers[1 + tower]}_{place}"


def fold(scope, *, kernel, gamma, beta, mean, var, eps):
  """gamma (kernel * x - mean) / sqrt(var + eps) + beta as kernel' * x + bias': computed in float64,
  rounded once.

  Returns:
    {"<scope>/kernel": float32 [h,w,in,out], "<scope>/bias": float32 [out]}
  """
  gamma, beta, mean, var = (np.asarray(a, np.float64) for a in (gamma, beta, mean, var))
  if not (var + eps > 0).all():
    raise UserError(f"the batch norm of {scope} has a variance below zero.")
  scale = gamma / np.sqrt(var + eps)
  return {
    f"{scope}/kernel": np.float32(kernel * scale),
    f"{scope}/bias": np.float32(beta - mean * scale),
  }
