"""metrics.jsonl: each step in exactly one record, and JSON whatever happens."""

import json
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.base import checkpoint, lock, logs
from cfg.base.errors import UserError
from cfg.models import unet
from cfg.training import diagnosis, loop, not_finite, previews
from cfg.training import state as train_state
from cfg.training.step_log import due
from cfg.training.throughput import Throughput


class Number:
  """A step's metric; `events` notes when it is read."""

  def __init__(self, value, events):
    self.value = value
    self.events = events

  def __array__(self, *_, **__):
    self.events.append(("read", self.value))
    return np.float32(self.value)


class FakeStep:
  """A step without a network, whose loss is its number; `at` says what else happens at a step, and
  `skipped` which steps are no updates, though the state counts them.
  """

  def __init__(self, events, at, skipped):
    self.events = events
    self.at = at
    self.skipped = skipped
    self.place = lambda batch: batch

  def __call__(self, state, batch):
    step = int(batch["index"][0]) // len(batch["index"]) + 1
    self.events.append(("dispatched", step))
    self.at.get(step, lambda: None)()
    metrics = {"loss": Number(step, self.events), "skipped": step in self.skipped}
    return state.replace(step=jnp.int32(step)), metrics


def terminate():
  signal.raise_signal(signal.SIGTERM)


def die():
  raise MemoryError("killed")


@pytest.fixture
def run(config, digits, mesh1, tmp_path, monkeypatch):
  """(fields of config.train, at={step: what happens}, name=work directory) -> (events, records) of
  a training run whose steps cost nothing.
  """
  for section in ("heldout", "preview", "watch"):
    config[section].every_steps = 0
  monkeypatch.setattr(
    loop,
    "make_state",
    lambda config, *, optimizer, **_: train_state.create(
      params={"a": jnp.zeros(2)}, optimizer=optimizer, ema_decays=config.train.ema_decays
    ),
  )

  def start(at=None, name="run", skipped=(), **fields):
    config.train.update(fields)
    events = []
    monkeypatch.setattr(loop, "TrainStep", lambda *_, **__: FakeStep(events, at or {}, skipped))
    workdir = tmp_path / name
    workdir.mkdir(exist_ok=True)
    try:
      loop.train(config, dataset=digits, mesh=mesh1, workdir=workdir)
    except (loop.Stopped, MemoryError, not_finite.NotFinite) as e:
      events.append(("ended", type(e)))
      if isinstance(e, UserError):
        events.append(("said", str(e)))
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    return events, [json.loads(line) for line in lines]

  return start


def check_records(records, last):
  """Each of the steps 1 ... last is in exactly one record, which is the mean of its steps."""
  before = 0
  for record in records:
    covered = np.arange(before + 1, record["step"] + 1)
    assert record["steps"] == len(covered)
    assert record["loss"] == pytest.approx(covered.mean())
    before = record["step"]
  assert before == last


@pytest.mark.parametrize(
  "every, num_steps, labels", [(2, 4, [2, 4]), (3, 7, [3, 6, 7]), (1, 3, [1, 2, 3]), (10, 4, [4])]
)
def test_each_step_is_in_one_record(run, every, num_steps, labels):
  """A record every n steps and at the end, of exactly the steps after the one before it."""
  _, records = run(log_every_steps=every, num_steps=num_steps)
  assert [record["step"] for record in records] == labels
  check_records(records, num_steps)


def test_chosen_steps_are_saved_and_kept(run, tmp_path):
  """keep_every_steps writes its own checkpoints, between others and without any, for good."""
  run(num_steps=7, checkpoint_every_steps=3, keep_every_steps=2, keep_checkpoints=1)
  with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
    assert checkpoints.steps() == [7, 6, 4, 2]


def test_no_step_is_waited_for(run):
  """The metrics of step n - 1 are read after step n was dispatched, record or not."""
  events, _ = run(log_every_steps=2, num_steps=6, checkpoint_every_steps=0)
  assert events[:2] == [("dispatched", 1), ("dispatched", 2)]
  for step in range(1, 6):
    assert events.index(("read", step)) > events.index(("dispatched", step + 1))


