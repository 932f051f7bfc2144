"""The paper's U-Net, from the digits' size to ImageNet's.

W is google-research/ddpm_w_distillation (unet3, configs i64_unet3 and i128_unet3),
very probably the paper's own network.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg.errors import UserError
from cfg.models import layers


class UNet(nn.Module):
  """eps_hat = UNet(z, logsnr, y), y == num_classes being the null label.

  Attributes:
    num_classes: classes without the null label.
    out_channels: channels of the image.
    ch: base width; ImageNet-64 has 192, ImageNet-128 256.
    emb_ch: width of the conditioning; the paper's are 4 ch.
    ch_mult: width of each level in units of ch; each level halves the resolution.
    num_res_blocks: blocks per level going down; going up there is one more.
    attn_resolutions: feature heights that have self-attention (the middle always has).
    num_heads: attention heads, or None to use head_dim.
    head_dim: width of a head, or None to use num_heads.
    dropout: rate inside the residual blocks.
    norm_groups: groups of every GroupNorm; divides every width.
    remat: recompute each block in the backward pass instead of keeping it.
    dtype: of activations, float32 or bfloat16; parameters and the output are float32.
  """

  num_classes: int
  out_channels: int
  ch: int
  emb_ch: int
  ch_mult: Sequence[int]
  num_res_blocks: int
  attn_resolutions: Sequence[int]
  num_heads: int | None = None
  head_dim: int | None = None
  dropout: float = 0.0
  norm_groups: int = 32
  remat: bool = False
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, z, logsnr, y, deterministic=True):
    check_shapes(z.shape, logsnr.shape, y.shape, levels=len(self.ch_mult))
    dtype = jnp.dtype(self.dtype)
    res_block = nn.remat(layers.ResBlock, static_argnums=(3,)) if self.remat else layers.ResBlock
    attn_block = nn.remat(layers.AttentionBlock) if self.remat else layers.AttentionBlock

    def res(h, level, name, resample=None):
      block = res_block(
        out_ch=self.ch * self.ch_mult[level], dropout=self.dropout,
        norm_groups=self.norm_groups, resample=resample, dtype=dtype, name=name,
      )
      return block(h, emb, deterministic)

    def attend(h, name):
      heads = self.num_heads or h.shape[-1] // self.head_dim
      return attn_block(num_heads=heads, norm_groups=self.norm_groups, dtype=dtype, name=name)(h)

    def res_attend(h, level, name):
      h = res(h, level, f"{name}_res")
      return attend(h, f"{name}_attn") if h.shape[1] in self.attn_resolutions else h

    emb = layers.Conditioning(self.ch, self.emb_ch, self.num_classes, dtype, name="cond")(logsnr, y)
    h = nn.Conv(self.ch, (3, 3), dtype=dtype, name="conv_in")(z.astype(dtype))
    skips = [h]
    last = len(self.ch_mult) - 1

    for level in range(last + 1):
      for block in range(self.num_res_blocks):
        h = res_attend(h, level, f"down{level}_{block}")
        skips.append(h)
      if level < last:
        h = res(h, level, f"down{level}_resample", "down")
        skips.append(h)

    h = res(h, last, "mid_res0")
    h = attend(h, "mid_attn")
    h = res(h, last, "mid_res1")

    for level in reversed(range(last + 1)):
      for block in range(self.num_res_blocks + 1):
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = res_attend(h, level, f"up{level}_{block}")
      if level > 0:
        h = res(h, level, f"up{level}_resample", "up")

    h = nn.swish(nn.GroupNorm(self.norm_groups, dtype=dtype, name="norm_out")(h))
    # the last convolution in f32: its output is the estimate of a unit-variance eps
    h = nn.Conv(self.out_channels, (3, 3), kernel_init=layers.ZEROS, name="conv_out")(h.astype(jnp.float32))
    return h


def check_shapes(z, logsnr, y, *, levels):
  """Raise ValueError unless z is [B,H,W,C] with H and W divisible by 2^(levels-1), and logsnr, y are [B]."""
  factor = 2 ** (levels - 1)
  if len(z) != 4 or z[1] % factor or z[2] % factor:
    raise ValueError(f"z must be [B,H,W,C] with H and W divisible by {factor} ({levels} levels), got {z}")
  if logsnr != z[:1] or y != z[:1]:
    raise ValueError(f"logsnr and y must be [{z[0]}], got {logsnr} and {y}")


def from_config(config, *, num_classes, image_shape):
  """The UNet of config.model for so many classes and that shape of image [H,W,C].

  Raises:
    UserError: fields that do not fit each other or the images.
  """
  model = UNet(num_classes=num_classes, out_channels=image_shape[-1], **config)
  factor = 2 ** (len(model.ch_mult) - 1)
  if any(side % factor for side in image_shape[:2]):
    raise UserError(
      f"images of {image_shape[0]}x{image_shape[1]} do not suit model.ch_mult {tuple(model.ch_mult)}: each level but the "
      f"first halves the side, which must be a multiple of {factor}. Change data.resolution or model.ch_mult."
    )
  if (model.num_heads is None) == (model.head_dim is None):
    raise UserError("set one of model.num_heads and model.head_dim, and leave the other None.")
  widths = [model.ch * mult for mult in model.ch_mult]
  for field in ("norm_groups", "num_heads", "head_dim"):
    divisor = getattr(model, field)
    if divisor is not None and any(width % divisor for width in widths):
      raise UserError(f"model.{field} is {divisor}: it must divide the width of every level, {widths} (ch times ch_mult).")
  return model


def make_eps_fn(model, params, *, dropout_key=None):
  """The network as the eps_fn that losses and samplers speak: (z, logsnr, y) -> eps_hat.

  Args:
    model: a UNet.
    params: its parameters.
    dropout_key: turns network dropout on (training).
  """

  def eps_fn(z, logsnr, y):
    rngs = None if dropout_key is None else {"dropout": dropout_key}
    return model.apply({"params": params}, z, logsnr, y, deterministic=dropout_key is None, rngs=rngs)

  return eps_fn


def init_params(model, *, key, image_shape):
  """Parameters of `model` for images [H,W,C]; call it under jit or eval_shape (eager is slow)."""
  z = jnp.zeros((1, *image_shape), jnp.float32)
  return model.init(key, z, jnp.zeros((1,)), jnp.zeros((1,), jnp.int32))["params"]


def num_params(params):
  """How many numbers are in a tree of arrays or of their shapes."""
  return sum(p.size for p in jax.tree.leaves(params))
