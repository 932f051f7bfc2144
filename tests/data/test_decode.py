"""Image files: upright by their orientation alone, and damage of any kind named."""

import io
import struct

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cfg.base.errors import UserError
from cfg.data import decode, prepare

SHORT = 3
ODD = {
  "text of four bytes as a width": struct.pack("<HHII", 0x100, 2, 1, 0x41424344),
  "a text as a resolution": struct.pack("<HHII", 0x11A, 2, 1, 0x41424344),
  "a number as a maker": struct.pack("<HHII", 0x10F, 11, 1, 0x41424344),
  "a type that there is not": struct.pack("<HHII", 0x10F, 99, 1, 0),
  "a value beyond the end": struct.pack("<HHII", 0x10F, 2, 4000, 90000),
}


def photo():
  return load_sample_image("china.jpg")[::16, ::16]


def orientation_tag(value, kind=SHORT):
  return struct.pack("<HHIHH", 0x112, kind, 1, value, 0)


def jpeg(pixels, *tags):
  """A JPEG whose EXIF holds these tags, 12 bytes each, in this order."""
  out = io.BytesIO()
  Image.fromarray(pixels).save(out, "JPEG", quality=95)
  whole = out.getvalue()
  tiff = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(tags) + bytes(20)
  exif = b"Exif\0\0" + tiff
  return whole[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + whole[2:]


TURNED = {
  1: lambda x: x,
  2: lambda x: x[:, ::-1],
  3: lambda x: x[::-1, ::-1],
  4: lambda x: x[::-1],
  5: lambda x: x.transpose(1, 0, 2),
  6: lambda x: np.rot90(x, -1),
  7: lambda x: x[::-1, ::-1].transpose(1, 0, 2),
  8: lambda x: np.rot90(x),
}


@pytest.mark.parametrize("orientation", TURNED)
def test_pixels_are_turned_upright(orientation):
  """Each of EXIF's eight orientations, exactly."""
  stored = jpeg(photo(), orientation_tag(orientation))
  plain = decode.read_rgb(io.BytesIO(jpeg(photo())))
  np.testing.assert_array_equal(decode.read_rgb(io.BytesIO(stored)), TURNED[orientation](plain))


@pytest.mark.filterwarnings("ignore:.*EXIF.*")
@pytest.mark.parametrize("odd", ODD)
def test_odd_tags_change_nothing(odd):
  """Beside a tag that cannot be written again the orientation counts, and the pixels are read."""
  stored = jpeg(photo(), *sorted([ODD[odd], orientation_tag(6)]))
  plain = decode.read_rgb(io.BytesIO(jpeg(photo())))
  wanted = np.rot90(plain, -1)
  np.testing.assert_array_equal(decode.read_rgb(io.BytesIO(stored)), wanted)


@pytest.mark.filterwarnings("ignore:.*EXIF.*")
@pytest.mark.parametrize(
  "tag",
  [
    orientation_tag(0),
    orientation_tag(9),
    orientation_tag(65535),
    struct.pack("<HHII", 0x112, 2, 4, 0x36363636),
    struct.pack("<HHII", 0x112, 5, 1, 90000),
    b"",
  ],
)
def test_orientations_that_there_are_not(tag):
  """Out of range, of another type, without a value or without an entry: as it is stored."""
  stored = jpeg(photo(), *([tag] if tag else []))
  plain = decode.read_rgb(io.BytesIO(jpeg(photo())))
  np.testing.assert_array_equal(decode.read_rgb(io.BytesIO(stored)), plain)


@pytest.mark.parametrize("error", [struct.error, TypeError, AttributeError, KeyError, RuntimeError])
def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch, error):
  """It is an unreadable file: read_rgb and check_header say which, and prepare lists it."""
  for name in ("a", "b", "c"):
    (tmp_path / "in" / name).mkdir(parents=True)
    (tmp_path / "in" / name / f"{name}.jpg").write_bytes(jpeg(photo()))
  whole = Image.open

  def broken(file, **options):
    if str(getattr(file, "name", file)).endswith("b.jpg"):
      raise error("from the depths")
    return whole(file, **options)

  monkeypatch.setattr(decode.Image, "open", broken)
  for function in (decode.read_rgb, decode.check_header):
    with pytest.raises(UserError, match="b.jpg.*from the depths"):
      function(tmp_path / "in" / "b" / "b.jpg")
  manifest = prepare.prepare(tmp_path / "in", tmp_path / "out", resolution=4, max_rejected=0.5)
  assert list(manifest["rejected"]) == ["b/b.jpg"]


def test_a_turned_tiff_is_turned_once():
  """Pillow turns TIFFs itself when they are loaded."""
  out = io.BytesIO()
  Image.fromarray(photo()).save(out, "TIFF", tiffinfo={0x112: 6})
  np.testing.assert_array_equal(decode.read_rgb(out), np.rot90(photo(), -1))


@pytest.mark.parametrize("form", ["PNG", "WEBP"])
def test_orientation_in_other_formats(form):
  """In a PNG and a WebP, without loss."""
  out = io.BytesIO()
  exif = Image.Exif()
  exif[0x112] = 8
  Image.fromarray(photo()).save(out, form, exif=exif, lossless=True)
  np.testing.assert_array_equal(decode.read_rgb(out), np.rot90(photo()))
