"""The sharded step: any mesh, the same run."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfg.base import images, optim, sharding
from cfg.data import pipeline
from cfg.models import unet
from cfg.training import compiled, heldout, objective, previews
from cfg.training import step as train_step
from configs import digits as digits_config

pytestmark = pytest.mark.usefixtures("plain_start")

# the key's bias shifts all of a row's attention logits alike: its gradient is zero but for rounding
ZERO_GRADIENT = ("k", "bias")


def small_config(*, side=None):
  """One level, with attention and dropout if it is given the images' side: for what does not depend
  on the network, it compiles in half the time.
  """
  config = digits_config.get_config()
  config.model.update(ch=8, emb_ch=16, norm_groups=4, ch_mult=(1,))
  config.model.attn_resolutions = (side,) if side else ()
  config.model.dropout = 0.1 if side else 0.0
  config.train.update(batch_size=16)
  config.sampler.num_steps = 4
  return config


@pytest.fixture
def shallow(config):
  """Gives the config one level."""
  config.model.update(ch_mult=(1,), attn_resolutions=())


def set_up(config, mesh):
  """(model, optimizer, state with parameters that are nowhere zero) on a mesh."""
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1), mesh=mesh)
  optimizer = optim.make_optimizer(**config.optimizer)
  state = train_step.make_state(
    config, model=model, optimizer=optimizer, image_shape=(8, 8, 1), mesh=mesh
  )
  leaves, tree = jax.tree.flatten(jax.device_get(state.params))
  rng = np.random.default_rng(0)
  params = jax.tree.unflatten(
    tree, [p + 0.1 * rng.normal(size=p.shape).astype(p.dtype) for p in leaves]
  )
  return (
    model,
    optimizer,
    state.replace(params=jax.device_put(params, sharding.by_shape(mesh, params))),
  )


def batches(digits, count):
  return list(
    pipeline.train_stream(digits.train, batch_size=16, seed=0, start_step=0, num_steps=count)
  )


def run(config, mesh, data, model, optimizer, state):
  """(losses, gradient norms, state, TrainStep) of one step a batch."""
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  losses, norms = [], []
  for batch in data:
    state, metrics = step(state, step.place(batch))
    losses.append(float(metrics["loss"]))
    norms.append(float(metrics["grad_norm"]))
  return np.array(losses), np.array(norms), state, step


@pytest.fixture(scope="module")
def trained(digits):
  """trained(devices, fsdp): `run` of 20 steps of the whole optimizer, each mesh's once."""

  @functools.cache
  def get(devices, fsdp=1):
    config = small_config()
    config.train.flip = True
    mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=fsdp)
    with pytest.MonkeyPatch.context() as patch:
      patch.setattr(sharding, "SMALLEST_SPLIT", 64)
      return run(config, mesh, batches(digits, 20), *set_up(config, mesh))

  return get


def test_any_mesh_trains_alike(trained):
  """20 steps on 1, 2 and 8 devices: losses agree to 1e-4; one compilation each; the first gradient
  norm to 1e-5.
  """
  runs = [trained(devices) for devices in (1, 2, 8)]
  for losses, norms, state, step in runs:
    np.testing.assert_allclose(losses, runs[0][0], rtol=1e-4)
    np.testing.assert_allclose(norms[0], runs[0][1][0], rtol=1e-5)
    assert int(state.step) == 20 and step.compilations() == 1
  assert runs[0][0][-5:].mean() < runs[0][0][:3].mean()


def gradients(config, mesh, digits):
  """{path: gradient} of the first batch: the change that plain descent at rate 1, without clipping,
  makes.
  """
  model, _, state = set_up(config, mesh)
  optimizer = optax.sgd(1.0)
  before = jax.device_get(state.params)
  state = state.replace(opt_state=optimizer.init(state.params))
  _, _, after, _ = run(config, mesh, batches(digits, 1), model, optimizer, state)
  grads = jax.tree.map(lambda a, b: np.float64(a) - b, before, jax.device_get(after.params))
  return {tuple(p.key for p in path): g for path, g in jax.tree_util.tree_leaves_with_path(grads)}


def assert_same_gradients(first, other):
  """Equal to 1e-5 of the global norm."""
  norm = np.sqrt(sum(np.sum(g**2) for g in first.values()))
  for name, grad in first.items():
    if name[-2:] != ZERO_GRADIENT:
      # the subtraction that gives the gradient back rounds at the parameters' size
      np.testing.assert_allclose(
        other[name], grad, atol=1e-5 * norm + 5e-7, rtol=0, err_msg=str(name)
      )


