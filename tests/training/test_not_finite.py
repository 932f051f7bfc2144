"""Numbers that are not finite: no update, and where they began."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.base import checkpoint
from cfg.inference import generator
from cfg.models import unet
from cfg.training import diagnosis, loop, not_finite, objective
from cfg.training import step as train_step

pytestmark = pytest.mark.usefixtures("plain_start")


@pytest.fixture
def small(config):
  """Without anything that only takes time."""
  config.model.update(ch_mult=(1,), attn_resolutions=())
  for section in ("heldout", "preview"):
    config[section].every_steps = 0
  return config


@pytest.fixture
def poisoned(monkeypatch):
  """Gives the losses of the examples with label 3 a value; those of others are as they were."""

  def put(value):
    right = objective.denoising_loss

    def loss(params, *, y, **settings):
      losses, logsnr = right(params, y=y, **settings)
      return jnp.where(y == 3, value(losses, params), losses), logsnr

    monkeypatch.setitem(
      objective.OBJECTIVES, "denoise", objective.OBJECTIVES["denoise"]._replace(loss=loss)
    )

  return put


def batch_of(labels):
  """Images, of these labels."""
  rng = np.random.default_rng(0)
  return {
    "image": rng.integers(0, 256, (16, 8, 8, 1), np.uint8),
    "label": np.resize(np.int32(labels), 16),
    "index": np.arange(16, dtype=np.uint32),
  }


def set_up(config, mesh):
  """(the step, a state with parameters that are nowhere zero, the model)."""
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  optimizer = loop.optim.make_optimizer(**config.optimizer)
  state = train_step.make_state(
    config, model=model, optimizer=optimizer, image_shape=(8, 8, 1), mesh=mesh
  )
  params = jax.tree.map(lambda p: p + 0.1, state.params)
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  return step, state.replace(params=params), model


@pytest.mark.parametrize("value, accumulate", [(jnp.nan, 1), (jnp.inf, 2)])
def test_a_step_that_is_not_finite_changes_nothing(small, mesh1, poisoned, value, accumulate):
  """Of one example in a batch: the state is bit for bit that before, its counter too, and the next
  step goes on from it. Without the selection in the step all of it is not finite.
  """
  poisoned(lambda losses, params: value)
  small.train.accumulate = accumulate
  step, state, _ = set_up(small, mesh1)
  before = jax.device_get(state)
  state, metrics = step(state, step.place(batch_of([0, 1, 2, 3])))
  assert bool(metrics["skipped"]) and not np.isfinite(metrics["loss"])
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
  state, metrics = step(state, step.place(batch_of([0, 1, 2])))
  assert not metrics["skipped"] and int(state.step) == 1
  changed = jax.tree.map(lambda a, b: bool(np.any(a != b)), jax.device_get(state), before)
  assert all(jax.tree.leaves(changed.ema)) and step.compilations() == 1


def test_a_gradient_that_is_not_finite_is_no_update(small, mesh1, poisoned):
  """Though the loss is: the slope of a square root at 0. It fails where the loss alone is looked
  at.
  """
  poisoned(lambda losses, params: losses + jnp.sqrt(0 * params["conv_out"]["bias"][0]))
  step, state, _ = set_up(small, mesh1)
  _, metrics = step(state, step.place(batch_of([0, 3])))
  assert np.isfinite(metrics["loss"]) and bool(metrics["skipped"])


def look(config, mesh, labels, change=lambda params: None):
  """The Diagnosis of a step with parameters that are changed in place."""
  step, state, model = set_up(config, mesh)
  params = jax.device_get(state.params)
  params = jax.tree.map(np.array, params)
  change(params)
  placed = step.place(batch_of(labels))
  return diagnosis.diagnose(config, model=model, params=params, batches=placed, mesh=mesh)


def test_the_first_tensor_is_named(small, mesh1, mesh8, poisoned):
  """The parameter; the first of the network's parts whose output overflows, though it comes last in
  the alphabet; the loss; the gradient. Examples are counted, on any mesh, in micro-batches.
  """
  assert look(small, mesh1, [0]).tensor == ""

  def spoil(params):
    params["norm_out"]["bias"][0] = np.nan

  assert look(small, mesh1, [0], spoil).tensor == "the parameter norm_out/bias"

  def overflow(params):
    params["conv_out"]["kernel"][:] = 3e38
    params["up0_1_res"]["conv1"]["kernel"][:] = 3e38

  assert look(small, mesh1, [0], overflow).tensor == "the output of up0_1_res/conv1"
  poisoned(lambda losses, params: jnp.inf)
  small.train.accumulate = 2
  for mesh in (mesh1, mesh8):
    found = look(small, mesh, [0, 3, 1, 2])
    assert (found.tensor, found.rows, found.batch_size) == ("the loss", 4, 16)
  poisoned(lambda losses, params: losses + jnp.sqrt(0 * params["norm_out"]["bias"][0]))
  found = look(small, mesh1, [0, 3])
  assert (found.tensor, found.rows) == ("the gradient of norm_out/bias", 0)


def test_the_levels_are_those_of_the_bad_examples(small, mesh1, poisoned):
  """Of the rows that are not finite: alone, its own level; of finite ones all."""
  poisoned(lambda losses, params: jnp.inf)
  whole = look(small, mesh1, [0])
  assert whole.rows == 0 and whole.logsnr[0] < whole.logsnr[1]
  alone = look(small, mesh1, [3] + 15 * [0])
  assert alone.rows == 1 and alone.logsnr[0] == alone.logsnr[1]
  assert whole.logsnr[0] <= alone.logsnr[0] <= whole.logsnr[1]


def test_a_run_that_diverges_says_where(small, digits, mesh1, tmp_path):
  """A rate of 1e30: the run stops with what went wrong, and `reproduce` finds the same again. Where
  the guard never raises it goes on to its end.
  """
  small.optimizer.update(learning_rate=1e30, warmup_steps=0)
  small.train.update(num_steps=30, checkpoint_every_steps=1, most_skipped=4)
  with pytest.raises(not_finite.NotFinite, match="the last 4 updates") as e:
    loop.train(small, dataset=digits, mesh=mesh1, workdir=tmp_path)
  step, found = not_finite.reproduce(small, dataset=digits, mesh=mesh1, workdir=tmp_path)
  assert f"In step {step} {found}." in str(e.value) and found.tensor
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert max(checkpoints.steps()) < step
  with pytest.raises(loop.UserError, match="no training of .* stopped"):
    not_finite.reproduce(small, dataset=digits, mesh=mesh1, workdir=tmp_path / "other")


def test_previews_that_are_not_finite_do_not_end_a_run(
  small, digits, mesh1, tmp_path, monkeypatch, caplog
):
  """They are of a network that is not done yet: a warning."""

  def spoilt(self, params, step):
    raise generator.NotFiniteSamples("3 of 16 samples are not finite")

  monkeypatch.setattr(loop.Previews, "__call__", spoilt)
  small.preview.every_steps = 1
  small.train.update(num_steps=2)
  loop.train(small, dataset=digits, mesh=mesh1, workdir=tmp_path)
  said = [record.getMessage() for record in caplog.records if "3 of 16" in record.getMessage()]
  assert [text.split(":")[0] for text in said] == ["step 1", "step 2"]
