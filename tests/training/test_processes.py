"""Several real processes on one machine train as one does, and none waits for one that is gone.

What they say of each other before jax joins them is tests/base/test_rendezvous.py's.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from cfg.base import checkpoint, paths, trees
from cfg.base.errors import Stopped
from cfg.base.hosts import HostGone

WAIT = 120  # seconds in which a process notices that another one is gone
OPTIONS = [
  "--config=configs/digits.py",
  "--config.cpu_devices=1",
  "--config.model.ch=8",
  "--config.model.emb_ch=16",
  "--config.model.norm_groups=4",
  "--config.model.ch_mult=(1,)",
  "--config.model.attn_resolutions=()",
  "--config.model.dropout=0.1",
  "--config.train.batch_size=16",
  "--config.train.accumulate=2",
  "--config.train.flip=True",
  "--config.train.checkpoint_every_steps=0",
  "--config.train.log_every_steps=1",
  "--config.heldout.every_steps=20",
  "--config.heldout.num_images=8",
  "--config.heldout.batch_size=8",
  "--config.preview.every_steps=0",
  "--config.meter.num_levels=2",
  "--config.meter.num_images=10",
  "--config.sampler.num_steps=3",
  "--config.sweep.batch_size=50",
  "--config.sweep.num_samples=200",
  "--config.sweep.num_blocks=2",
  "--config.sweep.w=(0.0,1.0)",
  "--config.judge.num_steps=20",
  "--config.judge.ch=8",
  "--config.judge.feature_dim=8",
  "--config.judge.min_accuracy=0.0",
]
COMPILED = {
  "JAX_PLATFORMS": "cpu",
  "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
  "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
}


def free_port():
  """A port that nobody listens at."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    return server.getsockname()[1]


def start(workdir, *options, count=2, indices=None, address=None, logs=None):
  """Processes of one run; what each says goes to <logs>.<index>.log, beside the work directory."""
  address, processes = address or f"127.0.0.1:{free_port()}", []
  for index in range(count) if indices is None else indices:
    command = [sys.executable, "-m", "cfg.main", f"--workdir={workdir}", *OPTIONS, *options]
    env = {**os.environ, **COMPILED}
    if count > 1:
      command.append("--distributed")
      env |= {
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(count),
        "JAX_PROCESS_ID": str(index),
      }
    with open(f"{logs or workdir}.{index}.log", "a") as log:
      processes.append(subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT))
  return processes


def end(processes, *, seconds=300):
  """The exit codes of processes that end by themselves; they are killed if they do not."""
  limit = time.monotonic() + seconds
  try:
    return [process.wait(max(1, limit - time.monotonic())) for process in processes]
  finally:
    for process in processes:
      process.kill()


def said(workdir, index):
  """What a process has said."""
  with open(f"{workdir}.{index}.log") as log:
    return log.read()


def losses(workdir):
  """{step: loss} of a run."""
  records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  return {record["step"]: record["loss"] for record in records if "loss" in record}


def wait_for_step(workdir, step, processes):
  """Until a run has logged that step."""
  limit = time.monotonic() + 200
  while not (workdir / "metrics.jsonl").exists() or max(losses(workdir), default=0) < step:
    assert time.monotonic() < limit and all(p.poll() is None for p in processes), [
      said(workdir, i) for i in range(len(processes))
    ]
    time.sleep(0.05)


def leave(workdir, step):
  """What a save that is killed leaves."""
  (workdir / f"checkpoints/{step}").mkdir(parents=True)
  (workdir / f"checkpoints/{step}.saving").touch()


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """(of one process, of two by turns): work directories of 20 steps, swept by one and by two."""
  folder = tmp_path_factory.mktemp("runs")
  one, two = folder / "one", folder / "two"
  steps = lambda n: f"--config.train.num_steps={n}"
  assert end(start(one, steps(20), count=1)) == [0], said(one, 0)
  # what a first save that was killed leaves, and later another: the first process alone removes it
  leave(two, 3)
  # a checkpoint of two is read by one, and that of one by two
  for count, last in ((2, 8), (1, 14)):
    turn = start(two, "--mode=train", steps(last), "--config.train.fsdp=1", count=count)
    assert end(turn) == [0] * count, said(two, 0) + said(two, 1)
  leave(two, 17)
  assert end(start(two, steps(20))) == [0, 0], said(two, 0) + said(two, 1)
  return one, two


def test_losses_are_those_of_one_process(runs):
  """Over 20 steps with micro-batches, dropout and flips, also on from the other's checkpoint."""
  one, two = map(losses, runs)
  assert sorted(one) == sorted(two) == list(range(1, 21))
  assert max(abs(one[step] - two[step]) for step in one) < 1e-4


def test_each_file_has_one_writer(runs):
  """The other process leaves no file of its own, and says nothing that the first says."""
  one, two = runs
  names = lambda folder: sorted(
    re.sub(r"[0-9a-f]{8,}|tfevents.*", "*", p.relative_to(folder).as_posix())
    for p in folder.rglob("*")
    if "checkpoints" not in p.parts and "tensorboard" not in p.parts
  )
  assert names(two) == names(one)
  assert [p for p in two.iterdir() if p.name.startswith(".")] == []
  spoken = [line for line in said(two, 1).splitlines() if "[Gloo]" not in line]
  assert spoken == []