@pytest.fixture(scope="module")
def reference_gradients(digits, mesh1):
  """Of the whole batch at once on one device."""
  return gradients(small_config(side=8), mesh1, digits)


@pytest.mark.parametrize("devices, parts", [(2, 1), (8, 1), (1, 4), (4, 2)])
def test_mesh_and_micro_batches_have_the_gradient_of_the_batch(
  digits, reference_gradients, devices, parts
):
  """On another mesh, or accumulated over micro-batches, at equal parameters every gradient is the
  whole batch's to 1e-5 of the global norm.
  """
  config = small_config(side=8)
  config.train.accumulate = parts
  mesh = sharding.make_mesh(jax.devices()[:devices])
  assert_same_gradients(reference_gradients, gradients(config, mesh, digits))


def test_remat_has_the_same_gradient(digits, mesh1, reference_gradients):
  """Recomputing blocks changes no gradient of the step."""
  config = small_config(side=8)
  config.model.remat = True
  assert_same_gradients(reference_gradients, gradients(config, mesh1, digits))


def test_split_parameters_have_the_same_gradient(digits, reference_gradients, monkeypatch):
  """With parameters, moments and averages split over devices, and with micro-batches."""
  monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
  config = small_config(side=8)
  config.train.accumulate = 2
  mesh = sharding.make_mesh(jax.devices()[:4], fsdp=2)
  assert_same_gradients(reference_gradients, gradients(config, mesh, digits))


def test_levels_have_the_same_gradient(config, digits, mesh1, monkeypatch):
  """Two levels, with parameters split over all eight devices: their resampling and skips too."""
  monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
  mesh = sharding.make_mesh(jax.devices()[:8], fsdp=8)
  assert_same_gradients(gradients(config, mesh1, digits), gradients(config, mesh, digits))


def test_what_is_split_where():
  """The last dimension that divides; small arrays and odd ones whole; without fsdp all."""
  shapes = [(3, 3, 64, 256), (512, 128), (256, 256), (3, 3, 4, 4), (7, 5, 1001), (6, 3000)]
  tree = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
  axes = lambda fsdp: [
    list(s.spec).index("fsdp") if "fsdp" in s.spec else None
    for s in sharding.by_shape(sharding.make_mesh(jax.devices()[:8], fsdp=fsdp), tree)
  ]
  assert axes(4) == [3, 1, 1, None, None, 1]
  assert axes(1) == [None] * 6


def test_split_parameters_train_alike(trained):
  """20 steps of the whole optimizer, split eight ways and not: the same losses and averages; large
  arrays are split, and stay so.
  """
  whole = trained(8)
  split = trained(8, fsdp=8)
  np.testing.assert_allclose(split[0], whole[0], rtol=1e-4)
  for tree in (split[2].params, split[2].ema, split[2].opt_state):
    for leaf in jax.tree.leaves(tree):
      large = leaf.size >= 64 and any(n % 8 == 0 for n in leaf.shape)
      assert leaf.sharding.is_fully_replicated != large
      assert leaf.addressable_shards[0].data.size == leaf.size // (8 if large else 1)
  compare = lambda a, b: np.testing.assert_allclose(np.asarray(a), np.asarray(b), atol=2e-3)
  jax.tree.map(compare, split[2].ema, whole[2].ema)


@pytest.mark.usefixtures("shallow")
def test_a_second_compilation_is_noticed(config, digits, mesh1):
  """A batch of another shape makes the step compile again, which warns: an error in tests, where
  warnings are.
  """
  model, optimizer, state = set_up(config, mesh1)
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh1, state=state)
  batch = batches(digits, 1)[0]
  state, _ = step(state, step.place(batch))
  state, _ = step(state, step.place(batch))
  with pytest.raises(RuntimeWarning, match="compiled again"):
    step(state, step.place({name: value[:8] for name, value in batch.items()}))


