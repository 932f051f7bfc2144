"""Updates that were skipped since their loss or gradient was not finite: when it is too much."""

import logging

log = logging.getLogger(__name__)


class TooManySkipped(Exception):
  """So many updates in a row were skipped.

  Attributes:
    first: the first step of the row.
    last: the last one.
  """

  def __init__(self, first: int, last: int) -> None:
    super().__init__(f"the updates of steps {first} to {last} were skipped")
    self.first = first
    self.last = last


class Guard:
  """Counts steps without an update.

  Args:
    most: in a row, at which it raises.
  """

  def __init__(self, *, most: int) -> None:
    self._most = most
    self.first: int | None = None  # of the row of skipped steps that goes on; None: there is none

  def __call__(self, step: int, *, skipped: bool) -> None:
    """Note what became of `step`; steps come in order.

    Raises:
      TooManySkipped: this is the last of so many in a row.
    """
    if not skipped:
      self.first = None
      return
    if self.first is None:
      self.first = step
      log.warning(
        "the update of step %d was skipped: its loss or gradient is not finite. After %d in a row "
        "training stops",
        step,
        self._most,
      )
    if step - self.first + 1 >= self._most:
      raise TooManySkipped(self.first, step)
