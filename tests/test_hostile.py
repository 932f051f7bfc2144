"""Files that are damaged, or made to break their reader: a normal result or a UserError, no other
exception, no code run, nothing written, and no memory beyond what the file is worth.

Each protection says how it was seen to fail when it was taken out.
"""

import importlib
import io
import itertools
import json
import os
import pathlib
import pickle
import struct
import tarfile
import tracemalloc
import zipfile

import hostile_files as hostile
import numpy as np
import paths
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfg.base import checkpoint, files, lock, logs, pickles, trees, untrusted
from cfg.base import config as config_lib
from cfg.base.errors import UserError
from cfg.data import decode, prepare, records
from cfg.data.preparing import cifar10, imagenet, inputs
from cfg.features import judge_files, reference_files
from cfg.inference import workdir_config
from cfg.interop import graph_def, inception, torch_file, weights
from cfg.metrics import reference
from cfg.report import table
from configs import digits

MB = 2**20
DATA = paths.TESTS / "data"
DEEP = b"[" * 100_000  # nested far beyond what a parser recurses into
NUMBER = itertools.count()  # archives keep their files open by path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
  return tmp_path_factory.mktemp("hostile")


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
  """{reader: bytes of a small file that it reads}."""
  folder = tmp_path_factory.mktemp("valid")
  images = np.zeros((4, 5, 5, 3), np.uint8)
  pictures = {f"{c}/{i}.png": hostile.picture(seed=i) for i, c in enumerate("aabb")}
  about = {"format": reference.FORMAT, "gaussians": ["p"], "entropies": [], "features": []}
  weights.write(
    folder / "w.safetensors",
    params={"a": {"b": np.ones((2, 3), np.float32)}, "c": np.zeros(3, np.float16)},
    meta={"config": config_lib.to_json(digits.get_config()), "class_names": ["x"], "step": 3,
          "image_shape": [8, 8, 1], "data_name": "d", "ema": "0.99"},
  )  # fmt: skip
  graph = graph_def.message_class("GraphDef")()
  tensor = graph.node.add(name="k", op="Const").attr.add(key="value").value.tensor
  tensor.dtype, tensor.tensor_content = 1, bytes(24)
  for n in (2, 3):
    tensor.tensor_shape.dim.add(size=n)
  mean, cov = np.zeros(3), np.eye(3)
  return {
    "npz": hostile.npz(images=images, labels=np.array([0, 1, 0, 1])),
    "arr_0": hostile.npz(arr_0=images),
    "reference": hostile.npz(
      **{"about": np.asarray(json.dumps(about)), "p/mean": mean, "p/cov": cov, "p/count": 5}
    ),
    "published": hostile.npz(mu=mean, sigma=cov),
    "judge": hostile.npz(
      **{"a/b": mean, "info": np.asarray(json.dumps({"identity": "i", "weights_sha256": "0"}))}
    ),
    "weights": (folder / "w.safetensors").read_bytes(),
    "torch zip": (DATA / "torch_zip.pt").read_bytes(),
    "torch legacy": (DATA / "torch_legacy.pt").read_bytes(),
    "cifar": hostile.cifar()["test_batch"],
    "graph": graph.SerializeToString(),
    "tar": hostile.tarred(pictures),
    "gnu tar": hostile.tarred(
      {"n" * 150 + name: content for name, content in pictures.items()}, form=tarfile.GNU_FORMAT
    ),
    "tar.gz": hostile.tarred(hostile.cifar(), mode="w:gz"),
    "zip": hostile.zipped(pictures),
    **{form: hostile.picture(form) for form in decode.FORMATS},
  }  # fmt: skip


def read_images(path):
  """Everything that prepare reads of a file."""
  given = inputs.open_input(path)
  for part in given.splits.values():
    part.fingerprint()
    for i in range(len(part)):
      try:
        part.read(i)
      except UserError:
        pass  # it is listed, and left out


def read_batch(path):
  try:
    cifar10.from_files(names := hostile.cifar(test_batch=path.read_bytes()), names.get, where=path)
  except UserError as e:
    raise e from None