@pytest.mark.usefixtures("shallow")
def test_dropout_is_the_example_s(config, digits, mesh1):
  """Network dropout of a row comes from its index: the order of rows changes nothing, another index
  does.
  """
  config.model.dropout = 0.5
  config.optimizer.learning_rate = 0.0
  batch = batches(digits, 1)[0]
  first = {name: value[:8] for name, value in batch.items()}
  order = np.array([1, 0, *range(2, 8)])
  swapped = {name: value[order] for name, value in first.items()}
  other = {**first, "index": first["index"] + 100}
  losses = run(config, mesh1, [first, first, swapped, other], *set_up(config, mesh1))[0]
  assert losses[0] == losses[1] == pytest.approx(losses[2], rel=1e-6)
  assert abs(losses[0] - losses[3]) > 1e-5


def programs(config, *, devices, fsdp):
  """{name: compiled program} of a step, for shapes alone."""
  mesh = sharding.make_mesh(jax.devices()[:devices], fsdp=fsdp)
  model, optimizer, state = set_up(config, mesh)
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  rows = jax.eval_shape(lambda: {name: jnp.asarray(a) for name, a in batch_of(16).items()})
  return {name: program.as_text() for name, program in step.compile(state, rows)}


def batch_of(rows):
  """Rows of zeros."""
  return {
    "image": np.zeros((rows, 8, 8, 1), np.uint8),
    "label": np.zeros(rows, np.int32),
    "index": np.zeros(rows, np.uint32),
  }


@pytest.mark.usefixtures("shallow")
@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_have_the_type_of_their_products(config, parts):
  """With bfloat16, gradients of kernels are in it, but for those of the layers in float32; they are
  the gradients of parameters in float32, and micro-batches are summed in that.
  """
  config.model.dtype = "bfloat16"
  config.train.accumulate = parts
  mesh = sharding.make_mesh(jax.devices()[:1])
  model, optimizer, state = set_up(config, mesh)
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  settings = train_step.loss_settings(config, model)
  batch, key = step.place(batch_of(16))[0], jax.random.key(config.seed)
  _, found = jax.jit(functools.partial(train_step.loss_and_gradients, **settings))(
    state.params, batch, key
  )
  kinds = {
    "/".join(k.key for k in path): leaf.dtype for path, leaf in jax.tree.leaves_with_path(found)
  }
  for name, dtype in kinds.items():
    half = name.endswith("kernel") and "conv_out" not in name
    assert dtype == (jnp.bfloat16 if half else jnp.float32), name
  whole = lambda params: jnp.mean(train_step.losses_of_batch(params, batch, key, **settings)[0])
  expected = jax.jit(jax.grad(whole))(state.params)
  close = lambda a, b: np.testing.assert_allclose(
    np.asarray(a, np.float32), b, atol=2**-8 * float(jnp.abs(b).max())
  )
  jax.tree.map(close, found, expected)
  total = {
    1: lambda: step._gradients(state.params, batch, key),
    2: lambda: step._add(step._zeros(), state.params, batch, key),
  }[parts]()
  kept = {leaf.dtype for leaf in jax.tree.leaves(total)}
  assert (jnp.dtype(jnp.bfloat16) in kept) == (parts == 1)


def test_micro_batches_are_summed_over_devices_once():
  """Each device sums its own gradients: none move before the update, which moves each in float32
  once.
  """
  config = small_config()
  config.train.accumulate = 2
  found = programs(config, devices=8, fsdp=1)
  assert compiled.collectives(found["micro-batch"]) == {}
  moved = compiled.collectives(found["update"])
  assert list(moved) == ["all-reduce"]
  _, _, state = set_up(config, sharding.make_mesh(jax.devices()[:1]))
  size = 4 * unet.num_params(state.params)
  assert size <= moved["all-reduce"][1] <= size + 1000


def test_split_parameters_move_once_each_way(monkeypatch):
  """Under fsdp parameters are gathered in the type that they are used in, and gradients summed;
  activations stay where they are.
  """
  monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 64)
  config = small_config(side=8)
  moved = compiled.collectives(programs(config, devices=8, fsdp=8)["micro-batch"])
  _, _, state = set_up(config, sharding.make_mesh(jax.devices()[:1]))
  size = 4 * unet.num_params(state.params)
  assert "all-to-all" not in moved and "collective-permute" not in moved
  assert 0.9 * size < moved["all-gather"][1] <= 1.01 * size
  assert sum(bytes_ for kind, (_, bytes_) in moved.items() if kind != "all-gather") <= 1.1 * size


