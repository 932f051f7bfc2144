"""Where a run keeps its numbers: metrics.jsonl and TensorBoard files."""

import json
import logging
import math
import os
import pathlib
import time
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import tensorboardX

from cfg.base import files, hosts, paths, untrusted
from cfg.base.errors import Unavailable

log = logging.getLogger(__name__)

# seconds between two copies to a work directory in an object store, where files cannot grow
SENT_EVERY = 60.0


class MetricsLog:
  """Scalars to `<workdir>/metrics.jsonl` and `<workdir>/tensorboard/`.

  A line is one JSON object, {"step": n, name: number, ...}. JSON has no word for a number that is
  not finite: its value is null, and the field "not_finite" says which it was, {name: "nan", "inf"
  or "-inf"}.

  When a run resumes at `step`, records after it are dropped: they will come again. Of several
  processes the writer alone writes.

  Args:
    workdir: the work directory.
    step: where the run starts.
    means_after: drop means over several steps (records with "steps") after this step too, since
      the run counts those steps again; None for `step`.
  """

  def __init__(
    self, workdir: str | pathlib.Path, *, step: int, means_after: int | None = None
  ) -> None:
    self._mirror = files.Mirror(workdir)
    self._sent = time.monotonic()
    folder = self._mirror.folder
    path = folder / "metrics.jsonl"
    earlier = paths.as_path(workdir) / path.name
    if earlier.exists():
      last_mean = step if means_after is None else means_after
      kept = [
        _to_line(record)
        for record in _read_records(earlier)
        if record["step"] <= (last_mean if "steps" in record else step)
      ]
      files.write_text(path, "".join(kept))
    writes = hosts.is_writer()
    self._jsonl = (path if writes else pathlib.Path(os.devnull)).open("a", encoding="utf-8")
    self._board = tensorboardX.SummaryWriter(
      str(folder / "tensorboard"), purge_step=step + 1 if step else None, write_to_disk=writes
    )

  def __enter__(self) -> "MetricsLog":
    return self

  def __exit__(self, *_) -> None:
    self._jsonl.close()
    self._board.close()
    self._mirror.close()

  def scalars(self, step: int, values: Mapping[str, Any]) -> None:
    """Write {name: number} of `step`; a number may be Python's, or a scalar array."""
    numbers = {name: _to_number(value) for name, value in values.items()}
    self._jsonl.write(_to_line({"step": int(step), **numbers}))
    self._jsonl.flush()
    for name, value in numbers.items():
      self._board.add_scalar(name, value, step)
    if time.monotonic() - self._sent > SENT_EVERY:
      try:
        self.send()
      except Unavailable as e:  # it is sent again, and must be before a checkpoint
        self._sent = time.monotonic()
        log.warning("%s", e)

  def send(self) -> None:
    """Put what was written where a resumed run finds it, if that is an object store."""
    self._board.flush()
    self._mirror.send()
    self._sent = time.monotonic()

  def image(self, step: int, name: str, image: np.ndarray) -> None:
    """Write uint8 [H,W,C] to TensorBoard."""
    self._board.add_image(name, image, step, dataformats="HWC")


def _to_number(value: Any) -> int | float:
  """The Python number of a number or of an array of one."""
  value = np.asarray(value)
  if np.issubdtype(value.dtype, np.integer) or value.dtype == bool:
    return int(value.item())
  return float(value.item())


def _to_line(record: Mapping[str, Any]) -> str:
  """The line of metrics.jsonl of a record: JSON, whatever its numbers are."""
  not_finite = {
    name: str(value)
    for name, value in record.items()
    if isinstance(value, float) and not math.isfinite(value)
  }
  values = {name: None if name in not_finite else value for name, value in record.items()}
  if not_finite:
    values["not_finite"] = {**record.get("not_finite", {}), **not_finite}
  return json.dumps(values, allow_nan=False) + "\n"


def _read_records(path: pathlib.Path) -> Iterator[dict[str, Any]]:
  """The records of metrics.jsonl, less what is none: the line that a kill cut short."""
  for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
    try:
      record = untrusted.parse_json(line)
    except ValueError:
      continue
    if isinstance(record, dict) and isinstance(record.get("step"), int):
      yield record
