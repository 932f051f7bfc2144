"""Before jax joins the processes of a run: all are there, and were started alike.

jax itself waits for an absent process without a name for it, and knows nothing of configs. So they
meet first, at the address that jax's own service takes over: each says who it is, and the first one
tells all of them whether they go on.
"""

import contextlib
import json
import socket
import time
from collections.abc import Mapping
from typing import Any

from cfg.base import hosts
from cfg.base.errors import UserError
from cfg.base.hosts import HostGone

MOST_BYTES = 2**20  # of what one process says
BACKLOG = 1024
PROMPT = 5.0  # seconds in which a process says who it is


def meet(address: str, *, index: int, count: int, facts: Mapping[str, Any], seconds: float) -> None:
  """Until all processes have come and been found alike.

  Args:
    address: "host:port", free at the first process.
    index: of this process.
    count: of processes that are to come.
    facts: JSON values that must be the same everywhere.
    seconds: to wait at most.

  Raises:
    HostGone: some did not come in time; it names them.
    UserError: they differ in a fact, or in how many they are, or two have the same number.
  """
  me = {"index": index, "count": count, "host": socket.gethostname(), "facts": dict(facts)}
  deadline = time.monotonic() + seconds
  verdict = _lead(address, me, deadline, seconds) if index == 0 else _follow(address, me, deadline)
  if verdict["error"]:
    raise (HostGone if verdict["absent"] else UserError)(verdict["error"])


def _lead(address, me, deadline, seconds):
  """The first process: hear all the others, and tell each the verdict."""
  come, connections = {0: me}, []
  error, absent = "", False
  host, port = address.rsplit(":", 1)
  try:
    server = socket.create_server(("", int(port)), backlog=BACKLOG)
  except OSError as e:
    raise UserError(
      f"--distributed: port {port} of {host} cannot be listened at ({e.strerror}): another run "
      "has it. Wait for that, or choose another JAX_COORDINATOR_ADDRESS."
    ) from e
  with contextlib.closing(server), contextlib.ExitStack() as stack:
    while len(connections) < me["count"] - 1:
      server.settimeout(max(0.01, deadline - time.monotonic()))
      try:
        connection, _ = server.accept()
      except TimeoutError:
        if not error:
          absent, error = True, _absent(come, me["count"], seconds)
        break
      stack.enter_context(contextlib.closing(connection))
      other = _receive(connection, min(deadline, time.monotonic() + PROMPT))
      if not _is_process(other):
        continue  # a stranger: a port scan, or the end of an earlier run
      connections.append(connection)
      if problem := _wrong_number(come, other, me):
        error = error or problem
        deadline = min(deadline, time.monotonic() + PROMPT)  # for the others to hear it too
      come.setdefault(other["index"], other)
    if not error and (problem := hosts.difference([come[i] for i in range(me["count"])])):
      error = (
        f"the processes of this run differ: {problem}. Start the same command, with the same code "
        "and libraries, on every host."
      )
    verdict = {"error": error, "absent": absent}
    for connection in connections:
      with contextlib.suppress(OSError):
        connection.sendall(json.dumps(verdict).encode() + b"\n")
    # the others hang up first, so that the port is free for jax's own service
    for connection in connections:
      connection.settimeout(PROMPT)
      with contextlib.suppress(OSError):
        connection.recv(1)
  return verdict


def _follow(address, me, deadline):
  """Any other process: say who it is, and hear the verdict."""
  host, port = address.rsplit(":", 1)
  reason = "nobody listens there"
  while time.monotonic() < deadline:
    try:
      with socket.create_connection((host.strip("[]"), int(port)), timeout=PROMPT) as connection:
        connection.sendall(json.dumps(me).encode() + b"\n")
        # the first one may wait for others as long as this one does
        verdict = _receive(connection, deadline + 10)
      if isinstance(verdict, dict) and {"error", "absent"} <= verdict.keys():
        return verdict
      reason = "it hung up"
    except OSError as e:
      reason = e.strerror or str(e)
    time.sleep(0.2)
  return {
    "absent": True,
    "error": (
      f"process 0 of this run does not answer at {address} ({reason}), nor has it for as long as "
      f"process {me['index']} on {me['host']} waited: see that the command runs there, and that "
      "the hosts reach each other."
    ),
  }


def _receive(connection, deadline):
  """The JSON value of a line that comes before the deadline, or None."""
  said = b""
  while not said.endswith(b"\n") and len(said) <= MOST_BYTES:
    connection.settimeout(max(0.01, deadline - time.monotonic()))
    try:
      part = connection.recv(65536)
    except OSError:
      return None
    if not part:
      return None
    said += part
  try:
    return json.loads(said)
  except (ValueError, RecursionError):
    return None


def _is_process(other):
  """Whether that is what a process of a run says."""
  types = {"index": int, "count": int, "host": str, "facts": dict}
  return isinstance(other, dict) and all(
    isinstance(other.get(name), kind) for name, kind in types.items()
  )


def _absent(come, count, seconds):
  """Who is not there."""
  missing = [number for number in range(count) if number not in come]
  shown = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
  there = ", ".join(f"{number} on {come[number]['host']}" for number in sorted(come)[:20])
  return (
    f"{len(missing)} of the {count} processes of this run did not come within {seconds:.0f} "
    f"seconds: number {shown}. There are: {there}. See that the command was started on every host, "
    "and that the hosts reach each other."
  )


def _wrong_number(come, other, me):
  """What is wrong with the number that a process has, or ""."""
  if other["count"] != me["count"]:
    return (
      f"process {other['index']} on {other['host']} was started as one of {other['count']}, "
      f"process 0 on {me['host']} as one of {me['count']}: start all of them with the same number."
    )
  if other["index"] in come or not 0 <= other["index"] < me["count"]:
    holder = come.get(other["index"], {"host": "none of this run"})["host"]
    return (
      f"two processes have the number {other['index']} of {me['count']}: on {other['host']} and on "
      f"{holder}. Give each its own (JAX_PROCESS_ID), from 0."
    )
  return ""
