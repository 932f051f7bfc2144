"""How a run is asked to stop: a signal to any of its processes, which all of them agree on."""

import signal
import time
from types import FrameType

import jax
import jax.numpy as jnp
import numpy as np

from cfg.base import hosts, sharding

# steps from one question to the next where there are several processes: its answer takes as many
EVERY = 4
# seconds in which the same signal twice is one: launchers send it to a process and to its parent
ONCE = 2.0


class StopRequest:
  """Turns SIGTERM and Ctrl-C into a flag that the loop reads, so that it can save first.

  Attributes:
    signal: that came to this process, or None.
  """

  def __init__(self, mesh: jax.sharding.Mesh) -> None:
    self.signal: int | None = None
    self._mesh = mesh
    self._since = 0.0
    self._any = jax.jit(jnp.any, out_shardings=sharding.replicated(mesh))
    self._answer: jax.Array | None = None

  def __enter__(self) -> "StopRequest":
    self._old = {s: signal.signal(s, self._note) for s in (signal.SIGTERM, signal.SIGINT)}
    return self

  def __exit__(self, *_: object) -> None:
    for number, handler in self._old.items():
      signal.signal(number, handler)

  def _note(self, number: int, frame: FrameType | None) -> None:
    del frame
    if self.signal is None:
      self.signal, self._since = number, time.monotonic()
    elif time.monotonic() - self._since > ONCE:  # asked twice: at once
      raise KeyboardInterrupt

  def agreed(self, step: int) -> bool:
    """Whether the run ends after `step`: the same at all processes, which call it after each.

    Of several, each says every few steps whether it was asked, and reads what all of them said
    then at the next such step: nothing waits for the devices.
    """
    if hosts.count() == 1:
      return self.signal is not None
    if step % EVERY:
      return False
    ended = self._answer is not None and bool(self._answer)
    mine = np.full(len(self._mesh.local_devices), self.signal is not None)
    self._answer = self._any(sharding.put_local_rows(self._mesh, mine))
    return ended

  @property
  def reason(self) -> str:
    """Why, for the user."""
    by = f"signal {self.signal}" if self.signal is not None else "a signal to another process"
    return f"stopped by {by}"