@pytest.mark.parametrize("end", [terminate, die])
@pytest.mark.parametrize("at, saved_every", [(3, 1), (4, 4), (5, 4), (6, 4), (9, 1)])
def test_a_run_that_was_ended_has_the_records_of_one_that_was_not(run, end, at, saved_every):
  """By a signal or without a save, on a record's step or between two: nothing is lost or twice."""
  fields = dict(log_every_steps=3, num_steps=10, checkpoint_every_steps=saved_every)
  events, records = run(at={at: end}, **fields)
  if end is terminate:
    assert events[-1] == ("ended", loop.Stopped)
    check_records(records, at)  # what it ended at is written, should it never go on
  _, records = run(**fields)
  check_records(records, 10)
  assert [record["step"] for record in records] == [3, 6, 9, 10]


def test_resumed_with_one_step_left(run):
  """The last step has its record, with its own speed."""
  run(log_every_steps=5, num_steps=9)
  _, records = run(log_every_steps=5, num_steps=10)
  check_records(records, 10)
  assert [record["step"] for record in records] == [5, 10]
  _, records = run(log_every_steps=1, num_steps=11)
  assert records[-1]["loss"] == 11 and records[-1]["images_per_second"] > 0


@pytest.fixture
def diagnosed(monkeypatch):
  """[(step, parameters)] of what was looked at, in place of looking."""
  seen = []

  def of_step(config, step, *, params, **_):
    seen.append((step, params))
    return diagnosis.Diagnosis("the loss", 1, 16, (-2.0, 3.0))

  monkeypatch.setattr(not_finite, "of_step", of_step)
  return seen


def saved_steps(workdir):
  with checkpoint.Checkpoints(workdir) as checkpoints:
    return checkpoints.steps()


def test_skipped_updates_are_counted(run):
  """A record tells how many of its steps had no update, and its means are of the others; so does
  that of a run which was stopped between.
  """
  fields = dict(log_every_steps=4, num_steps=8, checkpoint_every_steps=1)
  _, whole = run(skipped=(2, 4, 7), **fields)
  assert [record.get("skipped") for record in whole] == [2, 1]
  assert [record["loss"] for record in whole] == [2, pytest.approx((5 + 6 + 8) / 3)]
  run(skipped=(2, 4, 7), at={4: die}, name="other", **fields)
  _, again = run(skipped=(2, 4, 7), name="other", **fields)
  names = ("step", "steps", "skipped", "loss")
  assert [[r[name] for name in names] for r in again] == [
    [r[name] for name in names] for r in whole
  ]


def test_too_many_skipped_updates_end_the_run(run, diagnosed, tmp_path):
  """At the third in a row, not at three: with the step they began at and what is wrong with it, and
  the record of what was counted. Checkpoints that were good stay, and the state is kept apart. It
  fails where a good step does not begin the count anew.
  """
  events, records = run(
    skipped=(2, 4, 5, 7, 8, 9),
    log_every_steps=10,
    num_steps=20,
    checkpoint_every_steps=3,
    most_skipped=3,
  )
  assert ("ended", not_finite.NotFinite) in events
  said = events[-1][1]
  assert "stopped at step 9: the last 3 updates" in said and "In step 7" in said
  assert "the loss; the losses of 1 of 16 examples are not, at log-SNR -2.00 to 3.00" in said
  assert [step for step, _ in diagnosed] == [7]
  assert saved_steps(tmp_path / "run") == [6, 3]
  assert saved_steps(tmp_path / "run" / not_finite.FOLDER) == [6]
  assert [(record["step"], record["skipped"]) for record in records] == [(9, 6)]


def test_a_checkpoint_waits_for_an_update(run, tmp_path):
  """None is written of a state whose last update was skipped: the next one that was not."""
  run(skipped=(3, 4, 6), num_steps=8, checkpoint_every_steps=3, keep_checkpoints=9)
  assert saved_steps(tmp_path / "run") == [8, 7, 5]


def test_a_stop_is_in_order_though_updates_were_skipped(run, tmp_path):
  """A signal and the end save a finite state all the same."""
  events, _ = run(at={3: terminate}, skipped=(3,), num_steps=8, checkpoint_every_steps=0)
  assert events[-1] == ("ended", loop.Stopped) and saved_steps(tmp_path / "run") == [3]
  run(skipped=(8,), num_steps=8, checkpoint_every_steps=0)
  assert saved_steps(tmp_path / "run") == [8, 3]


