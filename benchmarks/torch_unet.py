"""The same U-Net as one would write it in PyTorch: the peer of benchmarks/step_speed.py. Not used
by cfg.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class ResBlock(nn.Module):
  """GroupNorm, swish, (resample,) conv; scale-shift GroupNorm, swish, conv."""

  def __init__(self, cin, cout, emb, groups, resample=None):
    super().__init__()
    self.resample = resample
    self.norm1, self.conv1 = nn.GroupNorm(groups, cin, eps=1e-6), nn.Conv2d(cin, cout, 3, padding=1)
    self.emb = nn.Linear(emb, 2 * cout)
    self.norm2, self.conv2 = (
      nn.GroupNorm(groups, cout, eps=1e-6),
      nn.Conv2d(cout, cout, 3, padding=1),
    )
    self.skip = nn.Conv2d(cin, cout, 1) if cin != cout else nn.Identity()

  def forward(self, x, emb):
    h = F.silu(self.norm1(x))
    if self.resample == "up":
      h, x = F.interpolate(h, scale_factor=2.0), F.interpolate(x, scale_factor=2.0)
    elif self.resample == "down":
      h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
    h = self.conv1(h)
    scale, shift = self.emb(F.silu(emb))[:, :, None, None].chunk(2, dim=1)
    h = F.silu(self.norm2(h) * (1 + scale) + shift)
    return self.skip(x) + self.conv2(h)


class Attention(nn.Module):
  """x + projection of scaled_dot_product_attention."""

  def __init__(self, channels, heads, groups):
    super().__init__()
    self.heads = heads
    self.norm, self.qkv, self.proj = (
      nn.GroupNorm(groups, channels, eps=1e-6),
      nn.Linear(channels, 3 * channels),
      nn.Linear(channels, channels),
    )

  def forward(self, x):
    n, c, height, width = x.shape
    h = self.norm(x).flatten(2).transpose(1, 2)
    q, k, v = (
      part.view(n, -1, self.heads, c // self.heads).transpose(1, 2)
      for part in self.qkv(h).chunk(3, dim=2)
    )
    h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(n, -1, c)
    return x + self.proj(h).transpose(1, 2).reshape(n, c, height, width)


class UNet(nn.Module):
  """eps = UNet(z [B,C,H,W], logsnr [B], y [B]); arguments are those of cfg.models.unet.UNet."""

  def __init__(
    self,
    *,
    num_classes,
    channels,
    side,
    ch,
    emb_ch,
    ch_mult,
    num_res_blocks,
    attn_resolutions,
    num_heads,
    norm_groups,
  ):
    super().__init__()
    self.ch = ch
    self.dense0, self.dense1 = nn.Linear(ch, emb_ch), nn.Linear(emb_ch, emb_ch)
    self.table, self.table_bias = (
      nn.Embedding(num_classes + 1, emb_ch),
      nn.Parameter(torch.zeros(emb_ch)),
    )
    self.conv_in = nn.Conv2d(channels, ch, 3, padding=1)
    attention = lambda c, s: [Attention(c, num_heads, norm_groups)] if s in attn_resolutions else []
    block = lambda cin, cout, resample=None: ResBlock(cin, cout, emb_ch, norm_groups, resample)
    widths, self.down, self.up, c, skips = (
      [ch * m for m in ch_mult],
      nn.ModuleList(),
      nn.ModuleList(),
      ch,
      [ch],
    )
    for level, width in enumerate(widths):
      for _ in range(num_res_blocks):
        self.down.append(nn.ModuleList([block(c, width), *attention(width, side >> level)]))
        c = width
        skips.append(c)
      if level < len(widths) - 1:
        self.down.append(nn.ModuleList([block(c, c, "down")]))
        skips.append(c)
    self.mid = nn.ModuleList([block(c, c), Attention(c, num_heads, norm_groups), block(c, c)])
    for level, width in reversed(list(enumerate(widths))):
      for i in range(num_res_blocks + 1):
        layers = [block(c + skips.pop(), width), *attention(width, side >> level)]
        c = width
        if level > 0 and i == num_res_blocks:
          layers.append(block(c, c, "up"))
        self.up.append(nn.ModuleList(layers))
    self.norm_out, self.conv_out = (
      nn.GroupNorm(norm_groups, c, eps=1e-6),
      nn.Conv2d(c, channels, 3, padding=1),
    )
    half = ch // 2
    self.register_buffer("freqs", torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half)))

  @staticmethod
  def run(layers, h, emb):
    for layer in layers:
      h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
    return h

  def forward(self, z, logsnr, y):
    args = 1000 * torch.atan(torch.exp(-0.5 * logsnr)) / (0.5 * math.pi)
    args = args[:, None] * self.freqs
    emb = (
      self.dense1(F.silu(self.dense0(torch.cat([args.sin(), args.cos()], dim=1))))
      + self.table(y)
      + self.table_bias
    )
    h = self.conv_in(z)
    skips = [h]
    for layers in self.down:
      h = self.run(layers, h, emb)
      skips.append(h)
    h = self.run(self.mid, h, emb)
    for layers in self.up:
      h = self.run(layers, torch.cat([h, skips.pop()], dim=1), emb)
    return self.conv_out(F.silu(self.norm_out(h)))
