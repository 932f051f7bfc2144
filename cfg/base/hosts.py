"""The processes of one run: who writes, and what all of them agree on.

Every process runs the same program; what one reads from a file or a clock another may read
otherwise. Before it decides what is computed, `agreed` makes it the writer's. The first process is
the writer: what the others write goes nowhere (base.files).
"""

import contextlib
import json
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import numpy as np

from cfg.base.errors import Stopped, Unavailable, UserError, is_of_store

# how the errors of a collective begin or end when another process is gone: Gloo's, NCCL's, jax's
GONE = re.compile(
  r"\bgloo\b|\bnccl|coordination.?service|connection (reset|closed|refused)|"
  r"\b(UNAVAILABLE|DEADLINE_EXCEEDED)\b",
  re.IGNORECASE,
)
# sent to all at once, in one of few lengths: each is a program of its own
SHORTEST = 256
SLOWER = 1.0  # seconds
PATIENCE = 15.0  # seconds that a process which fails waits for others that end too

T = TypeVar("T")

_index, _count = 0, 1


class HostGone(Unavailable):
  """Another process of the run is gone, or never came: start all of them again."""


def joined(*, index: int, count: int) -> None:
  """Note that this is process `index` of `count`."""
  global _index, _count
  _index, _count = index, count


def index() -> int:
  """The number of this process, from 0."""
  return _index


def count() -> int:
  """How many processes there are."""
  return _count


def is_writer() -> bool:
  """Whether this process writes files; one does."""
  return _index == 0


def gather(value: Any) -> list[Any]:
  """[the JSON value of each process], by number; all of them call it, at the same place."""
  if _count == 1:
    return [value]
  # jax takes a while to import, and commands without it ask who writes
  from jax.experimental import multihost_utils

  text = json.dumps(value).encode()
  lengths = multihost_utils.process_allgather(np.int32(len(text)))
  width = max(SHORTEST, 1 << (int(lengths.max()) - 1).bit_length())
  row = np.zeros(width, np.uint8)
  row[: len(text)] = np.frombuffer(text, np.uint8)
  rows = multihost_utils.process_allgather(row)
  return [json.loads(bytes(row[:length])) for row, length in zip(rows, lengths, strict=True)]


def agreed(value: Any) -> Any:
  """The writer's JSON value, whatever the others'; all of them call it, at the same place."""
  return gather(value if is_writer() else None)[0]


@contextlib.contextmanager
def together() -> Iterator[None]:
  """No process leaves the block before all have come to its end; what one of them raises there for
  a user to read, all raise.
  """
  if _count == 1:
    yield
    return
  error: Exception | None = None
  try:
    yield
  except Exception as e:
    if not isinstance(e, (UserError, OSError)) and not is_of_store(e):
      raise
    error = e
  lost = isinstance(error, Unavailable) or error is not None and is_of_store(error)
  outcomes = gather(None if error is None else [socket.gethostname(), str(error), lost])
  if error is not None:
    raise error
  for number, outcome in enumerate(outcomes):
    if outcome is not None:
      kind = Unavailable if outcome[2] else UserError
      raise kind(f"process {number} on {outcome[0]}: {outcome[1]}")


def writer_first(make: Callable[[], T]) -> T:
  """make() at the writer, then at the others, which find what it wrote."""
  made: T | None = None
  with together():
    if is_writer():
      made = make()
  with together():
    if made is None:
      made = make()
  return made


def found(read: Callable[[], T | None]) -> T | None:
  """What `read` gives, which is None for a file that is not there or of no use: at all processes if
  the writer found it, or at none.
  """
  value = read()
  if not agreed(value is not None):
    return None
  with together():
    if value is None:
      value = read()
    if value is None:
      raise UserError(
        "process 0 has read a file that this one does not find: --workdir must be the same folder, "
        "or bucket, at all of them."
      )
  return value


def check_equal(facts: Mapping[str, Any], *, what: str) -> None:
  """Raise UserError, at all processes, unless they have the same JSON values."""
  every = gather({"host": socket.gethostname(), "facts": dict(facts)})
  if problem := difference(every):
    raise UserError(
      f"the processes of this run differ in {what}: {problem}. Start the same command, with the "
      "same code and data, on every host."
    )


def difference(every: list[dict[str, Any]]) -> str:
  """How processes' {"host", "facts"}, by number, differ from those of the first; "" if not."""
  first = every[0]
  for number, other in enumerate(every[1:], start=1):
    names = sorted(first["facts"].keys() | other["facts"].keys())
    wrong = [name for name in names if first["facts"].get(name) != other["facts"].get(name)]
    if wrong:
      name, more = wrong[0], f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
      return (
        f"process {number} on {other['host']} has {name} = {_short(other['facts'].get(name))}, "
        f"process 0 on {first['host']} {_short(first['facts'].get(name))}{more}"
      )
  return ""


def _short(value):
  text = json.dumps(value)
  return text if len(text) <= 80 else f"{text[:77]}..."


@contextlib.contextmanager
def noticing_loss() -> Iterator[None]:
  """Raise HostGone for what a collective raises when another process is gone."""
  try:
    yield
  except (UserError, KeyboardInterrupt):
    raise
  except Exception as e:
    if _count == 1 or not is_loss(e):
      raise
    said = " ".join(str(e).split())
    time.sleep(SLOWER)  # jax ends this process itself if it was the first; base.supervise tells
    raise HostGone(gone(f"here that was noticed by: {said[:160]}")) from e


def is_loss(error: BaseException) -> bool:
  """Whether an error says that another process is gone."""
  return GONE.search(str(error)) is not None


def gone(how: str) -> str:
  """What is said where another process is gone."""
  return (
    f"another process of this run is gone, so process {_index} of {_count} on "
    f"{socket.gethostname()} ends as well ({how}). The last checkpoint is as it was: see in the "
    "other process's log why it ended, and run the same command on every host again."
  )


@contextlib.contextmanager
def parting() -> Iterator[None]:
  """How a process of several ends, with the exit code that it would have alone: those that are done
  wait for the others, and one that fails does not wait for long.
  """
  code = 0
  try:
    yield
  except BaseException as e:
    if _count == 1:
      raise
    code = e.code if isinstance(e, SystemExit) and isinstance(e.code, int) else 1
    if not isinstance(e, SystemExit):
      traceback.print_exception(e)
  if _count == 1:
    return
  sys.stdout.flush()
  sys.stderr.flush()
  import jax

  if code != HostGone.exit_code:  # with one gone, the others' end is not in order either
    leaving = threading.Thread(target=jax.distributed.shutdown, daemon=True)
    leaving.start()
    leaving.join(None if code in (0, Stopped.exit_code) else PATIENCE)
  os._exit(code)  # an interpreter that ends in order would wait for the others again
