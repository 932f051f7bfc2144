"""guided-diffusion's networks in ours: the same outputs, for every variant that checkpoints in use
have.
"""

import json

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
from adm_reference import Reference, Variant

from cfg import schedules
from cfg.base.errors import UserError
from cfg.interop import adm, adm_weights
from cfg.models import classifier, unet

GOLDEN = paths.DATA
SHARED = paths.SHARED / "golden"


def load(path):
  """(state dict, inputs and output, config) of a golden file."""
  with np.load(path, allow_pickle=False) as file:
    arrays = {name: file[name] for name in file.files}
  config = json.loads(str(arrays.pop("config")))
  state = {
    name.removeprefix("state/"): a for name, a in arrays.items() if name.startswith("state/")
  }
  return state, arrays, config


def facts_of(config, schedule="cosine"):
  return dict(
    image_size=config["image_size"],
    num_heads=config.get("num_heads"),
    head_dim=config.get("num_head_channels"),
    attention_order="new" if config["use_new_attention_order"] else "legacy",
    schedule=schedule,
  )


def levels(t, schedule="cosine"):
  """log-SNR at fractional steps."""
  return np.interp(t, np.arange(1000), schedules.discrete_logsnr(schedule)).astype(np.float32)


def run_unet(state, *, x, t, y, facts, num_classes):
  """eps of our U-Net, NCHW."""
  params, fields, _ = adm.convert_unet(state, **facts)
  model = unet.from_config(fields, num_classes=num_classes, image_shape=(*x.shape[2:], x.shape[1]))
  eps_fn = jax.jit(unet.make_eps_fn(model, params))
  return np.moveaxis(
    np.asarray(
      eps_fn(np.moveaxis(x, 1, -1), levels(t, facts["schedule"]), np.asarray(y, np.int32))
    ),
    -1,
    1,
  )


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_unet_agrees_with_the_golden_network(schedule):
  """guided-diffusion's own output, to 1e-4; the learned variance dropped; at steps 0, 123.5 and
  999.
  """
  path = SHARED / "adm_unet.npz"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  state, arrays, config = load(path)
  out = run_unet(
    state,
    x=arrays["input/x"],
    t=arrays["input/timesteps"],
    y=arrays["input/y"],
    facts=facts_of(config, schedule),
    num_classes=10,
  )
  np.testing.assert_allclose(out, arrays["output"][:, :3], atol=1e-4, rtol=0)


def test_the_reference_agrees_with_the_golden_network():
  """The numpy reference that the other tests trust gives guided-diffusion's output."""
  path = SHARED / "adm_unet.npz"
  if not path.exists():
    pytest.skip(f"there is no {path}")
  state, arrays, config = load(path)
  known = {name: value for name, value in config.items() if name in Variant.__dataclass_fields__}
  reference = Reference(Variant(**{**known, "channel_mult": tuple(config["channel_mult"])}), state)
  np.testing.assert_allclose(
    reference.forward(arrays["input/x"], arrays["input/timesteps"], arrays["input/y"]),
    arrays["output"],
    atol=1e-5,
  )


def test_classifier_agrees_with_the_golden_network():
  """guided-diffusion's noise-conditional classifier: the same logits to 1e-4. (A copy of the shared
  golden, MIT.)
  """
  state, arrays, config = load(GOLDEN / "adm_classifier.npz")
  params, fields, _ = adm.convert_classifier(state, **facts_of(config))
  model = classifier.Classifier(num_classes=10, **fields)
  z = np.moveaxis(arrays["input/x"], 1, -1)
  out = jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))(
    z, levels(arrays["input/timesteps"])
  )
  np.testing.assert_allclose(out, arrays["output"], atol=1e-4, rtol=0)


