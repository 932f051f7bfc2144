"""One writer at a time: who it is, and when it is gone."""

import json
import os
import subprocess
import sys
import threading
import time

import pytest

from cfg.base import hosts, lock
from cfg.base.errors import UserError

WHAT = "is training"


@pytest.fixture
def path(tmp_path):
  return tmp_path / "train.lock"


def write(path, **changed):
  """The file of a holder on another host, with fields that are changed."""
  holder = {"host": "elsewhere", "process": 7, "started": 1.0, "since": "noon", "token": "x"}
  path.write_text(json.dumps({**holder, **changed}))


def age(path, seconds):
  """Its last sign of life is so long ago."""
  then = time.time() - seconds
  os.utime(path, (then, then))


def test_the_second_writer_is_told_of_the_first(path):
  """Host, process and since when, the place and a way out; the first is not disturbed, and when it
  ends nothing stays. Without the refusal in _take both write.
  """
  with lock.Lock(path, what=WHAT) as first:
    with pytest.raises(UserError) as e, lock.Lock(path, what=WHAT):
      pass
    holder = json.loads(path.read_text())
    said = str(e.value)
    assert f"process {os.getpid()} on {holder['host']} is training in {str(path.parent)!r}" in said
    assert holder["since"] in said and "another --workdir" in said
    first.check()
  with lock.Lock(path, what=WHAT) as again:
    again.check()
  assert list(path.parent.iterdir()) == []


def test_processes_of_one_run_are_one_writer(path, monkeypatch):
  """Those that do not write neither hold a lock nor are refused, nor look at it."""
  with lock.Lock(path, what=WHAT):
    with monkeypatch.context() as other:
      other.setattr(hosts, "is_writer", lambda: False)
      with lock.Lock(path, what=WHAT) as follower:
        follower.check()
    assert path.exists()


@pytest.fixture
def looking(monkeypatch):
  """Often."""
  monkeypatch.setattr(lock, "LOOK", 0.05)


@pytest.mark.parametrize("silent", [lock.STALE - 2, lock.STALE + 5])
def test_a_writer_elsewhere_is_gone_after_five_minutes(path, looking, silent):
  """Without a sign of life; it is waited for until then, since a run that was killed is started
  again by programs. Without _may_be_gone the restart is refused; where age does not count, it waits
  for ever.
  """
  write(path)
  age(path, silent)
  began = time.monotonic()
  with lock.Lock(path, what=WHAT) as own:
    own.check()
  assert (time.monotonic() - began > 0.3) == (silent < lock.STALE)


@pytest.mark.parametrize("sign", ["of life", "of another"])
def test_a_writer_elsewhere_lives(path, looking, sign):
  """It is named once that is seen, by its own sign or since another has taken its place. Where
  _may_be_gone sees no sign it is taken over.
  """
  write(path)
  age(path, 40)
  give = (lambda: age(path, 0)) if sign == "of life" else (lambda: write(path, process=8))
  timer = threading.Timer(0.3, give)
  timer.start()
  number = 7 if sign == "of life" else 8
  with pytest.raises(UserError, match=f"process {number} on elsewhere"):
    lock.Lock(path, what=WHAT).__enter__()
  timer.join()


def test_a_file_that_is_being_written_is_of_no_other_writer(path, looking):
  """It is looked at again, and then names who lives."""
  write(path)
  age(path, 40)
  timers = [threading.Timer(0.2, lambda: path.write_text("")), threading.Timer(0.6, write, [path])]
  for timer in timers:
    timer.start()
  with pytest.raises(UserError, match="process 7 on elsewhere"):
    lock.Lock(path, what=WHAT).__enter__()
  for timer in timers:
    timer.join()


def test_a_dead_process_of_this_host_is_gone_at_once(path):
  """Killed while it held the lock; another process that got its number since is not it. Without the
  look at processes, or at when they started, it holds for five minutes.
  """
  program = f"""
import sys, time
from cfg.base import lock
with lock.Lock({str(path)!r}, what="x"):
  print("held", flush=True)
  time.sleep(600)
"""
  process = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
  assert process.stdout.readline() == "held\n"
  with pytest.raises(UserError, match=f"process {process.pid} "), lock.Lock(path, what=WHAT):
    pass
  process.kill()
  process.communicate()
  assert path.exists()
  with lock.Lock(path, what=WHAT):
    holder = json.loads(path.read_text())
  write(path, **{**holder, "started": holder["started"] - 100})
  with lock.Lock(path, what=WHAT) as own:
    own.check()


@pytest.mark.parametrize("text", ["", "{", "[1]", "7", "{}"])
def test_a_broken_file_holds_for_five_minutes(path, looking, text):
  """Nobody knows whose it is: it is taken once it is old enough."""
  path.write_text(text)
  age(path, lock.STALE - 2)
  began = time.monotonic()
  with lock.Lock(path, what=WHAT) as own:
    own.check()
  assert time.monotonic() - began > 0.3


def test_the_holder_gives_signs_of_life(path, monkeypatch):
  """Its file's time moves on, and stands still once the lock was left. It fails without os.utime in
  _beat.
  """
  monkeypatch.setattr(lock, "BEAT", 0.02)
  with lock.Lock(path, what=WHAT):
    age(path, 200)
    deadline = time.monotonic() + 20
    while time.time() - path.stat().st_mtime > 100:
      assert time.monotonic() < deadline
      time.sleep(0.01)


def test_who_was_taken_over_notices(path, monkeypatch):
  """Before it writes; it neither gives life to the other's file nor removes it. Without the
  comparison in `check` it goes on, and without that in __exit__ it removes the file.
  """
  monkeypatch.setattr(lock, "BEAT", 0.02)
  with lock.Lock(path, what=WHAT) as own:
    write(path)
    age(path, 200)
    before = path.stat().st_mtime
    with pytest.raises(UserError, match="process 7 on elsewhere's"):
      own.check()
    time.sleep(0.2)
    assert path.stat().st_mtime == before
  assert json.loads(path.read_text())["host"] == "elsewhere"
  with lock.Lock(path.with_name("other"), what=WHAT) as own:
    path.with_name("other").unlink()
    with pytest.raises(UserError, match="nobody's"):
      own.check()


def test_one_of_many_takes_over(path, monkeypatch):
  """A stale lock that sixteen find at once has one new holder, however slow the writing is. Without
  flock five of them held it.
  """
  write_json = lock.files.write_json
  monkeypatch.setattr(lock.files, "write_json", lambda *a: time.sleep(0.05) or write_json(*a))
  write(path)
  age(path, lock.STALE + 5)
  start, stay, held, refused = threading.Barrier(16), threading.Event(), [], []

  def contend():
    start.wait()
    try:
      with lock.Lock(path, what=WHAT):
        held.append(1)
        stay.wait(30)
    except UserError as e:
      refused.append(e)

  threads = [threading.Thread(target=contend) for _ in range(16)]
  for thread in threads:
    thread.start()
  deadline = time.monotonic() + 30
  while len(held) + len(refused) < 16 and time.monotonic() < deadline:
    time.sleep(0.01)
  stay.set()
  for thread in threads:
    thread.join()
  assert (len(held), len(refused)) == (1, 15)
