"""What a training run writes and shows of its steps, each in exactly one record."""

from collections.abc import Mapping
from typing import Any

import jax

from cfg.base import logs
from cfg.base.progress import Progress
from cfg.training.guard import Guard
from cfg.training.throughput import SKIPPED, Throughput


class StepLog:
  """Means of the steps' metrics, every so many steps and at the end; never waits for the step just
  dispatched.

  Step n is dispatched before the metrics of step n - 1 are read, so a record may be written one
  step late. It is labelled with the last step that it covers, and covers the steps after the
  record before it.

  Between two records a checkpoint keeps the sums so far (`settle`), so that the records of a run
  that was stopped are those of one that was not.

  Args:
    every_steps: steps from one record to the next; 0: no records.
    metrics_log: logs.MetricsLog.
    progress: Progress.
    throughput: Throughput.
    guard: Guard.
  """

  def __init__(
    self,
    *,
    every_steps: int,
    metrics_log: logs.MetricsLog,
    progress: Progress,
    throughput: Throughput,
    guard: Guard,
  ) -> None:
    self._every_steps = every_steps
    self._metrics_log = metrics_log
    self._progress = progress
    self._throughput = throughput
    self._guard = guard
    self._counted = 0  # the last step that was
    self._pending: tuple[int, Mapping[str, jax.Array]] | None = None

  def __call__(self, step: int, metrics: Mapping[str, jax.Array]) -> None:
    """After step `step` was dispatched: count the step before it, and write what is due."""
    self.read()
    self._pending = (step, metrics)
    self._progress.update(step, **self._throughput.shown)

  def read(self) -> None:
    """Count the step just dispatched, waiting for it, and write what is due: before something that
    waits for it anyway.
    """
    if self._pending is None:
      return
    step, metrics = self._pending
    self._pending = None
    values = jax.device_get(metrics)
    self._throughput.add(values)
    self._counted = step
    self._guard(step, skipped=bool(values.get(SKIPPED)))
    if self._every_steps and step % self._every_steps == 0:
      self._write(step)

  def settle(self, step: int, *, last: bool) -> dict[str, Any]:
    """Count everything up to `step`; write its record too if this process takes no step after it.

    Returns:
      {"steps", "sums"} of the steps after the last record of the plain cadence: for the checkpoint
      of `step`, to be restored by Throughput.restore.
    """
    self.read()
    unlogged = self._throughput.counted()
    if last:
      self._write(step)
    return unlogged

  def end(self) -> None:
    """Write what was counted since the last record, of a run that stops for a fault."""
    self._write(self._counted)

  def _write(self, step: int) -> None:
    values = self._throughput.flush()
    if values and self._every_steps:
      self._metrics_log.scalars(step, values)


def due(step: int, every_steps: int, num_steps: int) -> bool:
  """Whether what is done every so many steps and at the end (0: never) is due after `step`."""
  return every_steps > 0 and (step == num_steps or step % every_steps == 0)
