"""Files of PyTorch read without it: every layout comes out right, nothing in them runs, and nothing
else is let in.

tests/data/torch_*.pt were written by torch.save of PyTorch 2.13.0, and torch_expected.npz holds the
same arrays.
"""

import io
import os
import pickle
import struct
import zipfile

import numpy as np
import paths
import pytest

from cfg.base import pickles
from cfg.base.errors import UserError
from cfg.interop import torch_file

DATA = paths.DATA


@pytest.mark.smoke
@pytest.mark.parametrize("name", ["torch_zip.pt", "torch_legacy.pt"])
def test_tensors_come_out_right(name):
  """Every type, strides, views of one storage, scalars, empty ones; names joined through nested
  dicts.
  """
  arrays = torch_file.read(DATA / name)
  with np.load(DATA / "torch_expected.npz", allow_pickle=False) as expected:
    assert set(arrays) == {f"model.{n}" for n in expected.files}
    for n in expected.files:
      found = arrays[f"model.{n}"]
      assert found.shape == expected[n].shape
      assert found.dtype.name == ("bfloat16" if n == "bfloat" else expected[n].dtype.name)
      np.testing.assert_array_equal(found.astype(expected[n].dtype), expected[n])


class Evil:
  """Unpickled, it makes a folder."""

  def __init__(self, path):
    self.path = path

  def __reduce__(self):
    return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_runs(tmp_path, protocol):
  """A pickle that would call a function is refused by the function's name, at every protocol;
  pickle itself would call it.
  """
  target = tmp_path / "made"
  content = pickle.dumps({"a": 1, "b": Evil(target)}, protocol=protocol)
  with pytest.raises(pickles.Refused, match="mkdir|_reconstruct"):
    pickles.load(io.BytesIO(content))
  assert not target.exists()
  pickle.loads(content)
  assert target.exists()


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values(protocol):
  """Dicts, lists, tuples, numbers, text, bytes, shared and empty ones, as pickle reads them."""
  shared = [1, 2]
  value = {
    "a": [1, -2, 3.5, None, True, False, 2**40, -(2**70)],
    "b": ("x", ("y",), (), (1, 2, 3, 4)),
    "c": {},
    "d": [shared, shared],
    7: "é",
    "long": "z" * 300,
    "e": [],
  }
  content = pickle.dumps(value, protocol=protocol)
  assert pickles.load(io.BytesIO(content)) == value
  if protocol >= 3:
    assert pickles.load(
      io.BytesIO(pickle.dumps({"raw": b"\x00\xff" * 200}, protocol=protocol))
    ) == {"raw": b"\x00\xff" * 200}


