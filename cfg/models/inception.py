"""The Inception network that FID and the Inception Score mean: TensorFlow's graph of 2015-12-05,
for inference only.

Szegedy et al. 2015 (arXiv 1512.00567) as published in inception-2015-12-05.tgz.
It differs from other Inceptions in three things: 1008 classes, average pools
that do not count padding, and a max pool in its last block. Scopes are
TensorFlow's; batch norms are folded into the convolutions (cfg.interop.inception).
"""

import functools
from typing import NamedTuple

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from cfg.base.errors import UserError, nearest

IMAGE_SIZE = 299
NUM_CLASSES = 1008  # 1,000 of them ImageNet's, from index 1 on
SPATIAL_CHANNELS = 7  # of mixed_6/conv, as in ADM's evaluator
# GPUs and TPUs would round the inputs of products otherwise
PRECISION = jax.lax.Precision.HIGHEST


class Output(NamedTuple):
  """Where an output is read: after mixed_<block>; and its dimension."""

  block: int
  dim: int


OUTPUTS = {
  "spatial": Output(6, 17 * 17 * SPATIAL_CHANNELS),  # sFID
  "mixed_7": Output(7, 768),  # pytorch-fid's --dims 768
  "mixed_8": Output(8, 1280),
  "pool_3": Output(10, 2048),  # FID
  "logits": Output(10, NUM_CLASSES),
  "logits_no_bias": Output(
    10, NUM_CLASSES
  ),  # what ADM's evaluator and torch-fidelity take the Inception Score of
}


class Layer(NamedTuple):
  """A convolution; its kernel is (height, width)."""

  width: int
  kernel: tuple[int, int] = (1, 1)
  stride: int = 1
  padding: str = "SAME"


def max_pool(x, *, stride, padding):
  """The largest of 3x3 pixels."""
  return nn.max_pool(x, (3, 3), (stride, stride), padding)


def average_pool(x):
  """The mean of those of 3x3 pixels that are in the image [N,H,W,C]."""
  within = lambda n: np.convolve(np.ones(n, np.float32), np.ones(3, np.float32), "same")
  counts = np.multiply.outer(within(x.shape[1]), within(x.shape[2]))[None, :, :, None]
  x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
  rows = x[:, :-2] + x[:, 1:-1] + x[:, 2:]
  return (rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]) / counts


halving_pool = functools.partial(max_pool, stride=2, padding="VALID")

# None is a pool
STEM = (
  Layer(32, (3, 3), 2, "VALID"),
  Layer(32, (3, 3), 1, "VALID"),
  Layer(64, (3, 3)),
  None,
  Layer(80),
  Layer(192, (3, 3), 1, "VALID"),
  None,
)


def _block_35(pool_width):
  towers = (Layer(48), Layer(64, (5, 5))), (Layer(64), Layer(96, (3, 3)), Layer(96, (3, 3)))
  return dict(conv=Layer(64), towers=towers, pool=average_pool, pool_conv=Layer(pool_width))


def _block_17(width):
  across, down = (1, 7), (7, 1)
  short = Layer(width), Layer(width, across), Layer(192, down)
  long = (
    Layer(width),
    Layer(width, down),
    Layer(width, across),
    Layer(width, down),
    Layer(192, across),
  )
  return dict(conv=Layer(192), towers=(short, long), pool=average_pool, pool_conv=Layer(192))


def _block_8(pool):
  fork = Layer(384, (1, 3)), Layer(384, (3, 1))
  towers = (Layer(384),), (Layer(448), Layer(384, (3, 3)))
  return dict(conv=Layer(320), towers=towers, fork=fork, pool=pool, pool_conv=Layer(192))


