"""The paper's U-Net, from the digits' size to ImageNet's.

W is google-research/ddpm_w_distillation (unet3, configs i64_unet3 and i128_unet3),
very probably the paper's own network.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.models import layers
from cfg.models.backbone import Backbone, check_settings, check_shapes


class UNet(Backbone, kw_only=True):
  """eps_hat = UNet(z, logsnr, y), y == num_classes being the null label.

  Attributes, beside Backbone's:
    num_classes: classes without the null label.
    out_channels: channels of the image.
    class_rows: rows of the class table. None is num_classes + 1, the last the null label's.
      Networks of other origin may have num_classes (no null label), or 0 (no classes at all).
  """

  num_classes: int
  out_channels: int
  class_rows: int | None = None

  def inputs(self, image_shape):
    """One row of what the network is called with, for images [H,W,C]: zeros."""
    return jnp.zeros((1, *image_shape)), jnp.zeros(1), jnp.zeros(1, jnp.int32)

  @property
  def blocks_of_a_level(self):
    """Residual blocks that keep the resolution, on both ways; the last level has the middle's
    too.
    """
    return 2 * self.num_res_blocks + 1

  @nn.compact
  def __call__(self, z, logsnr, y, examples=None):
    check_shapes(z.shape, logsnr.shape, y.shape, levels=len(self.ch_mult))
    rows = self.num_classes + 1 if self.class_rows is None else self.class_rows
    emb = self.conditioning(logsnr, y, rows)
    h, skips = self.encode(z, emb, examples)
    for level in reversed(range(len(self.ch_mult))):
      for block in range(self.num_res_blocks + 1):
        h = self.res_attend((h, skips.pop()), emb, level, examples, f"up{level}_{block}")
      if level > 0:
        h = self.resample(h, emb, level, examples, "up")
    h = nn.swish(self.norm("norm_out")(h))
    # the last convolution in f32: its output is the estimate of a unit-variance eps
    return nn.Conv(self.out_channels, (3, 3), kernel_init=layers.ZEROS, name="conv_out")(
      h.astype(jnp.float32)
    )


def from_config(config, *, num_classes, image_shape, mesh=None):
  """The UNet of config.model for so many classes and that shape of image [H,W,C].

  Args:
    config: the section model.
    num_classes: of the data.
    image_shape: (H, W, C).
    mesh: that its rows will be split over; None for jax's default device.

  Raises:
    UserError: fields that do not fit each other or the images.
  """
  model = UNet(num_classes=num_classes, out_channels=image_shape[-1], mesh=mesh, **config)
  check_settings(model, image_shape=image_shape)
  return model


def make_eps_fn(model, params, *, dropout=None):
  """The network as the eps_fn that losses and samplers speak: (z, logsnr, y) -> eps_hat.

  Args:
    model: a UNet.
    params: its parameters.
    dropout: layers.Masks, turns network dropout on (training).
  """
  kwargs = layers.dropout_arguments(dropout)

  def eps_fn(z, logsnr, y):
    return model.apply({"params": params}, z, logsnr, y, **kwargs)

  return eps_fn


def init_params(model, *, key, image_shape):
  """Parameters of `model`, a UNet or a Classifier, for images [H,W,C]; call it under jit or
  eval_shape (eager is slow).
  """
  return model.init(key, *model.inputs(image_shape))["params"]


def num_params(params):
  """How many numbers are in a tree of arrays or of their shapes."""
  return sum(p.size for p in jax.tree.leaves(params))