def read_graph(path):
  graph_def.constant(graph_def.parse(path.read_bytes()), "k", shape=(2, 3))


def read_unlabelled(path):
  images = reference_files.open_images(path)
  for i in range(images.count):
    images.read(i)


# reader: (ending, how it is read, what of it is no error of a user)
READERS = {
  "npz": (".npz", inputs.npz, ()),
  "arr_0": (".npz", read_unlabelled, ()),
  "reference": (".npz", reference.read, ()),
  "published": (".npz", reference.read, ()),
  "judge": (".npz", lambda path: judge_files._read(path, "i"), ()),
  "weights": (".safetensors", weights.read, ()),
  "torch zip": (".pt", torch_file.read, ()),
  "torch legacy": (".pt", torch_file.read, ()),
  "cifar": ("", read_batch, ()),
  "graph": (".pb", read_graph, ()),
  "tar": (".tar", read_images, ()),
  "gnu tar": (".tar", read_images, ()),
  "tar.gz": (".tar.gz", read_images, ()),
  "zip": (".zip", read_unlabelled, ()),
  **{form: (".png", decode.read_rgb, ()) for form in decode.FORMATS},
}
STEPS = st.lists(
  st.tuples(
    st.sampled_from(hostile.KINDS),
    st.floats(0, 1, exclude_max=True),
    st.floats(0, 1, exclude_max=True),
    st.integers(0, 255),
  ),
  min_size=1,
  max_size=4,
)


def fuzz(examples):
  """Settings: the same examples every time, and none kept."""
  return settings(max_examples=examples, derandomize=True, deadline=None, database=None,
                  suppress_health_check=list(HealthCheck))  # fmt: skip


def put(folder, content, ending):
  """A new file of this content."""
  path = folder / f"{next(NUMBER)}{ending}"
  path.write_bytes(content)
  return path


def attempt(read, path):
  """Read a file: a result or a UserError in one paragraph."""
  try:
    read(path)
  except UserError as e:
    assert "\n" not in str(e).strip() and len(str(e)) < 2500, str(e)
  finally:
    path.unlink()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
def test_damage(name, valid, folder):
  """Any damage gives a result or a UserError, also behind checksums that are right.

  REMOVED
  """
  ending, read, _ = READERS[name]
  read(put(folder, valid[name], ending))  # it is read as it is

  @fuzz(int(os.environ.get("EXAMPLES", 100)))
  @given(steps=STEPS, form=st.sampled_from(["plain", "mended", "inside"]))
  def trial(steps, form):
    if form == "inside" and valid[name].startswith(b"PK"):
      content = hostile.inside_a_zip(valid[name], steps)
    else:
      content = hostile.damaged(valid[name], steps)
    content = hostile.mend(content) if form == "mended" else content
    attempt(read, put(folder, content, ending))

  trial()


def limited(most, function, *args):
  """What a function gives, while it takes less memory than `most` bytes."""
  tracemalloc.start()
  try:
    return function(*args)
  finally:
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < most, f"{peak / MB:.0f} MB"


# ------------------------------------------------------------------------------- arrays


@pytest.mark.parametrize(
  "member",
  [
    hostile.npy(hostile.shaped((10**12,))),
    hostile.npy(hostile.shaped((2**62, 2**62))),
    hostile.npy(hostile.shaped((0, 10**30))),
    hostile.npy(hostile.shaped((10**12,), "|S0")),
    hostile.npy(hostile.shaped((2,), "|O"), pickle.dumps([print])),
    hostile.npy("{'descr': '|u1', 'fortran_order': False, 'shape': (" + "-" * 9000 + "1,)}"),
    hostile.npy("{" * 9000),
    hostile.npy(hostile.shaped((-4,)), bytes(4)),
    hostile.npy(hostile.shaped((2,), "<f8"), bytes(15)),
    b"\x93NUMPY\x09\0",
    b"",
  ],
  ids=["huge", "overflow", "empty", "no size", "objects", "minus", "braces", "negative", "short",
       "version", "nothing"],
)  # fmt: skip
def test_npy_headers(folder, member):
  """A header that does not fit the bytes behind it is refused before anything is allocated.

  With numpy's own reader "huge" took 10^12 bytes (MemoryError), "minus" was a MemoryError or
  RecursionError, "no size" asked for 3.6 TiB.
  """
  for method in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
    path = put(folder, hostile.zipped({"mu.npy": member}, method=method), ".npz")
    with pytest.raises(ValueError, match="no whole .npz"):
      limited(4 * MB, files.read_npz, path)


