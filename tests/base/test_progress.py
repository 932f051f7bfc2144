"""Long work shows that it is under way: a bar on a terminal, plain lines elsewhere."""

import sys

import pytest

from cfg.base import progress as progress_lib


def test_progress_says_rate_and_time_left(monkeypatch, caplog):
  """Off a terminal: a plain line after every_seconds, with percent, facts, rate and time left; the
  first step is not timed.
  """
  clock = iter([100.0, 110.0, 130.0, 140.0])
  monkeypatch.setattr(progress_lib.time, "monotonic", lambda: next(clock))
  with (
    caplog.at_level("INFO", "cfg"),
    progress_lib.Progress("train", total=40, unit="steps", every_seconds=15) as progress,
  ):
    for done in (10, 20, 30, 40):
      progress.update(done, loss="0.5")
  assert [r.message for r in caplog.records] == [
    "train 30/40 steps (75%), loss 0.5, 0.67 steps/s, 0:15 left",
    "train 40/40 steps (100%), loss 0.5, 0.75 steps/s, took 0:40",
  ]
  assert progress_lib.duration(3725) == "1:02:05"


@pytest.mark.parametrize("terminal", [False, True])
def test_what_an_earlier_run_did_tells_nothing_of_the_rate(monkeypatch, caplog, terminal):
  """20 of 40 units were kept, first and between: the rate is that of the others, on a line and in
  the bar.
  """
  clock = iter([100.0, 110.0, 120.0])
  with caplog.at_level("INFO", "cfg"), monkeypatch.context() as patch:
    patch.setattr(sys.stderr, "isatty", lambda: terminal)
    progress = progress_lib.Progress("sweep", total=40, unit="calls", every_seconds=5)
    patch.setattr(progress_lib.time, "monotonic", lambda: next(clock))
    progress.skip(10)
    progress.update(12)
    progress.update(17)
    progress.skip(27)
    progress.update(32)
  if terminal:
    shown = progress._bar.format_dict
    progress._bar.close()
    assert (shown["n"], shown["initial"], shown["total"]) == (32, 20, 40)
  else:
    assert [r.message for r in caplog.records] == [
      "sweep 17/40 calls (42%), 0.50 calls/s, 0:46 left",
      "sweep 32/40 calls (80%), 0.50 calls/s, 0:16 left",
    ]
