"""uint8 <-> [-1, 1], flips, grids, PNG files."""

import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image

from cfg.base import files


def to_unit(images):
  """x = images / 127.5 - 1: uint8 [0, 255] to float32 [-1, 1]."""
  return images.astype(jnp.float32) / 127.5 - 1.0


UINT8 = "round(127.5 (x + 1)), half to even, clipped to [0, 255]"


def to_uint8(x):
  """round(127.5 (x + 1)), half to even, clipped to [0, 255]: the one place where samples are
  rounded.
  """
  return jnp.clip(jnp.round((x + 1.0) * 127.5), 0, 255).astype(jnp.uint8)


def random_flip(*, keys, x):
  """Mirror each of [B,H,W,C] left to right with probability 1/2, from its own key."""
  flip = jax.vmap(jax.random.bernoulli)(keys)
  return jnp.where(flip[:, None, None, None], x[:, :, ::-1], x)


def tile(images, *, rows, pad=1, background=255):
  """uint8 [rows * n, H, W, C], row by row, to one [.., .., C] image with `pad` pixels between."""
  count, height, width, channels = images.shape
  cols = count // rows
  if rows * cols != count:
    raise ValueError(f"{count} images do not fill {rows} equal rows")
  cells = np.full((rows, cols, height + pad, width + pad, channels), background, np.uint8)
  cells[:, :, :height, :width] = np.asarray(images).reshape(rows, cols, height, width, channels)
  grid = cells.transpose(0, 2, 1, 3, 4).reshape(
    rows * (height + pad), cols * (width + pad), channels
  )
  return grid[: rows * (height + pad) - pad, : cols * (width + pad) - pad]


def enlarge(image, *, factor):
  """Repeat each pixel of [H,W,C] `factor` times both ways, so that small images can be seen."""
  return np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)


def write_png(path, image):
  """Write uint8 [H,W,1 or 3] as PNG, under a temporary name first."""
  image = np.asarray(image)
  if image.ndim != 3 or image.shape[-1] not in (1, 3) or image.dtype != np.uint8:
    raise ValueError(f"a picture is uint8 [H,W,1 or 3], got {image.dtype} {image.shape}")
  with files.replacing(path) as tmp:
    Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(tmp, format="PNG")
