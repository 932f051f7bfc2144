"""Checkpoints that check themselves, and the config they belong to."""

import logging

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.base import checkpoint, sharding, trees
from cfg.base import config as config_lib
from cfg.base.errors import UserError


def tree(seed):
  keys = jax.random.split(jax.random.key(seed), 2)
  return {
    "params": {"a": jax.random.normal(keys[0], (64, 8)), "b": jax.random.normal(keys[1], (8,))},
    "step": jnp.int32(seed),
  }


@pytest.fixture
def saved(tmp_path):
  """A work directory with steps 1 and 2 of three saved."""
  with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
    for step in range(3):
      checkpoints.save(step, state=tree(step), meta={"step": step, "config": {"a": [1, 2]}})
  return tmp_path


def largest_file(workdir, step):
  return max(
    (p for p in (workdir / "checkpoints" / str(step)).rglob("*") if p.is_file()),
    key=lambda p: p.stat().st_size,
  )


@pytest.mark.smoke
def test_round_trip(saved, mesh8):
  """Bits come back, with a target and a mesh or without; meta too; no more steps are kept than
  asked.
  """
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.steps() == [2, 1]
    assert sorted(p.name for p in (saved / "checkpoints").glob("*.json")) == [
      "1.sha256.json",
      "2.sha256.json",
    ]
    step, state, meta = checkpoints.restore()
    assert step == 2 and meta == checkpoint.read_meta(saved) == {"step": 2, "config": {"a": [1, 2]}}
    assert trees.tree_hash(state) == trees.tree_hash(tree(2))
    _, placed, _ = checkpoints.restore(target=jax.device_put(tree(0), sharding.replicated(mesh8)))
    assert trees.tree_hash(placed) == trees.tree_hash(tree(2))
    assert placed["params"]["a"].sharding == sharding.replicated(mesh8)


def test_chosen_steps_are_kept_for_good(tmp_path):
  """Multiples of keep_every stay beside the newest, and come back by number, or not at all."""
  with checkpoint.Checkpoints(tmp_path, keep=1, keep_every=2) as checkpoints:
    for step in range(1, 6):
      checkpoints.save(step, state=tree(step), meta={"step": step})
    assert checkpoints.steps() == [5, 4, 2]
    assert all(checkpoints.intact(step) for step in checkpoints.steps())
    step, state, meta = checkpoints.restore(step=2)
    assert step == 2 == meta["step"] and trees.tree_hash(state) == trees.tree_hash(tree(2))
    with pytest.raises(UserError, match=r"no checkpoint of step 3.*\[2, 4, 5\]"):
      checkpoints.restore(step=3)
    flip(largest_file(tmp_path, 2))
    with pytest.raises(UserError, match="none of the checkpoints \\[2\\].*intact"):
      checkpoints.restore(step=2)  # no other step in its place


def flip(path):
  content = bytearray(path.read_bytes())
  content[len(content) // 2] ^= 1
  path.write_bytes(content)


@pytest.mark.parametrize(
  "damage",
  [flip, lambda path: path.write_bytes(path.read_bytes()[:10]), lambda path: path.unlink()],
)
def test_a_damaged_step_falls_back(saved, caplog, damage):
  """A flipped bit, a cut file, a lost file: the older step is opened, and the log says why; saving
  goes on from there.
  """
  damage(largest_file(saved, 2))
  with caplog.at_level(logging.WARNING, "cfg"), checkpoint.Checkpoints(saved) as checkpoints:
    assert not checkpoints.intact(2) and checkpoints.intact(1)
    step, state, _ = checkpoints.restore()
    assert step == 1 and trees.tree_hash(state) == trees.tree_hash(tree(1))
    assert "content differs from its hash" in caplog.text
    checkpoints.discard_after(1)
    checkpoints.save(2, state=tree(5), meta={})
    assert trees.tree_hash(checkpoints.restore()[1]) == trees.tree_hash(tree(5))


def test_a_step_without_manifest_is_taken(saved):
  """Killed between the step and its manifest: the step itself is whole."""
  (saved / "checkpoints" / "2.sha256.json").unlink()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore()[0] == 2


def test_nothing_intact_is_an_error_and_nothing_there_is_none(saved, tmp_path_factory):
  """All steps damaged: an error that says so. An empty directory: None."""
  for step in (1, 2):
    flip(largest_file(saved, step))
  with (
    checkpoint.Checkpoints(saved) as checkpoints,
    pytest.raises(UserError, match="none of the checkpoints"),
  ):
    checkpoints.restore()
  empty = tmp_path_factory.mktemp("empty")
  assert checkpoint.read_meta(empty) is None
  with checkpoint.Checkpoints(empty) as checkpoints:
    assert checkpoints.restore() is None and checkpoint.read_meta(empty) is None


def test_tree_hash_sees_everything(mesh8):
  """Equal trees on any device have one hash; a value, dtype, shape or name changes it."""
  base = tree(0)
  digest = trees.tree_hash(base)
  assert trees.tree_hash(jax.device_put(base, sharding.replicated(mesh8))) == digest
  assert trees.tree_hash(jax.tree.map(np.asarray, base)) == digest
  a, b = base["params"]["a"], base["params"]["b"]
  others = [
    {"a": a.at[0, 0].add(1e-6), "b": b},
    {"a": a.astype(jnp.bfloat16), "b": b},
    {"a": a.reshape(8, 64), "b": b},
    {"a": a, "c": b},
  ]
  assert len({digest, *(trees.tree_hash({**base, "params": p}) for p in others)}) == 5


def test_same_run(config, tmp_path):
  """What changes what a step computes is another run, and is named; how far and how it is swept is
  not.
  """
  stored = config_lib.to_json(config)
  config.train.num_steps += 100
  config.train.log_every_steps += 1
  config.model.remat = True
  config.sampler.name = "ddim"
  config.sweep.num_samples = 10
  config.judge.ch = 4
  config_lib.check_same_run(config, stored, workdir=tmp_path)
  for section, field, value in [
    ("train", "batch_size", 7),
    ("model", "ch", 24),
    ("data", "split_seed", 5),
    ("optimizer", "learning_rate", 1.0),
  ]:
    other = config.copy_and_resolve_references()
    other[section][field] = value
    with pytest.raises(UserError, match=f"{section}.{field} is {value}"):
      config_lib.check_same_run(other, stored, workdir=tmp_path)


def test_flatten_and_back(config):
  """unflatten is the inverse of flatten."""
  values = config_lib.to_json(config)
  flat = trees.flatten(values, separator=".")
  assert flat["train.batch_size"] == 16 and trees.unflatten(flat, separator=".") == values


@pytest.mark.parametrize(
  "section, field, value",
  [
    ("train", "p_uncond", 1.5),
    ("train", "num_steps", 0),
    ("train", "ema_decays", (1.0,)),
    ("schedule", "logsnr_min", 30.0),
  ],
)
def test_values_no_run_could_use(config, section, field, value):
  """The field and the value are named."""
  config_lib.check_values(config)
  config[section][field] = value
  with pytest.raises(UserError, match=f"{section}.{field} is"):
    config_lib.check_values(config)


def test_guidance_needs_a_null_label(config):
  """p_uncond = 0 trains no unconditional model: w other than 0 is refused, w = 0 is not."""
  config_lib.check_guidable(config, [0.0, 2.0])
  config.train.p_uncond = 0.0
  config_lib.check_guidable(config, [0.0])
  with pytest.raises(UserError, match="p_uncond is 0"):
    config_lib.check_guidable(config, [0.0, 2.0])
