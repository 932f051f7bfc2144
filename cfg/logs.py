"""Where a run says what happens: metrics.jsonl, TensorBoard files, a progress bar or plain lines."""

import json
import logging
import pathlib
import sys
import time

import tensorboardX
from tqdm import tqdm

from cfg import files

log = logging.getLogger(__name__)


def to_stderr():
  """Show what cfg logs on stderr, with the time; other libraries only when something is wrong."""
  handler = _StderrHandler()
  handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
  package = logging.getLogger("cfg")
  package.setLevel(logging.INFO)
  package.addHandler(handler)
  package.propagate = False


class _StderrHandler(logging.Handler):
  """Writes above a progress bar, not into it."""

  def emit(self, record):
    tqdm.write(self.format(record), file=sys.stderr)


class MetricsLog:
  """Scalars to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard/`.

  When a run resumes at `step`, records after it are dropped: they will come again.
  """

  def __init__(self, workdir, *, step):
    workdir = pathlib.Path(workdir)
    path = workdir / "metrics.jsonl"
    if path.exists():
      files.write_text(path, "".join(_records_up_to(path, step)))
    self._jsonl = path.open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(workdir / "tensorboard"), purge_step=step + 1 if step else None, write_to_disk=True
    )

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._jsonl.close()
    self._board.close()

  def scalars(self, step, values):
    """Write {name: number} of `step`."""
    self._jsonl.write(json.dumps({"step": step, **values}) + "\n")
    self._jsonl.flush()
    for name, value in values.items():
      self._board.add_scalar(name, value, step)

  def image(self, step, name, image):
    """Write uint8 [H,W,C] to TensorBoard."""
    self._board.add_image(name, image, step, dataformats="HWC")


def _records_up_to(path, step):
  for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
    try:
      record = json.loads(line)
    except ValueError:  # the line a kill cut short
      continue
    if record["step"] <= step:
      yield line


class Progress:
  """A bar on a terminal; elsewhere a plain line now and then, with rate and time left."""

  def __init__(self, what, *, total, unit, initial=0, every_seconds=15.0):
    self._what, self._total, self._unit = what, total, unit
    self._done = initial
    self._every = every_seconds
    # of the first update: before it lies compilation
    self._start = self._last = self._initial = None
    self._bar = None
    if sys.stderr.isatty():
      self._bar = tqdm(total=total, initial=initial, desc=what, unit=unit, dynamic_ncols=True)

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
    if self._bar is None and (now - self._last >= self._every or done == self._total):
      self._last = now
      log.info("%s", self.line(now, facts))

  def line(self, now, facts):
    """`train 300/500 steps (60%), loss 0.16, 20 steps/s, 0:10 left`."""
    rate = (self._done - self._initial) / max(now - self._start, 1e-9)
    left = (self._total - self._done) / rate if rate > 0 else float("inf")
    parts = [f"{self._what} {self._done}/{self._total} {self._unit} ({100 * self._done / self._total:.0f}%)"]
    parts += [f"{name} {value}" for name, value in facts.items()]
    if rate > 0:
      parts.append(f"{rate:.{0 if rate >= 10 else 2}f} {self._unit}/s")
    parts.append(f"{duration(left)} left" if self._done < self._total else f"took {duration(now - self._start)}")
    return ", ".join(parts)


class Meter:
  """Means of the metrics, and images per second of training, over the steps since the last `flush`."""

  def __init__(self, *, batch_size):
    self._batch_size = batch_size
    self.shown = {}  # what the progress bar shows
    self._sums, self._count, self._seconds = {}, 0, 0.0
    self._mark = time.monotonic()

  def add(self, metrics):
    """Count one step's {name: number}."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._seconds += time.monotonic() - self._mark
    self._mark = time.monotonic()

  def skip(self):
    """The time since the last `add` went into something else: leave it out of the rate."""
    self._mark = time.monotonic()

  def flush(self):
    """{name: mean} and images_per_second; empty where no step was counted."""
    values = {name: total / self._count for name, total in self._sums.items()}
    if self._count:
      values["images_per_second"] = self._count * self._batch_size / max(self._seconds, 1e-9)
      self.shown = {"loss": f"{values['loss']:.4f}", "images/s": f"{values['images_per_second']:.0f}"}
    self._sums, self._count, self._seconds = {}, 0, 0.0
    return values


def duration(seconds):
  """75 -> "1:15"; 3700 -> "1:01:40"."""
  if seconds == float("inf"):
    return "?"
  hours, rest = divmod(int(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
