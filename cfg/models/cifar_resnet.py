"""The residual networks of CIFAR-10 (He et al. 2015, arXiv 1512.03385, section 4.2): published
classifiers, for inference only.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

IMAGE_SHAPE = (32, 32, 3)
NUM_CLASSES = 10
WIDTHS = (16, 32, 64)  # of the three levels; the last is the feature dimension
EPS = 1e-5  # PyTorch's, of batch normalisation


class CifarResNet(nn.Module):
  """Normalised images [B,32,32,3] to (features [B,64], logits [B,10]); features are the means over
  the last level.

  Attributes:
    num_blocks: n, residual blocks of each level. 3, 5, 7, 9 and 18 make ResNet-20, 32, 44, 56 and
      110.
  """

  num_blocks: int

  @property
  def depth(self):
    """6n + 2: the layers with weights."""
    return 6 * self.num_blocks + 2

  @nn.compact
  def __call__(self, x):
    assert x.shape[1:] == IMAGE_SHAPE, x.shape
    h = nn.relu(BatchNorm(name="norm_in")(conv(WIDTHS[0], name="conv_in")(x)))
    for level, width in enumerate(WIDTHS):
      for i in range(self.num_blocks):
        h = Block(width, stride=2 if level > 0 and i == 0 else 1, name=f"level{level}_{i}")(h)
    features = h.mean(axis=(1, 2))
    return features, nn.Dense(NUM_CLASSES, name="logits")(features)


class Block(nn.Module):
  """relu(shortcut(x) + norm2(conv2(relu(norm1(conv1(x)))))), the shortcut without parameters (the
  paper's option A).
  """

  width: int
  stride: int

  @nn.compact
  def __call__(self, x):
    h = nn.relu(BatchNorm(name="norm1")(conv(self.width, self.stride, name="conv1")(x)))
    h = BatchNorm(name="norm2")(conv(self.width, name="conv2")(h))
    return nn.relu(h + shortcut(x, width=self.width, stride=self.stride))


def conv(width, stride=1, *, name):
  """A 3x3 convolution, one zero on every side as PyTorch pads ("SAME" pads one side alone where the
  stride is 2).
  """
  return nn.Conv(
    width, (3, 3), (stride, stride), padding=((1, 1), (1, 1)), use_bias=False, name=name
  )


def shortcut(x, *, width, stride):
  """Every stride-th pixel, the channels in the middle of `width`, zeros on both sides of them."""
  side = (width - x.shape[-1]) // 2
  return jnp.pad(x[:, ::stride, ::stride], ((0, 0), (0, 0), (0, 0), (side, side)))


class BatchNorm(nn.Module):
  """(x - mean) scale / sqrt(var + EPS) + bias, with the stored mean and variance as parameters like
  the others.
  """

  @nn.compact
  def __call__(self, x):
    stored = lambda name, init: self.param(name, init, (x.shape[-1],))[None, None, None]
    scale, bias = stored("scale", nn.initializers.ones), stored("bias", nn.initializers.zeros)
    mean, var = stored("mean", nn.initializers.zeros), stored("var", nn.initializers.ones)
    return (x - mean) * (scale * jax.lax.rsqrt(var + EPS)) + bias
