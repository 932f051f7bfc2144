"""launch/slurm.sbatch: what Slurm is asked for, and which ends are queued again."""

import re

import pytest
import stand_ins
from jax._src import clusters
from stand_ins import LAUNCH

SCRIPT = LAUNCH / "slurm.sbatch"


def job(tmp_path, code, *, requeued=0, **variables):
  """The script as Slurm runs it, with an srun that ends with `code` and a scontrol with `requeued`:
  (it, what it called).
  """
  calls = tmp_path / "calls"
  note = f'printf "%s|" $(basename "$0") "$@" >> {calls}; echo >> {calls}'
  stand_ins.put(tmp_path / "tools", "srun", f"{note}; echo cpus $SRUN_CPUS_PER_TASK; exit {code}")
  stand_ins.put(tmp_path / "tools", "scontrol", f"{note}; exit {requeued}")
  env = stand_ins.environment(tmp_path / "tools", SLURM_JOB_ID="17", **variables)
  words = ["configs/digits.py", "a run", "--config.seed=3"]
  done = stand_ins.run(SCRIPT, *words, cwd=tmp_path, env=env)
  return done, [line.split("|")[:-1] for line in calls.read_text().splitlines()]


def options():
  """{name: value} of the #SBATCH lines."""
  return dict(re.findall(r"^#SBATCH --([\w-]+)=?(\S*)$", SCRIPT.read_text(), re.MULTILINE))


def test_what_is_asked_for():
  """Every line is one that sbatch reads, before the first command; the signal is for the tasks, not
  the script (B:), long enough before the end.
  """
  text = SCRIPT.read_text()
  assert len(options()) == text.count("\n#SBATCH")
  assert text.rindex("\n#SBATCH") < text.index("\nset -euo")
  name, seconds = options()["signal"].split("@")
  assert name == "TERM" and int(seconds) >= 120
  assert "requeue" in options() and options()["open-mode"] == "append"


def test_one_task_for_each_gpu(monkeypatch):
  """jax gives a task the one GPU of its number on the node, so there are as many tasks as GPUs."""
  assert options()["ntasks-per-node"] == options()["gpus-per-node"]
  step = {
    "SLURM_JOB_ID": "17",
    "SLURM_STEP_NODELIST": "gpu[001-004]",
    "SLURM_NTASKS": "32",
    "SLURM_PROCID": "11",
    "SLURM_LOCALID": "3",
  }
  for name, value in step.items():
    monkeypatch.setenv(name, value)
  found = clusters.ClusterEnv.auto_detect_unset_distributed_params(None, None, None, None, None, 1)
  address, count, index, devices = found
  assert (count, index, devices) == (32, 11, [3]) and address.startswith("gpu001:")


def test_command(tmp_path):
  """Every option arrives, and one task's end does not kill the others while they save."""
  done, calls = job(tmp_path, 0, SLURM_CPUS_PER_TASK="6")
  srun = calls[0]
  main = ["-m", "cfg.main", "--distributed", "--config=configs/digits.py", "--workdir=a run"]
  assert srun[-6:] == [*main, "--config.seed=3"] and ".venv/bin/python" in srun
  assert "--kill-on-bad-exit=0" in srun and "--gpu-bind=none" in srun
  assert "cpus 6" in done.stdout


@pytest.mark.parametrize("code", [0, 1, 2, 70])
def test_ends_that_stay(tmp_path, code):
  """Done, or starting again does not help."""
  done, calls = job(tmp_path, code)
  assert done.returncode == code and [call[0] for call in calls] == ["srun"]


@pytest.mark.parametrize(
  "before, code, again",
  [
    ([], 75, True),
    ([75] * 500, 75, True),
    ([], 69, True),
    ([75] * 30 + [69] * 10 + [137] * 8, 137, True),
    ([137] * 30 + [75] + [69] * 18, 69, True),
    ([75] + [69] * 10 + [137] * 9, 137, False),
    ([69] * 30, 75, True),
    ([143] * 30, 143, True),
  ],
)
def test_ends_that_are_queued_again(tmp_path, before, code, again):
  """Asked to stop: always; a process that was lost: less than 20 times in a row, however often the
  time was up.
  """
  (tmp_path / "slurm-17.ends").write_text("".join(f"{end}\n" for end in before))
  done, calls = job(tmp_path, code)
  assert done.returncode == code
  assert calls[1:] == ([["scontrol", "requeue", "17"]] if again else [])
  assert ("ended with exit code 75: queued again" in done.stdout) == (code == 75)


def test_stopped_for_good(tmp_path):
  """Where Slurm does not queue it again, as its user has said, the exit code is the run's."""
  done, calls = job(tmp_path, 75, requeued=1)
  assert done.returncode == 75 and "not queued again" in done.stdout and len(calls) == 2
