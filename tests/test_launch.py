"""The launch scripts: sound, and they say what they would do without doing it."""

import os
import subprocess

import paths

LAUNCH = paths.ROOT / "launch"


def dry(script, *args, cwd=None, **env):
  env = {**os.environ, "DRY_RUN": "1", "EXTRA": "none", **env}
  return subprocess.run([LAUNCH / script, *args], capture_output=True, text=True, env=env, cwd=cwd)


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
