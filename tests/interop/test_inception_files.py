"""Weights of FID's Inception network are read from what people have, or refused."""

import hashlib

import inception_files
import inception_reference as reference
import jax
import numpy as np
import paths
import pytest
import safetensors.numpy
from inception_files import shared
from torch_files import write_torch

from cfg.base import files, trees
from cfg.base.errors import UserError
from cfg.interop import inception as interop
from cfg.models import inception


@pytest.fixture(scope="module")
def state():
  """Random weights, as the port has them."""
  return reference.state_dict()


@pytest.fixture(scope="module")
def pth(state, tmp_path_factory):
  """The port's file of them."""
  path = tmp_path_factory.mktemp("inception") / "pt_inception.pth"
  inception_files.write_port(path, state)
  return path


@pytest.fixture(scope="module")
def weights(pth):
  """(params, info) of that file."""
  return interop.read(pth)


def test_every_format_is_the_same_network(state, weights, tmp_path):
  """The graph (.pb), the folded arrays and our own file of the same weights give the parameters of
  the port's file, bit by bit, whatever their names.
  """
  params, info = weights
  assert info == {
    "format": "PyTorch",
    "file": "pt_inception.pth",
    "weights_sha256": trees.tree_hash(params),
    "complete": True,
  }
  inception_files.write_graph(tmp_path / "a", state)
  inception_files.write_folded(tmp_path / "b", state)
  interop.write(tmp_path / "c", params)
  for name, kind in (("a", "frozen graph"), ("b", "folded arrays"), ("c", "safetensors")):
    other, about = interop.read(tmp_path / name)
    assert about == info | {"format": kind, "file": name}
    assert inception.available(other) == tuple(inception.OUTPUTS)


def test_a_graph_tells_its_own_epsilon_and_scale(state, tmp_path):
  """The attributes of its batch norms count; a constant of equal values may be stored as one."""
  state = dict(state)
  state["Conv2d_1a_3x3.bn.running_mean"] = np.full(32, 0.25, np.float32)
  inception_files.write_graph(tmp_path / "a.pb", state, epsilon=0.5, scaled=False)
  params, _ = interop.read(tmp_path / "a.pb")
  scale = 1 / np.sqrt(state["Conv2d_1a_3x3.bn.running_var"] + 0.5)
  np.testing.assert_allclose(
    params["conv"]["kernel"],
    state["Conv2d_1a_3x3.conv.weight"].transpose(2, 3, 1, 0) * scale,
    rtol=1e-6,
  )
  np.testing.assert_allclose(
    params["conv"]["bias"], state["Conv2d_1a_3x3.bn.bias"] - 0.25 * scale, rtol=1e-5, atol=1e-6
  )


def test_part_of_the_weights(state, tmp_path):
  """Up to mixed_8 they are read, kept and used; what needs more is refused by name; so is an
  unknown output.
  """
  inception_files.write_folded(tmp_path / "a.npz", state, until="mixed_9/tower/conv")
  params, info = interop.read(tmp_path / "a.npz")
  assert not info["complete"] and "mixed_9" in params
  interop.write(tmp_path / "b.safetensors", params)
  again, about = interop.read(tmp_path / "b.safetensors")
  assert (about["weights_sha256"], about["complete"]) == (info["weights_sha256"], False)
  pixels = np.zeros((1, 8, 8, 3), np.uint8)
  shapes = jax.eval_shape(
    lambda params: inception.apply(params, pixels, outputs=("mixed_8", "mixed_7", "spatial")), again
  )
  assert {name: a.shape for name, a in shapes.items()} == {
    "mixed_8": (1, 1280),
    "mixed_7": (1, 768),
    "spatial": (1, 2023),
  }
  with pytest.raises(
    UserError,
    match="pool_3, logits cannot be computed without mixed_.*more.*enough for spatial, mixed_7, "
    "mixed_8;",
  ):
    inception.apply(params, pixels, outputs=("mixed_8", "pool_3", "logits"))
  with pytest.raises(UserError, match="no output 'pool3': did you mean 'pool_3'"):
    inception.apply(params, pixels, outputs=("pool3",))


@pytest.mark.parametrize(
  "lacking, able",
  [
    (None, "spatial mixed_7 mixed_8 pool_3 logits logits_no_bias"),
    ("softmax/bias", "spatial mixed_7 mixed_8 pool_3"),
    ("mixed_10/tower_1/mixed/conv_1/bias", "spatial mixed_7 mixed_8"),
    ("mixed_8/tower/conv/kernel", "spatial mixed_7"),
    ("mixed_7/conv/bias", "spatial"),
    ("mixed_6/conv/bias", ""),
    ("conv_4/kernel", ""),
  ],
)
def test_what_weights_are_enough_for(lacking, able):
  """Without one array there are the outputs before it, and no others."""
  there = {name: shape for name, shape in inception.layout().items() if name != lacking}
  assert inception.available(trees.unflatten(there)) == tuple(able.split())


