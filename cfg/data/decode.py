"""Image files to upright RGB pixels."""

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from cfg.base.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_rgb(file, *, name=None):
  """uint8 [H,W,3] of an image file (a path, or a binary file of that name), turned upright as its
  EXIF orientation says.

  Grey and CMYK become RGB; of 16-bit grey the high byte is kept; transparency is dropped; of an
  animation the first picture.

  Raises:
    UserError: no image, a damaged one, or one of floating-point pixels; names the file.
  """
  try:
    with Image.open(file) as image:
      image = ImageOps.exif_transpose(image)
      if image.mode.startswith("I"):  # Pillow's own conversion would cut 16 bits at 255
        high = np.clip(np.asarray(image).astype(np.int64) >> 8, 0, 255).astype(np.uint8)
        return np.repeat(high[:, :, None], 3, axis=2)
      if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers")
      return np.asarray(image.convert("RGB"))
  except (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    ValueError,
    SyntaxError,
  ) as e:
    raise unreadable(name or file, e) from e


def check_header(path):
  """Raise UserError unless Pillow knows the file as an image; its pixels are not decoded."""
  try:
    with Image.open(path):
      pass
  except (UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError) as e:
    raise unreadable(path, e) from e


def unreadable(path, error):
  """The UserError that names a file."""
  return UserError(
    f"cannot read the image {str(path)!r} ({error}). Replace or remove the file and run again."
  )
