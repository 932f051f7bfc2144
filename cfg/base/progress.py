"""Long work shows that it is under way: a bar on a terminal, plain lines elsewhere. No JAX here."""

import logging
import sys
import time

from tqdm import tqdm

from cfg.base import hosts

log = logging.getLogger(__name__)


def to_stderr():
  """Show what cfg logs on stderr, with the time; other libraries only when something is wrong."""
  handler = _StderrHandler()
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  package = logging.getLogger("cfg")
  package.setLevel(logging.INFO)
  package.addHandler(handler)
  package.propagate = False


def only_warnings(prefix):
  """Show less, each line behind `prefix`: another process of the same run shows the rest."""
  package = logging.getLogger("cfg")
  package.setLevel(logging.WARNING)
  for handler in package.handlers:
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))


class _StderrHandler(logging.Handler):
  """Writes above a progress bar, not into it."""

  def emit(self, record):
    tqdm.write(self.format(record), file=sys.stderr)


class Progress:
  """A bar on a terminal; elsewhere a plain line now and then, with rate and time left.

  Of what is `passing` nothing stays at its end, nor is shown at all if it is quick.
  """

  def __init__(self, what, *, total, unit, initial=0, every_seconds=15.0, passing=False):
    self._what, self._total, self._unit = what, total, unit
    self._done = initial
    self._every = every_seconds
    self._passing = passing
    # of the first update: before it lies compilation
    self._start = self._last = self._initial = None
    self._bar = None
    if sys.stderr.isatty() and hosts.is_writer():
      self._bar = tqdm(
        total=total,
        initial=initial,
        desc=what,
        unit=unit,
        dynamic_ncols=True,
        leave=not passing,
        delay=1.0 if passing else 0.0,
      )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    if self._bar is not None:
      self._bar.close()

  def update(self, done, **facts):
    """Say that `done` units in all are done, with a few facts ({name: text}) to show."""
    if self._bar is not None:
      self._bar.set_postfix(facts, refresh=False)
      self._bar.update(done - self._done)
    self._done = done
    now = time.monotonic()
    if self._start is None:
      self._start, self._initial, self._last = now, done, now
    ended = done == self._total and not self._passing
    if self._bar is None and (now - self._last >= self._every or ended):
      self._last = now
      log.info("%s", self.line(now, facts))

  def skip(self, done):
    """Say that `done` units in all are done, those since the last call by an earlier run: they tell
    nothing of the rate.
    """
    more = done - self._done
    self._done = done
    if self._initial is not None:
      self._initial += more
    if self._bar is not None:
      for name in ("n", "initial", "last_print_n"):
        setattr(self._bar, name, getattr(self._bar, name) + more)
      self._bar.refresh()

  def line(self, now, facts):
    """`train 300/500 steps (60%), loss 0.16, 20 steps/s, 0:10 left`."""
    rate = (self._done - self._initial) / max(now - self._start, 1e-9)
    left = (self._total - self._done) / rate if rate > 0 else float("inf")
    parts = [
      f"{self._what} {self._done}/{self._total} {self._unit} "
      f"({100 * self._done / max(self._total, 1):.0f}%)"
    ]
    parts += [f"{name} {value}" for name, value in facts.items()]
    if rate > 0:
      parts.append(f"{rate:.{0 if rate >= 10 else 2}f} {self._unit}/s")
    parts.append(
      f"{duration(left)} left"
      if self._done < self._total
      else f"took {duration(now - self._start)}"
    )
    return ", ".join(parts)


def duration(seconds):
  """75 -> "1:15"; 3700 -> "1:01:40"."""
  if seconds == float("inf"):
    return "?"
  hours, rest = divmod(int(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
