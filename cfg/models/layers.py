"""Building blocks of the U-Net.

W is google-research/ddpm_w_distillation (unet3), DD google-research/diffusion_distillation
(unet), ADM Dhariwal & Nichol 2021 (arXiv 2105.05233), GD its code, openai/guided-diffusion.
Activations are [B,H,W,C].
"""

import functools
import itertools
import math
import operator
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.extend.random import threefry2x32_p
from jax.sharding import Mesh

from cfg import schedules
from cfg.models import attention

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
  batch, height, width, channels = h.shape
  doubled = jnp.broadcast_to(h[:, :, None, :, None], (batch, height, 2, width, 2, channels))
  return doubled.reshape(batch, 2 * height, 2 * width, channels)


def downsample(h):
  """2x2 average."""
  return nn.avg_pool(h, (2, 2), strides=(2, 2))


class GroupNorm(nn.Module):
  """((h - mean) / sqrt(var + eps) gamma + beta) (1 + scale) + shift, mean and var over the pixels
  and channels of a group (Wu & He 2018, arXiv 1803.08494; scale and shift: ADM section 3).

  Of an image, that is h a + b with an a and a b for each channel, computed so in float32: forward
  and backward pass then read and write as little as there is to (flax.linen.GroupNorm, which has
  the same parameters, and a scale and shift behind it take two more passes on a GPU, and keep one
  more array for the backward pass).
  """

  groups: int = 32
  eps: float = 1e-6
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, h, scale=None, shift=None):
    """[B,...,C], scale and shift [B,C] or None for none -> [B,...,C]."""
    batch, channels = len(h), h.shape[-1]
    pixels = tuple(range(1, h.ndim - 1))
    gamma = self.param("scale", nn.initializers.ones_init(), (channels,))
    beta = self.param("bias", ZEROS, (channels,))
    x = h.astype(jnp.float32)

    def of_group(moment):
      """The mean of [B,C] over each group, [B,C] again."""
      means = jnp.mean(moment.reshape(batch, self.groups, -1), axis=-1, keepdims=True)
      return jnp.broadcast_to(means, (batch, self.groups, channels // self.groups)).reshape(
        batch, channels
      )

    mean = of_group(jnp.mean(x, axis=pixels))
    var = jnp.maximum(0.0, of_group(jnp.mean(x * x, axis=pixels)) - mean * mean)
    a = jax.lax.rsqrt(var + self.eps) * gamma[None]
    b = beta[None] - mean * a
    if scale is not None:
      a, b = a * (1 + scale), b * (1 + scale) + shift
    each = lambda v: jnp.expand_dims(v, pixels)
    return (x * each(a) + each(b)).astype(self.dtype)


class Masks(NamedTuple):
  """What network dropout is drawn from.

  Attributes:
    key: jax.random.key.
    examples: [B] uint32, the number of each row's example.
  """

  key: jax.Array
  examples: jax.Array


def dropout_arguments(masks):
  """Keyword arguments of a network's `apply`: for those Masks, or without dropout for None."""
  return {} if masks is None else {"examples": masks.examples, "rngs": {"dropout": masks.key}}


class Dropout(nn.Module):
  """h mask / (1 - rate), mask = 1 with probability 1 - rate, of [B,H,W,C] (Srivastava et al. 2014).

  The mask of an example depends on nothing but the rng "dropout", which every layer derives its own
  from, and its number in `examples`: devices and micro-batches cannot change it. The rate is
  rounded to a multiple of 2^-16, and a word of threefry serves two numbers, since random bits cost
  more than the dropping (7 % of a step on a TPU v4, when each number took a pair of words).
  """

  rate: float

  @nn.compact
  def __call__(self, h, examples):
    dropped = min(round(self.rate * 2**16), 2**16 - 1)
    if examples is None or not dropped:
      return h
    _, height, width, channels = h.shape
    key = jax.random.key_data(self.make_rng("dropout"))
    # 64 bits for each of four rows of pixels
    counter = jnp.arange(-(-height // 4) * width * channels, dtype=jnp.uint32)
    counter = counter.reshape(1, -1, width, channels)
    x0 = jnp.broadcast_to(
      examples.astype(jnp.uint32)[:, None, None, None], (len(h), *counter.shape[1:])
    )
    words = threefry2x32_p.bind(key[0], key[1], x0, jnp.broadcast_to(counter, x0.shape))
    halves = [half for word in words for half in (word & 0xFFFF, word >> 16)]
    kept = sum((half >= dropped).astype(jnp.uint8) << i for i, half in enumerate(halves))
    # once, or each number would compute its words anew
    return drop(h, jax.lax.optimization_barrier(kept), 1 - dropped / 2**16)


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def drop(h, kept, keep):
  """h / keep where it is kept, else 0: bit i of kept [B,ceil(H/4),W,C] uint8 is of the i-th quarter
  of h's rows. The backward pass keeps those bits, an eighth of what h in bfloat16 takes.
  """
  quarters = [(kept >> i) & 1 for i in range(4)]
  mask = jnp.concatenate(quarters, axis=1)[:, : h.shape[1]] == 1
  return jnp.where(mask, h / jnp.asarray(keep, h.dtype), jnp.zeros((), h.dtype))


def _drop_forward(h, kept, keep):
  return drop(h, kept, keep), kept


def _drop_backward(keep, kept, gradient):
  # behind a barrier, or XLA would keep the mask of the forward pass, which costs a TPU less
  barrier = jax.lax.optimization_barrier
  kept = jax.lax.platform_dependent(kept, tpu=lambda kept: kept, default=barrier)
  return drop(gradient, kept, keep), None


drop.defvjp(_drop_forward, _drop_backward)


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


class DenseOfParts(nn.Module):
  """x W + b of x = [x_1, x_2, ...], which lie side by side nowhere: sum x_i W_i + b, W_i rows of W.

  flax.linen.Dense of their concatenation has the same parameters, and keeps that, another copy of
  all activations that the way up takes from the way down, for the gradient of W.
  """

  features: int
  dtype: Any = jnp.float32

  @nn.compact
  def __call__(self, parts):
    widths = [part.shape[-1] for part in parts]
    shape = (sum(widths), self.features)
    kernel = self.param("kernel", nn.linear.default_kernel_init, shape).astype(self.dtype)
    bias = self.param("bias", ZEROS, shape[1:]).astype(self.dtype)
    rows = jnp.split(kernel, list(itertools.accumulate(widths))[:-1])
    products = [part.astype(self.dtype) @ each for part, each in zip(parts, rows)]
    return functools.reduce(operator.add, products) + bias.reshape(
      (1,) * (products[0].ndim - 1) + (-1,)
    )


class ResBlock(nn.Module):
  """BigGAN residual block with scale-shift GroupNorm (W unet3; ADM section 3).

  h = conv(swish(norm(x))), the resampling after the first swish, on both branches;
  h = conv0(dropout(swish(norm(h) (1 + scale) + shift))), [scale, shift] = Dense(swish(emb));
  conv0 starts at zero; the skip is the identity, or a 1x1 where channels change. x may be a tuple
  of arrays that are meant side by side. `examples` turns dropout on, see Dropout.
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
  def __call__(self, x, emb, examples):
    parts = x if isinstance(x, tuple) else (x,)
    x = jnp.concatenate(parts, axis=-1)
    resample = {None: lambda h: h, "up": upsample, "down": downsample}[self.resample]
    norm = lambda name: GroupNorm(self.norm_groups, self.norm_eps, self.dtype, name=name)
    conv = lambda name, **kw: nn.Conv(self.out_ch, (3, 3), dtype=self.dtype, name=name, **kw)

    h = conv("conv1")(resample(nn.swish(norm("norm1")(x))))
    emb = nn.Dense((1 + self.scale_shift) * self.out_ch, dtype=self.dtype, name="emb")(
      nn.swish(emb)
    )
    if self.scale_shift:
      h = norm("norm2")(h, *jnp.split(emb, 2, axis=-1))
    else:
      h = norm("norm2")(h + emb[:, None, None, :])
    h = nn.swish(h)
    h = Dropout(self.dropout)(h, examples)
    h = conv("conv2", kernel_init=ZEROS)(h)

    if x.shape[-1] == self.out_ch:
      return resample(x) + h
    skip = DenseOfParts(self.out_ch, self.dtype, name="skip")
    return skip(tuple(resample(part) for part in parts)) + h


class AttentionBlock(nn.Module):
  """x + proj0(attention(q, k, v of norm(x))), scale 1/sqrt(head_dim), over all H W positions (W
  unet3).
  """

  num_heads: int
  norm_groups: int = 32
  norm_eps: float = 1e-6
  dtype: Any = jnp.float32
  attention: str = attention.AUTO
  mesh: Mesh | None = None

  @nn.compact
  def __call__(self, x):
    batch, height, width, channels = x.shape
    heads = (self.num_heads, channels // self.num_heads)
    h = GroupNorm(self.norm_groups, self.norm_eps, self.dtype, name="norm")(x)
    h = h.reshape(batch, height * width, channels)
    q, k, v = (nn.DenseGeneral(heads, dtype=self.dtype, name=n)(h) for n in "qkv")
    h = attention.attend(q, k, v, wanted=self.attention, mesh=self.mesh)
    h = nn.DenseGeneral(channels, axis=(-2, -1), kernel_init=ZEROS, dtype=self.dtype, name="proj")(
      h
    )
    return x + h.reshape(x.shape)
