"""Published CIFAR-10 classifiers as judges: the network is PyTorch's, its files are read or
refused, its accuracy is measured once.
"""

import collections
import importlib.util
import json

import cifar_resnet_golden as golden
import jax
import numpy as np
import paths
import pytest
from torch_files import write_torch

from cfg.base import config as config_lib
from cfg.base import files, sharding, trees
from cfg.base.errors import UserError
from cfg.data import dataset as dataset_lib
from cfg.features import cifar_resnet as cifar_resnet_extractor
from cfg.features import judge_files
from cfg.features.placed import PlacedExtractor
from cfg.interop import cifar_resnet as interop
from cfg.metrics import statistics
from cfg.models import cifar_resnet

DATA = paths.SHARED / "data"


def shared(name):
  """A file of ../shared/data, or the test is skipped."""
  if not (DATA / name).exists():
    pytest.skip(f"there is no {DATA / name}")
  return DATA / name


@pytest.fixture
def npz(tmp_path):
  """A file of the golden network's weights."""
  files.write_npz(tmp_path / "resnet8.npz", golden.state_dict())
  return tmp_path / "resnet8.npz"


def extractor_of(arrays):
  model, params = interop.convert(arrays)
  return cifar_resnet_extractor.make_extractor(
    model=model, params=params, info={"weights_sha256": trees.tree_hash(params)}
  )


@pytest.mark.smoke
def test_features_and_probabilities_are_pytorchs():
  """From uint8 images to features and softmax, to 1e-5, on random weights with variances down to
  1e-3 (cifar_resnet_golden.py).
  """
  extractor = extractor_of(golden.state_dict())
  assert extractor.dims == {"judge": 64, "judge_logits": 10} and extractor.outputs("accuracy") == (
    "judge_logits",
  )
  outputs = jax.jit(extractor.apply)(extractor.params, golden.images())
  want = files.read_npz(golden.PATH)
  np.testing.assert_allclose(outputs["judge"], want["features"], atol=1e-5, rtol=1e-5)
  exponentials = np.exp(want["logits"].astype(np.float64))
  np.testing.assert_allclose(
    statistics.softmax(outputs["judge_logits"]),
    exponentials / exponentials.sum(axis=1, keepdims=True),
    atol=1e-5,
  )


@pytest.mark.parametrize(
  "name, depth, correct", [("resnet20-12fca82f.npz", 20, 915), ("resnet56-4bfd9763.npz", 56, 926)]
)
def test_the_published_networks_themselves(name, depth, correct, mesh1):
  """Of the first 1,000 test images of CIFAR-10 they get as many right as in PyTorch 2.13, 915 and
  926; of all 10,000 it was 9,173 and 9,339.
  """
  model, params = interop.read(shared(name))
  assert model.depth == depth
  spec = importlib.util.spec_from_file_location("decode", shared("decode.py"))
  decode = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(decode)
  images, labels = decode.cifar10_batch(shared("cifar10/test_batch.npz"))
  extractor = cifar_resnet_extractor.make_extractor(
    model=model, params=params, info={"weights_sha256": trees.tree_hash(params)}
  )
  assert (
    PlacedExtractor(extractor, mesh1).accuracy(
      dataset_lib.ArraySource(images[:1000], labels[:1000]), batch_size=250
    )
    == correct / 1000
  )


@pytest.mark.parametrize(
  "num_blocks, depth, count",
  [(1, 8, 75_290), (3, 20, 269_722), (9, 56, 853_018), (18, 110, 1_727_962)],
)
def test_the_depth_is_told_from_the_names(num_blocks, depth, count):
  """6n + 2, in order even from ten blocks on; as many trained parameters as upstream's (0.27, 0.85,
  1.7 million); those that flax would make.
  """
  arrays = golden.state_dict(num_blocks)
  model, params = interop.convert(arrays)
  assert model.depth == depth
  assert sum(a.size for name, a in arrays.items() if "running" not in name) == count
  ours = jax.eval_shape(
    model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, 32, 32, 3), np.float32)
  )["params"]
  assert jax.tree.map(lambda a: (a.shape, a.dtype), ours) == jax.tree.map(
    lambda a: (a.shape, a.dtype), params
  )
  i = num_blocks - 1
  np.testing.assert_array_equal(
    params[f"level2_{i}"]["norm2"]["var"], arrays[f"layer3.{i}.bn2.running_var"]
  )


