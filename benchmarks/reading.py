"""Reading 64x64 images with flips, beside a plain PyTorch DataLoader over the same images.

Usage: python benchmarks/reading.py

20,000 crops of scikit-learn's two photographs are written as PNG files in class folders, and
prepared as users do (python -m cfg.data.prepare). Every variant is then measured in a process of
its own, on one core and on two: a shuffled stream of batches of 256, flipped at random, as float32
in [-1, 1] on the (CPU) device. The last two steps are a jitted program here, and part of the data
set's __getitem__ in PyTorch. The best of no, one and two worker processes counts. ROUNDS=3 repeats
everything three times. Finally the stream feeds a step that only sleeps, for as long as
imagenet64's would take on GPUs.

Linux only (cores are chosen by sched_setaffinity). Needs: pip install torch==2.13.0. Prints two
tables; 10 minutes per round.
"""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

import numpy as np

HERE = pathlib.Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

COUNT, CLASSES, SIDE, BATCH = 20_000, 10, 64, 256
SECONDS = 3  # of measuring, for each number
WORKERS = (0, 1, 2)
STORES = {
  "memory": "one array in memory",
  "records": "prepared: ArrayRecord",
  "files": "PNG files in class folders",
}
# images/s of one GPU in imagenet64's training step: published ones, and what is hoped for
GPU_RATES = {"V100, published": 74, "A100, published": 70, "H200, at 45 % of 790 TFLOP/s": 564}


def make_images(root):
  """Write PNG files, `root`/files/<class>/<image>, and prepare them as `root`/records."""
  from PIL import Image
  from sklearn.datasets import load_sample_images

  from cfg.data import prepare

  rng, photos = np.random.default_rng(0), load_sample_images().images
  for i in range(COUNT):
    photo = photos[i % 2]
    top, left = (int(rng.integers(0, side - SIDE)) for side in photo.shape[:2])
    folder = root / "files" / f"{i % CLASSES}"
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(photo[top : top + SIDE, left : left + SIDE]).save(
      folder / f"{i:05d}.png", compress_level=1
    )
  prepare.prepare(root / "files", root / "records", resolution=SIDE)


def open_store(root, store):
  """The images as one of our sources."""
  from cfg.data import dataset as dataset_lib
  from cfg.data import records, sources
  from configs import digits

  if store == "files":
    data = digits.get_config().data
    data.update(name="folder", path=str(root / "files"), resolution=SIDE)
    return sources.folder(data).train.source
  source = records.open_split(root / "records", records.read_manifest(root / "records"), "train")
  if store == "memory":
    rows = [source[i] for i in range(len(source))]
    return dataset_lib.ArraySource(
      np.stack([row["image"] for row in rows]), np.asarray([row["label"] for row in rows])
    )
  return source


def rate(batches, finish):
  """Images a second of an endless iterator, after ten batches to warm up; `finish` waits for what
  it is given.
  """
  for batch in itertools.islice(batches, 10):
    finish(batch)
  count, start = 0, time.perf_counter()
  while time.perf_counter() < start + SECONDS:
    finish(next(batches))
    count += BATCH
  return count / (time.perf_counter() - start)


def run_cfg(root, store, workers):
  """Images a second of this project's stream."""
  from cfg.base import runtime

  runtime.start(cpu_devices=1)
  import jax

  from cfg.base import images
  from cfg.data import pipeline

  @jax.jit
  def ready(image, index):  # what the training step does with them first
    keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(jax.random.key(0), index)
    return images.random_flip(keys=keys, x=images.to_unit(image))

  with pipeline.train_stream(
    open_store(root, store),
    batch_size=BATCH,
    seed=0,
    start_step=0,
    num_steps=10**6,
    num_workers=workers,
    place=jax.device_put,
  ) as stream:
    return rate(stream, lambda batch: ready(batch["image"], batch["index"]).block_until_ready())


class TorchImages:
  """A torch.utils.data.Dataset: images decoded, flipped at random, float32 in [-1, 1]."""

  def __init__(self, source):
    self.source, self.part = source, getattr(source, "part", None)  # files

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    import torch
    from PIL import Image

    if self.part is not None:
      with Image.open(self.part.path / self.part.places[i].name) as file:
        image, label = np.asarray(file.convert("RGB")), int(self.part.labels[i])
    else:
      image, label = self.source[i].values()
    if torch.rand(()) < 0.5:
      image = image[:, ::-1]
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32)) / 127.5 - 1, int(label)