# mixed, mixed_1, ..., mixed_10
BLOCKS = (
  *map(_block_35, (32, 64, 64)),
  dict(
    conv=Layer(384, (3, 3), 2, "VALID"),
    towers=((Layer(64), Layer(96, (3, 3)), Layer(96, (3, 3), 2, "VALID")),),
    pool=halving_pool,
  ),
  *map(_block_17, (128, 160, 160, 192)),
  dict(
    towers=(
      (Layer(192), Layer(320, (3, 3), 2, "VALID")),
      (Layer(192), Layer(192, (1, 7)), Layer(192, (7, 1)), Layer(192, (3, 3), 2, "VALID")),
    ),
    pool=halving_pool,
  ),
  _block_8(average_pool),
  _block_8(functools.partial(max_pool, stride=1, padding="SAME")),
)


class Inception(nn.Module):
  """uint8 images [N,H,W,3] to {output: float32 [N, its dim]}; what is not asked for is not
  computed.

  Attributes:
    outputs: names of OUTPUTS.
  """

  outputs: tuple[str, ...] = ("pool_3", "logits")

  @nn.compact
  def __call__(self, pixels):
    assert pixels.ndim == 4 and pixels.shape[-1] == 3 and pixels.dtype == jnp.uint8, (
      pixels.shape,
      pixels.dtype,
    )
    x = (resize(pixels.astype(jnp.float32)) - 128) / 128
    convolutions = iter(range(len(STEM)))
    for layer in STEM:
      x = (
        halving_pool(x)
        if layer is None
        else conv(x, layer, name=numbered("conv", next(convolutions)))
      )
    found = {}
    for i in range(1 + max(OUTPUTS[name].block for name in self.outputs)):
      x = Block(**BLOCKS[i], name=numbered("mixed", i))(x)
      if i == OUTPUTS["spatial"].block:
        # mixed_6/conv is the first of the block's parts
        found["spatial"] = x[..., :SPATIAL_CHANNELS].reshape(len(x), -1)
      found["pool_3" if i == len(BLOCKS) - 1 else f"mixed_{i}"] = x.mean(axis=(1, 2))
    if {"logits", "logits_no_bias"} & set(self.outputs):
      found |= Softmax(name="softmax")(found["pool_3"])
    return {name: found[name] for name in self.outputs}


class Block(nn.Module):
  """The concatenation of a convolution, towers of them, and a pool with or without a convolution
  after it.

  Attributes:
    towers: layers in a row, one after the other.
    pool: of the block's input.
    conv: a first part, or none.
    fork: two layers, both applied to what a tower's row gives.
    pool_conv: after the pool, or none.
  """

  towers: tuple
  pool: object
  conv: Layer | None = None
  fork: tuple = ()
  pool_conv: Layer | None = None

  @nn.compact
  def __call__(self, x):
    parts = [conv(x, self.conv, name="conv")] if self.conv else []
    parts += [
      Tower(layers, self.fork, name=numbered("tower", i))(x) for i, layers in enumerate(self.towers)
    ]
    pooled = self.pool(x)
    parts.append(
      Tower((self.pool_conv,), name=numbered("tower", len(self.towers)))(pooled)
      if self.pool_conv
      else pooled
    )
    return jnp.concatenate(parts, axis=-1)


class Tower(nn.Module):
  """conv, conv_1, ... one after the other; then those of the fork side by side, under "mixed"."""

  layers: tuple
  fork: tuple = ()

  @nn.compact
  def __call__(self, x):
    for i, layer in enumerate(self.layers):
      x = conv(x, layer, name=numbered("conv", i))
    return Fork(self.fork, name="mixed")(x) if self.fork else x


class Fork(nn.Module):
  """The concatenation of convolutions of one input."""

  layers: tuple

  @nn.compact
  def __call__(self, x):
    return jnp.concatenate(
      [conv(x, layer, name=numbered("conv", i)) for i, layer in enumerate(self.layers)], axis=-1
    )


class Softmax(nn.Module):
  """The logits, with and without their bias; the softmax itself is the caller's."""

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[-1], NUM_CLASSES))
    bias = self.param("bias", nn.initializers.zeros, (NUM_CLASSES,))
    logits = jnp.dot(x, kernel, precision=PRECISION)
    return {"logits": logits + bias[None], "logits_no_bias": logits}


