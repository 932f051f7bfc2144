"""The launch scripts: sound, and they say what they would do without doing it."""

import os
import shutil
import subprocess

import paths
import pytest

LAUNCH = paths.ROOT / "launch"
SCRIPTS = sorted(LAUNCH.glob("*.sh"))


def dry(script, *args, cwd=None, **env):
  env = {**os.environ, "DRY_RUN": "1", "EXTRA": "none", **env}
  return subprocess.run([LAUNCH / script, *args], capture_output=True, text=True, env=env, cwd=cwd)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_shellcheck_is_content(path):
  """bash parses it; shellcheck, where it is installed, finds nothing."""
  subprocess.run(["bash", "-n", path], check=True)
  if shutil.which("shellcheck"):
    found = subprocess.run(["shellcheck", path], capture_output=True, text=True)
    assert found.returncode == 0, found.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda p: p.name)
def test_usage(path):
  """Without arguments: how it is used, and exit code 2."""
  done = dry(path.name)
  assert (
    done.returncode == 2 and f"launch/{path.name}" in done.stderr and "DRY_RUN=1" in done.stderr
  )
  assert "set -euo" not in done.stderr


def test_single_host(tmp_path):
  """Installs, then starts the run in the background with every option passed on; in a dry run
  nothing appears.
  """
  work = tmp_path / "a run"
  done = dry("single_host.sh", "configs/digits.py", str(work), "--config.seed=3")
  assert done.returncode == 0, done.stderr
  assert (
    "-m cfg.main --config=configs/digits.py --workdir=" in done.stdout
    and "--config.seed=3" in done.stdout
  )
  assert not work.exists()
  assert f"{paths.ROOT}[cuda]" in dry(
    "single_host.sh", "configs/digits.py", str(work), EXTRA="cuda"
  ).stdout.replace("\\", "")


def test_single_host_from_another_folder(tmp_path):
  """Paths are the caller's; ~ is the home folder."""
  done = dry("single_host.sh", "mine.py", "~/a run", cwd=tmp_path, HOME=str(tmp_path))
  text = done.stdout.replace("\\", "")
  assert f"{paths.ROOT}/.venv/bin/python -m cfg.main --config=mine.py" in text, done.stderr
  assert f"--workdir={tmp_path}/a run" in text
  assert not list(tmp_path.iterdir())


def test_a_bucket_is_no_work_directory(tmp_path):
  """It is refused before anything is made or started."""
  for words in (["single_host.sh"], ["tpu_pod.sh", "start", "slice", "zone"]):
    done = dry(*words, "configs/digits.py", "gs://bucket/run", cwd=tmp_path)
    assert done.returncode == 1 and "gs://bucket/run" in done.stderr and not done.stdout
  assert not list(tmp_path.iterdir())


def test_tpu_pod(tmp_path):
  """Each action prints its gcloud commands, for all workers, arguments quoted, and calls none of
  them.
  """
  fake = tmp_path / "gcloud"
  fake.write_text("#!/bin/sh\ntouch " + str(tmp_path / "called") + "\n")
  fake.chmod(0o755)
  path = {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
  words = {
    ("up", "v4-32"): ["create my-slice", "--accelerator-type=v4-32"],
    ("start", "configs/imagenet64.py", "/mnt/my bucket", "--config.seed=2"): [
      "git archive",
      "scp",
      "--worker=all",
      ".[tpu]",
      "--distributed",
      "--config=configs/imagenet64.py",
      "--config.seed=2",
    ],
    ("logs",): ["--worker=0", "tail"],
    ("stop",): ["--worker=all", "kill"],
    ("down",): ["delete my-slice"],
  }
  for (action, *rest), expected in words.items():
    done = dry("tpu_pod.sh", action, "my-slice", "us-central2-b", *rest, **path)
    assert done.returncode == 0, done.stderr
    text = done.stdout.replace("\\", "")
    assert all(word in text for word in expected), text
    assert "--zone=us-central2-b" in text
  assert not (tmp_path / "called").exists()
  assert dry("tpu_pod.sh", "explode", "a", "b").returncode == 2


def test_tpu_pod_calls_gcloud(tmp_path):
  """Without DRY_RUN the commands are run; a slice that is there is reused."""
  fake = tmp_path / "gcloud"
  fake.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path / "calls"}\n')
  fake.chmod(0o755)
  env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "DRY_RUN": ""}
  done = dry("tpu_pod.sh", "up", "my-slice", "zone", "v4-32", **env)
  assert "reused" in done.stdout and "describe" in (tmp_path / "calls").read_text()
  assert dry("tpu_pod.sh", "down", "my-slice", "zone", **env).returncode == 0
  assert "delete my-slice" in (tmp_path / "calls").read_text()
