"""From a photograph to a training image: the three ways that published models were trained with.

Each is a function (uint8 [H,W,C], size) -> uint8 [size,size,C]. They give different images,
hence different reference statistics: numbers of one are not to be set beside another's.

P is Ho & Salimans 2022 (arXiv 2207.12598), DD google-research/diffusion_distillation
(datasets.py), GD openai/guided-diffusion (image_datasets.py), EDM NVlabs/edm (dataset_tool.py).
"""

import functools

import numpy as np
from PIL import Image
from scipy import sparse


def area(image, size):
  """The paper's: the centre square, each output pixel the mean over its area (P section 4; DD,
  TensorFlow's `area`).

  Rounded to the nearest grey level, halves to even; DD keeps the fractions.
  """
  return area_resize(centre_square(image), size)


def adm(image, size):
  """ADM's: halved by 2x2 means while the short side is at least 2 size, then bicubic to `size`,
  then the centre (GD).

  Each stage is Pillow's and rounds to 8 bits.
  """
  picture = Image.fromarray(image)
  while min(picture.size) >= 2 * size:
    picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
  scale = size / min(picture.size)
  picture = picture.resize(
    (round(picture.width * scale), round(picture.height * scale)), Image.Resampling.BICUBIC
  )
  return centre_square(np.asarray(picture))


def edm(image, size):
  """EDM's: the centre square, then Pillow's Lanczos filter, which rounds to 8 bits (EDM
  `center-crop`).
  """
  return np.asarray(
    Image.fromarray(centre_square(image)).resize((size, size), Image.Resampling.LANCZOS)
  )


RECIPES = {"area": area, "adm": adm, "edm": edm}


def centre_square(image):
  """The centre square of [H,W,C], its side the short one (odd remainders go to the lower right)."""
  height, width = image.shape[:2]
  side = min(height, width)
  top, left = (height - side) // 2, (width - side) // 2
  return image[top : top + side, left : left + side]


@functools.lru_cache(maxsize=64)
def _area_weights(size_in, size_out):
  """[size_out, size_in]: the share of each input cell in each output cell's interval; rows sum to
  1.

  Sparse: so few of them are not 0; and dense products run on threads of their own, of which every
    reader would start some.
  """
  edges = np.arange(size_out + 1) * (size_in / size_out)
  cells = np.arange(size_in)
  overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
  return sparse.csr_array(np.clip(overlap, 0, None) * (size_out / size_in))


def area_resize(image, size):
  """Mean of the input over each output pixel's area, rounded to uint8."""
  height, width, channels = image.shape
  if height == width == size:
    return image
  mean = (
    _area_weights(height, size) @ image.reshape(height, width * channels).astype(np.float64)
  ).reshape(size, width, channels)
  mean = _area_weights(width, size) @ mean.transpose(1, 0, 2).reshape(width, size * channels)
  return (
    np.clip(np.rint(mean), 0, 255).astype(np.uint8).reshape(size, size, channels).transpose(1, 0, 2)
  )
