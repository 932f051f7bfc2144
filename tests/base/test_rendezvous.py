"""Who is absent, or was started otherwise, is named before jax joins the processes."""

import concurrent.futures
import json
import re
import socket
import time

import pytest

from cfg.base import hosts, rendezvous
from cfg.base.errors import UserError
from cfg.base.hosts import HostGone

FACTS = {"seed": 0, "version of jax": "1"}


@pytest.fixture
def address():
  """A port of this machine that nobody listens at."""
  with socket.create_server(("127.0.0.1", 0)) as server:
    port = server.getsockname()[1]
  return f"127.0.0.1:{port}"


def meet_all(address, each, *, seconds=5.0):
  """What `meet` raises, or None, in a thread for each {"index", "count", "facts"}."""

  def one(given):
    try:
      rendezvous.meet(address, seconds=seconds, **{"count": 3, "facts": FACTS, **given})
    except UserError as e:
      return e
    return None

  with concurrent.futures.ThreadPoolExecutor(len(each)) as pool:
    return list(pool.map(one, each))


def test_all_come_and_the_port_is_free_again(address):
  """Nobody is refused; the first one's port can be listened at, as jax's service will."""
  assert meet_all(address, [{"index": i} for i in (2, 0, 1)]) == [None] * 3
  socket.create_server(("", int(address.split(":")[1]))).close()


def test_an_absent_process_is_named(address):
  """By number, with those that are there, at all of them, and in time. It fails where _absent is
  not said.
  """
  start = time.monotonic()
  errors = meet_all(address, [{"index": 0}, {"index": 2}], seconds=1.5)
  assert time.monotonic() - start < 5
  for error in errors:
    assert isinstance(error, HostGone)
    assert "1 of the 3 processes of this run did not come" in str(error)
    assert f"number 1. There are: 0 on {socket.gethostname()}, 2 on" in str(error)


def test_without_the_first_process_the_others_name_it(address):
  """It is what they wait for."""
  (error,) = meet_all(address, [{"index": 1}], seconds=1.0)
  assert isinstance(error, HostGone) and f"process 0 of this run does not answer at {address}" in (
    str(error)
  )


@pytest.mark.parametrize(
  "other, expected",
  [
    ({"facts": {**FACTS, "seed": 1}}, "process 2 on .* has seed = 1, process 0 on .* 0"),
    ({"facts": {"seed": 0}}, 'has version of jax = null, process 0 on .* "1"'),
    ({"facts": {"seed": 7}}, "has seed = 7, process 0 on .* 0 and 1 more"),
    ({"count": 4}, "started as one of 4, process 0 on .* as one of 3"),
    ({"index": 1}, "two processes have the number 1 of 3"),
    ({"index": 3}, "two processes have the number 3 of 3"),
  ],
)
def test_a_difference_is_named_at_all(address, other, expected):
  """Config, versions, how many there are, their numbers: no process goes on. It fails where facts
  are not compared, or numbers.
  """
  errors = meet_all(address, [{"index": 0}, {"index": 1}, {"index": 2, **other}])
  assert len(errors) == 3
  for error in errors:
    assert isinstance(error, UserError) and re.search(expected, str(error)), error


def test_a_stranger_does_no_harm(address):
  """What is no process's word is passed over: bytes, JSON of another kind, a deep nest, silence.
  Without _is_process the meeting does not end.
  """
  port = int(address.split(":")[1])
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(rendezvous.meet, address, index=0, count=2, facts=FACTS, seconds=20)
    for word in (b"\x00\xff\n", b"[1, 2]\n", b'{"index": "0"}\n', b"[" * 100_000 + b"\n", b""):
      while True:
        try:
          with socket.create_connection(("127.0.0.1", port), timeout=5) as stranger:
            stranger.sendall(word)
          break
        except ConnectionRefusedError:
          time.sleep(0.05)
    rendezvous.meet(address, index=1, count=2, facts=FACTS, seconds=20)
    assert first.result(20) is None


def test_a_silent_stranger_keeps_nobody(address, monkeypatch):
  """One that stays and says nothing is waited for briefly. It fails where a word is waited for as
  long as the processes.
  """
  monkeypatch.setattr(rendezvous, "PROMPT", 0.5)
  port = int(address.split(":")[1])
  start = time.monotonic()
  with concurrent.futures.ThreadPoolExecutor(1) as pool:
    first = pool.submit(rendezvous.meet, address, index=0, count=2, facts=FACTS, seconds=20)
    time.sleep(0.3)
    with socket.create_connection(("127.0.0.1", port)):
      rendezvous.meet(address, index=1, count=2, facts=FACTS, seconds=15)
    assert first.result(20) is None
  assert time.monotonic() - start < 10


def test_a_wrong_number_is_told_at_once(address, monkeypatch):
  """Those that have come do not wait for the rest."""
  monkeypatch.setattr(rendezvous, "PROMPT", 0.5)
  start = time.monotonic()
  errors = meet_all(address, [{"index": 0}, {"index": 1, "count": 4}], seconds=20)
  assert all("started as one of 4" in str(error) for error in errors)
  assert time.monotonic() - start < 10


def test_a_port_that_is_taken(address):
  """The first process says so."""
  with socket.create_server(("", int(address.split(":")[1]))):
    with pytest.raises(UserError, match="another run has it"):
      rendezvous.meet(address, index=0, count=2, facts=FACTS, seconds=2)


def test_alone_everything_is_agreed():
  """One process asks nobody."""
  assert hosts.is_writer() and hosts.count() == 1
  assert hosts.gather({"a": 1}) == [{"a": 1}] and hosts.agreed(json.loads("[1]")) == [1]
  hosts.check_equal({"a": 1}, what="nothing")
  with pytest.raises(UserError, match="mine"), hosts.together():
    raise UserError("mine")
