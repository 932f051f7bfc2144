"""Checkpoints that check themselves, and the config they belong to."""

import logging
import subprocess
import sys
import threading

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
  """Multiples of keep_every stay beside the newest, and come back by number, or not at all. Where
  hashes are not compared the damaged one is opened.
  """
  with checkpoint.Checkpoints(tmp_path, keep=1, keep_every=2) as checkpoints:
    for step in range(1, 6):
      checkpoints.save(step, state=tree(step), meta={"step": step})
    checkpoints.wait()
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
  goes on from there. Where discard_after leaves it, it cannot.
  """
  damage(largest_file(saved, 2))
  with caplog.at_level(logging.WARNING, "cfg"), checkpoint.Checkpoints(saved) as checkpoints:
    assert not checkpoints.intact(2) and checkpoints.intact(1)
    step, state, _ = checkpoints.restore()
    assert step == 1 and trees.tree_hash(state) == trees.tree_hash(tree(1))
    assert "content differs from its hash" in caplog.text
    checkpoints.discard_after(1)
    checkpoints.save(2, state=tree(5), meta={})
    checkpoints.wait()
    assert trees.tree_hash(checkpoints.restore()[1]) == trees.tree_hash(tree(5))


def test_a_lost_manifest_is_damage(saved, caplog):
  """Without it nothing tells a flipped bit: the older step is opened, and the log says why; of all
  steps it is an error, not a new start. It fails where a missing manifest is no damage.
  """
  manifest = lambda step: saved / "checkpoints" / f"{step}.sha256.json"
  manifest(2).unlink()
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore()[0] == 1 and "2.sha256.json is not there" in caplog.text
    checkpoints.save(3, state=tree(3), meta={"step": 3})
    checkpoints.wait()
    assert checkpoints.intact(1)  # a step that may be damaged is none of the two that are kept
    checkpoints.discard_after(1)
    manifest(1).unlink()
    with pytest.raises(UserError, match="none of the checkpoints"):
      checkpoints.restore()


@pytest.mark.parametrize(
  "text", ["", "{}", "[]", "[1]", "null", "[" * 100_000, '{"a": ', "\0" * 99]
)
def test_a_manifest_of_anything_else_is_damage(saved, caplog, text):
  """Zeroed, cut, nested without end, or a table that leaves files out: the older step is opened."""
  (saved / "checkpoints" / "2.sha256.json").write_text(text)
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.restore()[0] == 1 and "cannot be used" in caplog.text


@pytest.mark.parametrize("text", ["[" * 100_000, "\0" * 99, '{"config": '])
def test_a_damaged_meta_is_passed_over(saved, text):
  """It is read before anything is compared with its hash, to find the config."""
  (saved / "checkpoints/2/meta/metadata").write_text(text)
  assert checkpoint.read_meta(saved)["step"] == 1


def killed_at(monkeypatch, name):
  """Lets the background part of a save end where it calls `name` of the module, as a kill does."""

  def die(*_, **__):
    raise SystemExit

  monkeypatch.setattr(checkpoint, name, die)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_save_that_was_killed_does_not_count(tmp_path, monkeypatch):
  """Before its manifest: it is as if it had not been, in an empty work directory too, and what it
  left goes when the run goes on. The steps before it stay, however many. It fails where steps()
  does not leave out _unfinished().
  """
  with checkpoint.Checkpoints(tmp_path, keep=1) as checkpoints:
    for step in (1, 2):
      with monkeypatch.context() as patch:
        killed_at(patch, "_hash_files")
        checkpoints.save(step, state=tree(step), meta={"step": step})
        checkpoints._saving.join()
      checkpoints._saving = None
      assert (tmp_path / "checkpoints" / str(step)).is_dir()
      if step == 1:
        assert checkpoints.steps() == [] and checkpoints.restore() is None
        checkpoints.discard_after(0)
        checkpoints.save(1, state=tree(1), meta={"step": 1})
        checkpoints.wait()
    assert checkpoints.steps() == [1] and checkpoints.restore()[0] == 1
    (tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp-7").mkdir()
    checkpoints.discard_after(1)
  assert sorted(p.name for p in (tmp_path / "checkpoints").iterdir()) == ["1", "1.sha256.json"]


def test_nothing_makes_room_before_the_new_step_counts(tmp_path, monkeypatch):
  """The older step is removed after the newer one's manifest was written, and not if it cannot be:
  the error comes with the next save, or at the end. Where _finish keeps no error, nobody hears of
  it.
  """
  full = OSError(28, "No space left on device")

  def fail(*_, **__):
    raise full

  checkpoints = checkpoint.Checkpoints(tmp_path, keep=1)
  checkpoints.save(1, state=tree(1), meta={"step": 1})
  checkpoints.wait()
  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_hash_files", fail)
    checkpoints.save(2, state=tree(2), meta={"step": 2})
    with pytest.raises(UserError, match="step 2 cannot be written.*No space left on device"):
      checkpoints.save(3, state=tree(3), meta={"step": 3})
  assert checkpoints.steps() == [1] and checkpoints.intact(1)
  with pytest.raises(UserError, match="step 3 cannot be written"), monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_hash_files", fail)
    with checkpoints:
      checkpoints.save(3, state=tree(3), meta={"step": 3})
  with checkpoint.Checkpoints(tmp_path, keep=1) as again:
    assert again.restore()[0] == 1
    again.discard_after(1)
    again.save(2, state=tree(2), meta={"step": 2})
    again.wait()
    assert again.steps() == [2] and again.intact(2)


def test_a_save_does_not_hold_up_what_comes_after(tmp_path, monkeypatch):
  """`save` comes back while files are being hashed; what is written is the state at the call,
  whatever becomes of its arrays. It fails where `save` waits for its thread.
  """
  hold, hashes = threading.Event(), checkpoint._hash_files

  def slow(folder):
    assert hold.wait(60)
    return hashes(folder)

  monkeypatch.setattr(checkpoint, "_hash_files", slow)
  grow = jax.jit(lambda state: jax.tree.map(lambda a: a + 1, state), donate_argnums=0)
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    state = tree(1)
    checkpoints.save(1, state=state, meta={"step": 1})
    jax.block_until_ready(grow(state))
    assert checkpoints.steps() == []
    hold.set()
    checkpoints.wait()
    assert trees.tree_hash(checkpoints.restore()[1]) == trees.tree_hash(tree(1))


FULL_DISK = """
import resource, sys
import absl.logging
import jax.numpy as jnp
from cfg.base import checkpoint
from cfg.base.errors import run_command

