"""Where a run keeps its numbers: metrics.jsonl and TensorBoard files; and how fast it goes."""

import json
import pathlib
import time

import jax
import tensorboardX

from cfg.base import files


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
