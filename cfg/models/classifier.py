"""The noise-conditional classifier of ADM: p(y | z_lambda), whose gradient guides (arXiv
2105.05233, section 4).

GD is openai/guided-diffusion (unet.py, EncoderUNetModel with pool "attention").
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models import layers
from cfg.models.backbone import Backbone, check_settings, check_shapes


class AttentionPool(nn.Module):
  """The output of one attention layer at the mean token: [B,H,W,C] -> [B,features] (GD
  AttentionPool2d, after CLIP).

  The H W positions and their mean, first, each plus a learned position; self-attention; the first
  token's projection.
  """

  features: int
  num_heads: int

  @nn.compact
  def __call__(self, h):
    batch, height, width, channels = h.shape
    h = h.reshape(batch, height * width, channels)
    h = jnp.concatenate([h.mean(axis=1, keepdims=True), h], axis=1)
    positions = nn.initializers.normal(channels**-0.5)
    h = h + self.param("positions", positions, (1, height * width + 1, channels))
    heads = (self.num_heads, channels // self.num_heads)
    q = nn.DenseGeneral(heads, name="q")(h[:, :1])
    k, v = (nn.DenseGeneral(heads, name=n)(h) for n in "kv")
    h = jax.nn.dot_product_attention(q, k, v)
    return nn.DenseGeneral(self.features, axis=(-2, -1), name="proj")(h)[:, 0]


class Classifier(Backbone, kw_only=True):
  """logits [B, num_classes] f32 = Classifier(z, logsnr): a U-Net's way down, then attention
  pooling.

  Attributes, beside Backbone's:
    num_classes: classes.

  The pooling has the heads of the other attention layers, and a position for each pixel of
  the last level: the parameters are for one image size.
  """

  num_classes: int

  def inputs(self, image_shape):
    """One row of what the network is called with, for images [H,W,C]: zeros."""
    return jnp.zeros((1, *image_shape)), jnp.zeros(1)

  @nn.compact
  def __call__(self, z, logsnr, examples=None):
    check_shapes(z.shape, logsnr.shape, z.shape[:1], levels=len(self.ch_mult))
    emb = self.conditioning(logsnr, None, 0)
    h, _ = self.encode(z, emb, examples)
    h = nn.swish(self.norm("norm_out")(h)).astype(jnp.float32)
    heads = self.num_heads or h.shape[-1] // self.head_dim
    return AttentionPool(self.num_classes, heads, name="pool")(h)


def from_config(config, *, num_classes, image_shape, mesh=None):
  """The Classifier of config.model for so many classes and that shape of image [H,W,C].

  Args:
    config: the section model.
    num_classes: of the data.
    image_shape: (H, W, C).
    mesh: that its rows will be split over; None for jax's default device.

  Raises:
    UserError: fields that do not fit each other or the images.
  """
  model = Classifier(num_classes=num_classes, mesh=mesh, **config)
  check_settings(model, image_shape=image_shape)
  return model


def make_log_probs_fn(model, params, *, dropout=None):
  """(z [B,H,W,C], logsnr [B]) -> log p(y | z) of every class, [B,num_classes] f32.

  Args:
    model: a Classifier.
    params: its parameters.
    dropout: layers.Masks, turns network dropout on (training).
  """
  kwargs = layers.dropout_arguments(dropout)

  def log_probs_fn(z, logsnr):
    return jax.nn.log_softmax(model.apply({"params": params}, z, logsnr, **kwargs))

  return log_probs_fn


def make_log_prob_fn(model, params, *, dropout=None):
  """The network as the log_prob_fn that losses and rules speak: (z, logsnr, y) -> log p(y | z) [B].

  Arguments as of `make_log_probs_fn`.
  """
  log_probs_fn = make_log_probs_fn(model, params, dropout=dropout)
  return lambda z, logsnr, y: of_label(log_probs_fn(z, logsnr), y)


def of_label(a, y):
  """a[i, y_i]: [B,num_classes] and [B] -> [B]."""
  return jnp.take_along_axis(a, y[:, None], axis=1)[:, 0]