def test_upstream_files_and_npz_are_one_network(npz, tmp_path):
  """A .th as trainer.py saves it (under state_dict, each name with module., counters, the best
  accuracy beside) has the hash of the .npz.
  """
  arrays = golden.state_dict()
  saved = {f"module.{name}": a for name, a in arrays.items()} | {
    "module.bn1.num_batches_tracked": np.array(7)
  }
  write_torch(
    tmp_path / "a.th",
    {"state_dict": collections.OrderedDict(saved), "best_prec1": np.float32([91.7]), "epoch": 3},
  )
  write_torch(tmp_path / "b.pt", arrays)
  model, params = interop.read(npz)
  for name in ("a.th", "b.pt"):
    other_model, other = interop.read(tmp_path / name)
    assert other_model == model and trees.tree_hash(other) == trees.tree_hash(params)
  np.testing.assert_array_equal(params["logits"]["kernel"], arrays["linear.weight"].T)


def changed(**changes):
  arrays = golden.state_dict() | {name.replace("__", "."): a for name, a in changes.items()}
  return {name: a for name, a in arrays.items() if a is not None}


@pytest.mark.parametrize(
  "arrays, words",
  [
    (
      {"w": np.zeros(3)},
      "resnet.npz.*lacks 37 of its 37 arrays: bn1.bias, bn1.running_mean, .*\\.\\.\\.",
    ),
    (changed(layer2__0__bn1__bias=None), "lacks 1 of its 37 arrays: layer2.0.bn1.bias\\."),
    (
      changed(layer2__0__shortcut__0__weight=np.zeros((32, 16, 1, 1))),
      "1 arrays that the network does not: layer2.0.shortcut.0.weight",
    ),
    (changed(layer3__1__bn1__bias=np.zeros(64)), "does not: layer3.1.bn1.bias"),
    (
      changed(linear__weight=np.zeros((100, 64))),
      "linear.weight has shape \\(100, 64\\), not \\(10, 64\\)",
    ),
    (changed(linear__bias=np.array(["x"] * 10)), "linear.bias is not of numbers but of <U1"),
  ],
)
def test_other_networks_are_refused(tmp_path, arrays, words):
  """Missing, further (convolutions as shortcuts, a deeper last level), wrongly shaped arrays
  (CIFAR-100), text: file and array are named.
  """
  files.write_npz(tmp_path / "resnet.npz", arrays)
  with pytest.raises(UserError, match=words):
    interop.read(tmp_path / "resnet.npz")


@pytest.mark.filterwarnings("error")
def test_other_files_are_refused(npz, tmp_path):
  """Absent, empty, cut short, text, a single array, Python objects, no file of PyTorch: one
  sentence each, nothing unpickled, no file left open.
  """
  whole = npz.read_bytes()
  for content in (b"", whole[:1000], b"hello", b"PK\x03\x04"):
    npz.write_bytes(content)
    with pytest.raises(UserError, match="cannot take arrays"):
      interop.read(npz)
  flipped = bytearray(whole)
  flipped[5000] ^= 1
  npz.write_bytes(flipped)
  with pytest.raises(UserError, match="cannot take arrays.*CRC"):
    interop.read(npz)
  for save in (lambda f: np.save(f, np.zeros(3)), lambda f: np.savez(f, a=np.array([{}], object))):
    with npz.open("wb") as file:
      save(file)
    with pytest.raises(UserError, match="cannot take arrays"):
      interop.read(npz)
  with pytest.raises(UserError, match="cannot read .*absent.npz.*No such file"):
    interop.read(tmp_path / "absent.npz")
  npz.rename(tmp_path / "a.th")
  with pytest.raises(UserError, match="cannot take tensors"):
    interop.read(tmp_path / "a.th")


def dataset_of(labels, **changes):
  """The golden images as the held-out split, two of them to train on."""
  source = dataset_lib.ArraySource(golden.images(), np.asarray(labels, np.int32))
  fields = dict(
    name="tiny",
    train=dataset_lib.Rows(source, np.arange(2)),
    heldout=source,
    class_names=tuple("abcdefghij"),
    image_shape=(32, 32, 3),
  )
  return dataset_lib.Dataset(**{**fields, **changes})


def dim(config):
  """The judge's feature dimension, as it is known before there is one."""
  return judge_files.outline(config, dataset=dataset_of(np.zeros(8))).dims["judge"]


@pytest.fixture
def judged(npz, config, tmp_path):
  """(get, config, labels, measurements): get(labels) is judge_files.load in one work directory;
  labels with PyTorch's answers to 6 of 8 images.
  """
  labels = files.read_npz(golden.PATH)["logits"].argmax(axis=1)
  labels[[2, 5]] = (labels[[2, 5]] + 1) % 10
  config.judge.update(path=str(npz), min_accuracy=0.75, batch_size=3)
  (tmp_path / "work").mkdir()
  measured = []
  with pytest.MonkeyPatch.context() as patch:
    original = PlacedExtractor.measure
    patch.setattr(
      PlacedExtractor, "measure", lambda *args, **kw: measured.append(1) or original(*args, **kw)
    )
    get = lambda labels, **changes: judge_files.load(
      config, dataset=dataset_of(labels, **changes), workdir=tmp_path / "work"
    )
    yield get, config, labels, measured