def test_npz_that_unfolds(folder):
  """A zip of zeros is refused by its declared size. Without _check_sizes it filled 300 MB."""
  content = hostile.npy(hostile.shaped((300 * MB,)), bytes(300 * MB))
  path = put(folder, hostile.zipped({"mu.npy": content}), ".npz")
  assert path.stat().st_size < MB
  with pytest.raises(ValueError, match="declare"):
    limited(4 * MB, files.read_npz, path)


# -------------------------------------------------------------------------------- JSON


def stored_network(folder, content):
  path = folder / f"{next(NUMBER)}" / "checkpoints" / "3" / "meta"
  path.mkdir(parents=True)
  (path / "metadata").write_bytes(content)
  return path.parents[2]


JSON = {
  "dataset.json": lambda folder, content: inputs.open_input(
    put(folder, hostile.zipped({"dataset.json": content, "a/1.png": hostile.picture()}), ".zip")
  ),
  "samples.json": lambda folder, content: inputs.open_images(
    put(folder, hostile.zipped({"samples.json": content, "1.png": hostile.picture()}), ".zip")
  ),
  "checkpoint meta": lambda folder, content: workdir_config.get_config(
    str(stored_network(folder, content))
  ),
  "sweep.json": lambda folder, content: table.read(
    [at := folder / f"{next(NUMBER)}", at.mkdir(), (at / "sweep.json").write_bytes(content)][0]
  ),
  "metrics.jsonl": lambda folder, content: list(logs._read_records(put(folder, content, ""))),
  "plan.json": lambda folder, content: prepare._claim(
    [at := folder / f"{next(NUMBER)}", at.mkdir(), (at / "plan.json").write_bytes(content)][0],
    {"plan_sha256": "1"},
  ),
  "accuracy": lambda folder, content: judge_files._read_accuracy(put(folder, content, ""), "i"),
}
VALUES = {
  "dataset.json": {"labels": [["a/1.png", 0]]},
  "samples.json": {"about": {}, "samples": [{"file": "1.png", "w": 0, "scale": 1, "seed": 0}]},
  "checkpoint meta": {
    "step": 3,
    "config": config_lib.to_json(digits.get_config()),
    "class_names": ["x"],
    "image_shape": [8, 8, 1],
  },
  "sweep.json": {"rows": [{"w": 0.0}], "metrics": []},
  "metrics.jsonl": {"step": 3, "loss": 0.5},
  "plan.json": {"plan_sha256": "1"},
  "accuracy": {"heldout_accuracy": 0.5, "identity": "i"},
}


@pytest.mark.parametrize("name", JSON)
@pytest.mark.parametrize(
  "content", [DEEP, b'{"a":' * 100_000, b"\xff\xfe", b"1" * 5000, b"", b"3", b"[]", b"null"]
)
def test_json(name, content, folder):
  """JSON that is nested 100,000 deep, no text, or of another kind. With json.loads in the place of
  untrusted.parse_json the first two are a RecursionError.
  """
  try:
    JSON[name](folder, content)
  except UserError:
    pass


@pytest.mark.parametrize("name", JSON)
def test_json_of_other_kinds(name, folder):
  """Values of another kind than was written. Without the check in config.from_json a config that
  is a list was an AttributeError.
  """

  @fuzz(30)
  @given(steps=STEPS)
  def trial(steps):
    try:
      JSON[name](folder, hostile.inside_json(VALUES[name], steps))
    except UserError:
      pass

  trial()


@pytest.mark.parametrize("content", [DEEP, b"[]", b"\xff", b'{"host": 3}', b'{"process": []}'])
def test_lock(tmp_path, content):
  """A writer.lock that is no table is of nobody who lives, once it is old."""
  path = tmp_path / "writer.lock"
  path.write_bytes(content)
  os.utime(path, (0, 0))
  with lock.Lock(path, what="is training"):
    pass