@pytest.mark.parametrize(
  "content, reason",
  [
    (b"", "whole pickle"),
    (b"\xffhello", "whole pickle"),
    (b"hello", "never stored"),
    (pickle.dumps([1, 2, 3])[:-1], "whole pickle"),
    (b"\x80\x02a.", "more from its stack"),
    (b"\x80\x02]]e.", "never opened"),
    (b"\x80\x02h\x05.", "never stored"),
    (b"\x80\x02}]K\x01s.", "not text or numbers"),
    (b"\x80\x02K\x01K\x02a.", "not a list"),
    (b"\x80\x02K\x01)R.", "not a function"),
    (b"\x80\x02K\x01}b.", "has none"),
    (b"\x80\x02K\x01Q.", "outside itself"),
    (b"\x80\x02K\x01K\x02.", "disorder"),
    (b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.", "cannot use"),
    (b"\x80\x02cbuiltins\neval\n.", "builtins.eval"),
    (b"\x80\x02c__builtin__\ngetattr\n.", "getattr"),
    (b"\x80\x04\x8c\x02os\x8c\x06system\x93.", "os.system"),
    (b"\x80\x02ccollections\nOrderedDict\n)\x81.", "instruction NEWOBJ"),
    (b"(cos\nsystem\no.", "os.system"),
    (b"(ios\nsystem\n.", "instruction INST"),
    (b"\x80\x02\x82\x01.", "instruction EXT1"),
    (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "whole pickle"),
    (b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"x.", "whole pickle"),
  ],
)
def test_broken_and_hostile_pickles(content, reason):
  """Each is refused with a reason, quickly and without allocating what it claims to hold."""
  with pytest.raises(pickles.Refused, match=reason):
    pickles.load(io.BytesIO(content))


def test_a_pickle_has_a_limit(monkeypatch):
  """More instructions than allowed are refused."""
  monkeypatch.setattr(pickles, "MAX_OPCODES", 50)
  assert len(pickles.load(io.BytesIO(pickle.dumps(list(range(20)))))) == 20
  with pytest.raises(pickles.Refused, match="more than 50"):
    pickles.load(io.BytesIO(pickle.dumps(list(range(100)))))


def test_a_dict_inside_itself_ends():
  """Cycles and dicts that are shared ever more often are walked once each."""
  loop = {"x": 1.5}
  loop["self"] = loop
  for _ in range(60):
    loop = {"left": loop, "right": loop}
  assert list(pickles.find_arrays(loop, float).values()) == [1.5]


def test_names_have_a_limit():
  """Dicts nested ever deeper, whose names would take quadratic time, are refused."""
  deep = {}
  for _ in range(10_000):
    deep = {"a": deep}
  with pytest.raises(pickles.Refused, match="4,096 characters, a.a.a"):
    pickles.find_arrays(deep, float)


def rewrite(source, target, *, change):
  """Copy a zip, its parts passed through `change(name, bytes)`."""
  with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
    for info in old.infolist():
      content = change(info.filename.partition("/")[2], old.read(info))
      if content is not None:
        new.writestr(info.filename, content)


def drop_last(name, content):
  return content[:-4] if name == "data/0" else content


def test_damaged_zips(tmp_path):
  """A missing, short or compressed part, another byte order, a flipped bit, no pickle, no zip: one
  paragraph each.
  """
  source, path = DATA / "torch_zip.pt", tmp_path / "x.pt"
  cases = [
    (lambda n, c: None if n == "data/0" else c, "storage 0 is missing"),
    (drop_last, "not as long"),
    (lambda n, c: b"big" if n == "byteorder" else c, "big-endian"),
    (lambda n, c: None if n == "data.pkl" else c, "no data.pkl"),
    (
      lambda n, c: (
        c.replace(b"_rebuild_tensor_v2", b"_rebuild_tensor_v9") if n == "data.pkl" else c
      ),
      "_rebuild_tensor_v9",
    ),
  ]
  for change, reason in cases:
    rewrite(source, path, change=change)
    with pytest.raises(UserError, match=reason):
      torch_file.read(path)
  content = bytearray(source.read_bytes())
  with zipfile.ZipFile(source) as archive:
    info = next(i for i in archive.infolist() if i.filename.endswith("data/0"))
  (extra,) = struct.unpack_from("<H", content, info.header_offset + 28)
  content[info.header_offset + 30 + len(info.filename) + extra + 100] ^= 1
  path.write_bytes(content)
  with pytest.raises(UserError, match="CRC|Bad"):
    torch_file.read(path)
  with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
    archive.writestr("x/data.pkl", b"\0" * 10**6)
  with pytest.raises(UserError, match="compressed"):
    torch_file.read(path)
  for content in (b"", b"PK\x03\x04", b"not a checkpoint", source.read_bytes()[:2000]):
    path.write_bytes(content)
    with pytest.raises(UserError, match="cannot take tensors"):
      torch_file.read(path)
  with pytest.raises(UserError, match="No such file"):
    torch_file.read(tmp_path / "absent.pt")


def test_damaged_legacy_files(tmp_path):
  """Cut short anywhere, it is refused and never returns part of itself."""
  content = (DATA / "torch_legacy.pt").read_bytes()
  for size in [10, 30, 200, len(content) // 2, len(content) - 1]:
    (tmp_path / "x.pt").write_bytes(content[:size])
    with pytest.raises(UserError, match="cannot take tensors"):
      torch_file.read(tmp_path / "x.pt")


def test_size_limits():
  """More data than the caller accepts is refused before any of it is read."""
  for name in ("torch_zip.pt", "torch_legacy.pt"):
    with pytest.raises(UserError, match="more data than is accepted"):
      torch_file.read(DATA / name, max_bytes=100)


@pytest.mark.parametrize(
  "offset, shape, strides",
  [
    (0, (5,), (1,)),
    (3, (2,), (1,)),
    (0, (2,), (4,)),
    (0, (10**9, 10**9), (0, 0)),
    (-1, (1,), (1,)),
    (0, (2,), (-1,)),
    (0, (2, 2), (1,)),
    (0, (2.0,), (1,)),
  ],
)
def test_tensors_stay_in_their_storage(offset, shape, strides):
  """No view reaches outside its storage, or is larger than it."""
  storage = torch_file.Storage(np.dtype(np.float32), 4, np.arange(4, dtype=np.float32))
  np.testing.assert_array_equal(
    torch_file.Tensor(storage, 0, (2, 2), (1, 2)).array(), [[0, 2], [1, 3]]
  )
  with pytest.raises(pickles.Refused):
    torch_file.Tensor(storage, offset, shape, strides).array()
