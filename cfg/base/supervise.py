"""A process of a run of several, seen from outside: jax ends it where another process is gone, in a
way that Python cannot catch, with a page of its own. So the work is done by a child, and its parent
says what became of it.
"""

import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
from types import FrameType
from typing import BinaryIO

from cfg.base.hosts import HostGone

CHILD = "CFG_STDERR_OF_PARENT"  # in a child's environment: the descriptor that Python writes to
PARENT_DIES = 1  # PR_SET_PDEATHSIG of Linux's prctl
# how jax's service for processes begins its reports
REPORT = re.compile(rb"^[EF]\d{4} .*(coordination_service|client\.h)")
LAST_WORDS = 5.0  # seconds in which what a child said last is read


def in_child() -> None:
  """Go on in a child process, and return there; this process waits for it and ends as it does.

  Signals that ask it to stop are handed on. One paragraph, and exit code 69, take the place of what
  jax writes of a process that is gone.
  """
  if CHILD in os.environ:
    _be_child()
    return
  read, write = os.pipe()
  ours = os.dup(2)
  child = subprocess.Popen(
    [sys.executable, *sys.orig_argv[1:]],
    env={**os.environ, CHILD: str(ours)},
    stderr=write,
    pass_fds=(ours,),
  )
  os.close(write)

  def hand_on(number: int, frame: FrameType | None) -> None:
    del frame
    child.send_signal(number)

  for number in (signal.SIGTERM, signal.SIGINT):
    signal.signal(number, hand_on)
  relay = _Relay(os.fdopen(read, "rb"))
  code = child.wait()
  relay.join(LAST_WORDS)
  if code == -signal.SIGABRT and relay.held:
    print(f"error: {_what_is_gone(relay.held)}", file=sys.stderr)
    code = HostGone.exit_code
  else:
    os.write(2, relay.held)
  sys.stdout.flush()
  os._exit(code if code >= 0 else 128 - code)


def _be_child():
  """Write to the parent's stderr what Python writes; end when the parent is killed."""
  sys.stderr = os.fdopen(int(os.environ.pop(CHILD)), "w", buffering=1, errors="backslashreplace")
  if sys.platform == "linux":
    ctypes.CDLL(None).prctl(PARENT_DIES, signal.SIGKILL)


class _Relay(threading.Thread):
  """Hands on what libraries write to the child's stderr, but jax's reports, which it holds."""

  def __init__(self, stream: BinaryIO) -> None:
    super().__init__(daemon=True)
    self._stream = stream
    self.held = b""
    self.start()

  def run(self):
    for line in self._stream:
      if self.held or REPORT.match(line):
        self.held += line
      else:
        os.write(2, line)


def _what_is_gone(report):
  """The paragraph for a report of jax's."""
  how = "jax's service for the processes of a run lost it"
  if b"RegisterTask" in report:
    how = "it did not join within the time allowed"
  elif b"heartbeat" in report:
    how = "it gave no sign of life"
  elif b"RPC to coordination service" in report:
    how = "it was the first one, which all others depend on"
  return (
    f"another process of this run is gone, so this one ends as well ({how}). The last checkpoint "
    "is as it was: see in the other process's log why it ended, and run the same command on every "
    "host again."
  )
