"""launch/local.sh: what each process gets, and how they end."""

import os
import signal
import time

import pytest
import stand_ins
from paths import ROOT
from stand_ins import LAUNCH

# process i notes its environment and arguments, and does what the variable DO_<i> says
PYTHON = """
i=${JAX_PROCESS_ID:-0}
env | grep -E '^(JAX_(COORD|NUM_PROC|PROC)|CUDA)' > "$NOTES/env.$i"
printf '%s\\n' "$@" > "$NOTES/args.$i"
echo "process $i is here"
trap 'echo asked >> "$NOTES/asked.$i"; exit 75' TERM
: > "$NOTES/ready.$i"
do=DO_$i
eval "${!do:-true}"
"""
LONG = "for _ in {1..400}; do sleep 0.1; done"  # longer than any test


@pytest.fixture
def notes(tmp_path):
  """A folder for what the stand-in for python notes."""
  folder = tmp_path / "notes"
  folder.mkdir()
  return folder


def environment(notes, **variables):
  """With the stand-in for python, and no GPU."""
  tools = notes.parent / "tools"
  python = stand_ins.put(tools, "py", PYTHON)
  stand_ins.put(tools, "nvidia-smi", "exit 9")
  return stand_ins.environment(tools, PYTHON=str(python), NOTES=str(notes), **variables)


def local(notes, count, *options, workdir="a run", **variables):
  """launch/local.sh to its end."""
  env = environment(notes, **variables)
  words = [str(count), "configs/digits.py", workdir, *options]
  return stand_ins.run(LAUNCH / "local.sh", *words, cwd=notes.parent, env=env)


def started(notes, count, ignored=(), **variables):
  """launch/local.sh, when its processes are there; signals that are `ignored` do not reach it."""
  env = environment(notes, **variables)
  words = [str(count), "configs/digits.py", "a run"]
  process = stand_ins.start(LAUNCH / "local.sh", *words, cwd=notes.parent, env=env, ignored=ignored)
  wait_for(lambda: len(list(notes.glob("ready.*"))) == count)
  return process


def wait_for(there, seconds=60):
  """Until `there()`."""
  end = time.monotonic() + seconds
  while not there():
    assert time.monotonic() < end, "it does not come"
    time.sleep(0.05)


def variables(notes, i):
  """{name: value} of JAX and CUDA in process i."""
  return dict(line.split("=", 1) for line in (notes / f"env.{i}").read_text().splitlines())


def alive(pid):
  """Whether the process runs: zombies, which some init does not collect, do not."""
  try:
    with open(f"/proc/{pid}/stat") as f:
      return f.read().rsplit(")", 1)[1].split()[0] != "Z"
  except FileNotFoundError:
    return False


def test_each_process_gets_its_own(notes):
  """Its number, all of one address, its share of the GPUs; the same command, quoted, with a log."""
  done = local(notes, 2, "--config.seed=3", "--out=a b", CUDA_VISIBLE_DEVICES="1,3,5,7")
  assert done.returncode == 0, done.stderr
  for i, gpus in enumerate(["1,3", "5,7"]):
    own = variables(notes, i)
    assert own["JAX_PROCESS_ID"] == str(i) and own["JAX_NUM_PROCESSES"] == "2"
    assert own["CUDA_VISIBLE_DEVICES"] == gpus
    host, port = own["JAX_COORDINATOR_ADDRESS"].split(":")
    assert host == "127.0.0.1" and 20000 <= int(port) < 32768
    words = ["-m", "cfg.main", "--config=configs/digits.py", "--workdir=a run", "--distributed"]
    assert (notes / f"args.{i}").read_text().splitlines() == [
      *words,
      "--config.seed=3",
      "--out=a b",
    ]
    log = (notes.parent / f"a run/log.{i}.txt").read_text()
    assert log == f"process {i} is here\n"
  assert variables(notes, 0)["JAX_COORDINATOR_ADDRESS"] == own["JAX_COORDINATOR_ADDRESS"]
  assert "process 0 is here" in done.stdout and "process 1 is here" not in done.stdout
  assert not (notes.parent / "a run/pid").exists()


def test_one_process_is_alone(notes):
  """It has all GPUs and joins nobody; its log goes on where an earlier one ended."""
  for _ in range(2):
    assert local(notes, 1, CUDA_VISIBLE_DEVICES="0,1,2").returncode == 0
  assert variables(notes, 0) == {"CUDA_VISIBLE_DEVICES": "0,1,2"}
  assert "--distributed" not in (notes / "args.0").read_text()
  assert (notes.parent / "a run/log.0.txt").read_text() == "process 0 is here\n" * 2


def test_without_gpus(notes):
  """Nothing is said of GPUs, also where nvidia-smi finds none."""
  assert local(notes, 2).returncode == 0
  assert not any(name.startswith("CUDA") for i in (0, 1) for name in variables(notes, i))