def test_the_judge_is_the_file(judged, npz, tmp_path):
  """judge.path makes the extractor: its name, hash and accuracy; nothing is trained, and no weights
  are written.
  """
  get, config, labels, _ = judged
  extractor = get(labels)
  sha = trees.tree_hash(interop.read(npz)[1])
  assert extractor.name == f"cifar-resnet8-{sha[:8]}" and extractor.dims == {
    "judge": 64,
    "judge_logits": 10,
  }
  assert {k: v for k, v in extractor.info.items() if k != "identity"} == {
    "weights_sha256": sha,
    "file": "resnet8.npz",
    "heldout_accuracy": 0.75,
  }
  assert [p.name for p in (tmp_path / "work").iterdir()] == [f"{extractor.name}.json"]
  assert (
    str(tmp_path)
    not in json.dumps(extractor.info) + (tmp_path / "work" / f"{extractor.name}.json").read_text()
  )
  placed = PlacedExtractor(extractor, sharding.make_mesh(jax.devices()[:1]))
  np.testing.assert_allclose(
    placed(golden.images())["judge"], files.read_npz(golden.PATH)["features"], atol=1e-5, rtol=1e-5
  )
  config.judge.feature_dim = 8  # of a trained judge
  assert dim(config) == 64
  config.judge.path = ""
  assert dim(config) == 8


def test_its_accuracy_is_measured_once(judged, npz, tmp_path):
  """A second call reads it; other data, other weights and a damaged record are measured anew, a
  file under another name is not.
  """
  get, config, labels, measured = judged
  first = get(labels)
  assert get(labels).info == first.info and len(measured) == 1
  npz = npz.rename(tmp_path / "other.npz")
  config.judge.path = str(npz)
  assert get(labels).info == {**first.info, "file": "other.npz"} and len(measured) == 1
  config.data.split_seed = 1
  assert get(labels).info["identity"] != first.info["identity"] and len(measured) == 2
  arrays = golden.state_dict()
  arrays["linear.bias"][labels[0]] += 1e-3
  files.write_npz(npz, arrays)
  second = get(labels)
  assert second.name != first.name and len(measured) == 3
  (tmp_path / "work" / f"{second.name}.json").write_text("{")
  assert get(labels).info == second.info and len(measured) == 4


def test_what_it_cannot_judge_is_refused(judged):
  """Too low an accuracy, another number of classes, images of another size or in grey: with what to
  do.
  """
  get, config, labels, _ = judged
  for changes in (
    dict(class_names=("a", "b")),
    dict(image_shape=(64, 64, 3)),
    dict(image_shape=(32, 32, 1)),
  ):
    with pytest.raises(
      UserError,
      match="judge.path is .*32x32x3 images in 10 classes, but tiny has .*leave judge.path empty",
    ):
      get(labels, **changes)
  config.judge.min_accuracy = 0.76
  with pytest.raises(UserError, match="75.00% .*judge.min_accuracy = 0.76.*order of classes"):
    get(labels)


def test_a_config_from_before_the_field(config, tmp_path, monkeypatch):
  """The config in an older work directory has no judge.path: its judge is trained, and a trained
  one is still known for its own.
  """
  monkeypatch.setattr(
    judge_files,
    "_train",
    lambda config, **_: (
      {"w": np.zeros(2, np.float32)},
      {"weights_sha256": trees.tree_hash({"w": np.zeros(2, np.float32)}), "heldout_accuracy": 1.0},
    ),
  )
  dataset = dataset_of(np.zeros(8))
  judge_files.load(config, dataset=dataset, workdir=tmp_path)
  monkeypatch.setattr(judge_files, "_train", lambda *_, **__: pytest.fail("it was trained again"))
  stored = config_lib.to_json(config)
  del stored["judge"]["path"]
  older = config_lib.from_json(stored)
  assert judge_files.load(older, dataset=dataset, workdir=tmp_path).name.startswith("tiny-judge-")
  assert dim(older) == config.judge.feature_dim


def test_the_shortcut_has_its_channels_in_the_middle():
  """Every other pixel from the first, zeros before and behind the channels."""
  x = np.arange(1, 1 + 2 * 4 * 4 * 16, dtype=np.float32).reshape(2, 4, 4, 16)
  out = cifar_resnet.shortcut(x, width=32, stride=2)
  assert out.shape == (2, 2, 2, 32) and not out[..., :8].any() and not out[..., 24:].any()
  np.testing.assert_array_equal(out[..., 8:24], x[:, [0, 2]][:, :, [0, 2]])
