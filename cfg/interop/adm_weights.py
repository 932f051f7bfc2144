"""OpenAI's guided-diffusion networks in our terms: the architecture read off a state dict, and its
parameters renamed.

GD is openai/guided-diffusion (unet.py: UNetModel, EncoderUNetModel). Their layouts
are PyTorch's: convolutions [O,I,H,W], linear maps [O,I], attention a 1x1
convolution [3C,C,1]; ours are Flax's. What a state dict does not show - the
number of heads, and the order of q, k and v in the channels - is given.
"""

import dataclasses
import math

import numpy as np

from cfg.base.errors import UserError

NEW, LEGACY = "new", "legacy"


@dataclasses.dataclass(frozen=True)
class Facts:
  """What a state dict does not show of its network.

  Attributes:
    image_size: side of the images it was trained on.
    num_heads: attention heads, or None to use head_dim.
    head_dim: width of a head, or None to use num_heads.
    attention_order: "new" (GD use_new_attention_order: all q, then k, then v) or "legacy" (q, k, v
      head by head).
    schedule: "cosine" or "linear", of 1,000 steps.
  """

  image_size: int
  num_heads: int | None
  head_dim: int | None
  attention_order: str
  schedule: str


class State:
  """A state dict from which each array is taken once; `finish` refuses what is left."""

  def __init__(self, arrays):
    self._arrays = dict(arrays)

  def __contains__(self, name):
    return name in self._arrays

  def shape(self, name):
    """The shape of an array that stays."""
    self._check(name)
    return self._arrays[name].shape

  def take(self, name):
    """Remove an array and return it as float32."""
    self._check(name)
    return np.asarray(self._arrays.pop(name), np.float32)

  def _check(self, name):
    if name not in self._arrays:
      raise UserError(
        f"the checkpoint has no {name!r}: it is not a network of guided-diffusion, or of a variant "
        f"that is not known here."
      )

  def count(self, prefix, first=0):
    """How many consecutive numbers from `first` follow `prefix` in the names."""
    numbers = {
      int(name[len(prefix) :].split(".")[0]) for name in self._arrays if name.startswith(prefix)
    }
    n = first
    while n in numbers:
      n += 1
    if any(number >= n for number in numbers):
      raise UserError(
        f"the checkpoint has no {prefix}{n} but later ones: a network whose resampling has no "
        f"parameters "
        "(conv_resample=False) is not known here."
      )
    return n

  def finish(self):
    """Raise UserError if arrays are left."""
    if self._arrays:
      names = sorted(self._arrays)
      raise UserError(
        f"the checkpoint has {len(names)} arrays that its network does not: "
        f"{', '.join(names[:4])}{', ...' if len(names) > 4 else ''}."
      )


def architecture(state, *, num_levels=None):
  """The fields of Backbone that a state dict shows: {"ch", "emb_ch", "ch_mult", "num_res_blocks",
  ...}, and attn_levels.

  Args:
    state: State of a UNetModel, or of an EncoderUNetModel if num_levels is given.
    num_levels: levels of an encoder with residual resampling, whose blocks look all alike.

  Returns:
    (fields, attn_levels): the levels that have attention.
  """
  emb_ch, ch = state.shape("time_embed.0.weight")
  blocks = state.count("input_blocks.")
  if num_levels is None:
    ups = [up for i in range(state.count("output_blocks.")) if (up := _up(state, i)) is not None]
    num_levels = len(ups) + 1
  if blocks % num_levels:
    raise UserError(
      f"the checkpoint has {blocks} input blocks on {num_levels} levels: every level must have as "
      f"many."
    )
  per_level = blocks // num_levels
  firsts = [1 + level * per_level for level in range(num_levels)]
  widths = [state.shape(f"input_blocks.{i}.0.in_layers.2.weight")[0] for i in firsts]
  fields = {
    "ch": ch,
    "emb_ch": emb_ch,
    "ch_mult": tuple(_ratio(width, ch) for width in widths),
    "num_res_blocks": per_level - 1,
    "scale_shift": state.shape("input_blocks.1.0.emb_layers.1.weight")[0] == 2 * widths[0],
    "conv_resample": num_levels > 1 and f"input_blocks.{per_level}.0.op.weight" in state,
  }
  return fields, [
    level for level, i in enumerate(firsts) if f"input_blocks.{i}.1.qkv.weight" in state
  ]


def _ratio(width, ch):
  return width // ch if width % ch == 0 else width / ch


def _up(state, i):
  """The place in output block i of what doubles the resolution, or None."""
  for place in (1, 2):
    if (
      f"output_blocks.{i}.{place}.conv.weight" in state
      or f"output_blocks.{i}.{place}.in_layers.0.weight" in state
    ):
      return place
  return None


def _conv(state, name):
  return {
    "kernel": state.take(f"{name}.weight").transpose(2, 3, 1, 0),
    "bias": state.take(f"{name}.bias"),
  }


def _linear(state, name):
  weight = state.take(f"{name}.weight")
  return {"kernel": weight.reshape(weight.shape[:2]).T, "bias": state.take(f"{name}.bias")}


def _norm(state, name):
  return {"scale": state.take(f"{name}.weight"), "bias": state.take(f"{name}.bias")}