@pytest.mark.parametrize("content", [DEEP, b"[]", b"{}", b'{"a": 3}', b"\xff"])
def test_checkpoint_manifest(tmp_path, content):
  """A manifest that is no table, or lists none of the files, makes a step damaged. Without the
  union of names in Checkpoints._damage the empty one let any state pass.
  """
  folder = tmp_path / "checkpoints"
  (folder / "3").mkdir(parents=True)
  (folder / "3" / "state").write_bytes(b"1")
  (folder / "3.sha256.json").write_bytes(content)
  assert not checkpoint.Checkpoints(tmp_path).intact(3)


# ------------------------------------------------------------------------------ records


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
  """A prepared data set of four images."""
  folder = tmp_path_factory.mktemp("prepared")
  images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
  (folder / "in.npz").write_bytes(hostile.npz(images=images, labels=np.array([0, 1, 0, 1])))
  prepare.prepare(folder / "in.npz", folder / "out", resolution=5)
  return folder / "out"


def read_records(folder):
  """Every example of a prepared data set."""
  manifest = records.read_manifest(folder)
  source = records.open_split(folder, manifest, "train")
  return [source[i] for i in range(len(source))]


def copied(prepared, folder, **contents):
  """A copy of a prepared data set with other files."""
  copy = folder / f"{next(NUMBER)}"
  copy.mkdir()
  for path in prepared.iterdir():
    (copy / path.name).write_bytes(contents.get(path.stem.split("-")[0], path.read_bytes()))
  return copy


@pytest.mark.parametrize("part", ["manifest", "labels", "train"])
def test_damaged_records(prepared, folder, part):
  """Damage to a prepared data set: what is read is what was written, or a UserError. Without the
  hash of labels.npz in open_split other labels were read without a word; without reading() in
  RecordSource a damaged shard was a RuntimeError or ValueError of the library.
  """
  (path,) = prepared.glob(f"{part}*")
  content, expected = path.read_bytes(), read_records(prepared)

  @fuzz(40)
  @given(steps=STEPS, inside=st.booleans())
  def trial(steps, inside):
    if part == "manifest" and inside:
      changed = hostile.inside_json(json.loads(content), steps)
    else:
      changed = hostile.damaged(content, steps)
    try:
      found = read_records(copied(prepared, folder, **{part: changed}))
    except UserError:
      return
    if part != "manifest":
      assert len(found) == len(expected)
      for ours, theirs in zip(found, expected):
        assert ours["label"] == theirs["label"] and (ours["image"] == theirs["image"]).all()

  trial()


@pytest.mark.parametrize("name", ["../labels.npz", "/etc/passwd", "..", "a/../b", ""])
def test_manifests_name_files_beside_them(prepared, folder, name):
  """A shard elsewhere is refused: without the check of names it was opened and hashed."""
  manifest = json.loads((prepared / "manifest.json").read_bytes())
  manifest["splits"]["train"]["shards"][0]["file"] = name
  copy = copied(prepared, folder, manifest=json.dumps(manifest).encode())
  with pytest.raises(UserError, match="no file in its folder"):
    records.read_manifest(copy)


@pytest.mark.parametrize("label", [-1, 2, 1])
def test_labels_and_records_agree(prepared, folder, label):
  """A shard that was made anew with another label, hashes and all, is refused where it is read."""
  copy = copied(prepared, folder)
  (path,) = copy.glob("train*")
  image = np.zeros((5, 5, 3), np.uint8)
  records.write_shard(path, [records.encode(image, label)] * 4)
  manifest = json.loads((copy / "manifest.json").read_bytes())
  shard = manifest["splits"]["train"]["shards"][0]
  shard |= {"bytes": path.stat().st_size, "sha256": records.sha256(path)}
  (copy / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match="its label is"):
    read_records(copy)