def test_no_checkpoint_is_written_that_is_not_finite(run, diagnosed, tmp_path, monkeypatch):
  """Of parameters that overflow though loss and gradients do not: nothing is written. Without
  is_finite before the save it is.
  """
  call = FakeStep.__call__

  def overflow(self, state, batch):
    state, metrics = call(self, state, batch)
    grown = jnp.where(state.step >= 4, jnp.inf, 0.0) + state.params["a"]
    return state.replace(params={"a": grown}), metrics

  monkeypatch.setattr(FakeStep, "__call__", overflow)
  events, _ = run(num_steps=8, checkpoint_every_steps=2)
  assert ("ended", not_finite.NotFinite) in events and "was not kept" in events[-1][1]
  assert saved_steps(tmp_path / "run") == [2]
  assert not (tmp_path / "run" / not_finite.FOLDER).exists()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_first_save_that_was_killed(run, tmp_path, monkeypatch):
  """Before it counted: the run starts anew, and saves that step as if nothing had been."""

  def die_hashing(*_):
    raise SystemExit

  with monkeypatch.context() as patch:
    patch.setattr(checkpoint, "_hash_files", die_hashing)
    run(at={4: die}, num_steps=8, checkpoint_every_steps=3)
  assert (tmp_path / "run" / "checkpoints" / "3").is_dir() and saved_steps(tmp_path / "run") == []
  run(num_steps=8, checkpoint_every_steps=3)
  assert saved_steps(tmp_path / "run") == [8, 6]


def test_one_run_at_a_time(run, tmp_path):
  """A second one is refused, whatever it would do, and the first one's files are as they were."""
  run(num_steps=4)
  files = {p: p.read_bytes() for p in (tmp_path / "run").rglob("*") if p.is_file()}
  with lock.Lock(tmp_path / "run" / "writer.lock", what="is training"):
    with pytest.raises(UserError, match="is training in"):
      run(num_steps=8)
    assert saved_steps(tmp_path / "run") == [4]
  assert all(path.read_bytes() == content for path, content in files.items())
  run(num_steps=8)
  assert saved_steps(tmp_path / "run") == [8, 4]


def test_a_run_that_was_taken_over_writes_no_checkpoint(run, tmp_path):
  """As after it was suspended: another process has the lock."""

  def take_over():
    path = tmp_path / "run" / "writer.lock"
    path.write_text(path.read_text().replace('"token": "', '"token": "other'))

  with pytest.raises(UserError, match="no longer this process's"):
    run(at={5: take_over}, num_steps=8, checkpoint_every_steps=2)
  assert saved_steps(tmp_path / "run") == [4, 2]


def test_zero_is_never(run):
  """No record at all; the checkpoint of the end is written all the same."""
  _, records = run(log_every_steps=0, num_steps=4, checkpoint_every_steps=0)
  assert records == []
  assert not due(4, 0, 4) and due(4, 3, 4) and due(3, 3, 4) and not due(2, 3, 4)


def test_steps_come_before_what_is_measured_after_them(run, config, monkeypatch):
  """A step's record is written before the held-out errors of that step, at the end too."""
  monkeypatch.setattr(loop, "Heldout", lambda *_, **__: lambda params: {"heldout/loss_cond": 1.0})
  config.heldout.every_steps = 2
  _, records = run(log_every_steps=2, num_steps=5)
  kinds = [(record["step"], "loss" in record) for record in records]
  assert kinds == [(step, kind) for step in (2, 4, 5) for kind in (True, False)]
  check_records([record for record in records if "loss" in record], 5)


def strict(path):
  """The lines of a file, which are JSON as other languages read it."""
  refuse = lambda word: pytest.fail(f"{word} is not JSON")
  return [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]


def test_what_is_not_finite_is_json(tmp_path):
  """Null, and the word beside it; scalars of numpy and jax are numbers."""
  values = {
    "loss": np.float32("nan"),
    "up": float("inf"),
    "down": jnp.float32("-inf"),
    "half": np.float16(0.5),
    "count": np.int64(3),
    "array": jnp.ones(()),
  }
  with logs.MetricsLog(tmp_path, step=0) as log:
    log.scalars(np.int32(7), values)
  expected = {"step": 7, "loss": None, "up": None, "down": None, "half": 0.5, "count": 3}
  words = {"loss": "nan", "up": "inf", "down": "-inf"}
  assert strict(tmp_path / "metrics.jsonl") == [{**expected, "array": 1.0, "not_finite": words}]
  with logs.MetricsLog(tmp_path, step=7):
    pass
  assert strict(tmp_path / "metrics.jsonl")[0]["not_finite"] == words


