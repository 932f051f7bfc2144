"""The U-Net: sizes, starts, what its output depends on, precision."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import schedules
from cfg.base.errors import UserError
from cfg.models import backbone, layers, unet

SMALL = dict(
  num_classes=3,
  out_channels=2,
  ch=8,
  emb_ch=16,
  ch_mult=(1, 2),
  num_res_blocks=1,
  attn_resolutions=(2,),
  num_heads=2,
  norm_groups=4,
)


@pytest.fixture(scope="module")
def fresh():
  """(model, parameters at initialisation)."""
  model = unet.UNet(**SMALL)
  return model, jax.jit(lambda key: unet.init_params(model, key=key, image_shape=(4, 4, 2)))(
    jax.random.key(0)
  )


@pytest.fixture(scope="module")
def grown(fresh):
  """(model, parameters that are nowhere zero)."""
  leaves, tree = jax.tree.flatten(fresh[1])
  rng = np.random.default_rng(1)
  return fresh[0], jax.tree.unflatten(
    tree, [np.asarray(p) + np.float32(0.2 * rng.normal(size=p.shape)) for p in leaves]
  )


@pytest.fixture(scope="module")
def eps_fn():
  """(parameters, z, logsnr, y) -> eps, compiled once for all tests."""
  model = unet.UNet(**SMALL)
  return jax.jit(lambda params, *inputs: unet.make_eps_fn(model, params)(*inputs))


def value_and_grad(**fields):
  """(parameters, z, logsnr, y) -> (loss, gradients)."""
  model = unet.UNet(**SMALL, **fields)
  loss = lambda params, *inputs: jnp.mean(jnp.square(unet.make_eps_fn(model, params)(*inputs)))
  return jax.jit(jax.value_and_grad(loss))


@pytest.fixture(scope="module")
def gradient():
  """`value_and_grad`, compiled once for all tests."""
  return value_and_grad()


@pytest.fixture(scope="module")
def inputs():
  """(z, logsnr, y) of four rows."""
  return (
    jax.random.normal(jax.random.key(2), (4, 4, 4, 2)),
    jnp.float32([-3.0, -1.0, 1.0, 3.0]),
    jnp.int32([0, 1, 2, 3]),
  )


def test_starts_at_zero(fresh, inputs, eps_fn):
  """The last convolution starts at zero, so the first estimate of eps is 0."""
  assert np.all(np.asarray(eps_fn(fresh[1], *inputs)) == 0)


def test_residual_blocks_start_as_their_skips(fresh):
  """Every conv2 and attention projection starts at zero; every other kernel does not."""
  for path, leaf in jax.tree_util.tree_leaves_with_path(fresh[1]):
    names = [p.key for p in path]
    if names[-1] == "kernel":
      zero = names[-2] in ("conv2", "proj", "conv_out")
      assert bool(np.all(np.asarray(leaf) == 0)) == zero, names


@pytest.mark.smoke
def test_output_depends_on_everything_and_rows_are_independent(grown, inputs, eps_fn):
  """Changing z, the level or the label of one row changes that row's output and no other's."""
  z, logsnr, y = inputs
  out = np.asarray(eps_fn(grown[1], z, logsnr, y))
  changed = [
    (z.at[1].add(0.5), logsnr, y),
    (z, logsnr.at[1].set(2.0), y),
    (z, logsnr, y.at[1].set(3)),
  ]
  for case in changed:
    difference = np.abs(np.asarray(eps_fn(grown[1], *case)) - out).max(axis=(1, 2, 3))
    assert difference[1] > 1e-3
    assert np.all(difference[[0, 2, 3]] < 1e-5)


def test_a_class_row_learns_from_its_own_rows_alone(grown, inputs, gradient):
  """The null row of the class table gets gradient only from rows whose label was dropped, and so
  does each class's.
  """
  z, logsnr, _ = inputs
  for labels in ([0, 1, 1, 0], [0, 3, 2, 2], [3, 3, 3, 3]):
    _, grads = gradient(grown[1], z, logsnr, jnp.int32(labels))
    used = np.abs(np.asarray(grads["cond"]["class_emb"]["kernel"])).max(axis=1) > 0
    assert set(np.flatnonzero(used)) == set(labels)


def test_remat_changes_nothing(grown, inputs, gradient):
  """Recomputing blocks in the backward pass gives the same loss and gradients."""
  loss, grads = gradient(grown[1], *inputs)
  loss_remat, grads_remat = value_and_grad(remat=True)(grown[1], *inputs)
  np.testing.assert_allclose(loss, loss_remat, rtol=1e-6)
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, grads_remat
  )


def test_remat_keeps_less_for_the_backward_pass(grown, inputs):
  """With remat each block keeps its input and parameters alone: less than half of the bytes,
  whatever a compiler makes of it.
  """

  def kept(remat):
    eps_fn = lambda params: unet.make_eps_fn(unet.UNet(**SMALL, remat=remat), params)(*inputs)
    # what jax.vjp keeps is the leaves of the function that it returns
    backward = jax.eval_shape(lambda params: jax.vjp(eps_fn, params)[1], grown[1])
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(backward))

  parameters = sum(leaf.nbytes for leaf in jax.tree.leaves(grown[1]))
  assert kept(True) - parameters < 0.5 * (kept(False) - parameters)


def test_bfloat16_compute_keeps_float32_ends(grown, inputs, eps_fn):
  """bf16 inside; parameters and output stay f32, and the output is near the f32 one."""
  model = unet.UNet(**SMALL, dtype="bfloat16")
  out = jax.jit(unet.make_eps_fn(model, grown[1]))(*inputs)
  exact = np.asarray(eps_fn(grown[1], *inputs))
  assert out.dtype == jnp.float32
  error = np.abs(np.asarray(out) - exact).max()
  assert 0 < error < 0.1 * np.abs(exact).max()
  shapes = jax.eval_shape(
    lambda key: unet.init_params(model, key=key, image_shape=(4, 4, 2)), jax.random.key(0)
  )
  assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {jnp.dtype("float32")}


class OneNorm(backbone.Backbone):
  """A network that is one of the U-Net's norms."""

  @nn.compact
  def __call__(self, x):
    return self.norm("n")(x)