@pytest.mark.parametrize("size", [0, 3, 4, 78, 80])
def test_records_of_another_shape(prepared, folder, size):
  """A record that is too short or too long was a struct.error or ValueError in the input stream."""
  copy = copied(prepared, folder)
  (path,) = copy.glob("train*")
  records.write_shard(path, [bytes(size)] * 4)
  manifest = json.loads((copy / "manifest.json").read_bytes())
  manifest["splits"]["train"]["shards"][0]["bytes"] = path.stat().st_size
  (copy / "manifest.json").write_text(json.dumps(manifest))
  with pytest.raises(UserError, match="damaged|cannot be opened"):
    read_records(copy)


# ------------------------------------------------------------------------------ weights


def safetensors_of(arrays, meta):
  """A safetensors file of float32 zeros of these names."""
  header = {"__metadata__": {"format": weights.FORMAT, "meta": meta}}
  for i, name in enumerate(arrays):
    header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [4 * i, 4 * i + 4]}
  text = json.dumps(header).encode()
  return struct.pack("<Q", len(text)) + text + bytes(4 * len(arrays))


@pytest.mark.parametrize(
  ("arrays", "meta"),
  [
    (["a", "a/b"], None),
    (["a/b", "a"], None),
    (["/".join("a" * 5000)], None),
    (["a"], DEEP.decode()),
    (["a"], "[]"),
    (["a"], '["config", "class_names", "image_shape", "data_name", "step", "ema"]'),
    (["a"], {"image_shape": [8, 8, "1"]}),
    (["a"], {"class_names": "x"}),
    (["a"], {"ema": "nan"}),
    (["a"], {"config": []}),
  ],
)
def test_weights_of_odd_names_and_facts(folder, arrays, meta):
  """Names that no nested dicts have, and facts of another kind. Without MOST_NESTED the third was
  read, for jax to break on; without _check_meta the last four were.
  """
  facts = {"config": {}, "class_names": ["x"], "image_shape": [8, 8, 1], "data_name": "d",
           "step": 1, "ema": "0.9"}  # fmt: skip
  text = meta if isinstance(meta, str) else json.dumps(facts | (meta or {}))
  path = put(folder, safetensors_of(arrays, text), ".safetensors")
  with pytest.raises(UserError):
    weights.read(path)


@pytest.mark.parametrize("length", [0, 1, 10**6, 2**62, 2**64 - 1])
def test_length_of_a_safetensors_header(folder, length):
  """A header that is declared longer than the file."""
  path = put(folder, struct.pack("<Q", length) + b"{}", ".safetensors")
  for read in (weights.read, inception.read):
    with pytest.raises(UserError):
      limited(8 * MB, read, path)


@pytest.mark.parametrize("names", [["a", "a/b"], ["a/b", "a"], ["/".join("a" * 200)]])
def test_names_that_no_tree_has(names):
  """Without the checks in unflatten the first was an AttributeError, and the second lost an array
  without a word.
  """
  with pytest.raises(ValueError):
    trees.unflatten(dict.fromkeys(names, 1))


# ------------------------------------------------------------------------------ pickles

DAG = b"]" + b"".join(b"q\0h\0h\0\x86" for _ in range(60))  # ((([], []), ...) of 2^60 parts


def nested(depth):
  """A tuple in a tuple in a tuple."""
  return b")" + b"\x85" * depth


@pytest.mark.parametrize(
  "content",
  [
    DAG + b"\x8c\1a\x93.",
    nested(100_000) + b"\x8c\1a\x93.",
    b"cnumpy\ndtype\n" + DAG + b"\x85R.",
    b"cnumpy\ndtype\n" + nested(100_000) + b"\x85R.",
    b"}" + DAG + b"K\1s.",
    b"}\x8c\4dataK\1s.",
  ],
)
def test_pickles_that_unfold_in_a_message(content):
  """What is refused is named in short: its repr was a RecursionError, or had 2^60 parts."""
  with pytest.raises((pickles.Refused, ValueError)):
    limited(64 * MB, cifar10.python_batch, b"\x80\2" + content)


def test_labels_that_unfold():
  """Pairs of pairs, 30 deep, by reference: without the check of python_batch numpy made 2^30 labels
  of them.
  """
  lists = b"K\0" + b"q\0h\0\x86" * 30
  data = pickle.dumps({b"data": np.zeros((2, 3072), np.uint8)}, protocol=2)[:-1]
  with pytest.raises((pickles.Refused, ValueError)):
    limited(8 * MB, cifar10.python_batch, data + b"\x8c\6labels" + lists + b"s.")


