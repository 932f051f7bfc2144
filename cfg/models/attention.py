"""Softmax attention by whatever is fast where it runs, chosen in one place.

Flash attention (Dao et al. 2022, arXiv 2205.14135) never writes the [T,T] weights to memory: on
GPUs cuDNN's, on TPUs splash attention, a Pallas kernel that comes with jax; XLA's plain products
elsewhere.
"""

from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from cfg.base import sharding
from cfg.base.errors import UserError

AUTO = "auto"
KINDS = ("xla", "cudnn", "splash")
# the widest head that cuDNN's backward pass takes on every card that has it; Hopper takes wider
# ones
CUDNN_HEAD = 128
# positions below which XLA's products are as good: compiled for a v4, forward and backward, splash
# attention of 1024 positions has a third of its cycles, of 256 and heads of 128 to 256 as many or
# more
SPLASH_LENGTH = 512
SPLASH_BLOCK = 512
SPLASH_LANES = 128


class Layer(NamedTuple):
  """What the choice depends on.

  Attributes:
    platform: jax's name of the devices: "cpu", "gpu", "cuda", "tpu".
    dtype: of q, k and v.
    head_dim: width of a head.
    length: positions.
  """

  platform: str
  dtype: jnp.dtype
  head_dim: int
  length: int


def refusal(kind: str, layer: Layer) -> str | None:
  """Why that kind cannot compute the layer; None if it can. Splash attention runs on a CPU too, in
  Pallas's interpreter, slowly.
  """
  if kind == "cudnn":
    if layer.platform not in ("gpu", "cuda"):
      return f"runs on NVIDIA's GPUs, not on a {layer.platform}"
    if layer.dtype not in (jnp.bfloat16, jnp.float16):
      return f"needs model.dtype bfloat16, not {layer.dtype}"
    if layer.head_dim > CUDNN_HEAD or layer.head_dim % 8:
      return f"needs heads of at most {CUDNN_HEAD}, a multiple of 8, not of {layer.head_dim}"
  if kind == "splash":
    if layer.platform not in ("tpu", "cpu"):
      return f"runs on TPUs, not on a {layer.platform}"
    if layer.length % SPLASH_LANES:
      return f"needs a multiple of {SPLASH_LANES} positions, not {layer.length}"
  return None


def choose(wanted: str, layer: Layer) -> str:
  """One of KINDS for a layer: `wanted` where it can, else "xla"; "auto" is the fastest one.

  Raises:
    UserError: no layer on such devices, or of such a type, can have what is wanted.
  """
  if wanted == AUTO:
    if refusal("cudnn", layer) is None:
      return "cudnn"
    splash = layer.platform == "tpu" and layer.length >= SPLASH_LENGTH
    return "splash" if splash and refusal("splash", layer) is None else "xla"
  # of a shape that every kind takes
  if why := refusal(wanted, layer._replace(head_dim=64, length=SPLASH_LANES)):
    raise UserError(
      f"model.attention is {wanted!r}, which {why}: set {AUTO!r}, which chooses by itself."
    )
  return wanted if refusal(wanted, layer) is None else "xla"


def choices(
  wanted: str, layers: Iterable[tuple[int, int]], *, dtype: jnp.dtype, mesh: Mesh | None
) -> dict[str, int]:
  """{kind: how many layers it computes} of layers (positions, width of a head), as `choose`."""
  platform = platform_of(mesh)
  kinds = [
    choose(wanted, Layer(platform, jnp.dtype(dtype), head_dim, length))
    for length, head_dim in layers
  ]
  return {kind: kinds.count(kind) for kind in KINDS if kind in kinds}


def platform_of(mesh: Mesh | None) -> str:
  """jax's name of the devices of a mesh, or of its default device."""
  return mesh.devices.flat[0].platform if mesh is not None else jax.default_backend()


def attend(
  q: jax.Array, k: jax.Array, v: jax.Array, *, wanted: str = AUTO, mesh: Mesh | None = None
) -> jax.Array:
  """softmax(q k^T / sqrt(head_dim)) v for each head: [B,T,N,D] three times -> [B,T,N,D].

  Args:
    q, k, v: of one type.
    wanted: AUTO or one of KINDS, see `choose`.
    mesh: that the rows are split over; None for jax's default device.
  """
  platform = platform_of(mesh)
  kind = choose(wanted, Layer(platform, q.dtype, q.shape[-1], q.shape[1]))
  if kind == "splash" and not (sharding.is_local(mesh) or sharding.is_split(mesh, q)):
    kind = "xla"  # a single row, as parameters are made with: XLA cannot split a kernel by itself
  if kind == "splash":
    return _splash(q, k, v, mesh=mesh, interpret=platform != "tpu")
  return jax.nn.dot_product_attention(q, k, v, implementation=kind)


def _splash(q, k, v, *, mesh, interpret):
  """Splash attention of each row, on the device that has it."""
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
  from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

  _, length, heads, head_dim = q.shape
  block = min(length, SPLASH_BLOCK)
  while length % block:
    block -= SPLASH_LANES
  blocks = splash.BlockSizes(
    # all keys at once: in parts, each leaves a gradient of q of its own to be added up
    block_q=block,
    block_kv=length,
    block_kv_compute=length,
    block_q_dkv=block,
    block_kv_dkv=length,
    block_kv_dkv_compute=length,
    use_fused_bwd_kernel=True,
  )

  def rows(q, k, v):
    mask = masks.MultiHeadMask([masks.FullMask((length, length))] * heads)
    kernel = splash.make_splash_mha(
      mask=mask, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret
    )
    q, k, v = (a.swapaxes(1, 2) for a in (q * head_dim**-0.5, k, v))
    return jax.vmap(kernel)(q, k, v).astype(v.dtype).swapaxes(1, 2)

  if sharding.is_local(mesh):
    return rows(q, k, v)
  return sharding.on_each_device(mesh, rows, rows=(True,) * 3)(q, k, v)