def test_bfloat16_normalises_in_float32():
  """A norm of bf16 activations far from zero is right to bf16's rounding of its result: its sums
  are not bf16's.
  """
  x = (100 + jax.random.normal(jax.random.key(0), (2, 8, 8, 8))).astype(jnp.bfloat16)
  fields = {
    name: value for name, value in SMALL.items() if name in backbone.Backbone.__dataclass_fields__
  }
  model, params = (
    OneNorm(**fields, dtype="bfloat16"),
    {"n": {"scale": jnp.ones(8), "bias": jnp.zeros(8)}},
  )
  norm = jax.jit(lambda x: model.apply({"params": params}, x))
  exact = np.asarray(x, np.float64).reshape(2, 64, 4, 2)
  exact = (exact - exact.mean(axis=(1, 3), keepdims=True)) / exact.std(axis=(1, 3), keepdims=True)
  out = norm(x)
  assert out.dtype == jnp.bfloat16
  np.testing.assert_allclose(
    np.asarray(out, np.float64).reshape(exact.shape), exact, atol=0.02, rtol=0.01
  )


def test_dropout_needs_its_key(grown, inputs, eps_fn):
  """Network dropout acts with Masks and not without."""
  model = unet.UNet(**SMALL, dropout=0.5)
  without_key = lambda model: str(jax.make_jaxpr(unet.make_eps_fn(model, grown[1]))(*inputs))
  assert without_key(model) == without_key(grown[0])
  masks = layers.Masks(jax.random.key(0), jnp.arange(len(inputs[0])))
  on = jax.jit(unet.make_eps_fn(model, grown[1], dropout=masks))(*inputs)
  assert np.abs(np.asarray(on - eps_fn(grown[1], *inputs))).max() > 1e-3