def test_the_first_process_removes_what_a_killed_save_left(runs):
  """While the others wait: Orbax synchronises them when each first looks at the checkpoints. Where
  discard_after leaves that to chance, a run over what a first save left hangs.
  """
  names = sorted(path.name for path in (runs[1] / "checkpoints").iterdir())
  assert names == ["14", "14.sha256.json", "20", "20.sha256.json"]


def test_a_sweep_has_the_same_images_and_table(runs):
  """Weights that differ in the last digit give images that differ in few pixels by one, and rows
  that agree.
  """
  one, two = [json.loads((folder / "sweep.json").read_text())["rows"] for folder in runs]
  assert [row["w"] for row in two] == [row["w"] for row in one] == [0, 1]
  for mine, theirs in zip(two, one, strict=True):
    for name in ("fid", "inception_score", "label_accuracy", "nfe", "num_samples"):
      assert mine[name] == pytest.approx(theirs[name], rel=1e-3), name


@pytest.mark.slow
def test_in_a_bucket_two_processes_are_the_same(runs, bucket, tmp_path):
  """They write their parts of a checkpoint there, go on from it, and sweep."""
  one, _ = runs
  workdir, logs = paths.as_path(f"{bucket}/two"), tmp_path / "two"
  for mode, last in (("train", 8), ("all", 20)):
    options = (f"--mode={mode}", f"--config.train.num_steps={last}", "--config.train.fsdp=1")
    assert end(start(workdir, *options, logs=logs)) == [0, 0], said(logs, 0) + said(logs, 1)
  assert "continuing at step 8 of 20" in said(logs, 0)
  expected, found = losses(one), losses(workdir)
  assert sorted(found) == sorted(expected)
  assert max(abs(found[step] - expected[step]) for step in expected) < 1e-4
  assert (workdir / "sweep.json").exists()


@pytest.mark.parametrize("gone", [0, 1])
def test_one_process_killed_ends_the_other(tmp_path, gone):
  """With its own exit code and one paragraph, no traceback; also where it is the first one, which
  jax answers with an abort. Without base.supervise that one fails, and without noticing_loss the
  other.
  """
  workdir = tmp_path / "run"
  processes = start(workdir, "--mode=train", "--config.train.num_steps=100000")
  wait_for_step(workdir, 2, processes)
  processes[gone].kill()
  assert end([processes[1 - gone]], seconds=WAIT) == [HostGone.exit_code]
  text = said(workdir, 1 - gone)
  assert text.count("error: another process of this run is gone") == 1, text
  assert "Traceback" not in text and "stack trace" not in text


def test_a_signal_to_one_process_stops_all_after_the_same_step(tmp_path):
  """SIGTERM to the second one: both save and end in order, and the checkpoint counts. It fails
  where a process acts on its own signal.
  """
  workdir = tmp_path / "run"
  processes = start(workdir, "--mode=train", "--config.train.num_steps=100000")
  wait_for_step(workdir, 2, processes)
  processes[1].send_signal(signal.SIGTERM)
  assert end(processes, seconds=60) == [Stopped.exit_code] * 2, said(workdir, 0)
  step = int(re.search(r"after step (\d+), which was saved", said(workdir, 0))[1])
  assert "stopped by a signal to another process" in said(workdir, 0)
  assert f"stopped by signal {int(signal.SIGTERM)} after step {step}" in said(workdir, 1)
  assert "error" not in said(workdir, 0) + said(workdir, 1)
  with checkpoint.Checkpoints(workdir) as checkpoints:
    assert checkpoints.steps() == [step] and checkpoints.intact(step)
    assert trees.tree_hash(checkpoints.restore()[1])


def test_processes_that_were_started_otherwise_do_nothing(tmp_path):
  """Another seed at the second one: both say so, and there is no work directory of either. It fails
  where the config is not among the facts.
  """
  workdir = tmp_path / "run"
  address = f"127.0.0.1:{free_port()}"
  processes = [
    *start(workdir, "--mode=train", indices=[0], address=address),
    *start(workdir, "--mode=train", "--config.seed=1", indices=[1], address=address),
  ]
  assert end(processes, seconds=60) == [1, 1]
  for index in (0, 1):
    assert "has seed = 1, process 0 on" in said(workdir, index)
  assert list(workdir.iterdir()) == []


def test_a_second_writer_is_refused_at_all_its_processes(tmp_path):
  """Both of a second run end with the same reason, at once."""
  workdir = tmp_path / "run"
  first = start(workdir, "--mode=train", "--config.train.num_steps=100000", count=1)
  try:
    wait_for_step(workdir, 1, first)
    assert end(start(workdir, "--mode=train", "--config.train.num_steps=100000")) == [1, 1]
  finally:
    first[0].kill()
  for index in (0, 1):
    assert "is training in" in said(workdir, index), said(workdir, index)
  assert "error: process 0 on " in said(workdir, 1)
