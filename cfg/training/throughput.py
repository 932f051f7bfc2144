"""How fast training goes, and the means of what it measures."""

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax

SKIPPED = "skipped"  # the metric that says whether a step had no update

_compilations = 0
_listening = False


def count_compilations() -> int:
  """How many programs XLA compiled (or read from its cache) in this process since the first call.

  One listener serves the process, however many runs there are in it: jax cannot remove one.
  """
  global _listening
  if not _listening:
    jax.monitoring.register_event_duration_secs_listener(_note_event)
    _listening = True
  return _compilations


def _note_event(event: str, seconds: float, **_) -> None:
  global _compilations
  del seconds
  _compilations += event == "/jax/core/compile/backend_compile_duration"


class Throughput:
  """Means of the metrics, and how fast training goes, over the steps since the last `flush`.

  Args:
    batch_size: images a step, on all devices.
    num_devices: of the mesh.
    flops_per_image: of the forward and backward pass, without recomputation.
    peak_flops: FLOP/s of one device, or None where not known.
  """

  def __init__(
    self,
    *,
    batch_size: int,
    num_devices: int = 1,
    flops_per_image: float = 0,
    peak_flops: float | None = None,
  ) -> None:
    self._batch_size = batch_size
    self._num_devices = num_devices
    self._flops_per_image = flops_per_image
    self._peak_flops = peak_flops
    self._first_compilation = count_compilations()
    self.shown: dict[str, str] = {}  # what the progress bar shows
    self._reset()
    self._mark = time.monotonic()

  def _reset(self) -> None:
    self._sums: dict[str, float] = {}
    self._steps = 0
    self._skipped = 0  # of them, without an update
    self._timed_steps = 0  # those of this process
    self._seconds = 0.0
    self._waited = 0.0

  def add(self, metrics: Mapping[str, Any]) -> None:
    """Count one step's {name: number}, which of a step without an update are in no mean."""
    self._steps += 1
    self._timed_steps += 1
    if metrics.get(SKIPPED):
      self._skipped += 1
    else:
      for name, value in metrics.items():
        if name != SKIPPED:
          self._sums[name] = self._sums.get(name, 0.0) + float(value)
    self._seconds += time.monotonic() - self._mark
    self._mark = time.monotonic()

  def waiting_for(self, stream: Iterable[Any]) -> Iterator[Any]:
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

  def skip(self) -> None:
    """The time since the last `add` went into something else: leave it out of the rate."""
    self._mark = time.monotonic()

  def counted(self) -> dict[str, Any]:
    """The steps since the last `flush` as JSON values, for `restore`."""
    return {"steps": self._steps, SKIPPED: self._skipped, "sums": dict(self._sums)}

  def restore(self, counted: Mapping[str, Any]) -> None:
    """Go on after the steps that `counted` told of; they took no time in this process."""
    self._steps = counted["steps"]
    self._skipped = counted.get(SKIPPED, 0)  # earlier versions skipped none
    self._sums = dict(counted["sums"])

  def flush(self) -> dict[str, float]:
    """The number of steps, "steps", how many of them had no update, "skipped", if any, the means
    over the others, and as numbers of the interval:

      images_per_second, images_per_second_per_device;
      model_flops_utilisation: FLOP/s of the model over the chip's bf16 peak, where that is known;
      data_wait: the share of the time in which no batch was ready;
      compilations: so far, in this process, since this was made.

    Empty where no step was counted.
    """
    if not self._steps:
      return {}
    values: dict[str, float] = {"steps": self._steps}
    if self._skipped:
      values[SKIPPED] = self._skipped
    values |= {name: total / (self._steps - self._skipped) for name, total in self._sums.items()}
    if self._timed_steps:
      rate = self._timed_steps * self._batch_size / max(self._seconds, 1e-9)
      device_rate = rate / self._num_devices
      values |= {"images_per_second": rate, "images_per_second_per_device": device_rate}
      if self._peak_flops:
        values["model_flops_utilisation"] = device_rate * self._flops_per_image / self._peak_flops
      values["data_wait"] = min(1.0, self._waited / max(self._seconds, 1e-9))
      values["compilations"] = count_compilations() - self._first_compilation
      self.shown = self._facts(values)
    self._reset()
    return values

  def _facts(self, values: Mapping[str, float]) -> dict[str, str]:
    """Of `flush`, what a progress bar shows."""
    facts = {"images/s": f"{values['images_per_second']:.0f}"}
    if "loss" in values:
      facts = {"loss": f"{values['loss']:.4f}", **facts}
    if SKIPPED in values:
      facts["updates skipped"] = str(values[SKIPPED])
    if self._num_devices > 1:
      device_rate = values["images_per_second_per_device"]
      facts["images/s"] += f" ({device_rate:.{0 if device_rate >= 10 else 2}f} a device)"
    if "model_flops_utilisation" in values:
      facts["MFU"] = f"{100 * values['model_flops_utilisation']:.0f} %"
    return {
      **facts,
      "data wait": f"{100 * values['data_wait']:.0f} %",
      "compilations": f"{values['compilations']}",
    }
