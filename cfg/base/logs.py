"""Where a run says what happens: metrics.jsonl, TensorBoard files, a progress bar or plain lines;
and how fast it goes.
"""

import json
import logging
import pathlib
import sys
import time

import jax
import tensorboardX
from tqdm import tqdm

from cfg.base import files

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
      f"({100 * self._done / self._total:.0f}%)"
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


class Compilations:
  """Counts what XLA compiles (or reads from its cache) in this process, from when this is made."""

  def __init__(self):
    self.count = 0
    jax.monitoring.register_event_duration_secs_listener(self._note)

  def _note(self, event, seconds, **_):
    del seconds
    self.count += event == "/jax/core/compile/backend_compile_duration"


class Meter:
  """Means of the metrics, and how fast training goes, over the steps since the last `flush`.

  Args:
    batch_size: images a step, on all devices.
    num_devices: of the mesh.
    flops_per_image: of the forward and backward pass, without recomputation.
    peak_flops: FLOP/s of one device, or None where not known.
  """

  def __init__(self, *, batch_size, num_devices=1, flops_per_image=0, peak_flops=None):
    self._batch_size, self._num_devices = batch_size, num_devices
    self._flops_per_image, self._peak_flops = flops_per_image, peak_flops
    self._compilations = Compilations()
    self.shown = {}  # what the progress bar shows
    self._reset()
    self._mark = time.monotonic()

  def _reset(self):
    self._sums, self._count, self._seconds, self._waited = {}, 0, 0.0, 0.0

  def add(self, metrics):
    """Count one step's {name: number}."""
    self._count += 1
    for name, value in metrics.items():
      self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._seconds += time.monotonic() - self._mark
    self._mark = time.monotonic()

  def waiting_for(self, stream):
    """The items of `stream`; the time until each comes counts as waiting for data."""
    stream = iter(stream)
    while True:
      start = time.monotonic()
      try:
        item = next(stream)
      except StopIteration:
        return
      self._waited += time.monotonic() - start
      yield item

  def skip(self):
    """The time since the last `add` went into something else: leave it out of the rate."""
    self._mark = time.monotonic()

  def flush(self):
    """The means, and as numbers of the interval:

      images_per_second, images_per_second_per_device;
      model_flops_utilisation: FLOP/s of the model over the chip's bf16 peak, where that is known;
      data_wait: the share of the time in which no batch was ready;
      compilations: so far, in this process.

    Empty where no step was counted.
    """
    values = {name: total / self._count for name, total in self._sums.items()}
    if self._count:
      rate = self._count * self._batch_size / max(self._seconds, 1e-9)
      each = rate / self._num_devices
      values |= {"images_per_second": rate, "images_per_second_per_device": each}
      if self._peak_flops:
        values["model_flops_utilisation"] = each * self._flops_per_image / self._peak_flops
      values["data_wait"] = min(1.0, self._waited / max(self._seconds, 1e-9))
      values["compilations"] = self._compilations.count
      self.shown = self._facts(values)
    self._reset()
    return values

  def _facts(self, values):
    facts = {"loss": f"{values['loss']:.4f}", "images/s": f"{values['images_per_second']:.0f}"}
    if self._num_devices > 1:
      facts["images/s"] += (
        f" "
        f"({values['images_per_second_per_device']:.{0 if values['images_per_second_per_device'] >= 10 else 2}f} a device)"
      )
    if "model_flops_utilisation" in values:
      facts["MFU"] = f"{100 * values['model_flops_utilisation']:.0f} %"
    return {
      **facts,
      "data wait": f"{100 * values['data_wait']:.0f} %",
      "compilations": f"{values['compilations']}",
    }


def duration(seconds):
  """75 -> "1:15"; 3700 -> "1:01:40"."""
  if seconds == float("inf"):
    return "?"
  hours, rest = divmod(int(seconds), 3600)
  minutes, seconds = divmod(rest, 60)
  return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"
