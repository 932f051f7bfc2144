"""A run that is killed and started again ends as one that was not, bit for bit on one CPU."""

import json
import os
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from cfg.base import checkpoint, files, sharding, trees
from cfg.training import loop, watch

TRAIN_STEPS = 120
OPTIONS = [
  "--config.cpu_devices=1",
  "--config.model.ch=8",
  "--config.model.emb_ch=16",
  "--config.model.norm_groups=4",
  "--config.model.ch_mult=(1,)",
  "--config.model.attn_resolutions=(8,)",
  "--config.train.batch_size=16",
  f"--config.train.num_steps={TRAIN_STEPS}",
  "--config.train.checkpoint_every_steps=10",
  "--config.train.log_every_steps=5",
  "--config.train.heldout_every_steps=30",
  "--config.train.preview_every_steps=0",
  "--config.train.ema_decays=(0.9,0.99)",
  "--config.model.dropout=0.1",
  "--config.train.flip=True",
  "--config.sampler.num_steps=4",
  "--config.preview.num_per_class=1",
  "--config.sweep.batch_size=100",
  "--config.sweep.num_samples=400",
  "--config.sweep.num_blocks=2",
  "--config.sweep.w=(0.0,1.0,2.0,3.0)",
  "--config.judge.num_steps=20",
  "--config.judge.ch=8",
  "--config.judge.feature_dim=8",
  "--config.judge.min_accuracy=0.0",
]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
  """Start `python -m cfg.main` in a process of its own; all share a compilation cache."""
  cache = tmp_path_factory.mktemp("xla")
  env = {
    **os.environ,
    "JAX_COMPILATION_CACHE_DIR": str(cache),
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PLATFORMS": "cpu",
  }

  def begin(workdir, mode):
    command = [
      sys.executable,
      "-m",
      "cfg.main",
      "--config=configs/digits.py",
      f"--workdir={workdir}",
      f"--mode={mode}",
      *OPTIONS,
    ]
    return subprocess.Popen(
      command, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )

  return begin


def finish(process):
  """(exit code, output) of a process that ends by itself."""
  output, _ = process.communicate(timeout=300)
  return process.returncode, output


def wait_until(condition, process):
  """Poll until `condition()` is true; fail if the process ends first."""
  while not condition():
    if process.poll() is not None:
      pytest.fail(f"the process ended by itself: {process.stdout.read()}")
    time.sleep(0.005)


def logged(workdir, step):
  """Whether metrics.jsonl has a record of `step` or later."""
  path = workdir / "metrics.jsonl"
  return path.exists() and any(
    json.loads(line)["step"] >= step for line in path.read_text().splitlines() if line.endswith("}")
  )


def final_state(workdir):
  """(step, hash of everything, meta) of the newest checkpoint."""
  with checkpoint.Checkpoints(workdir) as checkpoints:
    step, state, meta = checkpoints.restore()
  return step, trees.tree_hash(state), meta


@pytest.fixture(scope="module")
def whole(start, tmp_path_factory):
  """A work directory trained and swept without interruption."""
  workdir = tmp_path_factory.mktemp("whole")
  code, output = finish(start(workdir, "all"))
  assert code == 0, output
  return workdir


def test_killed_training_ends_with_the_same_state(start, whole, tmp_path):
  """SIGKILL between two checkpoints, SIGTERM later, start again: parameters, averages, optimizer
  are bit-identical.
  """
  process = start(tmp_path, "train")
  wait_until(lambda: logged(tmp_path, 25), process)
  process.kill()
  process.communicate()
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    killed_at = checkpoints.steps()[0]
  assert 0 < killed_at < TRAIN_STEPS

  process = start(tmp_path, "train")
  wait_until(lambda: logged(tmp_path, 65), process)
  process.send_signal(signal.SIGTERM)
  code, output = finish(process)
  assert code != 0 and "run the same command to continue" in output
  assert "Traceback" not in output
  assert f"continuing at step {killed_at} of {TRAIN_STEPS}" in output

  code, output = finish(start(tmp_path, "train"))
  assert code == 0, output
  assert final_state(tmp_path)[:2] == final_state(whole)[:2]
  # the log is that of one run: each step once, in order
  steps = [
    json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").read_text().splitlines()
  ]
  assert steps == sorted(steps) and set(steps) == set(range(5, TRAIN_STEPS + 1, 5))


def test_resumed_otherwise_it_is_the_same_run(config, digits, mesh1, tmp_path, monkeypatch):
  """Half on one device, half on two in micro-batches with images read by another process: the
  losses of the whole run.
  """
  config.train.update(
    num_steps=12,
    log_every_steps=1,
    heldout_every_steps=0,
    preview_every_steps=0,
    checkpoint_every_steps=0,
    flip=True,
  )
  config.heldout.batch_size = 8
  config.model.update(ch_mult=(1,), attn_resolutions=())
  for what, nothing in (
    ("heldout", {}),
    ("preview", np.zeros((8, 8, 1), np.uint8)),
  ):  # not looked at here
    monkeypatch.setattr(watch.Watcher, what, lambda *_, nothing=nothing: nothing)

  def run(workdir, mesh, **fields):
    staged = config.copy_and_resolve_references()
    staged.train.update(fields)
    loop.train(staged, dataset=digits, mesh=mesh, workdir=workdir)

  run(tmp_path / "whole", mesh1)
  run(tmp_path / "staged", mesh1, num_steps=5)
  run(tmp_path / "staged", sharding.make_mesh(jax.devices()[:2]), accumulate=2, data_workers=1)
  logged = lambda name: [
    json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
  ]
  losses = {
    name: {row["step"]: row["loss"] for row in logged(name) if "loss" in row}
    for name in ("whole", "staged")
  }
  assert set(losses["whole"]) == set(range(2, 13)) and set(losses["staged"]) >= set(range(7, 13))
  for step, loss in losses["staged"].items():
    assert loss == pytest.approx(losses["whole"][step], rel=1e-4), step
  states = {name: final_state(tmp_path / name) for name in losses}
  assert [states[name][0] for name in losses] == [12, 12] and all(
    state[2]["stream_position"] == 12 * 16 for state in states.values()
  )


def test_killed_sweep_goes_on_where_it_was(start, whole, tmp_path):
  """SIGKILL after the first strength: the finished row is kept, and the table is the uninterrupted
  one's.
  """
  code, output = finish(start(tmp_path, "train"))
  assert code == 0, output
  files.write_npz(tmp_path / "judge.npz", files.read_npz(whole / "judge.npz"))
  process = start(tmp_path, "sweep")
  rows = lambda: sorted((tmp_path / "sweep").glob("*/w*.json"))
  wait_until(rows, process)
  process.kill()
  process.communicate()
  done = {path: path.stat().st_mtime_ns for path in rows()}
  assert 0 < len(done) < 4
  assert not (tmp_path / "sweep.json").exists()

  code, output = finish(start(tmp_path, "sweep"))
  assert code == 0, output
  assert {path: path.stat().st_mtime_ns for path in done} == done
  read = lambda workdir: json.loads((workdir / "sweep.json").read_text())["rows"]
  assert read(tmp_path) == read(whole)


def test_a_finished_run_says_so_and_changes_nothing(start, whole):
  """The same command again: exit code 0, "complete" for both halves, no file of the results
  rewritten.
  """
  before = {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()}
  code, output = finish(start(whole, "all"))
  assert code == 0 and "training is complete" in output and "the sweep is complete" in output
  assert {p: p.stat().st_mtime_ns for p in whole.rglob("*") if p.is_file()} == before