def small(**changes):
  """The arrays of a folded file that ends after the stem, changed."""
  arrays = {}
  for scope, (_, kernel) in list(reference.convolutions().items())[:5]:
    arrays |= {
      f"{scope}/folded_weights": np.zeros((*kernel[2:], kernel[1], kernel[0]), np.float32),
      f"{scope}/folded_bias": np.zeros(kernel[0]),
    }
  return arrays | changes


@pytest.mark.parametrize(
  "arrays, words",
  [
    (
      small(),
      "a.npz', read as folded arrays, has too little of .*lacks mixed/conv/bias, .*\\.\\.\\.",
    ),
    (
      small(**{"conv_9/folded_bias": np.zeros(3)}),
      "is not the Inception network of 2015-12-05: it has 1 arrays that .*: conv_9/folded_bias",
    ),
    (
      small(**{"conv/folded_bias": np.zeros(3)}),
      "conv/folded_bias has shape \\(3,\\), not \\(32,\\)",
    ),
    (small(**{"conv/folded_bias": np.array(["x"] * 32)}), "conv/folded_bias is not of numbers"),
    (
      small(**{"conv/folded_bias": np.full(32, np.nan)}),
      "damaged: conv/bias has numbers that are not finite",
    ),
  ],
)
def test_other_arrays_are_refused(tmp_path, arrays, words):
  """Too few, unknown, of another shape, text, not finite: the file and the array are named."""
  files.write_npz(tmp_path / "a.npz", arrays)
  with pytest.raises(UserError, match=words):
    interop.read(tmp_path / "a.npz")


@pytest.mark.filterwarnings("error")
def test_other_files_are_refused(pth, tmp_path):
  """Absent, empty, text, archives, cut short, other networks of PyTorch and of safetensors: one
  sentence each, and no file left open.
  """
  path = tmp_path / "file"
  cases = {
    b"": "no file of Inception weights",
    b"hello": "no file of Inception weights",
    b"\x1f\x8b\x08" + bytes(9): "Unpack classify_image_graph_def.pb",
    pth.read_bytes()[:1000]: "read as PyTorch, is not .*cannot take tensors",
    b"PK\x03\x04" + bytes(40): "cannot take tensors",
    b"\x0a\x7fx": "read as frozen graph, is not .*or is damaged",
    (paths.DATA / "torch_legacy.pt").read_bytes(): "lacks 472 of its 472",
    safetensors.numpy.save(
      {"a": np.zeros(3)}
    ): "read as safetensors, is not .*has format None, not 'cfg-inception-1'",
  }
  for content, words in cases.items():
    path.write_bytes(content)
    with pytest.raises(UserError, match=words):
      interop.read(path)
  with pytest.raises(UserError, match="cannot read .*absent.*No such file"):
    interop.read(tmp_path / "absent")
  with pytest.raises(UserError, match="cannot read"):
    interop.read(tmp_path)
  write_torch(
    path,
    {"fc.weight": np.zeros((1000, 2048), np.float32), "AuxLogits.fc.bias": np.zeros(3, np.float32)},
  )
  with pytest.raises(UserError, match="it lacks 471 of its 472 arrays: Conv2d_1a_3x3"):
    interop.read(path)


def test_damaged_weights_are_refused(weights, tmp_path):
  """Our own file with one bit flipped differs from its hash; cut short it is damaged."""
  params = {"conv": weights[0]["conv"], "conv_1": weights[0]["conv_1"]}
  interop.write(tmp_path / "a.safetensors", params)
  content = bytearray((tmp_path / "a.safetensors").read_bytes())
  content[-100] ^= 1
  (tmp_path / "a.safetensors").write_bytes(content)
  with pytest.raises(UserError, match="differ from the hash"):
    interop.read(tmp_path / "a.safetensors")
  (tmp_path / "a.safetensors").write_bytes(content[:-100])
  with pytest.raises(UserError, match="is damaged"):
    interop.read(tmp_path / "a.safetensors")


def edited_graph(edit):
  """A graph of the first convolution alone, edited."""
  found = inception_files.graph_pb2.GraphDef()
  inception_files.add_constant(found, "conv/conv2d_params", np.zeros((3, 3, 3, 32), np.float32))
  for part in ("beta", "gamma", "moving_mean", "moving_variance"):
    inception_files.add_constant(found, f"conv/batchnorm/{part}", np.arange(32, dtype=np.float32))
  node = found.node.add(name="conv/batchnorm", op="BatchNormWithGlobalNormalization")
  node.attr["variance_epsilon"].f, node.attr["scale_after_normalization"].b = 1e-3, True
  edit({node.name: node for node in found.node})
  return found.SerializeToString()


