"""A run that is killed and started again ends as one that was not, bit for bit on one CPU."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import jax
import pytest

from cfg.base import checkpoint, paths, sharding, trees
from cfg.training import loop

# what a process costs is its start, saves and tracing: hence few of each, and a small network
TRAIN_STEPS = 48
OPTIONS = [
  "--config.cpu_devices=1",
  "--config.model.ch=8",
  "--config.model.emb_ch=16",
  "--config.model.norm_groups=4",
  "--config.model.ch_mult=(1,)",
  "--config.model.attn_resolutions=()",
  "--config.model.dropout=0.1",
  "--config.train.batch_size=16",
  f"--config.train.num_steps={TRAIN_STEPS}",
  "--config.train.checkpoint_every_steps=12",
  "--config.train.log_every_steps=4",
  "--config.train.ema_decays=(0.9,0.99)",
  "--config.train.flip=True",
  "--config.heldout.every_steps=48",  # at the end alone
  "--config.heldout.num_images=8",
  "--config.heldout.batch_size=8",
  "--config.heldout.num_bins=2",
  "--config.preview.every_steps=0",
  "--config.sampler.num_steps=4",
  "--config.sweep.batch_size=50",
  "--config.sweep.num_samples=200",
  "--config.sweep.num_blocks=2",
  "--config.sweep.w=(0.0,1.0,2.0,3.0)",
  "--config.judge.num_steps=20",
  "--config.judge.ch=8",
  "--config.judge.feature_dim=8",
  "--config.judge.min_accuracy=0.0",
]


@pytest.fixture(scope="module")
def start():
  """Start `python -m cfg.main` in a process of its own; all share the suite's compilation cache,
  small programs included.
  """

  def begin(workdir, mode):
    env = {
      **os.environ,
      "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
      "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
      "JAX_PLATFORMS": "cpu",
    }
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


def train_records(workdir):
  """[(step, loss)] of metrics.jsonl."""
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert [r["step"] for r in records] == sorted(r["step"] for r in records)
  return [(r["step"], r["loss"]) for r in records if "loss" in r]


def sweep_rows(workdir):
  return sorted((workdir / "sweep").glob("*/w*.json"))


@pytest.fixture(scope="module")
def interrupted(start, tmp_path_factory):
  """A work directory after SIGKILL between two checkpoints, SIGTERM later, and SIGKILL in the sweep
  after the first strength; and the rows that were finished by then, with their times.
  """
  workdir = tmp_path_factory.mktemp("interrupted")
  process = start(workdir, "train")
  # a save goes on beside the steps: a run that is killed before the first counts starts anew
  counted = lambda: any((workdir / "checkpoints").glob("*.sha256.json"))
  wait_until(lambda: logged(workdir, 16) and counted(), process)
  process.kill()
  process.communicate()
  with checkpoint.Checkpoints(workdir) as checkpoints:
    killed_at = checkpoints.steps()[0]
  assert 0 < killed_at < TRAIN_STEPS

  process = start(workdir, "train")
  wait_until(lambda: logged(workdir, 28), process)
  process.send_signal(signal.SIGTERM)
  code, output = finish(process)
  assert code == 75 and "error:" not in output and "run the same command to continue" in output
  assert "Traceback" not in output
  assert f"continuing at step {killed_at} of {TRAIN_STEPS}" in output

  process = start(workdir, "all")
  wait_until(lambda: sweep_rows(workdir), process)
  process.kill()
  process.communicate()
  rows = {path: path.stat().st_mtime_ns for path in sweep_rows(workdir)}
  assert 0 < len(rows) < 4
  assert not (workdir / "sweep.json").exists()
  return workdir, rows


def test_killed_training_ends_with_the_same_state(interrupted, whole):
  """Killed, stopped and started again: parameters, averages, optimizer are bit-identical, and the
  log is that of one run, each step in one record.
  """
  workdir, _ = interrupted
  assert final_state(workdir)[:2] == final_state(whole)[:2]
  assert train_records(workdir) == train_records(whole)
  assert [step for step, _ in train_records(whole)] == list(range(4, TRAIN_STEPS + 1, 4))


def test_in_a_bucket_it_is_the_same_run(start, whole, bucket):
  """Killed there once a checkpoint counts, it goes on from it, and state, log and table are those
  of a run on this machine that was not killed. Without `send` before a checkpoint the log lacks
  records.
  """
  workdir = paths.as_path(f"{bucket}/interrupted")
  counted = lambda: workdir.is_dir() and any((workdir / "checkpoints").glob("*.sha256.json"))
  process = start(workdir, "train")
  wait_until(counted, process)
  process.kill()
  process.communicate()
  code, output = finish(start(workdir, "all"))
  assert code == 0, output
  assert re.search(rf"continuing at step (12|24|36|48) of {TRAIN_STEPS}", output) and not re.search(
    "cannot be used", output
  )
  assert final_state(workdir)[:2] == final_state(whole)[:2]
  assert train_records(workdir) == train_records(whole)
  read = lambda folder: json.loads((folder / "sweep.json").read_text())["rows"]
  assert read(workdir) == read(whole)
  there = {path.name for path in workdir.iterdir()}
  assert {path.name for path in whole.iterdir()} <= there and "writer.lock" not in there


def test_resumed_otherwise_it_is_the_same_run(config, digits, mesh1, tmp_path):
  """Half on one device, half on two in micro-batches with images read by another process: the
  losses of the whole run.
  """
  config.train.update(num_steps=12, log_every_steps=1, checkpoint_every_steps=0, flip=True)
  config.heldout.update(every_steps=0, batch_size=8)
  config.preview.every_steps = 0
  config.model.update(ch_mult=(1,), attn_resolutions=())

  def run(workdir, mesh, **fields):
    staged = config.copy_and_resolve_references()
    staged.train.update(fields)
    loop.train(staged, dataset=digits, mesh=mesh, workdir=workdir)

  run(tmp_path / "whole", mesh1)
  run(tmp_path / "staged", mesh1, num_steps=5)
  run(tmp_path / "staged", sharding.make_mesh(jax.devices()[:2]), accumulate=2, data_workers=1)
  losses = {name: dict(train_records(tmp_path / name)) for name in ("whole", "staged")}
  assert set(losses["whole"]) == set(losses["staged"]) == set(range(1, 13))
  for step, loss in losses["staged"].items():
    assert loss == pytest.approx(losses["whole"][step], rel=1e-4), step
  states = {name: final_state(tmp_path / name) for name in losses}
  assert [states[name][0] for name in losses] == [12, 12] and all(
    state[2]["stream_position"] == 12 * 16 for state in states.values()
  )


def test_killed_sweep_goes_on_where_it_was(interrupted, start, whole):
  """The row that was finished is kept, and the table is the uninterrupted one's. The same command
  again: exit code 0, "complete" for both halves, no file of the results rewritten.
  """
  workdir, done = interrupted
  code, output = finish(start(workdir, "all"))
  assert code == 0 and "training is complete" in output
  assert {path: path.stat().st_mtime_ns for path in done} == done
  read = lambda workdir: json.loads((workdir / "sweep.json").read_text())["rows"]
  assert read(workdir) == read(whole)

  before = {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()}
  code, output = finish(start(workdir, "all"))
  assert code == 0 and "training is complete" in output and "the sweep is complete" in output
  assert {p: p.stat().st_mtime_ns for p in workdir.rglob("*") if p.is_file()} == before
