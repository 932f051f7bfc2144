"""What a run survives: real signals to real processes, damaged checkpoints, and bad inputs.

Usage:
  python benchmarks/reliability.py damaged [--trials=500]
  python benchmarks/reliability.py signals [--kills=100] [--terms=30]
  python benchmarks/reliability.py inputs [--trials=100]
  python benchmarks/reliability.py table

Each trial is a line of benchmarks/reliability.jsonl: its seed, what was done when and where, and
the outcome. A call goes on after the last one of its kind, so that it can be stopped at any time. A
trial that loses more than docs/reliability.md allows, or gives something wrong without a word, has
the outcome "WRONG", and the command exits with 1.

damaged: of three checkpoints of a training state, a file of the newest is damaged, of every kind
there is, the manifest too: a bit is flipped, it is cut short, deleted, or a page of it zeroed. Then
the state is restored, and must be one that was saved, bit for bit: an older one, with a word in the
log, or the newest where the damage changed nothing that it has.

signals: training and sweeping the digits with a small network, in a process of its own that is
killed, or asked to stop, at a random moment and started again, over and over. After each the
newest intact checkpoint must be that of a run which was never disturbed, bit for bit, and no older
than two intervals before the last step that was logged; at the end losses and rows must be the
same. Every fourth run is one of two processes, one of which gets the signal: the other must end
too, within two minutes. These are compared with an undisturbed run of two.

inputs: files that are damaged, or made to break their reader, given to real commands and to
readers: bad_inputs.py says what must come of it.
"""

import argparse
import collections
import json
import logging
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
LEDGER = ROOT / "benchmarks/reliability.jsonl"
WRONG = "WRONG"
PAGE = 4096
STEPS, EVERY = 60, 6  # of training, and between checkpoints
OPTIONS = [
  "--config=configs/digits.py",
  "--config.cpu_devices=1",
  "--config.model.ch=8",
  "--config.model.emb_ch=16",
  "--config.model.norm_groups=4",
  "--config.model.ch_mult=(1,)",
  "--config.model.attn_resolutions=()",
  "--config.model.dropout=0.1",
  "--config.train.batch_size=16",
  f"--config.train.num_steps={STEPS}",
  f"--config.train.checkpoint_every_steps={EVERY}",
  "--config.train.keep_checkpoints=2",
  "--config.train.log_every_steps=1",
  "--config.heldout.every_steps=0",
  "--config.preview.every_steps=0",
  "--config.meter.num_levels=0",
  "--config.sampler.num_steps=4",
  "--config.sweep.batch_size=50",
  "--config.sweep.num_samples=200",
  "--config.sweep.num_blocks=2",
  "--config.sweep.w=(0.0,1.0,2.0)",
  "--config.judge.num_steps=20",
  "--config.judge.ch=8",
  "--config.judge.feature_dim=8",
  "--config.judge.min_accuracy=0.0",
]
GONE = 69  # the exit code of a process when another one is
WAIT = 120  # seconds in which a run ends
NAMES = ("fid", "inception_score", "label_accuracy")  # of a row, compared


def records(kind):
  """The trials of a kind that the ledger has."""
  lines = LEDGER.read_text().splitlines() if LEDGER.exists() else []
  return [record for record in map(json.loads, lines) if record["kind"] == kind]


def keep(**record):
  """Append a trial to the ledger."""
  with LEDGER.open("a", encoding="utf-8") as file:
    file.write(json.dumps(record) + "\n")


# ------------------------------------------------------------------ damaged checkpoints


def damaged(args):
  """Damage files of the newest of three checkpoints, and restore."""
  from cfg.base import runtime

  runtime.start(cpu_devices=1)
  logging.getLogger("cfg").propagate = False
  done = len(records("damaged"))
  with tempfile.TemporaryDirectory() as folder:
    base = pathlib.Path(folder) / "base"
    hashes, target = save_three(base)
    for seed in range(done, args.trials):
      work = pathlib.Path(folder) / "trial"
      shutil.copytree(base, work)
      keep(kind="damaged", seed=seed, **damage_one(work, seed, hashes, target))
      shutil.rmtree(work)