@pytest.mark.parametrize(
  "call", [b"c_codecs\nencode\n", b"ccollections\nOrderedDict\n"], ids=["encode", "OrderedDict"]
)
def test_functions_that_copy_over_and_over(call):
  """A function may be called with a large thing many times: without MAX_COPIED 3 MB became 3 GB."""
  text = pickle.dumps("a" * MB, protocol=2)[2:-1]
  large = text + b"q\1" if b"encode" in call else (
    b"](" + b"".join(b"J%sK\0\x86" % struct.pack("<i", i) for i in range(20_000)) + b"eq\1"
  )  # fmt: skip
  args = b"h\1\x8c\6latin1\x86" if b"encode" in call else b"h\1\x85"
  content = b"\x80\2" + large + b"0" * 0 + (call + args + b"R\x85") * 3000 + b"."
  with pytest.raises(pickles.Refused):
    limited(600 * MB, lambda: pickles.load(io.BytesIO(content), globals_=cifar10.GLOBALS))


def test_names_that_share_a_long_beginning():
  """100,000 names in a dict whose own has 4,000 characters: without MAX_NAMES 400 MB of names."""
  tree = {"a" * 4000: {i: 1.0 for i in range(100_000)}}
  with pytest.raises(pickles.Refused, match="longer than names"):
    limited(128 * MB, pickles.find_arrays, tree, float)


class Shell:
  """Its pickle runs a command."""

  def __reduce__(self):
    return os.system, (f"touch {os.environ['HOSTILE_MARK']}",)


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_no_pickle_is_run(tmp_path, monkeypatch, protocol):
  """Commands in CIFAR's batches, in PyTorch's zips and legacy files, and in an .npz: nothing is
  run. With pickle.loads in the place of pickles.load the mark is there.
  """
  mark = tmp_path / "mark"
  monkeypatch.setenv("HOSTILE_MARK", str(mark))
  evil = pickle.dumps({b"data": Shell(), "labels": [0]}, protocol=protocol)
  (tmp_path / "zip.pt").write_bytes(
    hostile.zipped({"archive/data.pkl": evil}, method=zipfile.ZIP_STORED)
  )
  (tmp_path / "legacy.pt").write_bytes(evil)
  objects = hostile.npy(hostile.shaped((1,), "|O"), evil)
  (tmp_path / "a.npz").write_bytes(hostile.zipped({"mu.npy": objects}))
  batches = hostile.cifar(data_batch_2=evil)
  for read in (
    lambda: torch_file.read(tmp_path / "zip.pt"),
    lambda: torch_file.read(tmp_path / "legacy.pt"),
    lambda: inputs.npz(tmp_path / "a.npz"),
    lambda: cifar10.from_files(batches, batches.get, where="x"),
  ):
    with pytest.raises(UserError):
      read()
  assert not mark.exists()


@pytest.mark.parametrize("keys", [b"K\1.", b"](]e.", b"]((K\1te.", b"}."])
def test_storages_of_a_legacy_file(folder, keys):
  """Its list of storages may be any object: without reading() in torch_file, a TypeError."""
  parts = [pickle.dumps(torch_file.LEGACY_MAGIC), pickle.dumps(1001)]
  parts += [pickle.dumps({"little_endian": True}), pickle.dumps({}), b"\x80\2" + keys]
  path = put(folder, b"".join(parts), ".pt")
  attempt(torch_file.read, path)


