"""Image files to upright RGB pixels."""

import os
import warnings
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image

from cfg.base.errors import UserError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
# Pillow's names of these: it knows others, one of which runs a program (EPS)
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MOST_PIXELS = 89_478_485  # where Pillow warns: a quarter of 2^30 bytes in RGB
# how pixels are turned upright, by the orientation that EXIF 2.32 (4.6.4 A) numbers from 1
UPRIGHT = {
  2: Image.Transpose.FLIP_LEFT_RIGHT,
  3: Image.Transpose.ROTATE_180,
  4: Image.Transpose.FLIP_TOP_BOTTOM,
  5: Image.Transpose.TRANSPOSE,
  6: Image.Transpose.ROTATE_270,
  7: Image.Transpose.TRANSVERSE,
  8: Image.Transpose.ROTATE_90,
}


def is_image(name: str) -> bool:
  """Whether a file is an image by its ending, in capitals or not."""
  return name.lower().endswith(IMAGE_SUFFIXES)


def read_rgb(file: str | os.PathLike | BinaryIO, *, name: str | None = None) -> np.ndarray:
  """uint8 [H,W,3] of an image file (a path, or a binary file of that name), turned upright as its
  EXIF orientation says.

  Grey and CMYK become RGB; of 16-bit grey the high byte is kept; transparency is dropped; of an
  animation the first picture.

  Raises:
    UserError: no image, a damaged one, or one of floating-point pixels; names the file.
  """
  try:
    with _opened(file) as image:
      image.load()  # before its EXIF is read: Pillow itself turns a TIFF upright, and says so there
      return _pixels(_upright(image))
  except Exception as e:  # noqa: BLE001  decoders raise whatever they like at damaged files
    raise unreadable(name or file, e) from e


def _opened(file):
  """Pillow's image of a file; ValueError if it would have more than MOST_PIXELS."""
  with warnings.catch_warnings():
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)
    image = Image.open(file, formats=FORMATS)
  width, height = image.size
  if width * height > MOST_PIXELS:
    image.close()
    raise ValueError(f"it would have {width} x {height} pixels")
  return image


def _upright(image):
  """The image turned by its orientation, and by nothing else of its EXIF.

  ImageOps.exif_transpose would also write the EXIF anew, which fails where a tag is odd.
  """
  try:
    orientation = image.getexif().get(ExifTags.Base.Orientation)
  except Exception:  # noqa: BLE001  the pixels are good, and other programs do not turn them either
    orientation = None
  turn = UPRIGHT.get(orientation) if isinstance(orientation, int) else None
  return image if turn is None else image.transpose(turn)


def _pixels(image):
  if image.mode.startswith("I"):  # Pillow's own conversion would cut 16 bits at 255
    high = np.clip(np.asarray(image) >> 8, 0, 255).astype(np.uint8)
    return np.repeat(high[:, :, None], 3, axis=2)
  if image.mode == "F":
    raise ValueError("its pixels are floating-point numbers")
  return np.asarray(image.convert("RGB"))


def check_header(file: str | os.PathLike | BinaryIO, *, name: str | None = None) -> None:
  """Raise UserError unless Pillow knows the file as an image; its pixels are not decoded."""
  try:
    with _opened(file):
      pass
  except Exception as e:  # noqa: BLE001  as above
    raise unreadable(name or file, e) from e


def unreadable(path: object, error: Exception) -> UserError:
  """The UserError that names a file."""
  reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
  return UserError(
    f"cannot read the image {str(path)!r} ({reason}). Replace or remove the file and run again."
  )