def save_three(workdir):
  """({step: hash of its state}, a state) of steps 1 to 3, saved in a new work directory."""
  import jax

  from cfg.base import checkpoint, optim, sharding, trees
  from cfg.models import unet
  from cfg.training.step import make_state
  from configs import digits

  config = digits.get_config()
  config.model.update(ch=8, emb_ch=16, norm_groups=4, ch_mult=(1,), attn_resolutions=())
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  state = make_state(
    config,
    model=model,
    optimizer=optim.make_optimizer(**config.optimizer),
    image_shape=(8, 8, 1),
    mesh=sharding.make_mesh(),
  )
  hashes = {}
  with checkpoint.Checkpoints(workdir, keep=3) as checkpoints:
    for step in (1, 2, 3):
      rng = np.random.default_rng(step)
      noisy = lambda a, rng=rng: np.asarray(a) + rng.normal(size=a.shape).astype(a.dtype)
      changed = jax.device_put(
        jax.tree.map(noisy, state), jax.tree.map(lambda a: a.sharding, state)
      )
      checkpoints.save(step, state=changed, meta={"step": step, "config": {}})
      hashes[step] = trees.tree_hash(changed)
  return hashes, state


def damage_one(workdir, seed, hashes, target):
  """{file, damage, outcome} of one trial."""
  from cfg.base import checkpoint, trees
  from cfg.base.errors import UserError

  rng = random.Random(f"damaged {seed}")
  folder = checkpoint.directory(workdir)
  files = sorted(p for p in (folder / "3").rglob("*") if p.is_file())
  kinds = collections.defaultdict(list)  # by what Orbax calls them, without the hashes in the names
  for path in [*files, folder / "3.sha256.json"]:
    name = path.relative_to(folder).as_posix()
    kinds[re.sub(r"[0-9a-f]{16,}", "*", name)].append(path)
  kind = rng.choice(sorted(kinds))
  path = rng.choice(kinds[kind])
  before = path.read_bytes()
  damage = rng.choice(["flip", "cut", "delete", "zero"])
  place = rng.randrange(max(1, len(before)))
  if damage == "flip" and before:
    changed = bytearray(before)
    changed[place] ^= 1 << rng.randrange(8)
    path.write_bytes(changed)
  elif damage == "cut":
    path.write_bytes(before[:place])
  elif damage == "zero":
    page = place // PAGE * PAGE
    path.write_bytes(before[:page] + bytes(len(before[page : page + PAGE])) + before[page + PAGE :])
  else:
    path.unlink()
  told = Told()
  logging.getLogger("cfg").addHandler(told)
  try:
    with checkpoint.Checkpoints(workdir) as checkpoints:
      step, state, _ = checkpoints.restore(target=target)
    same = trees.tree_hash(state) == hashes[step]
    outcome = f"step {step}"
    if not same or (step < 3 and not told.messages):
      outcome = f"{WRONG}: step {step}, {'without a word' if same else 'another state'}"
    elif step == 3 and kind != "3.sha256.json" and path.exists() and path.read_bytes() == before:
      outcome = "step 3: the damage changed nothing"
  except UserError as e:
    outcome = f"{WRONG}: {e}"
  finally:
    logging.getLogger("cfg").removeHandler(told)
  return {"file": kind, "damage": damage, "place": place, "outcome": outcome}


class Told(logging.Handler):
  """Keeps warnings."""

  def __init__(self):
    super().__init__(logging.WARNING)
    self.messages = []

  def emit(self, record):
    self.messages.append(record.getMessage())


# ------------------------------------------------------------------------------ signals


def signals(args):
  """Kill or stop training and sweeping at random moments, until each count is reached."""
  wanted = {"SIGKILL": args.kills, "SIGTERM": args.terms}
  env = {
    **os.environ,
    "JAX_PLATFORMS": "cpu",
    "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "-1",
  }
  with tempfile.TemporaryDirectory() as folder:
    undisturbed = {}  # {number of processes: (work directory, {step: hash of its state})}
    for name, count in wanted.items():
      run_number = 0
      while (done := len([r for r in records("signals") if r["signal"] == name])) < count:
        processes = 2 if run_number % 4 == 3 else 1
        if processes not in undisturbed:
          whole = pathlib.Path(folder) / f"whole{processes}"
          undisturbed[processes] = whole, leave_alone(whole, env, processes)
        workdir = pathlib.Path(folder) / f"{name}{run_number}"
        whole, reference = undisturbed[processes]
        given = dict(first=done, most=count - done, reference=reference, whole=whole)
        disturb(workdir, env, name, processes=processes, **given)
        run_number += 1