@pytest.mark.parametrize("height", [8, 6])
def test_dropout_masks(height):
  """Each number is kept with probability 1 - rate and scaled by its inverse; the mask of an example
  comes from its number alone, and differs between examples, layers, and quarters of the rows.
  """
  rate, shape = 0.3, (40, height, 5, 7)
  masks = layers.Masks(jax.random.key(0), jnp.arange(40))

  class Two(nn.Module):
    @nn.compact
    def __call__(self, h, examples=None):
      return [layers.Dropout(rate)(h, examples) for _ in range(2)]

  def drop(h, masks):
    return np.asarray(Two().apply({}, h, **layers.dropout_arguments(masks))[0])

  ones = jnp.ones(shape)
  first, second = map(np.asarray, Two().apply({}, ones, **layers.dropout_arguments(masks)))
  values = np.unique(first)
  np.testing.assert_allclose(values, [0, 1 / (1 - round(rate * 2**16) / 2**16)], rtol=1e-6)
  kept = first > 0
  error = np.sqrt(rate * (1 - rate) / kept.size)
  assert abs(kept.mean() - (1 - rate)) < 4 * error
  # pairs that should be independent agree as often as chance
  agree = lambda a, b: abs((a == b).mean() - (rate**2 + (1 - rate) ** 2))
  assert agree(kept, second > 0) < 5 * error
  assert agree(kept[:-1], kept[1:]) < 5 * error
  for rows in (1, 2, 4):
    assert agree(kept[:, :-rows], kept[:, rows:]) < 5 * error / np.sqrt(1 - rows / height)
  order = np.random.default_rng(0).permutation(40)[:11]
  part = drop(ones[order], layers.Masks(masks.key, masks.examples[order]))
  np.testing.assert_array_equal(part, first[order])
  np.testing.assert_array_equal(drop(ones, None), ones)


@pytest.mark.parametrize("height", [8, 6])
def test_dropout_is_linear(height):
  """The backward pass drops the same numbers, and scales the others by as much, though it keeps
  their bits alone; bfloat16 stays what it is.
  """
  h = jax.random.normal(jax.random.key(1), (3, height, 5, 7))
  masks = layers.Masks(jax.random.key(0), jnp.arange(3))
  drop = lambda h: layers.Dropout(0.3).apply({}, h, masks.examples, rngs={"dropout": masks.key})
  gradient = jax.grad(lambda h: (drop(h) * h).sum())(h)
  np.testing.assert_allclose(gradient, 2 * drop(h), rtol=1e-6)
  _, back = jax.vjp(drop, h)
  np.testing.assert_allclose(back(h)[0], drop(h), rtol=1e-6)
  half, back = jax.vjp(drop, h.astype(jnp.bfloat16))
  assert half.dtype == back(half)[0].dtype == jnp.bfloat16


def normal(*shape, dtype="float32", seed=0):
  """Normal numbers."""
  return jnp.asarray(np.random.default_rng(seed).standard_normal(shape), dtype)


def compare(first, second, *arguments, rtol):
  """Two functions of the same arguments agree, and so do their gradients by each of them, to rtol
  of the largest.
  """

  def all_of(function):
    outputs, back = jax.vjp(function, *arguments)
    return outputs, *back(normal(*outputs.shape, dtype=outputs.dtype, seed=9))

  for a, b in zip(jax.tree.leaves(all_of(first)), jax.tree.leaves(all_of(second)), strict=True):
    assert a.dtype == b.dtype
    b = np.asarray(b, np.float32)
    np.testing.assert_allclose(np.asarray(a, np.float32), b, atol=rtol * np.abs(b).max())


def parameters(modules, inputs):
  """The same parameters for all of these modules, from one key; and others of their shapes."""
  every = [
    module.init(jax.random.key(0), x)["params"] for module, x in zip(modules, inputs, strict=True)
  ]
  jax.tree.map(np.testing.assert_array_equal, every[0], every[1])
  return jax.tree.map(lambda p: normal(*p.shape, seed=p.ndim), every[0])


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 0.02)])
def test_group_norm(dtype, rtol):
  """Flax's GroupNorm with a scale and a shift behind it: the same parameters, outputs and
  gradients; activations off zero, as they are in a trained network.
  """
  theirs = nn.GroupNorm(4, epsilon=1e-3, dtype=jnp.dtype(dtype))
  ours = layers.GroupNorm(4, 1e-3, jnp.dtype(dtype))
  h = 2 + normal(3, 4, 6, 8, dtype=dtype)
  scale, shift = (normal(3, 8, dtype=dtype, seed=seed) for seed in (1, 2))
  params = parameters((ours, theirs), (h, h))
  each = lambda v: v[:, None, None]
  compare(
    lambda p, h, a, b: ours.apply({"params": p}, h, a, b),
    lambda p, h, a, b: theirs.apply({"params": p}, h) * (1 + each(a)) + each(b),
    *(params, h, scale, shift),
    rtol=rtol,
  )
  compare(
    lambda p, h: ours.apply({"params": p}, h),
    lambda p, h: theirs.apply({"params": p}, h),
    *(params, (h - 2) / 20),
    rtol=rtol,
  )


