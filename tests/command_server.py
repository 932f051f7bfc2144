"""`python -m cfg.main` many times, its modules imported once: they take longer than most of what is
tested. Each command runs in a fork of this process, which never starts jax's devices.

Reads a JSON object a line: argv, cwd, env, out (where stdout and stderr go: out.stdout and
out.stderr). Answers each with the command's exit code, as a line.
"""

import importlib
import json
import os
import signal
import sys
import traceback

MODULES = (
  "cfg.data.sources",
  "cfg.inference.network",
  "cfg.inference.pictures",
  "cfg.report.table",
  "cfg.sweep.run",
  "cfg.training.dry_run",
  "cfg.training.loop",
)
TIMEOUT = 240  # seconds


def redirect(request):
  """Give this process the files, the folder and the environment of a request."""
  for descriptor, name in ((1, "stdout"), (2, "stderr")):
    target = os.open(f"{request['out']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(target, descriptor)
  os.chdir(request["cwd"])
  os.environ.update(request["env"])
  sys.path[0] = request["cwd"]
  sys.argv = [main.__file__, *request["argv"]]


def run():
  """The command; its exit code."""
  try:
    main.run()
  except SystemExit as e:
    return 0 if e.code is None else e.code
  except BaseException:
    traceback.print_exc()
    return 1
  return 0


def serve():
  """Answer requests until there are no more."""
  for line in sys.stdin:
    child = os.fork()
    if child == 0:
      signal.alarm(TIMEOUT)
      redirect(json.loads(line))
      code = run()
      sys.stdout.flush()
      sys.stderr.flush()
      os._exit(code)
    _, status = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(status), flush=True)


if __name__ == "__main__":
  main = importlib.import_module("cfg.main")
  for name in MODULES:
    importlib.import_module(name)
  serve()