def _time(state, ch):
  dense0 = _linear(state, "time_embed.0")
  # theirs is cos then sin, ours sin then cos
  dense0["kernel"] = np.concatenate([dense0["kernel"][ch // 2 :], dense0["kernel"][: ch // 2]])
  return {"dense0": dense0, "dense1": _linear(state, "time_embed.2")}


def _res_block(state, name):
  params = {
    "norm1": _norm(state, f"{name}.in_layers.0"),
    "conv1": _conv(state, f"{name}.in_layers.2"),
    "emb": _linear(state, f"{name}.emb_layers.1"),
    "norm2": _norm(state, f"{name}.out_layers.0"),
    "conv2": _conv(state, f"{name}.out_layers.3"),
  }
  if f"{name}.skip_connection.weight" in state:
    if state.shape(f"{name}.skip_connection.weight")[2:] != (1, 1):
      raise UserError(
        f"the checkpoint's {name}.skip_connection is not a 1x1 convolution (use_conv=True), which "
        f"is not known here."
      )
    params["skip"] = _linear(state, f"{name}.skip_connection")
  return params


def _qkv(state, name, facts, order):
  """{"q", "k", "v"} of DenseGeneral, from a fused map of 3C outputs."""
  kernel, bias = (lambda p: (p["kernel"], p["bias"]))(_linear(state, name))
  channels = kernel.shape[0]
  heads = facts.num_heads or channels // facts.head_dim
  if heads < 1 or channels % heads:
    raise UserError(
      f"{channels} channels of {name} do not divide into {heads} heads: give the right --num_heads "
      f"or --head_dim."
    )
  shape = (heads, 3) if order == LEGACY else (3, heads)
  axis = shape.index(3)
  kernels = np.moveaxis(kernel.reshape(channels, *shape, channels // heads), 1 + axis, 0)
  biases = np.moveaxis(bias.reshape(*shape, channels // heads), axis, 0)
  return {n: {"kernel": k, "bias": b} for n, k, b in zip("qkv", kernels, biases)}


def _projection(state, name, qkv):
  heads, width = qkv["q"]["bias"].shape
  dense = _linear(state, name)
  return {"kernel": dense["kernel"].reshape(heads, width, -1), "bias": dense["bias"]}


def _attention(state, name, facts):
  params = {
    "norm": _norm(state, f"{name}.norm"),
    **_qkv(state, f"{name}.qkv", facts, facts.attention_order),
  }
  return {**params, "proj": _projection(state, f"{name}.proj_out", params)}


def _encoder(state, fields, attn_levels, facts):
  """Parameters of the way down and of the middle."""
  params = {"cond": _time(state, fields["ch"]), "conv_in": _conv(state, "input_blocks.0.0")}
  i, last = 1, len(fields["ch_mult"]) - 1
  for level in range(last + 1):
    for block in range(fields["num_res_blocks"]):
      params[f"down{level}_{block}_res"] = _res_block(state, f"input_blocks.{i}.0")
      if level in attn_levels:
        params[f"down{level}_{block}_attn"] = _attention(state, f"input_blocks.{i}.1", facts)
      i += 1
    if level < last:
      name = f"input_blocks.{i}.0"
      params[f"down{level}_resample"] = (
        {"conv": _conv(state, f"{name}.op")} if fields["conv_resample"] else _res_block(state, name)
      )
      i += 1
  params["mid_res0"] = _res_block(state, "middle_block.0")
  params["mid_attn"] = _attention(state, "middle_block.1", facts)
  params["mid_res1"] = _res_block(state, "middle_block.2")
  return params


def unet_params(state, *, fields, attn_levels, facts, out_channels):
  """Parameters of our UNet from a UNetModel; outputs after `out_channels` (the learned variance)
  are dropped.
  """
  params = _encoder(state, fields, attn_levels, facts)
  if "label_emb.weight" in state:
    table = state.take("label_emb.weight")
    params["cond"]["class_emb"] = {"kernel": table, "bias": np.zeros(table.shape[1], np.float32)}
  i = 0
  for level in reversed(range(len(fields["ch_mult"]))):
    for block in range(fields["num_res_blocks"] + 1):
      params[f"up{level}_{block}_res"] = _res_block(state, f"output_blocks.{i}.0")
      if level in attn_levels:
        params[f"up{level}_{block}_attn"] = _attention(state, f"output_blocks.{i}.1", facts)
      i += 1
    if level > 0:
      place = _up(state, i - 1)
      if place is None:
        raise UserError(
          f"the checkpoint's output block {i - 1} does not raise the resolution, but it ends level "
          f"{level}."
        )
      name = f"output_blocks.{i - 1}.{place}"
      params[f"up{level}_resample"] = (
        {"conv": _conv(state, f"{name}.conv")}
        if fields["conv_resample"]
        else _res_block(state, name)
      )
  params["norm_out"] = _norm(state, "out.0")
  conv_out = _conv(state, "out.2")
  params["conv_out"] = {
    "kernel": conv_out["kernel"][..., :out_channels],
    "bias": conv_out["bias"][:out_channels],
  }
  state.finish()
  return params


def classifier_params(state, *, fields, attn_levels, facts):
  """Parameters of our Classifier from an EncoderUNetModel with attention pooling (whose order is
  always the new one).
  """
  params = _encoder(state, fields, attn_levels, facts)
  params["norm_out"] = _norm(state, "out.0")
  positions = state.take("out.2.positional_embedding")
  qkv = _qkv(state, "out.2.qkv_proj", facts, NEW)
  params["pool"] = {
    "positions": positions.T[None],
    **qkv,
    "proj": _projection(state, "out.2.c_proj", qkv),
  }
  state.finish()
  return params


def pooled_side(state):
  """Side of the last level of an EncoderUNetModel, from its positions (one more, for the mean)."""
  return math.isqrt(state.shape("out.2.positional_embedding")[1] - 1)