@pytest.mark.parametrize(("dtype", "rtol"), [("float32", 2e-6), ("bfloat16", 0.01)])
def test_dense_of_parts(dtype, rtol):
  """Flax's Dense of the concatenation: the same parameters from a key, outputs and gradients."""
  theirs = nn.Dense(5, dtype=jnp.dtype(dtype), name="skip")
  ours = layers.DenseOfParts(5, jnp.dtype(dtype), name="skip")
  parts = tuple(normal(2, 3, 3, n, dtype=dtype, seed=n) for n in (4, 1, 6))
  side_by_side = lambda parts: jnp.concatenate(parts, axis=-1)
  compare(
    lambda p, parts: ours.apply({"params": p}, parts),
    lambda p, parts: theirs.apply({"params": p}, side_by_side(parts)),
    *(parameters((ours, theirs), (parts, side_by_side(parts))), parts),
    rtol=rtol,
  )


def test_dropout_near_one():
  """A rate that rounds to 1 still has finite gradients: the largest is 1 - 2^-16."""
  masks = layers.Masks(jax.random.key(0), jnp.arange(2))
  drop = lambda h: layers.Dropout(0.999999).apply(
    {}, h, masks.examples, rngs={"dropout": masks.key}
  )
  grads = jax.grad(lambda h: drop(h).sum())(jnp.ones((2, 4, 4, 2)))
  assert np.isfinite(grads).all()


def test_sizes_that_do_and_do_not_fit(fresh):
  """Any even rectangle where the levels divide; else an error that names the numbers."""
  shape = jax.eval_shape(
    lambda p: unet.make_eps_fn(fresh[0], p)(
      jnp.zeros((1, 12, 20, 2)), jnp.zeros(1), jnp.zeros(1, jnp.int32)
    ),
    fresh[1],
  )
  assert shape.shape == (1, 12, 20, 2)
  with pytest.raises(ValueError, match="divisible by 2"):
    unet.make_eps_fn(*fresh)(jnp.zeros((1, 5, 4, 2)), jnp.zeros(1), jnp.zeros(1, jnp.int32))
  with pytest.raises(ValueError, match="must be \\[2\\]"):
    unet.make_eps_fn(*fresh)(jnp.zeros((2, 4, 4, 2)), jnp.zeros(1), jnp.zeros(2, jnp.int32))


def test_config_errors_name_the_field(config):
  """from_config refuses a side, groups or heads that do not divide, and both ways to set heads."""
  make = lambda **fields: unet.from_config(
    {**config.model, **fields}, num_classes=10, image_shape=(8, 8, 1)
  )
  assert make().ch == 8
  for fields, name in [
    (dict(ch_mult=(1, 1, 1, 1, 2)), "ch_mult"),
    (dict(norm_groups=3), "norm_groups"),
    (dict(num_heads=3), "num_heads"),
    (dict(head_dim=4), "head_dim"),
  ]:
    with pytest.raises(UserError, match=name):
      make(**fields)


def test_time_embedding():
  """inv_cos(lambda(u)) is u but for the ends' 3e-5; the sinusoid is sin then cos, lowest frequency
  1/10000.
  """
  u = np.linspace(0, 1, 101, dtype=np.float32)
  np.testing.assert_allclose(layers.inv_cos(schedules.cosine_logsnr(jnp.asarray(u))), u, atol=1e-4)
  emb = np.asarray(layers.sinusoid(jnp.float32([2.0]), width=6))[0]
  freqs = np.array([1.0, 0.01, 0.0001])
  np.testing.assert_allclose(emb, np.concatenate([np.sin(2 * freqs), np.cos(2 * freqs)]), atol=1e-6)


def test_resampling():
  """Up repeats each pixel; down after up is the identity; down averages 2x2."""
  h = jax.random.normal(jax.random.key(0), (1, 4, 6, 3))
  np.testing.assert_array_equal(layers.upsample(h), np.repeat(np.repeat(h, 2, axis=1), 2, axis=2))
  np.testing.assert_allclose(layers.downsample(layers.upsample(h)), h, atol=1e-6)
  np.testing.assert_allclose(
    layers.downsample(h)[0, 0, 0], h[0, :2, :2].mean(axis=(0, 1)), atol=1e-6
  )
