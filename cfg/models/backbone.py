"""What the U-Net and the noise-conditional classifier share: settings, blocks, and the way down.

W is google-research/ddpm_w_distillation (unet3), GD openai/guided-diffusion (unet.py).
"""

from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax.numpy as jnp
from jax.sharding import Mesh

from cfg.base import sharding
from cfg.base.errors import UserError
from cfg.models import attention, layers


class Backbone(nn.Module, kw_only=True):
  """Residual levels, each of half the resolution of the one before, with attention at some.

  Attributes:
    ch: base width; ImageNet-64 has 192, ImageNet-128 256.
    emb_ch: width of the conditioning; the paper's are 4 ch.
    ch_mult: width of each level in units of ch.
    num_res_blocks: blocks per level going down; a U-Net has one more going up.
    attn_resolutions: feature heights that have self-attention (the middle always has).
    num_heads: attention heads, or None to use head_dim.
    head_dim: width of a head, or None to use num_heads.
    dropout: rate inside the residual blocks.
    norm_groups: groups of every GroupNorm; divides every width.
    norm_eps: added to every GroupNorm's variance; 1e-6 is Flax's and W's, 1e-5 PyTorch's and GD's.
    scale_shift: the conditioning scales and shifts the second norm; without, it is added before it.
    conv_resample: resample by a strided convolution, and by nearest-neighbour doubling and a
      convolution (GD without resblock_updown), instead of inside residual blocks (W, BigGAN).
    discrete_schedule: None for the paper's continuous time; "cosine" or "linear" for networks
      that were trained on the 1,000 steps of that schedule (see schedules.discrete_logsnr).
    remat: recompute each block in the backward pass instead of keeping it.
    dtype: of activations, float32 or bfloat16; parameters, normalisation and the output are
      float32.
    attention: how it is computed, attention.AUTO or one of attention.KINDS.
    mesh: that the rows are split over; None for jax's default device.
  """

  ch: int
  emb_ch: int
  ch_mult: Sequence[float]
  num_res_blocks: int
  attn_resolutions: Sequence[int]
  num_heads: int | None = None
  head_dim: int | None = None
  dropout: float = 0.0
  norm_groups: int = 32
  norm_eps: float = 1e-6
  scale_shift: bool = True
  conv_resample: bool = False
  discrete_schedule: str | None = None
  remat: bool = False
  dtype: Any = jnp.float32
  attention: str = attention.AUTO
  mesh: Mesh | None = None

  # parts that compute in float32, whatever `dtype` is
  IN_F32: ClassVar[tuple[str, ...]] = ("conv_out", "pool")

  @property
  def blocks_of_a_level(self):
    """Residual blocks that keep the resolution; the last level has the middle's as well."""
    return self.num_res_blocks

  def width(self, level):
    """Channels at a level."""
    return int(self.ch * self.ch_mult[level])

  def norm(self, name):
    """A GroupNorm of this network."""
    return layers.GroupNorm(self.norm_groups, self.norm_eps, jnp.dtype(self.dtype), name=name)

  def res(self, h, emb, level, examples, name, resample=None):
    """A residual block at the width of `level`; for `examples` see layers.Dropout."""
    block = nn.remat(layers.ResBlock) if self.remat else layers.ResBlock
    return block(
      out_ch=self.width(level),
      dropout=self.dropout,
      norm_groups=self.norm_groups,
      norm_eps=self.norm_eps,
      scale_shift=self.scale_shift,
      resample=resample,
      dtype=jnp.dtype(self.dtype),
      name=name,
    )(h, emb, examples)

  def attend(self, h, name):
    """Self-attention over the whole of h."""
    block = nn.remat(layers.AttentionBlock) if self.remat else layers.AttentionBlock
    return block(
      num_heads=h.shape[-1] // self.head_width(h.shape[-1]),
      norm_groups=self.norm_groups,
      norm_eps=self.norm_eps,
      dtype=jnp.dtype(self.dtype),
      attention=self.attention,
      mesh=self.mesh,
      name=name,
    )(h)

  def attention_layers(self, image_shape):
    """[(positions, width of a head)] of the attention layers, for images [H,W,C]."""
    levels = range(len(self.ch_mult))
    height, width, _ = image_shape
    sides = [height >> level for level in levels]
    many = [self.blocks_of_a_level if side in self.attn_resolutions else 0 for side in sides]
    many[-1] += 1  # the middle's
    positions = [(height >> level) * (width >> level) for level in levels]
    heads = [self.head_width(self.width(level)) for level in levels]
    return [(positions[level], heads[level]) for level in levels for _ in range(many[level])]

  def attention_choices(self, image_shape):
    """{kind: how many layers of attention it computes}, for images [H,W,C]."""
    return attention.choices(
      self.attention, self.attention_layers(image_shape), dtype=self.dtype, mesh=self.mesh
    )

  def head_width(self, channels):
    """Width of a head of attention over so many channels."""
    return self.head_dim or channels // self.num_heads

  def res_attend(self, h, emb, level, examples, name):
    """A residual block, and attention where this resolution has it."""
    h = self.res(h, emb, level, examples, f"{name}_res")
    return self.attend(h, f"{name}_attn") if h.shape[1] in self.attn_resolutions else h

  def resample(self, h, emb, level, examples, direction):
    """Halve ("down") or double ("up") the resolution at the end of a level."""
    name = f"{direction}{level}_resample"
    if self.conv_resample:
      return layers.ConvResample(direction=direction, dtype=jnp.dtype(self.dtype), name=name)(h)
    return self.res(h, emb, level, examples, name, direction)

  def conditioning(self, logsnr, y, class_rows):
    """[B, emb_ch] from the level and the label."""
    emb = layers.Conditioning(
      ch=self.ch,
      emb_ch=self.emb_ch,
      class_rows=class_rows,
      discrete_schedule=self.discrete_schedule,
      dtype=jnp.dtype(self.dtype),
      name="cond",
    )(logsnr, y)
    # once here, or XLA would do it for each block
    return sharding.split_rows(self.mesh, emb)

  def encode(self, z, emb, examples):
    """The way down and the middle: (h, the activations that the way up takes, first ones first)."""
    dtype = jnp.dtype(self.dtype)
    h = nn.Conv(self.width(0), (3, 3), dtype=dtype, name="conv_in")(z.astype(dtype))
    skips = [h]
    last = len(self.ch_mult) - 1
    for level in range(last + 1):
      for block in range(self.num_res_blocks):
        h = self.res_attend(h, emb, level, examples, f"down{level}_{block}")
        skips.append(h)
      if level < last:
        h = self.resample(h, emb, level, examples, "down")
        skips.append(h)
    h = self.res(h, emb, last, examples, "mid_res0")
    h = self.attend(h, "mid_attn")
    h = self.res(h, emb, last, examples, "mid_res1")
    return h, skips


