"""FID's Inception network is the published one, in all its oddities."""

import functools
import importlib.util

import inception_files
import inception_reference as reference
import jax
import numpy as np
import pytest

from cfg.base import files
from cfg.interop import inception as interop
from cfg.interop import inception_formats as formats
from cfg.models import inception


@pytest.fixture(scope="module")
def params(tmp_path_factory):
  """The reference's random weights, by way of a file of the port."""
  path = tmp_path_factory.mktemp("inception") / "random.pth"
  inception_files.write_port(path, reference.state_dict())
  return interop.read(path)[0]


@pytest.fixture(scope="module")
def outputs(params):
  """All outputs of the reference's images."""
  return forward(params, reference.images(), *inception.OUTPUTS)


@functools.partial(jax.jit, static_argnums=range(2, 8))
def forward(params, pixels, *outputs):
  return inception.apply(params, pixels, outputs=outputs)


def relative(found, wanted):
  """|found - wanted| / |wanted|, the largest of the rows."""
  return (np.linalg.norm(found - wanted, axis=1) / np.linalg.norm(wanted, axis=1)).max()


def real_errors(rows):
  """{output: largest relative error} of the real network on rows of CIFAR-10's test images."""
  params, info = interop.read(inception_files.shared("inception_2015_12_05_to_mixed8.npz"))
  assert not info["complete"] and inception.available(params) == ("spatial", "mixed_7", "mixed_8")
  spec = importlib.util.spec_from_file_location("decode", inception_files.shared("decode.py"))
  decode = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(decode)
  images = decode.cifar10_batch(inception_files.shared("cifar10/test_batch.npz"))[0][:200]
  wanted = files.read_npz(inception_files.shared("inception_features_cifar10_test200.npz"))
  found = [
    forward(params, images[rows[i : i + 8]], "mixed_7", "mixed_8") for i in range(0, len(rows), 8)
  ]
  return {
    ours: relative(np.concatenate([f[ours] for f in found]), wanted[theirs][rows])
    for ours, theirs in (("mixed_7", "p768"), ("mixed_8", "m8"))
  }


def test_the_real_network():
  """With the published weights, features of 24 test images of CIFAR-10 are those that PyTorch
  computed, to 1e-5 (1e-4 is asked for).
  """
  errors = real_errors(np.arange(0, 192, 8))
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.slow
def test_the_real_network_on_all_the_reference_features():
  """All 200 images."""
  errors = real_errors(np.arange(200))
  assert max(errors.values()) < 1e-5, errors


@pytest.mark.smoke
@pytest.mark.parametrize("name", inception.OUTPUTS)
def test_outputs_are_pytorchs(outputs, name):
  """Random weights, uint8 images 40x57: every output has its dimension and the numbers that PyTorch
  gave (inception_reference.py), to 1e-5.
  """
  assert (
    outputs[name].shape == (2, inception.OUTPUTS[name].dim) and outputs[name].dtype == np.float32
  )
  assert relative(outputs[name][:, :: reference.STEP], files.read_npz(reference.PATH)[name]) < 1e-5


def test_outputs_are_pytorchs_now(outputs):
  """The same against the PyTorch that is installed, in full; the frozen numbers are its numbers."""
  pytest.importorskip("torch")
  wanted = reference.torch_outputs(reference.state_dict(), reference.images())
  for name, frozen in files.read_npz(reference.PATH).items():
    assert relative(outputs[name], wanted[name]) < 1e-5, name
    assert relative(frozen, wanted[name][:, :: reference.STEP]) < 1e-5, name


def test_what_is_not_asked_for_is_not_computed(params):
  """The convolutions in the program are those of the blocks up to the deepest output, and weights
  of others need not be there.
  """
  block = lambda scope: (
    -1 if scope.startswith("conv") else int(scope.split("/")[0].partition("_")[2] or 0)
  )
  for outputs, last in (
    (("spatial",), 6),
    (("mixed_7", "spatial"), 7),
    (("mixed_8",), 8),
    (("pool_3",), 10),
    (("logits_no_bias",), 10),
  ):
    part = {name: p for name, p in params.items() if name != "softmax" and block(name) <= last}
    part |= {"softmax": params["softmax"]} if outputs == ("logits_no_bias",) else {}
    program = jax.make_jaxpr(lambda p, x, outputs=outputs: inception.apply(p, x, outputs=outputs))(
      part, np.zeros((1, 32, 32, 3), np.uint8)
    )
    assert str(program).count("conv_general_dilated[") == sum(
      block(scope) <= last for scope in reference.convolutions()
    ), outputs
    assert [v.shape for v in program.out_avals] == [
      (1, inception.OUTPUTS[name].dim) for name in sorted(outputs)
    ]


