"""A small convolutional classifier: the feature space and the judge of small data sets."""

import flax.linen as nn
import jax.numpy as jnp


class Judge(nn.Module):
  """Images in [-1, 1] to (features [B,D], logits [B,num_classes]); features are the last hidden
  layer.

  Attributes:
    num_classes: classes.
    ch: width of the first level; doubles at each of `levels`, the resolution halves.
    levels: pairs of 3x3 convolutions, each pair followed by a 2x2 average.
    feature_dim: D.
    dropout: rate before the logits.
  """

  num_classes: int
  ch: int = 32
  levels: int = 2
  feature_dim: int = 64
  dropout: float = 0.3

  @nn.compact
  def __call__(self, x, deterministic=True):
    h = x
    for level in range(self.levels):
      for _ in range(2):
        h = nn.Conv(self.ch * 2**level, (3, 3))(h)
        h = nn.swish(nn.GroupNorm(num_groups=min(8, self.ch))(h))
      h = nn.avg_pool(h, (2, 2), strides=(2, 2))
    h = h.reshape(h.shape[0], -1)
    features = nn.swish(nn.Dense(self.feature_dim, name="features")(h))
    h = nn.Dropout(self.dropout)(features, deterministic=deterministic)
    return features, nn.Dense(self.num_classes, name="logits")(h)


def init_params(model, *, key, image_shape):
  """Parameters for images [H,W,C]; call it under jit."""
  return model.init(key, jnp.zeros((1, *image_shape), jnp.float32))["params"]
