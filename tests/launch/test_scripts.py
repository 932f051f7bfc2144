"""The launch scripts: sound, and they say what they would do without doing it."""

import re
import shutil
import subprocess

import pytest
import stand_ins
from stand_ins import LAUNCH

SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])
TOOLS = ("gcloud", "srun", "scontrol", "python3", "git", "nvidia-smi")
CALLS = {
  "local.sh": ["2", "configs/digits.py", "WORKDIR", "--config.seed=3"],
  "slurm.sbatch": ["configs/digits.py", "WORKDIR", "--config.seed=3"],
  "tpu_pod.sh start": ["slice", "zone", "configs/digits.py", "WORKDIR", "--config.seed=3"],
  "tpu_pod.sh watch": ["slice", "zone", "v4-32", "configs/digits.py", "WORKDIR", "--config.seed=3"],
}


def call(name, *, workdir, folder, **variables):
  """A script as in CALLS, in an empty `folder`; the tools that it called are in `called`."""
  tools = folder.parent / "tools"
  for tool in TOOLS:
    stand_ins.put(tools, tool, f"echo {tool} >> {folder.parent / 'called'}")
  script, *action = name.split()
  args = [workdir if word == "WORKDIR" else word for word in CALLS[name]]
  env = stand_ins.environment(tools, EXTRA="none", **variables)
  return stand_ins.run(LAUNCH / script, *action, *args, cwd=folder, env=env)


@pytest.fixture
def folder(tmp_path):
  """An empty folder."""
  (tmp_path / "here").mkdir()
  return tmp_path / "here"


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_is_content(path):
  """bash parses it; shellcheck, where it is installed, finds nothing."""
  subprocess.run(["bash", "-n", path], check=True)
  if shutil.which("shellcheck"):
    found = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_usage(path, folder):
  """Without arguments: how it is used, and exit code 2."""
  done = stand_ins.run(path, cwd=folder, env=stand_ins.environment(folder))
  assert done.returncode == 2
  assert f"launch/{path.name}" in done.stderr and "DRY_RUN=1" in done.stderr
  assert "set -euo" not in done.stderr and "SBATCH" not in done.stderr


@pytest.mark.parametrize("name", CALLS)
def test_dry_run(name, folder):
  """It prints the command with every option and WORKDIR quoted, and does nothing."""
  done = call(name, workdir="a run", folder=folder, DRY_RUN="1")
  assert done.returncode == 0, done.stderr
  text = done.stdout.replace("\\", "")
  assert "-m cfg.main " in text and "--config=configs/digits.py --workdir=a run" in text
  assert "--distributed" in text and "--config.seed=3" in text
  assert re.search(r"a\\+ run", done.stdout)
  called = folder.parent / "called"
  # which GPUs there are, and which commit
  assert not called.exists() or set(called.read_text().split()) <= {"nvidia-smi", "git"}
  assert not list(folder.iterdir())


@pytest.mark.parametrize("name", CALLS)
def test_work_directories(name, folder):
  """A bucket is given on as it is; another kind of address is refused before anything is made or
  started.
  """
  done = call(name, workdir="gs://bucket/a run", folder=folder, DRY_RUN="1")
  assert done.returncode == 0, done.stderr
  assert "--workdir=gs://bucket/a run" in done.stdout.replace("\\", "")
  done = call(name, workdir="s3://bucket/run", folder=folder)
  assert done.returncode == 1 and "s3://bucket/run" in done.stderr and not done.stdout
  called = folder.parent / "called"
  assert not called.exists() or set(called.read_text().split()) <= {"git", "nvidia-smi"}
  assert not list(folder.iterdir())