def test_products_are_of_whole_float32(params):
  """Every convolution and matrix product says so, the resize's two and the softmax's too: GPUs and
  TPUs would round their inputs.
  """
  program = str(
    jax.make_jaxpr(lambda p, x: inception.apply(p, x, outputs=("logits",)))(
      params, np.zeros((1, 32, 32, 3), np.uint8)
    )
  )
  assert program.count("conv_general_dilated[") + program.count("dot_general[") == 94 + 3
  assert program.count("precision=(Precision.HIGHEST, Precision.HIGHEST)") == 94 + 3


def slow_resize(image, size=299):
  """TF1's rule, pixel by pixel, in float64."""
  height, width, channels = image.shape
  out = np.zeros((size, size, channels))
  for i in range(size):
    for j in range(size):
      y, x = i * height / size, j * width / size
      top, left = int(y), int(x)
      bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
      dy, dx = y - top, x - left
      above = image[top, left] * (1 - dx) + image[top, right] * dx
      below = image[bottom, left] * (1 - dx) + image[bottom, right] * dx
      out[i, j] = above * (1 - dy) + below * dy
  return out


@pytest.mark.parametrize("shape", [(1, 2), (32, 32), (64, 150), (299, 299), (300, 598), (700, 40)])
def test_resize(shape):
  """TF1's rule to 0.02 of 255 grey levels, larger and smaller; an image of 299x299 stays as it is,
  bit by bit; rows and columns are told apart.
  """
  pixels = reference.images(count=1, shape=shape)
  found = np.asarray(inception.resize(pixels.astype(np.float32)))
  assert found.shape == (1, 299, 299, 3)
  np.testing.assert_allclose(found[0], slow_resize(pixels[0].astype(np.float64)), atol=0.02)
  if shape == (299, 299):
    np.testing.assert_array_equal(found, pixels)


def test_resize_by_pytorch():
  """torch's grid_sample at the same places gives the same."""
  pytest.importorskip("torch")
  pixels = reference.images(count=2, shape=(64, 33))
  np.testing.assert_allclose(
    inception.resize(pixels.astype(np.float32)),
    reference.torch_resize(pixels).permute(0, 2, 3, 1),
    atol=0.01,
  )


def test_pools():
  """By hand: the mean and the largest of what of a 3x3 window is in the image, and the largest of
  every other whole window.
  """
  x = np.random.RandomState(0).randn(2, 7, 9, 3).astype(np.float32)
  mean, largest = np.zeros_like(x), np.zeros_like(x)
  for i in range(7):
    for j in range(9):
      window = x[:, max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]
      mean[:, i, j], largest[:, i, j] = window.mean(axis=(1, 2)), window.max(axis=(1, 2))
  np.testing.assert_allclose(inception.average_pool(x), mean, atol=1e-6)
  np.testing.assert_array_equal(inception.max_pool(x, stride=1, padding="SAME"), largest)
  np.testing.assert_array_equal(inception.halving_pool(x), largest[:, 1:-1:2, 1:-1:2])


def test_rows_do_not_know_of_each_other(outputs, params):
  """An image alone has the features that it has in a batch."""
  alone = forward(params, reference.images()[1:], "pool_3")
  assert relative(alone["pool_3"], outputs["pool_3"][1:]) < 1e-5


def test_layout_and_names():
  """94 convolutions and the softmax; scopes, names and shapes are the published ones
  (inception_reference.py), of 23.8 million numbers.
  """
  theirs = reference.convolutions()
  shapes = {
    f"{scope}/kernel": (*kernel[2:], kernel[1], kernel[0]) for scope, (_, kernel) in theirs.items()
  }
  shapes |= {f"{scope}/bias": kernel[:1] for scope, (_, kernel) in theirs.items()}
  assert inception.layout() == shapes | {"softmax/kernel": (2048, 1008), "softmax/bias": (1008,)}
  assert len(theirs) == 94 and {scope: formats.torch_name(scope) for scope in theirs} == {
    scope: name for scope, (name, _) in theirs.items()
  }