def leave_alone(workdir, env, processes):
  """{step: hash of its state} of a run that nothing disturbs."""
  # every step is kept: what a disturbed run goes on from is one of them
  running = begin(workdir, env, "--config.train.keep_checkpoints=1000", processes=processes)
  codes = [process.wait() for process in running]
  assert not any(codes), f"the undisturbed run failed: {(workdir / 'log.txt').read_text()[-2000:]}"
  return {step: state_hash(workdir, step) for step in range(EVERY, STEPS + 1, EVERY)}


def disturb(workdir, env, name, *, processes, first, most, reference, whole):
  """One run, disturbed until it is done or `most` trials were made."""
  for trial in range(first, first + most + 1):
    rng = random.Random(f"{name} {trial}")
    running = begin(workdir, env, processes=processes)
    # moments of all parts of a run: its start, training with its saves, the sweep
    goal = rng.choice(["start", "train", "train", "save", "sweep"])
    ended = trial == first + most or not wait_for(running, workdir, goal, rng)
    if ended:
      codes = [process.wait() for process in running]
      assert not any(codes), f"the run failed: {(workdir / 'log.txt').read_text()[-2000:]}"
      final = same_end(workdir, whole)
      outcome = "the same" if final else f"{WRONG}: another end"
      keep(kind="ends", signal=name, processes=processes, outcome=outcome)
      return
    logged = last_logged(workdir)
    start = time.monotonic()
    target = rng.randrange(processes)
    running[target].send_signal(getattr(signal, name))
    try:
      codes = [process.wait(max(1, start + WAIT - time.monotonic())) for process in running]
      outcome = judge(workdir, name, codes, target, logged, reference)
    except subprocess.TimeoutExpired:
      codes = [process.poll() for process in running]
      outcome = f"{WRONG}: a process did not end"
      for process in running:
        process.kill()
    keep(
      kind="signals",
      signal=name,
      seed=trial,
      place=goal,
      processes=processes,
      target=target,
      logged=logged,
      exit_code=codes[target],
      others=codes[:target] + codes[target + 1 :],
      seconds=round(time.monotonic() - start, 2),
      outcome=outcome,
    )


def judge(workdir, name, codes, target, logged, reference):
  """What a disturbed run left."""
  from cfg.base import checkpoint

  code = codes[target]
  # before and after training a process has no more to save than its files
  if name == "SIGTERM" and code not in (0, 75, GONE, -signal.SIGTERM, 128 + signal.SIGTERM):
    return f"{WRONG}: exit code {code}"
  if any(other not in (0, 75, GONE) for other in codes[:target] + codes[target + 1 :]):
    return f"{WRONG}: exit codes {codes}"
  with checkpoint.Checkpoints(workdir) as checkpoints:
    intact = [step for step in checkpoints.steps() if checkpoints.intact(step)]
  if not intact:
    return "no checkpoint yet" if logged <= 2 * EVERY else f"{WRONG}: no checkpoint at {logged}"
  step = intact[0]
  if step in reference and state_hash(workdir, step) != reference[step]:
    return f"{WRONG}: step {step} is another state"
  if logged - step > 2 * EVERY:
    return f"{WRONG}: {logged - step} steps were lost"
  return f"step {step}" if code != 75 else f"step {step}, saved on the way out"


