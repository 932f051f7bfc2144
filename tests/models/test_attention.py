"""Attention: which kernel computes which layer, and that they agree."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.base import config as config_lib
from cfg.base import fields, sharding
from cfg.base.errors import UserError
from cfg.models import attention, networks
from cfg.models.attention import Layer
from cfg.models.unet import UNet
from configs import cifar10, digits, folder, imagenet64, imagenet64_classifier, imagenet128

BF16, F32 = jnp.dtype("bfloat16"), jnp.dtype("float32")
SHAPE = (4, 128, 2, 8)  # rows, positions, heads, width


@pytest.mark.parametrize(
  "module, side, gpu, tpu",
  [
    # 7 layers of 1024 positions, 7 of 256, 8 of 64; heads of 64
    (imagenet64, 64, {"cudnn": 22}, {"xla": 15, "splash": 7}),
    # heads of 128 at 32x32, of 192 at 16x16, of 256 at 8x8
    (imagenet128, 128, {"xla": 11, "cudnn": 5}, {"xla": 11, "splash": 5}),
    (cifar10, 32, {"cudnn": 6}, {"xla": 6}),
    (folder, 64, {"cudnn": 11}, {"xla": 11}),
    (digits, 8, {"xla": 4}, {"xla": 4}),
  ],
)
def test_the_choice_for_every_layer_of_each_config(module, side, gpu, tpu):
  """On GPUs, on TPUs, and XLA's on CPUs; counted by the network itself as well."""
  config = module.get_config().model
  model = UNet(num_classes=10, out_channels=3, **config)
  layers = model.attention_layers((side, side, 3))
  count = {}
  for platform in ("cuda", "tpu", "cpu"):
    kinds = [
      attention.choose("auto", Layer(platform, jnp.dtype(config.dtype), width, length))
      for length, width in layers
    ]
    count[platform] = {kind: kinds.count(kind) for kind in attention.KINDS if kind in kinds}
  assert count == {"cuda": gpu, "tpu": tpu, "cpu": {"xla": len(layers)}}
  assert model.attention_choices((side, side, 3)) == count["cpu"]


@pytest.mark.parametrize("module", [imagenet64, imagenet64_classifier])
def test_the_layers_are_those_of_the_network(module):
  """`attention_layers` says what is called, for the U-Net and for the classifier's way down."""
  config = module.get_config()
  model = networks.from_config(
    config.model, objective=config.train.objective, num_classes=10, image_shape=(64, 64, 3)
  )
  params = jax.eval_shape(model.init, jax.random.key(0), *model.inputs((64, 64, 3)))["params"]
  heads = [p["q"]["kernel"].shape[-1] for name, p in params.items() if name.endswith("_attn")]
  assert sorted(heads) == sorted(width for _, width in model.attention_layers((64, 64, 3)))


def test_the_config_knows_every_kind():
  """model.attention takes "auto" and each kind."""
  for kind in (attention.AUTO, *attention.KINDS):
    config = digits.get_config()
    config.model.attention = kind
    fields.check_complete(config)
    config_lib.check_values(config)


def test_what_a_kernel_cannot_do():
  """A kind that devices or the type rule out is refused by name; a layer of a shape that does not
  suit it is XLA's.
  """
  for wanted, layer, said in (
    ("cudnn", Layer("cpu", BF16, 64, 1024), "GPUs, not on a cpu"),
    ("cudnn", Layer("cuda", F32, 64, 1024), "bfloat16, not float32"),
    ("splash", Layer("cuda", BF16, 64, 1024), "TPUs, not on a cuda"),
  ):
    with pytest.raises(UserError, match=f"model.attention is '{wanted}'.*{said}"):
      attention.choose(wanted, layer)
  assert attention.choose("cudnn", Layer("cuda", BF16, 192, 256)) == "xla"
  assert attention.choose("cudnn", Layer("cuda", BF16, 60, 256)) == "xla"
  assert attention.choose("cudnn", Layer("cuda", BF16, 128, 64)) == "cudnn"
  assert attention.choose("splash", Layer("tpu", BF16, 64, 64)) == "xla"
  assert attention.choose("splash", Layer("tpu", BF16, 64, 256)) == "splash"
  for platform, dtype, length in itertools.product(("cuda", "tpu"), (BF16, F32), (64, 1024)):
    assert attention.choose("xla", Layer(platform, dtype, 64, length)) == "xla"


def results(wanted, dtype, mesh=None):
  """(output, gradients of q, k and v) as float64."""
  keys = jax.random.split(jax.random.key(0), 4)
  q, k, v, weight = (2 * jax.random.normal(key, SHAPE).astype(dtype) for key in keys)

  def loss(q, k, v):
    out = attention.attend(q, k, v, wanted=wanted, mesh=mesh)
    return jnp.sum((out * weight).astype(jnp.float32)), out

  grads, out = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(q, k, v)
  return [np.asarray(a, np.float64) for a in (out, *grads)]


@pytest.fixture(scope="module")
def exact():
  return results("xla", jnp.float32)


@pytest.mark.parametrize("devices", [1, 4])
def test_splash_attention_is_attention(exact, devices):
  """In Pallas's interpreter, on one device and on rows split over four: output and gradients are
  XLA's to 1e-5 of their norm in float32.
  """
  mesh = sharding.make_mesh(jax.devices()[:devices])
  for ours, theirs in zip(results("splash", jnp.float32, mesh), exact, strict=True):
    assert np.linalg.norm(ours - theirs) < 1e-5 * np.linalg.norm(theirs)


def test_splash_attention_in_bfloat16(exact):
  """It is as near to the exact numbers as XLA's products in bfloat16 are, within a third."""
  far = lambda found: [
    np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in zip(found, exact, strict=True)
  ]
  ours, theirs = far(results("splash", jnp.bfloat16)), far(results("xla", jnp.bfloat16))
  for own, xla in zip(ours, theirs, strict=True):
    assert own < max(1.35 * xla, 0.004) and xla < 0.02


def test_rows_that_devices_cannot_share_are_xla_s():
  """XLA cannot split a kernel: three rows on four devices, or one when parameters are made."""
  mesh = sharding.make_mesh(jax.devices()[:4])
  text = lambda rows: str(
    jax.make_jaxpr(lambda q: attention.attend(q, q, q, wanted="splash", mesh=mesh))(
      jnp.zeros((rows, *SHAPE[1:]))
    )
  )
  assert "pallas_call" in text(4) and "pallas_call" not in text(3)