VARIANTS = {
  "as published": Variant(),
  "legacy order, heads by number": Variant(
    use_new_attention_order=False, num_heads=4, num_head_channels=None
  ),
  "legacy order, heads by width": Variant(use_new_attention_order=False),
  "no classes": Variant(num_classes=None),
  "no scale-shift": Variant(use_scale_shift_norm=False),
  "convolutions resample": Variant(resblock_updown=False),
  "attention at two levels": Variant(attention_levels=(0, 1), num_res_blocks=2),
  "three levels, attention at the first and last": Variant(
    attention_levels=(0, 2), channel_mult=(1, 1, 2), resblock_updown=False
  ),
  "no learned variance": Variant(out_channels=3),
  "half the width at the first level": Variant(channel_mult=(0.5, 1), model_channels=64),
  "all at once": Variant(
    use_new_attention_order=False,
    num_heads=2,
    num_head_channels=None,
    num_classes=None,
    use_scale_shift_norm=False,
    resblock_updown=False,
    attention_levels=(0, 1),
    num_res_blocks=2,
    out_channels=3,
  ),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_variants_agree_with_the_reference(name):
  """Every variant of the architecture, drawn at random, gives the reference's output to 1e-4."""
  variant = VARIANTS[name]
  rng = np.random.default_rng(1)
  x, t, y = (
    rng.normal(size=(2, 3, 16, 16)).astype(np.float32),
    np.array([17.0, 800.0]),
    np.array([3, 7]),
  )
  reference = Reference(variant)
  expected = reference.forward(x, t, y)[:, :3]
  facts = dict(
    image_size=16,
    num_heads=variant.num_heads,
    head_dim=variant.num_head_channels,
    schedule="linear",
    attention_order="new" if variant.use_new_attention_order else "legacy",
  )
  out = run_unet(reference.state, x=x, t=t, y=y, facts=facts, num_classes=variant.num_classes or 1)
  assert np.abs(expected).max() > 0.5
  np.testing.assert_allclose(out, expected, atol=1e-4, rtol=0)


def test_facts_matter():
  """The wrong order of q, k, v, or number of heads, gives another output: what a file does not show
  must be right.
  """
  rng = np.random.default_rng(1)
  x, t, y = rng.normal(size=(1, 3, 16, 16)).astype(np.float32), np.array([400.0]), np.array([3])
  reference = Reference(Variant())
  right = reference.forward(x, t, y)[:, :3]
  facts = dict(image_size=16, num_heads=None, head_dim=16, schedule="linear", attention_order="new")
  for wrong in (
    dict(attention_order="legacy"),
    dict(head_dim=32),
    dict(schedule="cosine", attention_order="legacy"),
  ):
    out = run_unet(reference.state, x=x, t=t, y=y, facts={**facts, **wrong}, num_classes=10)
    assert np.abs(out - right).max() > 1e-3, wrong


@pytest.mark.parametrize("published", adm.PUBLISHED)
def test_published_networks_are_recognised(published):
  """Their facts need not be given; what is given wins."""
  given = dict.fromkeys(("image_size", "num_heads", "head_dim", "attention_order", "schedule"))
  assert adm.read_facts(signature=published, given=given) == adm.PUBLISHED[published]
  assert adm.read_facts(signature=published, given={**given, "num_heads": 7}).num_heads == 7


@pytest.mark.parametrize(
  "side, fields, count",
  [
    (64, dict(ch=192, ch_mult=(1, 2, 3, 4), num_res_blocks=3, head_dim=64), 295_904_454),
    (128, dict(ch=256, ch_mult=(1, 1, 2, 3, 4), num_res_blocks=2, num_heads=4), 421_529_606),
  ],
)
def test_published_sizes(side, fields, count):
  """The published networks' parameter counts: six outputs, and a class table without bias (ours has
  one, of zeros).
  """
  emb_ch = 4 * fields["ch"]
  model = unet.UNet(
    num_classes=1000,
    class_rows=1000,
    out_channels=6,
    emb_ch=emb_ch,
    attn_resolutions=(32, 16, 8),
    **fields,
  )
  shapes = jax.eval_shape(
    lambda key: unet.init_params(model, key=key, image_shape=(side, side, 3)), jax.random.key(0)
  )
  assert unet.num_params(shapes) == count + emb_ch


def test_unknown_networks_are_refused():
  """What is missing, left over or of another kind is said; an unpublished network must be
  described.
  """
  reference = Reference(Variant())
  reference.forward(np.zeros((1, 3, 16, 16)), np.zeros(1), np.zeros(1, int))
  state = reference.state
  facts = dict(image_size=16, head_dim=16, schedule="linear", attention_order="new")
  with pytest.raises(
    UserError, match="--image_size, --attention_order, --schedule, --num_heads or --head_dim"
  ):
    adm.convert_unet(state)
  with pytest.raises(UserError, match="together"):
    adm.convert_unet(state, num_heads=2, **facts)
  with pytest.raises(UserError, match="24 heads"):
    adm.convert_unet(state, **{**facts, "head_dim": None, "num_heads": 24})
  with pytest.raises(UserError, match="1 arrays that its network does not: surplus"):
    adm.convert_unet({**state, "surplus": np.zeros(1)}, **facts)
  with pytest.raises(UserError, match="no 'middle_block.1.qkv.weight'"):
    adm.convert_unet(
      {name: a for name, a in state.items() if name != "middle_block.1.qkv.weight"}, **facts
    )
  with pytest.raises(UserError, match="conv_resample=False"):
    adm.convert_unet(
      {name: a for name, a in state.items() if not name.startswith("input_blocks.2.")}, **facts
    )
  with pytest.raises(UserError, match="upsampler"):
    adm.convert_unet(
      {
        **state,
        "input_blocks.0.0.weight": np.zeros((32, 6, 3, 3), np.float32),
        "out.2.weight": np.zeros((3, 32, 3, 3)),
      },
      **facts,
    )
  with pytest.raises(UserError, match="classifier"):
    adm.convert_unet({"out.2.positional_embedding": np.zeros(1)}, **facts)


def test_take_once():
  """A state dict's array is used once: a name that two layers would share is an error, not a silent
  copy.
  """
  state = adm_weights.State({"a": np.zeros(2)})
  state.take("a")
  with pytest.raises(UserError, match="no 'a'"):
    state.take("a")
  state.finish()


@pytest.mark.parametrize("name", ["cosine", "linear"])
def test_discrete_time_inverts_the_schedule(name):
  """All 1,000 steps come back, halves between them are between, and beyond the ends it stays at the
  end.
  """
  table = schedules.discrete_logsnr(name)
  time = jax.jit(lambda logsnr: schedules.discrete_time(logsnr, table=table))
  np.testing.assert_allclose(time(jnp.asarray(table, jnp.float32)), np.arange(1000), atol=2e-3)
  np.testing.assert_allclose(
    time(jnp.asarray((table[1:] + table[:-1]) / 2, jnp.float32)), np.arange(999) + 0.5, atol=2e-3
  )
  np.testing.assert_array_equal(
    time(jnp.float32([table[0] + 1, 20.0, 1e9, table[-1] - 1, -30.0, -1e9])),
    [0, 0, 0, 999, 999, 999],
  )
  dense = time(jnp.linspace(-25, 15, 4001))
  assert np.all(np.diff(dense) <= 0)


def test_discrete_schedules_are_theirs():
  """abar of the definitions: linear's product of 1 - beta at a few steps, cosine's closed form
  where no beta is cut.
  """
  abar = lambda name: 1 / (1 + np.exp(-schedules.discrete_logsnr(name)))
  beta = np.linspace(1e-4, 0.02, 1000)
  for t in (0, 1, 500, 999):
    assert abar("linear")[t] == pytest.approx(np.prod(1 - beta[: t + 1]), rel=1e-9)
  f = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
  for t in (0, 100, 500, 990):
    assert abar("cosine")[t] == pytest.approx(f((t + 1) / 1000) / f(0), rel=1e-9)
  assert abar("cosine")[999] == pytest.approx(0.001 * abar("cosine")[998], rel=1e-9)
  with pytest.raises(ValueError, match="cosine"):
    schedules.discrete_logsnr("sqrt")