def run_torch(root, store, workers):
  """Images a second of torch.utils.data.DataLoader."""
  from torch.utils.data import DataLoader

  # a forked worker crashes in ArrayRecord's reader, which has threads
  options = dict(multiprocessing_context="spawn", persistent_workers=True) if workers else {}
  loader = DataLoader(
    TorchImages(open_store(root, store)),
    batch_size=BATCH,
    shuffle=True,
    num_workers=workers,
    drop_last=True,
    **options,
  )
  return rate((batch for _ in itertools.count() for batch in loader), lambda batch: None)


def run_waits(root, gpus, images_per_second):
  """The share of the time in which no batch was ready for a step that sleeps as long as the GPUs
  would take.
  """
  from cfg.base import runtime

  runtime.start(cpu_devices=1)
  import jax

  from cfg.data import pipeline
  from cfg.training.throughput import Throughput

  batch = BATCH * gpus
  source = open_store(root, "records")
  throughput = Throughput(batch_size=batch, num_devices=gpus)
  steps = max(5, round(10 * images_per_second * gpus / batch))
  with pipeline.train_stream(
    source, batch_size=batch, seed=0, start_step=0, num_steps=steps, place=jax.device_put
  ) as stream:
    next(stream)
    throughput.skip()
    for _ in throughput.waiting_for(stream):
      time.sleep(batch / (images_per_second * gpus))
      throughput.add({"loss": 0.0})
  return throughput.flush()["data_wait"]


def measure(cores, *arguments):
  """One number, from a process of its own that may use so many cores."""
  allowed = sorted(os.sched_getaffinity(0))[:cores]
  env = {**os.environ, "JAX_PLATFORMS": "cpu"}
  done = subprocess.run(
    [sys.executable, __file__, *map(str, arguments)],
    capture_output=True,
    text=True,
    env=env,
    preexec_fn=lambda: os.sched_setaffinity(0, allowed),
  )
  if done.returncode:
    raise SystemExit(f"{arguments} failed:\n{done.stderr[-3000:]}")
  return json.loads(done.stdout.splitlines()[-1])


def best(root, store, cores):
  """{peer: (images/s, workers)}."""
  found = {}
  for _, workers, peer in itertools.product(
    range(int(os.environ.get("ROUNDS", "1"))), WORKERS, ("cfg", "torch")
  ):
    number = measure(cores, root, peer, store, workers)
    print(
      f"{store:>8} {cores} cores {peer:<6} {workers} workers {number:10,.0f} images/s",
      file=sys.stderr,
      flush=True,
    )
    found[peer] = max(found.get(peer, (0, 0)), (number, workers))
  return found


def main(root):
  make_images(root)
  print(
    "| images from | cores | cfg, images/s | PyTorch | ratio |\n| --- | --- | --- | --- | --- |"
  )
  for store, cores in itertools.product(STORES, (1, 2)):
    found = best(root, store, cores)
    cells = " | ".join(f"{number:,.0f} ({workers} workers)" for number, workers in found.values())
    print(
      f"| {STORES[store]} | {cores} | {cells} | **{found['cfg'][0] / found['torch'][0]:.1f}** |",
      flush=True,
    )
  print("\n| imagenet64 on | images/s | waited, 1 GPU | 8 GPUs |\n| --- | --- | --- | --- |")
  for gpu, number in GPU_RATES.items():
    waits = " | ".join(f"{100 * measure(1, root, 'waits', gpus, number):.2f} %" for gpus in (1, 8))
    print(f"| {gpu} | {number} each | {waits} |", flush=True)


if __name__ == "__main__":
  if len(sys.argv) > 1:
    at, what, *rest = sys.argv[1:]
    at = pathlib.Path(at)
    if what == "waits":
      print(json.dumps(run_waits(at, int(rest[0]), float(rest[1]))))
    else:
      print(json.dumps({"cfg": run_cfg, "torch": run_torch}[what](at, rest[0], int(rest[1]))))
  else:
    with tempfile.TemporaryDirectory() as temporary:
      main(pathlib.Path(temporary))
