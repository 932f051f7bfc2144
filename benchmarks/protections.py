"""What the protections of a training run cost it: hashes, checks, the guard, the lock.

Usage: python benchmarks/protections.py [digits] [large]

digits: the digits' config as it is. A training step with the guard against numbers that are not
finite, and without, ROUNDS=20 times in turn over STEPS=10 steps each: the median difference. A
save: how long the loop waits for it, the hashing in the background, whether the state is finite. A
start: comparing the hashes of a checkpoint before it is restored. The lock: a sign of life. Their
sum, as often as a run of the config has each, as a share of its steps' time.

large: a state of 1.2 GB of random numbers: how long the loop waits for a save, beside a copy of the
state to the host.

Prints tables; 2 minutes on two cores.
"""

import os
import pathlib
import statistics
import sys
import tempfile
import time

import numpy as np
import rounds

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

ROUNDS, STEPS = int(os.environ.get("ROUNDS", "20")), int(os.environ.get("STEPS", "10"))
SAVES = 5
GIGABYTES = 1.2


def unguarded(state, loss, grads, *, optimizer):
  """`step.apply_gradients` without the selection."""
  import jax.numpy as jnp
  import optax

  from cfg.training import state as train_state

  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  step = state.step + 1
  ema = train_state.update_ema(state.ema, params=params, step=step)
  new = train_state.TrainState(step=step, params=params, ema=ema, opt_state=opt_state)
  return new, {"loss": loss, "grad_norm": optax.tree.norm(grads), "skipped": jnp.bool(False)}


def clock(call, count=SAVES):
  """The median seconds of a call."""
  seconds = []
  for _ in range(count):
    start = time.perf_counter()
    call()
    seconds.append(time.perf_counter() - start)
  return statistics.median(seconds)


def blocked(folder, state):
  """Median seconds (that the loop waits for a save, until it counts, in the background)."""
  from cfg.base import checkpoint

  waits, whole = [], []
  with checkpoint.Checkpoints(folder) as checkpoints:
    for step in range(1, SAVES + 1):
      start = time.perf_counter()
      checkpoints.save(step, state=state, meta={"step": step, "config": {}})
      waits.append(time.perf_counter() - start)
      checkpoints.wait()
      whole.append(time.perf_counter() - start)
  return statistics.median(waits), statistics.median(whole)


def digits():
  """The table of a digits run."""
  import jax

  from cfg.base import checkpoint, lock, optim, sharding
  from cfg.data import pipeline, sources
  from cfg.models import unet
  from cfg.training import state as train_state
  from cfg.training import step as step_lib
  from configs import digits as digits_config

  config = digits_config.get_config()
  dataset = sources.load(config.data)
  mesh = sharding.make_mesh()
  model = unet.from_config(config.model, num_classes=10, image_shape=dataset.image_shape)
  optimizer = optim.make_optimizer(**config.optimizer)
  given = dict(model=model, optimizer=optimizer, mesh=mesh)
  fresh = lambda: step_lib.make_state(config, image_shape=dataset.image_shape, **given)
  stream = pipeline.train_stream(
    dataset.train, batch_size=config.train.batch_size, seed=0, start_step=0, num_steps=1
  )
  batch = next(stream)
  guarded_apply = step_lib.apply_gradients
  calls = {}
  for name, apply in (("guarded", guarded_apply), ("unguarded", unguarded)):
    step_lib.apply_gradients = apply
    step_fn = step_lib.TrainStep(config, state=fresh(), **given)
    placed = step_fn.place(batch)
    held = [step_fn(fresh(), placed)[0]]  # compiled with this `apply`

    def call(step_fn=step_fn, held=held, placed=placed):
      for _ in range(STEPS):
        held[0], _ = step_fn(held[0], placed)
      jax.block_until_ready(held[0])

    calls[name] = call
  times = rounds.in_turn(calls, rounds=ROUNDS, title="steps")
  step_seconds = rounds.median(times["guarded"]) / STEPS
  extra = statistics.median(
    (a[0] - b[0]) / STEPS for a, b in zip(times["guarded"], times["unguarded"], strict=True)
  )

  state = fresh()
  is_finite = jax.jit(train_state.all_finite)
  bool(is_finite(state))
  with tempfile.TemporaryDirectory() as folder:
    wait, whole = blocked(folder, state)
    steps = checkpoint.directory(folder) / str(SAVES)
    hashing = clock(lambda: checkpoint._hash_files(steps))
    with checkpoint.Checkpoints(folder) as checkpoints:
      checking = clock(lambda: checkpoints.intact(SAVES))
    path = pathlib.Path(folder) / "x.lock"
    with lock.Lock(path, what="is measured") as held:
      beat = clock(lambda: (held.check(), os.utime(path)))
  num_steps, every = config.train.num_steps, config.train.checkpoint_every_steps
  saves = 1 + num_steps // every if every else 1
  total = num_steps * step_seconds
  rows = [
    ("the guard, a step", extra, num_steps),
    ("is the state finite, a save", clock(lambda: bool(is_finite(state))), saves),
    ("hashing in the background, a save", hashing, saves),
    ("hashes compared, a start", checking, 1),
    ("a sign of life of the lock, every 30 s", beat, int(total // lock.BEAT) + saves),
  ]
  print(f"digits: {num_steps} steps of {step_seconds * 1e3:.1f} ms, {saves} saves, {total:.1f} s")
  print("| protection | ms | times a run | share of the run |\n| --- | --- | --- | --- |")
  for name, seconds, count in rows:
    print(f"| {name} | {seconds * 1e3:.2f} | {count} | {seconds * count / total:.2%} |")
  share = sum(seconds * count for _, seconds, count in rows) / total
  print(f"| all of them | | | **{share:.2%}** |")
  print(f"(the loop waits {wait * 1e3:.0f} ms for a save, which counts after {whole * 1e3:.0f} ms)")


def large():
  """The table of a large state."""
  import jax

  from cfg.base import sharding

  mesh = sharding.make_mesh()
  count, size = 30, int(GIGABYTES * 1e9 / 4 / 30)
  rng = np.random.default_rng(0)
  state = {
    f"a{i}": jax.device_put(rng.random(size, np.float32), sharding.replicated(mesh))
    for i in range(count)
  }
  jax.block_until_ready(state)
  copy = clock(lambda: [np.array(a) for a in state.values()])
  with tempfile.TemporaryDirectory(dir=os.environ.get("FOLDER")) as folder:
    wait, whole = blocked(folder, state)
  print("| a state of 1.2 GB | s |\n| --- | --- |")
  print(f"| a copy to the host | {copy:.2f} |\n| the loop waits for a save | {wait:.2f} |")
  print(f"| beyond the copy | **{wait - copy:.2f}** |")
  print(f"| until it counts, beside the run | {whole:.2f} |")


def main():
  from cfg.base import runtime

  runtime.start(cpu_devices=2)
  for name in sys.argv[1:] or ("digits", "large"):
    {"digits": digits, "large": large}[name]()


if __name__ == "__main__":
  main()