def check_shapes(z, logsnr, y, *, levels):
  """Raise ValueError unless z is [B,H,W,C] with H and W divisible by 2^(levels-1), and logsnr, y
  are [B].
  """
  factor = 2 ** (levels - 1)
  if len(z) != 4 or z[1] % factor or z[2] % factor:
    raise ValueError(
      f"z must be [B,H,W,C] with H and W divisible by {factor} ({levels} levels), got {z}"
    )
  if logsnr != z[:1] or y != z[:1]:
    raise ValueError(f"logsnr and y must be [{z[0]}], got {logsnr} and {y}")


def check_settings(model, *, image_shape):
  """Raise UserError if fields of a network do not fit each other or images [H,W,C]."""
  factor = 2 ** (len(model.ch_mult) - 1)
  if any(side % factor for side in image_shape[:2]):
    raise UserError(
      f"images of {image_shape[0]}x{image_shape[1]} do not suit model.ch_mult "
      f"{tuple(model.ch_mult)}: each level but the "
      f"first halves the side, which must be a multiple of {factor}. Change data.resolution or "
      f"model.ch_mult."
    )
  if (model.num_heads is None) == (model.head_dim is None):
    raise UserError("set one of model.num_heads and model.head_dim, and leave the other None.")
  widths = [model.width(level) for level in range(len(model.ch_mult))]
  for field in ("norm_groups", "num_heads", "head_dim"):
    divisor = getattr(model, field)
    if divisor is not None and any(width % divisor for width in widths):
      raise UserError(
        f"model.{field} is {divisor}: it must divide the width of every level, {widths} (ch times "
        f"ch_mult)."
      )
