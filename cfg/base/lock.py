"""One writer of each kind in a work directory: a file that says who it is, and whether it lives."""

import contextlib
import datetime
import fcntl
import json
import logging
import os
import pathlib
import socket
import threading
import time
import uuid
from typing import Any

import psutil

from cfg.base import files, hosts, paths
from cfg.base.errors import UserError

log = logging.getLogger(__name__)

BEAT = 30.0  # seconds between signs of life
STALE = 300.0  # without one for so long, the writer is gone
LOOK = 5.0  # seconds between two looks at one that may be gone
SETTLED = 2.0  # seconds after which of two that took over at once, where nothing locks, one is left


class Lock:
  """Held within a `with` block by one process at a time, on any of the hosts that share the folder.

  The file tells host, process and since when; its time of change is the last sign of life. It is
  taken over if its process is dead on this host, or has given none for STALE seconds. Ages are
  differences of the file system's own times: clocks of hosts may differ. Whether a process of
  another host lives shows when it gives the next one: until then, or until it is gone, this one
  waits. So a run that was killed starts again on other hosts, and needs no one to see to it.

  Args:
    path: of the file, in a folder that is there.
    what: the writer does, as "is training": the second one's error says it.

  The processes of one run are together one writer: the one that writes holds it.
  """

  def __init__(self, path: str | pathlib.Path, *, what: str) -> None:
    self._path = paths.as_path(path)
    self._what = what
    self._own: dict[str, Any] = {}
    self._first: tuple[dict[str, Any], float] | None = None
    self._ended = threading.Event()
    self._beating: threading.Thread | None = None

  def __enter__(self) -> "Lock":
    """Raises UserError, which names the holder, if there is one that lives."""
    while True:
      with hosts.together():
        waits = hosts.is_writer() and not self._take()
      if not hosts.agreed(waits):
        return self
      time.sleep(LOOK)

  def _take(self):
    """Whether the lock is this process's now; if not, it may be soon."""
    me = psutil.Process()
    self._own = {
      "host": socket.gethostname(),
      "process": me.pid,
      "started": me.create_time(),
      "since": datetime.datetime.now().astimezone().isoformat(timespec="seconds"),
      "token": uuid.uuid4().hex,
    }
    with self._deciding():
      holder = self._holder()
      try:
        lives = holder is not None and not self._is_gone(holder)
        waits = lives and self._may_be_gone(holder)
      except FileNotFoundError:  # in an object store it can be released meanwhile
        return False
      if waits:
        return False
      if lives:
        raise UserError(
          f"process {holder.get('process')} on {holder.get('host')} {self._what} in "
          f"{str(self._path.parent)!r} since {holder.get('since')}: wait for it, stop it, or "
          f"choose another --workdir."
        )
      self._write(new=holder is None)
    self._beating = threading.Thread(target=self._beat, name=f"lock {self._path}", daemon=True)
    self._beating.start()
    return True

  def __exit__(self, *_: object) -> None:
    if self._beating is None:
      return
    self._ended.set()
    self._beating.join()
    with self._deciding():
      if self._holder() == self._own:
        self._path.unlink()

  def check(self) -> None:
    """Before something is written: raise UserError if another process has taken over, as after this
    one was suspended for long.
    """
    holder = self._holder() if hosts.is_writer() else self._own
    if holder != self._own:
      other = "nobody" if holder is None else f"process {holder['process']} on {holder['host']}"
      raise UserError(
        f"{str(self._path)!r} is no longer this process's, but {other}'s: it gave no sign of life "
        f"for more than {STALE / 60:g} minutes, or the file was removed. Nothing more is written."
      )

  def _write(self, *, new):
    """Be the holder. In an object store two may decide so at once: of a new file one is refused,
    and of an old one the last to write is left.
    """
    if not paths.is_remote(self._path):
      files.write_json(self._path, self._own)
      return
    if new:
      with contextlib.suppress(FileExistsError):
        self._path.fs.pipe_file(self._path.path, _to_json(self._own), mode="create")
    else:
      self._path.write_bytes(_to_json(self._own))
    time.sleep(SETTLED)
    self.check()

  def _beat(self):
    while not self._ended.wait(BEAT):
      with contextlib.suppress(Exception):  # `check` tells what became of it
        if self._holder() == self._own:
          if paths.is_remote(self._path):
            self._path.write_bytes(_to_json(self._own))
          else:
            os.utime(self._path)

  def _holder(self):
    """Who the file says it is, or None; a file that cannot be read is of nobody who lives."""
    try:
      holder = files.read_json(self._path)
    except FileNotFoundError:
      return None
    except ValueError:
      return {}
    return holder if isinstance(holder, dict) else {}

  def _is_gone(self, holder):
    """Whether that process is dead, or has given no sign of life for too long."""
    if holder.get("host") == self._own["host"]:
      try:
        if psutil.Process(holder["process"]).create_time() != holder["started"]:
          return True
      except (psutil.NoSuchProcess, KeyError, TypeError, ValueError):
        return True
    probe = self._path.with_name(f".{self._path.name}.{self._own['token']}")
    probe.write_bytes(b"")
    try:
      return files.modified(probe) - files.modified(self._path) > STALE
    finally:
      probe.unlink()

  def _may_be_gone(self, holder):
    """Whether a process of another host has not given a sign of life since the first look."""
    if holder.get("host") == self._own["host"]:
      return False
    if not holder:  # it is not whole, and may be being written
      return True
    sign = (holder, files.modified(self._path))
    if self._first is None:
      self._first = sign
      log.warning(
        "process %s on %s %s in %s, if it still lives: waiting to see (at most %g minutes)",
        holder.get("process"),
        holder.get("host"),
        self._what,
        self._path.parent,
        STALE / 60,
      )
    return sign == self._first

  @contextlib.contextmanager
  def _deciding(self):
    """One process at a time looks at the file and changes it, where the file system can lock its
    folder.
    """
    if paths.is_remote(self._path):
      yield
      return
    folder = os.open(self._path.parent, os.O_RDONLY)
    try:
      with contextlib.suppress(OSError):
        fcntl.flock(folder, fcntl.LOCK_EX)
      yield
    finally:
      os.close(folder)


def _to_json(value):
  return json.dumps(value).encode()