def test_gpus_are_found(notes):
  """nvidia-smi's GPUs are shared out, if they can be."""
  env = environment(notes)
  stand_ins.put(notes.parent / "tools", "nvidia-smi", "seq 0 3")
  words = ["configs/digits.py", "run"]
  done = stand_ins.run(LAUNCH / "local.sh", "2", *words, cwd=notes.parent, env=env)
  assert done.returncode == 0 and variables(notes, 1)["CUDA_VISIBLE_DEVICES"] == "2,3"
  done = stand_ins.run(LAUNCH / "local.sh", "3", *words, cwd=notes.parent, env=env)
  assert done.returncode == 1 and "3 processes cannot share 4 GPUs" in done.stderr
  assert not (notes / "env.2").exists()


def test_the_environment_is_made(notes):
  """Without PYTHON the script makes one, with the extra that is asked for; ~ is the home folder."""
  env = stand_ins.environment(notes, EXTRA="cuda", DRY_RUN="1", HOME=str(notes))
  done = stand_ins.run(LAUNCH / "local.sh", "1", "mine.py", "~/a run", cwd=notes, env=env)
  text = done.stdout.replace("\\", "")
  assert done.returncode == 0 and f"-m pip install -q -e {ROOT}[cuda]" in text, done.stderr
  command = f"{ROOT}/.venv/bin/python -m cfg.main --config=mine.py --workdir={notes}/a run"
  assert command in text


def test_the_first_failure_decides(notes):
  """Its code is the script's, and the others may take their time to notice."""
  do = {"DO_1": "exit 3", "DO_0": "sleep 1.5; : > $NOTES/saved; exit 69"}
  done = local(notes, 2, PATIENCE="30", **do)
  assert done.returncode == 3 and (notes / "saved").exists()
  assert "killed" not in done.stderr


def test_who_does_not_notice_is_killed(notes):
  """With all that it started, when PATIENCE is over."""
  do = {"DO_1": "exit 3", "DO_0": f"sleep 60 & echo $! > $NOTES/child; trap '' TERM; {LONG}"}
  begin = time.monotonic()
  done = local(notes, 2, PATIENCE="1", **do)
  assert done.returncode == 3 and "killed" in done.stderr
  assert time.monotonic() - begin < 15
  assert not alive((notes / "child").read_text().strip())


@pytest.mark.parametrize("how", ["kill", "Ctrl-C", "the terminal closes"])
def test_asked_to_stop(notes, how):
  """All processes are, once each, and the code is theirs."""
  process = started(notes, 2, DO_0=LONG, DO_1=LONG)
  if how == "kill":
    os.kill(int((notes.parent / "a run/pid").read_text()), signal.SIGTERM)
  else:
    os.killpg(process.pid, signal.SIGINT if how == "Ctrl-C" else signal.SIGHUP)
  out, err = process.communicate(timeout=30)
  assert process.returncode == 75, err
  assert [(notes / f"asked.{i}").read_text() for i in (0, 1)] == ["asked\n"] * 2
  assert "process 0 is here" in out


def test_in_a_bucket(notes):
  """The run's files go there, and its logs to a folder of that name here."""
  done = local(notes, 2, workdir="gs://bucket/runs/mine")
  assert done.returncode == 0, done.stderr
  assert "--workdir=gs://bucket/runs/mine" in (notes / "args.1").read_text().splitlines()
  assert (notes.parent / "mine/log.1.txt").read_text() == "process 1 is here\n"
  env = stand_ins.environment(notes, EXTRA="cuda", DRY_RUN="1")
  words = ["1", "mine.py", "gs://bucket/mine"]
  done = stand_ins.run(LAUNCH / "local.sh", *words, cwd=notes, env=env)
  assert f"{ROOT}[cuda,gcs]" in done.stdout.replace("\\", "")


def test_nohup(notes):
  """Below it the run goes on when the terminal closes; kill still asks it to stop."""
  process = started(notes, 1, ignored=[signal.SIGHUP], DO_0=LONG)
  os.killpg(process.pid, signal.SIGHUP)
  time.sleep(1)
  assert process.poll() is None and not (notes / "asked.0").exists()
  process.terminate()
  process.communicate(timeout=30)
  assert process.returncode == 75


def test_two_in_one_work_directory(notes):
  """The second is refused, and leaves the first one's logs alone; a file that is left of one that
  was killed stops nobody.
  """
  process = started(notes, 1, DO_0=LONG)
  try:
    done = local(notes, 1)
    assert done.returncode == 1 and str(process.pid) in done.stderr
    assert (notes.parent / "a run/log.0.txt").read_text() == "process 0 is here\n"
  finally:
    process.terminate()
    process.communicate(timeout=30)
  (notes.parent / "a run/pid").write_text("1")
  assert local(notes, 1).returncode == 0
