"""guided-diffusion's U-Net in plain numpy, from its stated architecture: NCHW, its own names, no
code shared with cfg.

Checked against the golden network of test_adm.py; then it is the reference for variants that have
no golden file.
"""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Variant:
  """Constructor arguments of UNetModel, in its names."""

  image_size: int = 16
  model_channels: int = 32
  out_channels: int = 6
  num_res_blocks: int = 1
  attention_levels: tuple = (1,)
  channel_mult: tuple = (1, 2)
  num_classes: int | None = 10
  num_heads: int | None = None
  num_head_channels: int | None = 16
  use_scale_shift_norm: bool = True
  resblock_updown: bool = True
  use_new_attention_order: bool = True


def silu(x):
  return x / (1 + np.exp(-x))


def conv(x, weight, bias, stride=1):
  """Convolution of [N,C,H,W] with [O,I,k,k], padding k // 2."""
  k = weight.shape[-1]
  x = np.pad(x, ((0, 0), (0, 0), (k // 2, k // 2), (k // 2, k // 2)))
  windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[
    :, :, ::stride, ::stride
  ]
  return np.einsum("nihwab,oiab->nohw", windows, weight, optimize=True) + bias[None, :, None, None]


def group_norm(x, weight, bias):
  """32 groups, eps 1e-5."""
  n, c = x.shape[:2]
  g = x.reshape(n, 32, -1)
  g = (g - g.mean(-1, keepdims=True)) / np.sqrt(g.var(-1, keepdims=True) + 1e-5)
  shape = (1, c) + (1,) * (x.ndim - 2)
  return g.reshape(x.shape) * weight.reshape(shape) + bias.reshape(shape)


def double(x):
  return x.repeat(2, axis=2).repeat(2, axis=3)


def halve(x):
  n, c, h, w = x.shape
  return x.reshape(n, c, h // 2, 2, w // 2, 2).mean(axis=(3, 5))


class Reference:
  """forward(x, t, y) of one variant with one state dict; with `state` None, one is drawn as the
  shapes are met.
  """

  def __init__(self, variant, state=None, seed=0):
    self.variant, self.state, self._rng = (
      variant,
      {} if state is None else state,
      np.random.default_rng(seed),
    )
    self._draw = state is None

  def get(self, name, *shape):
    if self._draw and name not in self.state:
      fan = max(1, int(np.prod(shape[1:])))
      offset = 1.0 if len(shape) == 1 and name.endswith("weight") else 0.0
      self.state[name] = (
        offset + self._rng.normal(size=shape) / np.sqrt(fan if len(shape) > 1 else 25)
      ).astype(np.float32)
    assert self.state[name].shape == shape, name
    return self.state[name].astype(np.float64)

  def conv(self, x, name, out, k=3, stride=1):
    return conv(
      x, self.get(f"{name}.weight", out, x.shape[1], k, k), self.get(f"{name}.bias", out), stride
    )

  def linear(self, x, name, out):
    return x @ self.get(f"{name}.weight", out, x.shape[1]).T + self.get(f"{name}.bias", out)

  def norm(self, x, name):
    return group_norm(
      x, self.get(f"{name}.weight", x.shape[1]), self.get(f"{name}.bias", x.shape[1])
    )

  def res_block(self, x, emb, name, out, resample=None):
    scale_shift = self.variant.use_scale_shift_norm
    h = silu(self.norm(x, f"{name}.in_layers.0"))
    if resample:
      h, x = resample(h), resample(x)
    h = self.conv(h, f"{name}.in_layers.2", out)
    e = self.linear(silu(emb), f"{name}.emb_layers.1", 2 * out if scale_shift else out)[
      :, :, None, None
    ]
    if scale_shift:
      h = self.norm(h, f"{name}.out_layers.0") * (1 + e[:, :out]) + e[:, out:]
    else:
      h = self.norm(h + e, f"{name}.out_layers.0")
    h = self.conv(silu(h), f"{name}.out_layers.3", out)
    return h + (x if x.shape[1] == out else self.conv(x, f"{name}.skip_connection", out, k=1))

  def attention(self, x, name):
    n, c, height, width = x.shape
    h = self.norm(x.reshape(n, c, -1), f"{name}.norm")
    qkv = (
      np.einsum("nct,oc->not", h, self.get(f"{name}.qkv.weight", 3 * c, c, 1)[..., 0])
      + self.get(f"{name}.qkv.bias", 3 * c)[:, None]
    )
    heads = self.variant.num_heads or c // self.variant.num_head_channels
    if self.variant.use_new_attention_order:
      q, k, v = (part.reshape(n, heads, c // heads, -1) for part in np.split(qkv, 3, axis=1))
    else:
      q, k, v = np.split(qkv.reshape(n, heads, 3 * c // heads, -1), 3, axis=2)
    logits = np.einsum("nhct,nhcs->nhts", q, k) / np.sqrt(c // heads)
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    a = np.einsum("nhts,nhcs->nhct", weights, v).reshape(n, c, -1)
    a = (
      np.einsum("nct,oc->not", a, self.get(f"{name}.proj_out.weight", c, c, 1)[..., 0])
      + self.get(f"{name}.proj_out.bias", c)[:, None]
    )
    return x + a.reshape(x.shape)

  def embedding(self, t, y):
    ch = self.variant.model_channels
    angles = t[:, None] * np.exp(-np.log(10000) * np.arange(ch // 2) / (ch // 2))
    emb = self.linear(
      np.concatenate([np.cos(angles), np.sin(angles)], axis=1), "time_embed.0", 4 * ch
    )
    emb = self.linear(silu(emb), "time_embed.2", 4 * ch)
    if self.variant.num_classes:
      emb = emb + self.get("label_emb.weight", self.variant.num_classes, 4 * ch)[y]
    return emb

  def forward(self, x, t, y):
    """[N,C,H,W] -> [N,out_channels,H,W], in float64."""
    v = self.variant
    widths = [int(m * v.model_channels) for m in v.channel_mult]
    emb, last = self.embedding(np.asarray(t, np.float64), y), len(widths) - 1
    h = self.conv(np.asarray(x, np.float64), "input_blocks.0.0", widths[0])
    skips, i = [h], 1
    for level, width in enumerate(widths):
      for _ in range(v.num_res_blocks):
        h = self.res_block(h, emb, f"input_blocks.{i}.0", width)
        h = self.attention(h, f"input_blocks.{i}.1") if level in v.attention_levels else h
        skips.append(h)
        i += 1
      if level < last:
        name = f"input_blocks.{i}.0"
        h = (
          self.res_block(h, emb, name, width, halve)
          if v.resblock_updown
          else self.conv(h, f"{name}.op", width, stride=2)
        )
        skips.append(h)
        i += 1
    h = self.res_block(h, emb, "middle_block.0", widths[-1])
    h = self.res_block(self.attention(h, "middle_block.1"), emb, "middle_block.2", widths[-1])
    i = 0
    for level in reversed(range(len(widths))):
      for block in range(v.num_res_blocks + 1):
        h = self.res_block(
          np.concatenate([h, skips.pop()], axis=1), emb, f"output_blocks.{i}.0", widths[level]
        )
        place = 1
        if level in v.attention_levels:
          h, place = self.attention(h, f"output_blocks.{i}.1"), 2
        if level > 0 and block == v.num_res_blocks:
          name = f"output_blocks.{i}.{place}"
          h = (
            self.res_block(h, emb, name, widths[level], double)
            if v.resblock_updown
            else self.conv(double(h), f"{name}.conv", widths[level])
          )
        i += 1
    return self.conv(silu(self.norm(h, "out.0")), "out.2", v.out_channels)