def set_value(name, change):
  return lambda nodes: change(nodes[name].attr["value"].tensor)


@pytest.mark.parametrize(
  "edit, words",
  [
    (lambda nodes: None, "it has no batch norm conv_1/batchnorm"),
    (
      lambda nodes: setattr(nodes["conv/batchnorm"], "op", "Identity"),
      "no batch norm conv/batchnorm",
    ),
    (
      lambda nodes: nodes["conv/batchnorm"].attr.pop("variance_epsilon"),
      "no batch norm conv/batchnorm",
    ),
    (
      lambda nodes: setattr(nodes["conv/conv2d_params"], "op", "Placeholder"),
      "no constant conv/conv2d_params",
    ),
    (
      lambda nodes: setattr(nodes["conv/batchnorm/beta"], "name", "x"),
      "no constant conv/batchnorm/beta",
    ),
    (
      set_value("conv/batchnorm/beta", lambda t: setattr(t, "dtype", 2)),
      "beta is not float32 of shape \\(32,\\) \\(but type 2, shape \\(32,\\)\\)",
    ),
    (
      set_value("conv/batchnorm/beta", lambda t: t.tensor_shape.dim.add(size=-1)),
      "beta is not float32 of shape",
    ),
    (
      set_value("conv/batchnorm/gamma", lambda t: setattr(t, "tensor_content", bytes(7))),
      "gamma of shape \\(32,\\) has 1 values",
    ),
    (
      set_value("conv/batchnorm/gamma", lambda t: t.ClearField("tensor_content")),
      "gamma of shape \\(32,\\) has 0 values",
    ),
    (
      set_value(
        "conv/batchnorm/moving_variance",
        lambda t: setattr(t, "tensor_content", b"\0\0\x80\xbf" * 32),
      ),
      "conv has a variance below zero",
    ),
  ],
)
def test_other_graphs_are_refused(tmp_path, edit, words):
  """Nodes that are missing or of another kind, constants of another type, shape or length,
  impossible values: the node is named.
  """
  (tmp_path / "a.pb").write_bytes(edited_graph(edit))
  with pytest.raises(
    UserError,
    match=f"a.pb', read as frozen graph, is not the Inception network of 2015-12-05: .*{words}",
  ):
    interop.read(tmp_path / "a.pb")


@pytest.fixture
def served(pth, monkeypatch):
  """The address is that of the port's file here, with its hash."""
  monkeypatch.setattr(interop, "URL", pth.as_uri())
  monkeypatch.setattr(interop, "SHA256", hashlib.sha256(pth.read_bytes()).hexdigest())


def test_the_command(served, weights, tmp_path, capsys):
  """Downloaded or given, the weights are written in our format."""
  interop.main([str(tmp_path / "a.safetensors")])
  interop.main([str(tmp_path / "b.safetensors"), "--source", str(tmp_path / "a.safetensors")])
  for name in ("a.safetensors", "b.safetensors"):
    assert interop.read(tmp_path / name)[1] == weights[1] | {"format": "safetensors", "file": name}
  with pytest.raises(UserError, match="its folder is not there"):
    interop.main([str(tmp_path / "absent" / "a.safetensors")])


def test_a_download_is_whole_or_not_there(served, monkeypatch, tmp_path):
  """A wrong file, or no network, leaves nothing behind; the message says what to do."""
  monkeypatch.setattr(interop, "SHA256", "0" * 64)
  with pytest.raises(UserError, match="not the file of old.*Nothing was kept"):
    interop.download(tmp_path / "a.pth")
  monkeypatch.setattr(interop, "URL", "http://127.0.0.1:9/a.pth")
  with pytest.raises(UserError, match="cannot download http.*refused.*--source=FILE"):
    interop.download(tmp_path / "a.pth")
  assert not list(tmp_path.iterdir())


def test_the_pinned_file():
  """The address ends in the first digits of the hash, as files of torch.hub do."""
  assert interop.URL.endswith(f"-{interop.SHA256[:8]}.pth") and len(interop.SHA256) == 64


def test_the_real_file_survives_ours(tmp_path):
  """The shared arrays, written in our format and read again, are the same bit by bit."""
  params, info = interop.read(shared("inception_2015_12_05_to_mixed8.npz"))
  interop.write(tmp_path / "a.safetensors", params)
  again, about = interop.read(tmp_path / "a.safetensors")
  assert about["weights_sha256"] == info["weights_sha256"]
  mine, theirs = (trees.flatten(tree) for tree in (again, params))
  assert mine.keys() == theirs.keys() and all(
    mine[name].tobytes() == theirs[name].tobytes() for name in mine
  )
