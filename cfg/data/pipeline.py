"""The training stream: a fresh permutation each epoch, and a position that is one integer.

Example k of the stream is a function of (source, seed, k). A global batch is
examples [step B, (step + 1) B), of which each micro-batch has a contiguous share,
and each host one of that; so content and order of global (micro-)batches do not
depend on the number of hosts.
"""

import signal
import sys
from collections.abc import Callable
from typing import Any

import grain
import numpy as np
from absl import flags

from cfg.base.errors import UserError
from cfg.data.dataset import Rows, Source

NUM_THREADS = 2  # that read ahead, in each process
NUM_PLACED = 2  # batches that are on the devices ahead


class _Batches:
  """Random access to this host's share of each global batch."""

  def __init__(self, examples, *, batch_size, start_step, num_steps, shard, parts):
    self._examples = examples
    host_index, _ = shard
    # [part, host, row] of a batch
    rows = np.arange(batch_size).reshape(parts, shard[1], -1)
    self._rows = rows[:, host_index].ravel() + start_step * batch_size
    self._stride = batch_size
    self._len = max(0, num_steps - start_step)

  def __len__(self):
    return self._len

  def __getitem__(self, i):
    index = self._rows + i * self._stride
    rows = [self._examples[int(k)] for k in index]
    return {
      "image": np.stack([r["image"] for r in rows]),
      "label": np.asarray([r["label"] for r in rows], np.int32),
      "index": index.astype(np.uint32),
    }


class Stream:
  """An iterator over batches; `close` ends the threads and processes that read ahead, as leaving a
  `with` block does.
  """

  def __init__(self, iterator):
    self._iterator = iterator

  def __iter__(self):
    return self

  def __next__(self):
    return next(self._iterator)

  def close(self):
    """Stop reading ahead; there is no next batch then."""
    self._iterator.close()
    self._iterator = iter(())

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self.close()


def train_stream(
  source: Source,
  *,
  batch_size: int,
  seed: int,
  start_step: int,
  num_steps: int,
  shard: tuple[int, int] = (0, 1),
  parts: int = 1,
  num_workers: int = 0,
  place: Callable[[dict[str, np.ndarray]], Any] | None = None,
) -> Stream:
  """A Stream of this host's batches for steps [start_step, num_steps).

  Args:
    source: random access to {"image", "label"}.
    batch_size: of the global batch; divisible by the number of hosts, times parts.
    seed: of the permutations, one an epoch.
    start_step: batches to skip: completed updates, when resuming.
    num_steps: the step to stop before.
    shard: (host_index, host_count): which share of the batch, of so many equal ones.
    parts: equal micro-batches that a batch goes through the network in; the host's rows are those
      of the first one, then of the second, ...
    num_workers: processes that read ahead, for sources that need more than one process can decode;
      0: threads of this one.
    place: what is done with each batch before it is handed out, ahead and in a thread: putting it
      on devices.

  Yields:
    {"image": uint8 [b,H,W,C], "label": int32 [b], "index": uint32 [b]}, b = batch_size /
    host_count; `index` is the example's position in the stream, from which its noise is drawn.

  Raises:
    UserError: the hosts cannot share the batch equally.
  """
  if batch_size % (shard[1] * parts):
    micro = f" times {parts} micro-batches" if parts > 1 else ""
    raise UserError(f"train.batch_size {batch_size} is not divisible by {shard[1]} hosts{micro}.")
  examples = grain.MapDataset.source(source).seed(seed).shuffle().repeat()
  batches = _Batches(
    examples,
    batch_size=batch_size,
    start_step=start_step,
    num_steps=num_steps,
    shard=shard,
    parts=parts,
  )
  options = grain.ReadOptions(num_threads=NUM_THREADS, prefetch_buffer_size=4 * NUM_THREADS)
  stream = grain.MapDataset.source(batches).to_iter_dataset(options)
  if num_workers:
    stream = _in_processes(stream, num_workers)
  if place is not None:
    stream = grain.experimental.ThreadPrefetchIterDataset(
      stream.map(place), prefetch_buffer_size=NUM_PLACED
    )
  return Stream(iter(stream))


def _in_processes(stream, num_workers):
  """The same stream, its batches made by so many processes."""
  # grain's processes read absl's flags, which a caller that is no absl program has not parsed
  if not flags.FLAGS.is_parsed():
    flags.FLAGS.mark_as_parsed()
  # whole batches are what the workers share out, and grain hands them on in order: the stream is
  # the same. They come through pipes: shared memory is small in containers, and a worker that
  # ends at the wrong moment leaves its block there
  stream = grain.experimental.WithOptionsIterDataset(
    stream, grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
  )
  return stream.mp_prefetch(
    grain.MultiprocessingOptions(num_workers=num_workers, per_worker_buffer_size=2),
    _leave_interrupts,
  )


def _leave_interrupts(*_):
  """Ctrl-C reaches every process of a terminal: the training process saves, and then ends its
  workers.
  """
  signal.signal(signal.SIGINT, signal.SIG_IGN)


def epoch_batches(source, *, batch_size):
  """Every example of `source` once, in order, in batches of one shape.

  Yields:
    (batch, valid): the last batch repeats its last row; `valid` is how many rows are real.
  """
  for first in range(0, len(source), batch_size):
    rows = [source[min(i, len(source) - 1)] for i in range(first, first + batch_size)]
    batch = {
      "image": np.stack([r["image"] for r in rows]),
      "label": np.asarray([r["label"] for r in rows], np.int32),
      "index": np.arange(first, first + batch_size, dtype=np.uint32),
    }
    yield batch, min(batch_size, len(source) - first)


def every_nth(source, *, most):
  """At most `most` examples of `source`, evenly spaced; 0 or None for all."""
  if not most or most >= len(source):
    return source
  return Rows(source, np.linspace(0, len(source) - 1, most).round().astype(int))
