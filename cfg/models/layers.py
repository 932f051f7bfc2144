"""Building blocks of the U-Net.

W is google-research/ddpm_w_distillation (unet3), DD google-research/diffusion_distillation
(unet), ADM Dhariwal & Nichol 2021 (arXiv 2105.05233), GD its code, openai/guided-diffusion.
Activations are [B,H,W,C].
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfg import schedules

ZEROS = nn.initializers.zeros_init()


def sinusoid(t, *, width, steps=None, max_period=10_000.0):
  """[sin(t f), cos(t f)], f_i = max_period^(-i / steps) (DD; GD has cos first).

  Args:
    t: [B].
    width: even, at least 4.
    steps: None for DD's width/2 - 1; GD's is width/2.

  Returns:
    [B, width] f32.
  """
  half = width // 2
  freqs = jnp.exp(-math.log(max_period) / (steps or half - 1) * jnp.arange(half, dtype=jnp.float32))
  args = t.astype(jnp.float32)[:, None] * freqs[None, :]
  return jnp.concatenate([jnp.sin(args), jnp.cos(args)], axis=1)


def inv_cos(logsnr):
  """arctan(exp(-lambda/2)) / (pi/2), lambda cut to +-20: the network's time in [0, 1] (W
  `inv_cos`).
  """
  return jnp.arctan(jnp.exp(-0.5 * jnp.clip(logsnr, -20.0, 20.0))) / (0.5 * jnp.pi)


def upsample(h):
  """Nearest-neighbour doubling."""
  return jnp.repeat(jnp.repeat(h, 2, axis=1), 2, axis=2)


def downsample(h):
  """2x2 average."""
  return nn.avg_pool(h, (2, 2), strides=(2, 2))


class Conditioning(nn.Module):
  """emb = Dense(swish(Dense(sinusoid(time)))) + Dense(one_hot(y)).

  time is 1000 inv_cos(lambda) (W unet3), or the step of a discrete schedule (GD).
  The class table has class_rows rows; 0 for a network without classes.
  """

  ch: int
  emb_ch: int
  class_rows: int
  discrete_schedule: str | None = None
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, logsnr, y):
    if self.discrete_schedule is None:
      emb = sinusoid(1000.0 * inv_cos(logsnr), width=self.ch)
    else:
      table = schedules.discrete_logsnr(self.discrete_schedule)
      emb = sinusoid(
        schedules.discrete_time(logsnr, table=table), width=self.ch, steps=self.ch // 2
      )
    emb = nn.Dense(self.emb_ch, dtype=self.dtype, name="dense0")(emb)
    emb = nn.Dense(self.emb_ch, dtype=self.dtype, name="dense1")(nn.swish(emb))
    if not self.class_rows:
      return emb
    one_hot = jax.nn.one_hot(y, self.class_rows, dtype=self.dtype)
    return emb + nn.Dense(self.emb_ch, dtype=self.dtype, name="class_emb")(one_hot)


class ConvResample(nn.Module):
  """A 3x3 convolution of stride 2 ("down"), or nearest-neighbour doubling and a 3x3 convolution
  ("up") (GD).
  """

  direction: str
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h):
    up = self.direction == "up"
    # one row and column on each side, as PyTorch pads; "SAME" would pad the lower right alone
    conv = nn.Conv(
      h.shape[-1], (3, 3), strides=1 if up else 2, padding=1, dtype=self.dtype, name="conv"
    )
    return conv(upsample(h) if up else h)


class ResBlock(nn.Module):
  """BigGAN residual block with scale-shift GroupNorm (W unet3; ADM section 3).

  h = conv(swish(norm(x))), the resampling after the first swish, on both branches;
  h = conv0(dropout(swish(norm(h) (1 + scale) + shift))), [scale, shift] = Dense(swish(emb));
  conv0 starts at zero; the skip is the identity, or a 1x1 where channels change.
  Without scale_shift (GD), h = conv0(dropout(swish(norm(h + Dense(swish(emb)))))).
  """

  out_ch: int
  dropout: float = 0.0
  norm_groups: int = 32
  norm_eps: float = 1e-6
  scale_shift: bool = True
  resample: str | None = None  # None, "up" or "down"
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x, emb, deterministic):
    resample = {None: lambda h: h, "up": upsample, "down": downsample}[self.resample]
    norm = lambda name: nn.GroupNorm(
      self.norm_groups, epsilon=self.norm_eps, dtype=self.dtype, name=name
    )
    conv = lambda name, **kw: nn.Conv(self.out_ch, (3, 3), dtype=self.dtype, name=name, **kw)

    h = conv("conv1")(resample(nn.swish(norm("norm1")(x))))
    emb = nn.Dense((1 + self.scale_shift) * self.out_ch, dtype=self.dtype, name="emb")(
      nn.swish(emb)
    )[:, None, None, :]
    if self.scale_shift:
      scale, shift = jnp.split(emb, 2, axis=-1)
      h = norm("norm2")(h) * (1 + scale) + shift
    else:
      h = norm("norm2")(h + emb)
    h = nn.swish(h)
    h = nn.Dropout(self.dropout)(h, deterministic=deterministic)
    h = conv("conv2", kernel_init=ZEROS)(h)

    skip = resample(x)
    if skip.shape[-1] != self.out_ch:
      skip = nn.Dense(self.out_ch, dtype=self.dtype, name="skip")(skip)
    return skip + h


class AttentionBlock(nn.Module):
  """x + proj0(attention(q, k, v of norm(x))), scale 1/sqrt(head_dim), over all H W positions (W
  unet3).
  """

  num_heads: int
  norm_groups: int = 32
  norm_eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, x):
    batch, height, width, channels = x.shape
    heads = (self.num_heads, channels // self.num_heads)
    h = nn.GroupNorm(self.norm_groups, epsilon=self.norm_eps, dtype=self.dtype, name="norm")(x)
    h = h.reshape(batch, height * width, channels)
    q, k, v = (nn.DenseGeneral(heads, dtype=self.dtype, name=n)(h) for n in "qkv")
    h = jax.nn.dot_product_attention(q, k, v)
    h = nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=ZEROS, dtype=self.dtype, name="proj")(
      h
    )
    return x + h.reshape(x.shape)