def conv(x, layer, *, name):
  """relu(x * kernel + bias): the parameters of a module of this name."""
  valid = layer.padding == "VALID"
  # XLA's convolutions on CPUs are up to three times slower without padding: one further row, which
  # is dropped
  padding = ((layer.stride, 0), (0, 0)) if valid else layer.padding
  strides = (layer.stride, layer.stride)
  y = nn.Conv(layer.width, layer.kernel, strides, padding, precision=PRECISION, name=name)(x)
  return nn.relu(y[:, 1:] if valid else y)


def numbered(name, i):
  """name, name_1, name_2, ...: how TensorFlow told scopes apart."""
  return f"{name}_{i}" if i else name


def resize(x):
  """TF1's bilinear resize (ResizeBilinear, align_corners=False) of [N,H,W,C] to 299x299: source =
  destination * in / 299.

  Unlike today's resizes it does not shift by half a pixel, and does not smooth when it shrinks.
  """
  rows, columns = resize_matrix(x.shape[1]), resize_matrix(x.shape[2])
  return jnp.einsum("ih,nhwc,jw->nijc", rows, x, columns, precision=PRECISION)


def resize_matrix(size):
  """float32 [299, size]: each row has the weights of the two source pixels; positions in float32 as
  in TensorFlow's kernel.
  """
  source = np.arange(IMAGE_SIZE, dtype=np.float32) * np.float32(size / IMAGE_SIZE)
  lower = np.minimum(np.floor(source).astype(int), size - 1)
  upper = np.minimum(lower + 1, size - 1)
  matrix, rows = np.zeros((IMAGE_SIZE, size), np.float32), np.arange(IMAGE_SIZE)
  matrix[rows, lower] = 1 - (source - lower)
  matrix[rows, upper] += source - lower
  return matrix


@functools.cache
def layout():
  """{"mixed_3/tower/conv_1/kernel": shape} of all parameters."""
  images = jax.ShapeDtypeStruct((1, IMAGE_SIZE, IMAGE_SIZE, 3), jnp.uint8)
  params = jax.eval_shape(Inception(outputs=tuple(OUTPUTS)).init, jax.random.key(0), images)[
    "params"
  ]
  return {name: a.shape for name, a in flax.traverse_util.flatten_dict(params, sep="/").items()}


def needed(output):
  """The names in `layout` that an output needs."""
  depth = {numbered("mixed", i): i for i in range(len(BLOCKS))}
  last = OUTPUTS[output].block
  return [
    n
    for n in layout()
    if depth.get(n.split("/")[0], 0) <= last
    and (output.startswith("logits") or not n.startswith("softmax/"))
  ]


def available(params):
  """The outputs that parameters, perhaps incomplete, are enough for; in the order of OUTPUTS."""
  there = flax.traverse_util.flatten_dict(params, sep="/").keys()
  return tuple(name for name in OUTPUTS if there >= set(needed(name)))


def apply(params, pixels, *, outputs):
  """{output: float32 [N, dim]} of uint8 images [N,H,W,3], any H and W.

  Args:
    params: all parameters, or those that the outputs need.
    outputs: names of OUTPUTS.

  Raises:
    UserError: an unknown output, or one that the parameters are not enough for.
  """
  for name in outputs:
    if name not in OUTPUTS:
      raise UserError(f"the Inception network has no output {name!r}: {nearest(name, OUTPUTS)}")
  possible = available(params)
  if missing := [name for name in outputs if name not in possible]:
    there = flax.traverse_util.flatten_dict(params, sep="/").keys()
    lacking = [n for n in needed(missing[0]) if n not in there]
    raise UserError(
      f"these Inception weights are not complete: {', '.join(missing)} cannot be computed without "
      f"{lacking[0]}"
      f"{f' and {len(lacking) - 1} more' if len(lacking) > 1 else ''}. They are enough for "
      f"{', '.join(possible) or 'no output'}; "
      "for the others give the whole network (python -m cfg.interop.inception --help says where it "
      "is)."
    )
  return Inception(outputs=tuple(outputs)).apply({"params": params}, pixels)