def test_overlapping_storages(folder):
  """200 storages that are one part of the zip, 1 MB: without the size of the file as their bound
  they filled 200 MB.
  """
  file = io.BytesIO()
  count = 200
  refer = lambda i: (
    b"X\7\0\0\0storagectorch\nByteStorage\nX%s%sX\3\0\0\0cpuJ%st"
    % (struct.pack("<I", len(str(i))), str(i).encode(), struct.pack("<i", MB))
  )
  pkl = b"\x80\2](" + b"".join(b"(" + refer(i) + b"Q" for i in range(count)) + b"e."
  with zipfile.ZipFile(file, "w") as archive:
    archive.writestr("a/data.pkl", pkl)
    archive.writestr("a/data/0", bytes(MB))
    first = archive.getinfo("a/data/0")
    for i in range(1, count):
      info = zipfile.ZipInfo(f"a/data/{i}")
      info.header_offset, info.CRC = first.header_offset, first.CRC
      info.file_size = info.compress_size = MB
      archive.filelist.append(info)
      archive.NameToInfo[info.filename] = info
  path = put(folder, file.getvalue(), ".pt")
  with pytest.raises(UserError, match="more data"):
    limited(16 * MB, torch_file.read, path)


# ----------------------------------------------------------------------------- archives


def first_header(content):
  return content + bytes(1024)


@pytest.mark.parametrize(
  "content",
  [
    hostile.tar_header("x", 2**60, b"L", raw=b"\x80" + bytes(2) + b"\x10" + bytes(8)),
    hostile.tar_header("x", 8**11 - 1, b"L"),
    hostile.tar_header("x", 8**11 - 1, b"x"),
    hostile.tar_header("x", 0, b"L") * 3000,
    hostile.tar_header("a/1.png", 0, raw=b"\xff" * 10 + b"\xfc\0"),
    hostile.tar_header("a/1.png", 0)
    + hostile.tar_header("a/2.png", 0, raw=b"\xff" * 10 + b"\xfe\0"),
    hostile.tar_header("x", 30, b"x") + b"19 size=-1024\n".ljust(512, b"\0"),
    hostile.tar_header("a/1.png", 2**40, raw=b"\x80" + bytes(4) + b"\x7f" * 7),
    hostile.tar_header("a.tar", 4096) + hostile.tar_header("x", 8**11 - 1, b"L").ljust(4096, b"\0"),
  ],
  ids=[
    "2^60 name",
    "8 GB name",
    "8 GB pax",
    "chain",
    "negative",
    "loop",
    "pax back",
    "huge",
    "inner",
  ],
)
def test_tar_headers(folder, content):
  """Headers that declare more than there is, lead back, or follow each other without end.

  Without the bound of _Part.read "8 GB name" allocated 8 GB, without _onward "loop" was listed for
  ever, and without reading() in open_tree and members "chain" was a RecursionError.
  """
  path = put(folder, first_header(content), ".tar")
  with pytest.raises(UserError):
    limited(16 * MB, read_images, path)


def test_compressed_tars_that_unfold(folder):
  """A .tar.gz whose first name is 600 MB of zeros: without untrusted.Limited it was read whole."""
  import gzip

  name = folder / f"{next(NUMBER)}.tar.gz"
  with gzip.open(name, "wb", compresslevel=1) as file:
    file.write(hostile.tar_header("x", 600 * MB, b"L"))
    for _ in range(600):
      file.write(bytes(MB))
  with pytest.raises(UserError, match="accepted|compressed"):
    limited(560 * MB, cifar10.compressed, name)
  with pytest.raises(UserError):
    limited(300 * MB, imagenet.devkit_labels, put(folder, name.read_bytes()[:MB], ".tar.gz"))


@pytest.mark.parametrize("name", ["../a/1.png", "a/../../1.png", "..\\a\\1.png", "a/.."])
@pytest.mark.parametrize("form", ["zip", "tar"])
def test_names_that_lead_out(folder, form, name):
  """.. in a name is refused; nothing is ever extracted."""
  members = {"a/1.png": hostile.picture(), name: hostile.picture()}
  content = hostile.zipped(members) if form == "zip" else hostile.tarred(members)
  with pytest.raises(UserError, match="leads out"):
    read_images(put(folder, content, f".{form}"))


@pytest.mark.parametrize("target", ["/etc/passwd", "../../../../etc/passwd", "a/1.png", "l.png"])
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"p"])
def test_links_in_archives(folder, kind, target):
  """A link is followed inside the archive alone: what is outside is not read."""
  link = tarfile.TarInfo("b/2.png")
  link.type, link.linkname = kind, target
  path = put(folder, hostile.tarred({"a/1.png": hostile.picture(), "l": link}), ".tar")
  read_images(path)
  given = inputs.open_input(path)
  place = given.splits["train"].places[-1]
  if target != "a/1.png" or kind != tarfile.LNKTYPE:
    with pytest.raises(ValueError, match="link|regular"):
      place.open(path)


