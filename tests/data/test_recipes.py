"""The recipes against Pillow's own filters, on real photographs."""

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cfg.data import recipes


@pytest.fixture(scope="module", params=["china.jpg", "flower.jpg"])
def photo(request):
  """A photograph of 427 x 640 pixels that scikit-learn ships."""
  return load_sample_image(request.param)


def square(image, side):
  """The middle `side` x `side` pixels."""
  top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
  return image[top : top + side, left : left + side]


@pytest.mark.parametrize("name", recipes.RECIPES)
@pytest.mark.parametrize("size", [32, 64, 128])
def test_shape_and_mean(photo, name, size):
  """A uint8 square of the size asked for, whose mean is near the centre square's."""
  for image in (photo, photo.transpose(1, 0, 2)):
    out = recipes.RECIPES[name](image, size)
    assert out.shape == (size, size, 3) and out.dtype == np.uint8
    np.testing.assert_allclose(
      out.mean(axis=(0, 1)), recipes.centre_square(image).mean(axis=(0, 1)), atol=3.0
    )


@pytest.mark.parametrize("factor", [2, 3, 6])
def test_area_is_pillow_s_reduction(photo, factor):
  """By whole factors: Pillow's reduce(), which averages blocks; to half a grey level of the exact
  mean.
  """
  image = square(photo, 384)
  out = recipes.area(image, 384 // factor)
  assert np.abs(out.astype(int) - np.asarray(Image.fromarray(image).reduce(factor))).max() <= 1
  exact = image.reshape(384 // factor, factor, 384 // factor, factor, 3).mean(axis=(1, 3))
  assert np.abs(out - exact).max() <= 0.5 + 1e-9


def test_area_by_other_factors_is_exact(photo):
  """427 -> 64: the mean of 427 x 427 blocks of the image repeated 64 times each way, one channel of
  it.
  """
  image = square(photo, 427)[:, :, :1]
  repeated = image[:, :, 0].repeat(64, axis=0).reshape(64, 427, 427).astype(np.float64).mean(axis=1)
  exact = repeated.repeat(64, axis=1).reshape(64, 64, 427).mean(axis=2)
  assert np.abs(recipes.area(image, 64)[:, :, 0] - exact).max() <= 0.5 + 1e-9


def halve(image):
  """Means of 2x2 pixels as Pillow's box filter rounds them: after the columns and again after the
  rows, halves up.
  """
  image = image.astype(int)
  image = (image[:, ::2] + image[:, 1::2] + 1) // 2
  return ((image[::2] + image[1::2] + 1) // 2).astype(np.uint8)


def test_adm_halves_first(photo):
  """By powers of two nothing is left for the bicubic filter: 2x2 means, once for each; near
  Pillow's reduce().
  """
  expected = image = square(photo, 256)
  for halvings, size in enumerate((128, 64, 32), start=1):
    expected = halve(expected)
    out = recipes.adm(image, size)
    np.testing.assert_array_equal(out, expected)
    assert (
      np.abs(out.astype(int) - np.asarray(Image.fromarray(image).reduce(2**halvings))).max()
      <= halvings
    )


def test_adm_ends_with_pillow_s_bicubic(photo):
  """424 x 640 -> 64: twice halved (to 106 x 160), 64 x 97 by the bicubic filter, the middle 64
  columns.
  """
  halved = halve(halve(photo[:424]))
  assert halved.shape == (106, 160, 3)
  expected = np.asarray(Image.fromarray(halved).resize((97, 64), Image.Resampling.BICUBIC))[
    :, 16:80
  ]
  np.testing.assert_array_equal(recipes.adm(photo[:424], 64), expected)


def test_edm_is_pillow_s_lanczos(photo):
  """Pillow's own box argument, which cuts and filters at once; it looks beyond the cut, so the
  outer columns do not count.
  """
  expected = np.asarray(
    Image.fromarray(photo).resize((64, 64), Image.Resampling.LANCZOS, box=(106, 0, 533, 427))
  )
  difference = np.abs(recipes.edm(photo, 64).astype(int) - expected)
  assert difference[:, 3:-3].max() <= 1 and difference[:, 3:-3].mean() < 0.01


def test_centre_square():
  """The middle of the long side."""
  image = np.arange(4 * 10).reshape(4, 10, 1)
  np.testing.assert_array_equal(recipes.centre_square(image), image[:, 3:7])
  np.testing.assert_array_equal(
    recipes.centre_square(image.transpose(1, 0, 2)), image.transpose(1, 0, 2)[3:7]
  )