def test_loss_does_not_depend_on_the_order_of_rows(digits, mesh1, trained):
  """A permuted batch, its indices with it, has the same loss: noise, level, drop and flip follow
  the index alone.
  """
  batch = batches(digits, 1)[0]
  order = np.random.default_rng(0).permutation(16)
  shuffled = {name: value[order] for name, value in batch.items()}
  renumbered = {**batch, "index": batch["index"][::-1].copy()}
  step = trained(1)[3]
  _, _, state = set_up(small_config(), mesh1)
  # a step takes its state's memory
  loss_of = lambda rows: float(step(jax.tree.map(jnp.copy, state), step.place(rows))[1]["loss"])
  loss = [loss_of(rows) for rows in (batch, shuffled, renumbered)]
  assert loss[0] == pytest.approx(loss[1], rel=1e-6)
  assert abs(loss[0] - loss[2]) > 1e-4


def test_flip_mirrors_some():
  """random_flip mirrors about half of the rows, exactly, each from its own key."""
  x = jax.random.normal(jax.random.key(0), (200, 2, 3, 1))
  out = np.asarray(images.random_flip(keys=jax.random.split(jax.random.key(1), 200), x=x))
  mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(out, np.asarray(x))])
  kept = np.array([np.array_equal(a, b) for a, b in zip(out, np.asarray(x))])
  assert np.all(mirrored ^ kept) and 60 < mirrored.sum() < 140


@pytest.mark.usefixtures("shallow")
def test_heldout_errors_are_fixed_and_tell_labels_apart(config, digits, mesh1):
  """The same noise at every call, a level in each equal part of u, and another number for the null
  label.
  """
  model, _, state = set_up(config, mesh1)
  config.heldout.num_images = 20
  measure = heldout.Heldout(config, model=model, dataset=digits, mesh=mesh1)
  first = measure(state.params)
  assert first == measure(state.params)
  bins = [v for name, v in first.items() if name.startswith("heldout/loss_cond/")]
  assert len(bins) == config.heldout.num_bins
  assert first["heldout/loss_cond"] == pytest.approx(np.mean(bins))
  assert first["heldout/loss_cond"] != first["heldout/loss_null"]
  # the batch it is computed in does not matter
  config.heldout.batch_size = 7
  again = heldout.Heldout(config, model=model, dataset=digits, mesh=mesh1)(state.params)
  for name, value in first.items():
    assert again[name] == pytest.approx(value, rel=1e-4)


@pytest.mark.usefixtures("shallow")
def test_heldout_levels_cover_the_schedule(config):
  """With eps_hat = 0 (parameters at the start) every error is mean eps^2: near 1 in each bin, for
  both labels.
  """
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  params = unet.init_params(model, key=jax.random.key(0), image_shape=(8, 8, 1))
  batch = {
    "image": jnp.zeros((30, 8, 8, 1), jnp.uint8),
    "label": jnp.zeros(30, jnp.int32),
    "index": jnp.arange(30, dtype=jnp.uint32),
  }
  errors_of = functools.partial(objective.eps_errors, model=model)
  settings = dict(measure=errors_of, logsnr_fn=lambda u: 20 - 40 * u, num_bins=4)
  measure = jax.jit(functools.partial(heldout.heldout_rows, **settings))
  errors = measure(params, batch, jax.random.key(0))
  assert errors.shape == (30, 4, 2)
  np.testing.assert_allclose(errors.mean(axis=0), 1.0, atol=0.15)
  np.testing.assert_array_equal(errors[..., 0], errors[..., 1])


@pytest.mark.usefixtures("shallow")
def test_previews_show_every_class_at_every_strength(config, digits, mesh1, tmp_path):
  """A row a class, the strengths side by side; at w = 0 alone one branch of the network is called,
  and draws what two do.
  """
  config.preview.update(num_classes=2, num_per_class=3, w=(0.0, 2.0))
  model, _, state = set_up(config, mesh1)
  make = lambda: previews.Previews(
    config, model=model, dataset=digits, mesh=mesh1, workdir=tmp_path
  )
  both = make()(state.params, 1)
  config.preview.w = (0.0,)
  unguided = make()(state.params, 2)
  factor = unguided.shape[0] // (2 * 8)
  assert both.shape[1] == 2 * unguided.shape[1] + 4 * factor
  difference = np.abs(both[:, : unguided.shape[1]].astype(int) - unguided)
  assert difference.max() <= 1 and (tmp_path / "previews" / "step_00000001.png").exists()