absl.logging.set_verbosity(absl.logging.FATAL)  # as cfg.main does

def save(size, step):
  state = {str(i): jnp.arange(i, i + size, dtype=jnp.float32) for i in range(60)}
  with checkpoint.Checkpoints(sys.argv[1]) as checkpoints:
    checkpoints.save(step, state=state, meta={"step": step})

save(100, 1)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
run_command(lambda: save(10**5, 2))
"""


def test_a_full_disk_is_one_paragraph(tmp_path):
  """And the step before is as it was. Without _say_once there are tracebacks too."""
  command = [sys.executable, "-c", FULL_DISK, str(tmp_path)]
  done = subprocess.run(command, capture_output=True, text=True, timeout=120)
  assert done.returncode == 1
  assert done.stderr.startswith("error: the checkpoint of step 2 cannot be written"), done.stderr
  # TensorStore says the words or, by what of it came first, the number (EFBIG)
  assert "File too large" in done.stderr or "error_code='27'" in done.stderr
  assert done.stderr.count("\n") == 1
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.steps() == [1] and checkpoints.intact(1)


def test_a_part_is_read_alone(saved):
  """Of a tree what is chosen by name, in its place; the reader makes nothing."""
  with checkpoint.Checkpoints(saved) as checkpoints:
    step, state, meta = checkpoints.restore(
      part=lambda shapes, meta: {"params": {"b": shapes["params"]["b"]}}
    )
  assert step == meta["step"] == 2 and isinstance(state["params"]["b"], np.ndarray)
  assert trees.tree_hash(state) == trees.tree_hash({"params": {"b": tree(2)["params"]["b"]}})


def test_reading_makes_nothing(tmp_path):
  """Not even a folder."""
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    assert checkpoints.restore() is None
    checkpoints.discard_after(0)
  assert list(tmp_path.iterdir()) == []


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
