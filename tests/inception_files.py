"""The reference's random weights in each format that people have, written by others' definitions of
these formats.
"""

import inception_reference as reference
import numpy as np
import paths
import pytest
from tensorboardX.proto import graph_pb2
from torch_files import write_torch

from cfg.base import files

DATA = paths.SHARED / "data"

STRAY = {"ExpandDims/dim": np.float32(0), "mixed_10/join/concat_dim": np.float32(3)}


def graph(state, *, epsilon=1e-3, scaled=True):
  """A GraphDef of TensorFlow's own fields (tensorboardX has them): constants as bytes, as lists,
  and as one repeated value.
  """
  found = graph_pb2.GraphDef()
  for name, value in STRAY.items():
    add_constant(found, name, value)
  found.node.add(name="DecodeJpeg/contents", op="Const").attr["value"].tensor.dtype = 7  # text
  for scope, (port, _) in reference.convolutions().items():
    add_constant(
      found, f"{scope}/conv2d_params", state[f"{port}.conv.weight"].transpose(2, 3, 1, 0)
    )
    parts = (
      ("beta", "bias"),
      ("gamma", "weight"),
      ("moving_mean", "running_mean"),
      ("moving_variance", "running_var"),
    )
    for ours, theirs in parts:
      add_constant(
        found, f"{scope}/batchnorm/{ours}", state[f"{port}.bn.{theirs}"], as_list=ours == "beta"
      )
    node = found.node.add(name=f"{scope}/batchnorm", op="BatchNormWithGlobalNormalization")
    node.input.extend(
      [
        f"{scope}/Conv2D",
        *(
          f"{scope}/batchnorm/{name}"
          for name in ("moving_mean", "moving_variance", "beta", "gamma")
        ),
      ]
    )
    node.attr["variance_epsilon"].f = epsilon
    node.attr["scale_after_normalization"].b = scaled
    node.attr["T"].type = 1
  add_constant(found, "softmax/weights", state["fc.weight"].T)
  add_constant(found, "softmax/biases", state["fc.bias"])
  return found


def add_constant(found, name, array, *, as_list=False):
  node = found.node.add(name=name, op="Const")
  node.attr["dtype"].type = 1
  tensor = node.attr["value"].tensor
  tensor.dtype = 1  # DT_FLOAT
  for size in np.shape(array):
    tensor.tensor_shape.dim.add(size=size)
  if np.size(array) > 1 and np.unique(np.ravel(array)[:2]).size == 1 and np.unique(array).size == 1:
    tensor.float_val.append(np.ravel(array)[0])
  elif as_list:
    tensor.float_val.extend(np.ravel(array).tolist())
  else:
    tensor.tensor_content = np.ascontiguousarray(array, "<f4").tobytes()


def write_graph(path, state, **changes):
  path.write_bytes(graph(state, **changes).SerializeToString())


def write_port(path, state):
  """As pytorch-fid's: with counters of training steps."""
  write_torch(
    path,
    state
    | {
      f"{port}.bn.num_batches_tracked": np.array(0) for port, _ in reference.convolutions().values()
    },
  )


def write_folded(path, state, *, until=None):
  """Folded by the formula, in float64; without the scopes from `until` on."""
  arrays = {}
  for scope, (port, _) in reference.convolutions().items():
    if scope == until:
      break
    gamma, beta, mean, var = (
      state[f"{port}.bn.{part}"].astype(np.float64)
      for part in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + np.float32(1e-3))
    arrays[f"{scope}/folded_weights"] = (
      state[f"{port}.conv.weight"].transpose(2, 3, 1, 0) * scale
    ).astype(np.float32)
    arrays[f"{scope}/folded_bias"] = (beta - mean * scale).astype(np.float32)
  if until is None:
    arrays |= {"softmax/weights": state["fc.weight"].T, "softmax/biases": state["fc.bias"]}
  files.write_npz(path, arrays)


def shared(name):
  """A file of ../shared/data, or the test is skipped."""
  if not (DATA / name).exists():
    pytest.skip(f"there is no {DATA / name}")
  return DATA / name