def begin(workdir, env, *options, processes):
  """Processes that train and sweep; what they say goes to log.txt."""
  workdir.mkdir(exist_ok=True)
  command = [sys.executable, "-m", "cfg.main", f"--workdir={workdir}", *OPTIONS, *options]
  each = [env]
  if processes > 1:
    command.append("--distributed")
    with socket.create_server(("127.0.0.1", 0)) as server:
      address = f"127.0.0.1:{server.getsockname()[1]}"
    each = [
      {
        **env,
        "JAX_COORDINATOR_ADDRESS": address,
        "JAX_NUM_PROCESSES": str(processes),
        "JAX_PROCESS_ID": str(index),
      }
      for index in range(processes)
    ]
  with (workdir / "log.txt").open("a") as log:
    return [
      subprocess.Popen(command, env=own, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
      for own in each
    ]


def wait_for(running, workdir, goal, rng):
  """Until a random moment of that part of the run; False if it ended before."""
  from cfg.base import checkpoint

  folder = checkpoint.directory(workdir)
  begun = last_logged(workdir)
  conditions = {
    "start": lambda: True,
    "train": lambda: last_logged(workdir) > begun,
    "save": lambda: (
      last_logged(workdir) > begun and any((*folder.glob("*.saving"), *folder.glob("*tmp*")))
    ),
    "sweep": lambda: any((workdir / "sweep").glob("*/*.partial")),
  }
  while not conditions[goal]():
    if running[0].poll() is not None:
      return False
    time.sleep(0.001)
  time.sleep(rng.random() * {"start": 5, "train": 1, "save": 0.2, "sweep": 2}[goal])
  return all(process.poll() is None for process in running)


def last_logged(workdir):
  """The last step of metrics.jsonl, 0 without one."""
  path = workdir / "metrics.jsonl"
  text = path.read_text(errors="replace") if path.exists() else ""
  return max((int(step) for step in re.findall(r'"step": (\d+)[,}]', text)), default=0)


def state_hash(workdir, step):
  """Of a checkpoint."""
  from cfg.base import checkpoint, trees

  with checkpoint.Checkpoints(workdir) as checkpoints:
    return trees.tree_hash(checkpoints.restore(step=step)[1])


def same_end(workdir, whole):
  """Whether two finished work directories have the same state, losses and rows."""
  losses, rows = [], []
  for path in (workdir, whole):
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    losses.append([(line["step"], line["loss"]) for line in lines if "loss" in line])
    content = json.loads((path / "sweep.json").read_text())
    rows.append([[row[name] for name in NAMES] for row in content["rows"]])
  same_state = state_hash(workdir, STEPS) == state_hash(whole, STEPS)
  return losses[0] == losses[1] and rows[0] == rows[1] and same_state


# ------------------------------------------------------------------------------- inputs


def inputs(args):
  """Give bad files to commands and readers: see bad_inputs.py."""
  import bad_inputs

  logging.getLogger("cfg").propagate = False
  for seed in range(len(records("inputs")), args.trials):
    keep(kind="inputs", seed=seed, **bad_inputs.trial(seed))


# -------------------------------------------------------------------------------- table


def table(args):
  """Print the counts in Markdown."""
  del args
  counts = collections.Counter()
  for record in records("damaged"):
    wrong = record["outcome"].startswith(WRONG)
    counts["damaged checkpoints", record["damage"], wrong] += 1
  for record in records("signals") + records("ends"):
    several = " to one of two processes" if record.get("processes", 1) > 1 else ""
    place = record.get("place", "runs to their end")
    counts[record["signal"] + several, place, record["outcome"].startswith(WRONG)] += 1
  for record in records("inputs"):
    wrong = record["outcome"].startswith(WRONG)
    counts["bad inputs", f"{record['how']}, {record['reader']}", wrong] += 1
  print("| trial | where | trials | wrong |\n| --- | --- | --- | --- |")
  for what, where in sorted({(what, where) for what, where, _ in counts}):
    right, wrong = counts[what, where, False], counts[what, where, True]
    print(f"| {what} | {where} | {right + wrong} | {wrong} |")
  return any(wrong for *_, wrong in counts)


def main():
  sys.path.insert(0, str(ROOT))
  parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
  commands = parser.add_subparsers(required=True)
  for function, counts in (
    (damaged, {"trials": 500}),
    (signals, {"kills": 100, "terms": 30}),
    (inputs, {"trials": 100}),
    (table, {}),
  ):
    command = commands.add_parser(function.__name__, help=function.__doc__)
    command.set_defaults(function=function)
    for name, count in counts.items():
      command.add_argument(f"--{name}", type=int, default=count)
  args = parser.parse_args()
  args.function(args)
  every = [record for kind in ("damaged", "signals", "ends", "inputs") for record in records(kind)]
  sys.exit(any(record["outcome"].startswith(WRONG) for record in every))


if __name__ == "__main__":
  main()
