"""Programs that stand in for those that the launch scripts call."""

import os
import signal
import subprocess

from paths import ROOT

LAUNCH = ROOT / "launch"


def put(folder, name, body):
  """An executable bash script `folder/name`."""
  folder.mkdir(parents=True, exist_ok=True)
  path = folder / name
  path.write_text(f"#!/usr/bin/env bash\n{body}\n")
  path.chmod(0o755)
  return path


def environment(tools, **variables):
  """This process's environment without what steers the scripts; the folder `tools` is searched
  first.
  """
  steers = ("JAX_", "SLURM_", "CUDA_", "DRY_RUN", "EXTRA", "PYTHON", "PREPARE", "SPOT", "POLL")
  env = {name: value for name, value in os.environ.items() if not name.startswith(steers)}
  return {**env, "PATH": f"{tools}:{env['PATH']}", **variables}


def start(script, *args, cwd, env, ignored=()):
  """A launch script in a session of its own. Ctrl-C and the end of the terminal reach it even if
  they do not reach this one (as below nohup), unless they are among the signals `ignored`.
  """

  def signals():
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
      signal.signal(number, signal.SIG_IGN if number in ignored else signal.SIG_DFL)

  return subprocess.Popen(
    [script, *args],
    cwd=cwd,
    env=env,
    text=True,
    stdout=subprocess.PIPE,
    stderr=subprocess.PIPE,
    start_new_session=True,
    preexec_fn=signals,
  )


def run(script, *args, cwd, env, seconds=60):
  """A launch script from its start to its end: a CompletedProcess."""
  process = start(script, *args, cwd=cwd, env=env)
  try:
    out, err = process.communicate(timeout=seconds)
  except subprocess.TimeoutExpired as e:
    process.kill()
    raise AssertionError(f"{script} has not ended in time: {e.output} {e.stderr}") from None
  return subprocess.CompletedProcess(args, process.returncode, out, err)