@pytest.mark.parametrize(
  "damage",
  ['{"step": 4, "lo', '{"step": 4}', "4", "null", '{"loss": 1}', '{"step": "x"}', "\0\0", ""],
)
def test_a_killed_line_does_not_spoil_the_next(tmp_path, damage):
  """Cut short, cut just before its newline, or no record: the next record has a line of its own."""
  path = tmp_path / "metrics.jsonl"
  path.write_text('{"step": 2, "loss": NaN}\n' + damage)
  with logs.MetricsLog(tmp_path, step=4) as log:
    log.scalars(5, {"loss": 1})
  kept = [record for record in strict(path) if record["step"] != 4]
  assert kept == [{"step": 2, "loss": None, "not_finite": {"loss": "nan"}}, {"step": 5, "loss": 1}]


def test_bytes_that_are_no_text(tmp_path):
  """A line that is no UTF-8 is dropped as one that a kill cut short."""
  (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 1}\n\xff\xfe{"step": 2}\n')
  with logs.MetricsLog(tmp_path, step=3):
    pass
  assert strict(tmp_path / "metrics.jsonl") == [{"step": 1}]


def test_one_listener_a_process(monkeypatch):
  """However many runs a process has, jax calls one listener; each counts from its own start."""
  registered = []
  monkeypatch.setattr(jax.monitoring, "register_event_duration_secs_listener", registered.append)
  monkeypatch.setattr("cfg.training.throughput._listening", False)
  first = Throughput(batch_size=1)
  registered[0]("/jax/core/compile/backend_compile_duration", 1.0)
  second = Throughput(batch_size=1)
  for throughput in (first, second):
    throughput.add({"loss": 1.0})
  assert len(registered) == 1
  assert (first.flush()["compilations"], second.flush()["compilations"]) == (1, 0)


@pytest.mark.parametrize(
  "section, fields, words",
  [
    ("train", {"keep_checkpoints": 0}, "train.keep_checkpoints is 0.*at least 1"),
    ("train", {"keep_checkpoints": -1}, "train.keep_checkpoints is -1"),
    ("train", {"checkpoint_every_steps": -5}, "train.checkpoint_every_steps is -5"),
    ("heldout", {"every_steps": -1}, "heldout.every_steps is -1"),
    ("train", {"heldout_every_steps": 3}, "is called heldout.every_steps now"),
    ("watch", {"every_steps": 2, "w": (0.0, 1.0)}, "w = 1 .*train.p_uncond is 0"),
    ("guidance", {"rule": "second_network"}, "needs a second network"),
    ("sampler", {"name": "hoin"}, "did you mean 'heun'"),
  ],
)
def test_settings_are_refused_before_training(
  config, digits, mesh1, tmp_path, section, fields, words
):
  """What no training can use is said before anything is written."""
  for name in ("preview", "watch"):
    config[name].every_steps = 0
  config.train.p_uncond = 0.0
  loop.check_trainable(config, mesh=mesh1)
  config[section].update(fields)
  with pytest.raises(UserError, match=words):
    loop.train(config, dataset=digits, mesh=mesh1, workdir=tmp_path)
  assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
  "p_uncond, asked, drawn",
  [
    (0.2, (0.0, 2.0), (0.0, 2.0)),
    (0.0, (0.0, 2.0), (0.0,)),
    (0.0, (2.0,), (0.0,)),
    (1.0, (0.0, 2.0), (-1.0,)),
  ],
)
def test_previews_leave_out_what_was_never_learnt(
  config, digits, mesh1, tmp_path, p_uncond, asked, drawn
):
  """Strengths whose branches the network does not have are not drawn; there is always one."""
  config.train.p_uncond = p_uncond
  config.preview.w = asked
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  made = previews.Previews(config, model=model, dataset=digits, mesh=mesh1, workdir=tmp_path)
  assert made.strengths == drawn