def bomb(name="a/1.png", *, size=300 * MB, declared=None, mode=0):
  """A zip of zeros."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
    info = zipfile.ZipInfo(name)
    info.external_attr = mode << 16
    archive.writestr(info, bytes(size), zipfile.ZIP_DEFLATED)
  content = file.getvalue()
  if declared is not None:
    content = content.replace(struct.pack("<I", size), struct.pack("<I", declared))
  return content


def test_zip_bombs(folder):
  """300 MB of zeros as an image, as an image that is declared small, and as the name behind a link:
  with zlib.decompress and archive.read each filled them.
  """
  for content in (bomb(), bomb(declared=1000), bomb(mode=0o120777), bomb("dataset.json")):
    path = put(folder, content, ".zip")

    def read(path=path):
      try:
        read_images(path)
      except UserError:
        pass

    limited(32 * MB, read)


# ------------------------------------------------------------------------------- images


@pytest.mark.parametrize(
  "content",
  [
    hostile.png(60000, 60000),
    hostile.png(2**31 - 1, 2**31 - 1),
    hostile.png(10000, 10000),
    hostile.png(0, 5),
    b"GIF89a\xff\xff\xff\xff\0\0\0,\0\0\0\0\xff\xff\xff\xff\0",
    b"BM" + struct.pack("<IIIIiiHHIIIIII", 0, 0, 54, 40, 60000, 60000, 1, 24, 0, 0, 0, 0, 0, 0),
  ],
  ids=["60000", "2^31", "10000", "none", "gif", "bmp"],
)
def test_pictures_that_unfold(content):
  """Refused by the size they declare, before pixels are made. Without MOST_PIXELS "10000" was a
  warning and 100 MB of pixels.
  """
  for read in (decode.read_rgb, decode.check_header):
    with pytest.raises(UserError, match="cannot read the image"):
      limited(8 * MB, read, io.BytesIO(content))


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n%%EOF\n"


def test_no_program_draws_an_image(tmp_path, monkeypatch):
  """PostScript under the name of an image: without FORMATS Pillow calls Ghostscript (seen by a `gs`
  of the test's own).
  """
  from PIL import EpsImagePlugin

  (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/mark\n")
  (tmp_path / "gs").chmod(0o755)
  monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
  monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
  (tmp_path / "1.png").write_bytes(EPS)
  with pytest.raises(UserError):
    decode.read_rgb(tmp_path / "1.png")
  assert not (tmp_path / "mark").exists()


# ---------------------------------------------------------------------------- the house


@pytest.mark.parametrize(
  ("call", "homes"),
  [
    ("json.loads(", {"base.untrusted", "base.hosts", "base.rendezvous", "base.config",
                     "base.defaults", "sweep.provenance"}),
    ("json.load(", set()),
    ("np.load(", set()),
    ("pickle.load", set()),
    ("zlib.decompress(", set()),
    ("tarfile.open(", {"data.preparing.tars"}),
    ("Image.open(", {"data.decode"}),
  ],
)  # fmt: skip
def test_foreign_bytes_have_one_door(call, homes):
  """What reads files of others is called in one place, which knows how it can be broken."""
  package = pathlib.Path(importlib.import_module("cfg").__file__).parent
  found = {
    ".".join(path.relative_to(package).with_suffix("").parts)
    for path in package.rglob("*.py")
    if any(
      call in line.split("#")[0] and not line.lstrip().startswith(("`", '"'))
      for line in path.read_text(encoding="utf-8").splitlines()
    )
  }
  assert found - {"base.pickles"} <= homes, found


def test_words_are_short():
  """What a library says of damage is cut."""
  with pytest.raises(ValueError) as caught, untrusted.reading():
    raise KeyError("x" * 10**6)
  assert len(str(caught.value)) < 400
