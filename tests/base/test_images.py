"""Pixels: rounding, sheets, files."""

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cfg.base import files, images


@pytest.mark.smoke
def test_uint8_round_trip():
  """Every grey level survives to [-1, 1] and back; values beyond are cut, others rounded."""
  levels = jnp.arange(256, dtype=jnp.uint8)
  x = images.to_unit(levels)
  assert float(x[0]) == -1 and float(x[255]) == 1
  np.testing.assert_array_equal(images.to_uint8(x), levels)
  np.testing.assert_array_equal(
    images.to_uint8(jnp.float32([-7, 7, 0.4 / 127.5 - 1, 0.6 / 127.5 - 1])), [0, 255, 0, 1]
  )


def test_tile_and_png(tmp_path):
  """Image k of a row-by-row sheet stands where it should; the file has those pixels."""
  pictures = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 3, 3), np.uint8)
  sheet = images.tile(pictures, rows=2)
  assert sheet.shape == (5, 11, 3)
  assert (
    sheet[0, 0, 0] == 0 and sheet[3, 0, 0] == 3 and sheet[4, 10, 2] == 5 and sheet[2, 0, 0] == 255
  )
  images.write_png(tmp_path / "a.png", sheet)
  np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "a.png")), sheet)
  assert images.enlarge(sheet, factor=3).shape == (15, 33, 3)
  with pytest.raises(ValueError, match="equal rows"):
    images.tile(pictures, rows=4)
  with pytest.raises(ValueError, match="uint8"):
    images.write_png(tmp_path / "b.png", sheet.astype(float))


def test_files_are_whole_or_not_there(tmp_path):
  """A write that fails leaves the old content and no temporary file; pickled arrays are refused."""
  path = tmp_path / "a.json"
  files.write_json(path, {"a": 1})
  with pytest.raises(ValueError):
    files.write_json(path, {"a": float("nan")})
  with pytest.raises(RuntimeError), files.replacing(path) as tmp:
    tmp.write_text("half")
    raise RuntimeError
  assert [p.name for p in tmp_path.iterdir()] == [
    "a.json"
  ] and path.read_text() == '{\n  "a": 1\n}\n'
  np.savez(tmp_path / "evil.npz", a=np.array([{}], dtype=object))
  with pytest.raises(ValueError, match="allow_pickle"):
    files.read_npz(tmp_path / "evil.npz")
