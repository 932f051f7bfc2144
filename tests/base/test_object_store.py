"""What a work directory in an object store needs of our own files: on a fake server of Google Cloud
Storage, and in memory.
"""

import json
import pathlib
import threading
import time
import uuid

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.base import checkpoint, files, hosts, lock, logs, paths, trees
from cfg.base.errors import UserError, run_command
from cfg.interop import weights

WHAT = "is training"


@pytest.fixture(params=["memory", "gs"])
def folder(request):
  """A folder of its own in each kind of store."""
  pytest.importorskip("upath")
  root = "memory://bucket" if request.param == "memory" else request.getfixturevalue("bucket")
  return paths.as_path(f"{root}/{uuid.uuid4().hex}")


@pytest.fixture(params=["local", "memory", "gs"])
def any_folder(request, tmp_path):
  """One of this machine too."""
  if request.param == "local":
    return tmp_path
  pytest.importorskip("upath")
  root = "memory://bucket" if request.param == "memory" else request.getfixturevalue("bucket")
  return paths.as_path(f"{root}/{uuid.uuid4().hex}")


@pytest.fixture
def gs(bucket):
  """A folder of its own on the fake server."""
  return paths.as_path(f"{bucket}/{uuid.uuid4().hex}")


def names(folder):
  """The files in a folder, by their path in it."""
  found = folder.rglob("*") if folder.is_dir() else []
  return sorted(path.relative_to(folder).as_posix() for path in found if path.is_file())


def test_an_address_stays_one(folder):
  """However often it is made a path; a path of this machine is pathlib's."""
  text = str(folder)
  assert text.startswith(("gs://bucket/", "memory://bucket/")) and paths.is_remote(folder)
  assert paths.as_path(folder) is folder and str(paths.as_path(text)) == text
  assert str(folder / "a" / "b.txt") == f"{text}/a/b.txt"
  local = paths.as_path("runs/a")
  assert isinstance(local, pathlib.Path) and not paths.is_remote(local)
  assert not paths.is_remote("runs/a")


def test_which_addresses_can_be_work_directories(bucket):
  """Those of Google Cloud Storage alone."""
  workdir = lambda text: paths.workdir_path(text, name="--workdir")
  assert str(workdir("gs://bucket/run")) == "gs://bucket/run"
  assert workdir("runs/a") == pathlib.Path("runs/a")
  for text in ("s3://bucket/run", "gs:/bucket/run", "memory://a", "file:///a", "gs://"):
    with pytest.raises(UserError, match="--workdir is .*gs://bucket/folder"):
      workdir(text)


def test_a_file_is_whole_or_not_there(any_folder):
  """What fails while it is written leaves the old one; what is written is read again."""
  files.write_json(any_folder / "a.json", {"a": 1})
  files.write_npz(any_folder / "a.npz", {"x": np.arange(6).reshape(2, 3)})
  with pytest.raises(ValueError, match="half-way"), files.replacing(any_folder / "a.json") as tmp:
    tmp.write_text("{")
    raise ValueError("half-way")
  assert files.read_json(any_folder / "a.json") == {"a": 1}
  np.testing.assert_array_equal(
    files.read_npz(any_folder / "a.npz")["x"], np.arange(6).reshape(2, 3), strict=True
  )
  assert names(any_folder) == ["a.json", "a.npz"]
  with pytest.raises(FileNotFoundError):
    files.read_json(any_folder / "b.json")


def test_the_writer_alone_writes(any_folder, monkeypatch):
  """Of several processes; what others write goes nowhere. It fails without is_writer in
  `replacing`.
  """
  monkeypatch.setattr(hosts, "is_writer", lambda: False)
  files.write_text(any_folder / "a.txt", "a")
  with logs.MetricsLog(any_folder, step=0) as log:
    log.scalars(1, {"loss": 1.0})
  assert names(any_folder) == []


def test_a_tree_is_removed(any_folder):
  """With what is below it, and nothing else; what is not there is no fault."""
  for name in ("a/1.txt", "a/b/2.txt", "ab.txt"):
    (any_folder / name).parent.mkdir(parents=True, exist_ok=True)
    files.write_text(any_folder / name, name)
  files.remove_tree(any_folder / "a")
  files.remove_tree(any_folder / "a")
  assert names(any_folder) == ["ab.txt"]


def test_a_library_gets_a_local_file(folder):
  """Weights are read through it; it is gone afterwards."""
  meta = {
    "config": {},
    "class_names": ["a"],
    "image_shape": [8, 8, 1],
    "data_name": "digits",
    "step": 1,
    "ema": "0.5",
  }
  params = {"a": np.arange(3.0, dtype=np.float32)}
  weights.write(folder / weights.NAME, params=params, meta=meta)
  read, about = weights.read(folder / weights.NAME)
  assert about == meta and trees.tree_hash(read) == trees.tree_hash(params)
  with files.local(folder / weights.NAME) as copy:
    assert copy.read_bytes() == (folder / weights.NAME).read_bytes()
  assert not copy.exists()
  with pytest.raises(UserError, match="missing or damaged"):
    weights.read(folder / "none.safetensors")


def steps_logged(folder):
  """The steps in metrics.jsonl."""
  text = (folder / "metrics.jsonl").read_text()
  return [json.loads(line)["step"] for line in text.splitlines()]


def test_logs_grow(folder, monkeypatch):
  """What was logged before `send`, or a minute ago, is there after a kill; a run that resumes drops
  what comes again. It fails where `scalars` never sends.
  """
  killed = logs.MetricsLog(folder, step=0)
  for step in (1, 2, 3):
    killed.scalars(step, {"loss": 0.5})
  assert "metrics.jsonl" not in names(folder)
  killed.send()
  assert steps_logged(folder) == [1, 2, 3]
  killed.scalars(4, {"loss": 0.5})
  assert steps_logged(folder) == [1, 2, 3]
  with logs.MetricsLog(folder, step=2) as log:
    assert steps_logged(folder) == [1, 2, 3]
    log.scalars(3, {"loss": 0.25})
  assert steps_logged(folder) == [1, 2, 3]
  assert json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["loss"] == 0.25
  assert any("tensorboard/" in name for name in names(folder))
  monkeypatch.setattr(logs, "SENT_EVERY", 0.0)
  with logs.MetricsLog(folder, step=3) as log:
    log.scalars(5, {"loss": 0.5})
    assert steps_logged(folder) == [1, 2, 3, 5]
  monkeypatch.setattr(files.Mirror, "send", lambda self: None)  # nothing more of the killed one's
  with killed:
    pass


@pytest.fixture
def quick(monkeypatch):
  """Of locks: who decides at once does so within a moment."""
  monkeypatch.setattr(lock, "SETTLED", 0.2)
  monkeypatch.setattr(lock, "LOOK", 0.1)


def holder(folder, **changed):
  """The file of a holder on another host."""
  other = {"host": "elsewhere", "process": 7, "started": 1.0, "since": "noon", "token": "x"}
  files.write_json(folder / "writer.lock", {**other, **changed})
  return folder / "writer.lock"


def age(monkeypatch, path, seconds):
  """The last sign of life at `path` was so long ago: servers set no times."""
  modified = files.modified
  monkeypatch.setattr(
    files, "modified", lambda p: modified(p) - (seconds if p.name == path.name else 0)
  )


def test_one_writer(folder, quick, monkeypatch):
  """The second is told of the first, which gives signs of life and leaves nothing. It fails where
  _beat writes nothing.
  """
  monkeypatch.setattr(lock, "BEAT", 0.05)
  path = folder / "writer.lock"
  with lock.Lock(path, what=WHAT) as first:
    before = files.modified(path)
    with pytest.raises(UserError, match="is training in .*wait for it"), lock.Lock(path, what=WHAT):
      pass
    wait = threading.Event()
    for _ in range(100):
      if files.modified(path) > before:
        break
      wait.wait(0.05)
    assert files.modified(path) > before
    first.check()
  assert names(folder) == []


def test_a_writer_elsewhere(folder, quick, monkeypatch):
  """Is named when it gives a sign of life, and gone if it has given none for five minutes."""
  path = holder(folder)
  timer = threading.Timer(0.5, lambda: holder(folder))
  timer.start()
  with pytest.raises(UserError, match="7 on elsewhere"):
    lock.Lock(path, what=WHAT).__enter__()
  timer.join()
  age(monkeypatch, path, lock.STALE + 5)
  with lock.Lock(folder / "writer.lock", what=WHAT) as own:
    own.check()
    holder(folder)
    with pytest.raises(UserError, match="no longer this process's"):
      own.check()
  assert names(folder) == ["writer.lock"]


def test_a_holder_that_leaves_while_it_is_looked_at(folder, quick, monkeypatch):
  """Is gone at the next look."""
  path = holder(folder)
  modified = files.modified

  def leave(looked_at):
    path.unlink(missing_ok=True)
    return modified(looked_at)

  monkeypatch.setattr(files, "modified", leave)
  with lock.Lock(path, what=WHAT) as own:
    own.check()


@pytest.mark.parametrize("stale", [False, True])
def test_one_of_many_is_the_writer(folder, quick, monkeypatch, stale):
  """That find nobody, or one who is gone, at once. Without mode="create" several are where nobody
  was, and without SETTLED where one is gone.
  """
  if stale:
    age(monkeypatch, holder(folder), lock.STALE + 5)
  monkeypatch.setattr(lock, "SETTLED", 1.0 if stale else 0.0)
  write = lock.Lock._write
  # all have looked before the first writes, and they write one after the other
  pauses = iter(0.1 + 0.015 * np.arange(8))
  monkeypatch.setattr(
    lock.Lock, "_write", lambda self, **k: time.sleep(next(pauses)) or write(self, **k)
  )
  start, stay, held, refused = threading.Barrier(8), threading.Event(), [], []

  def contend():
    start.wait()
    try:
      with lock.Lock(folder / "writer.lock", what=WHAT) as own:
        own.check()
        held.append(1)
        stay.wait(30)
    except UserError as e:
      refused.append(e)

  threads = [threading.Thread(target=contend) for _ in range(8)]
  for thread in threads:
    thread.start()
  for _ in range(600):
    if len(held) + len(refused) == 8:
      break
    stay.wait(0.05)
  stay.set()
  for thread in threads:
    thread.join()
  assert (len(held), len(refused)) == (1, 7)


def tree(seed):
  """A small state."""
  return {"a": jax.random.normal(jax.random.key(seed), (64, 8)), "step": jnp.int32(seed)}


@pytest.fixture
def saved(gs):
  """A work directory with steps 1 and 2 of three saved."""
  with checkpoint.Checkpoints(gs, keep=2) as checkpoints:
    for step in range(3):
      checkpoints.save(step, state=tree(step), meta={"step": step})
  return gs


def test_checkpoints(saved):
  """Bits and meta come back, older steps made room, and nothing else is left."""
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.steps() == [2, 1]
    step, state, meta = checkpoints.restore(target=tree(0))
    assert step == 2 and meta == checkpoint.read_meta(saved) == {"step": 2}
    assert trees.tree_hash(state) == trees.tree_hash(tree(2))
    assert trees.tree_hash(checkpoints.restore(step=1)[1]) == trees.tree_hash(tree(1))
  kept = {name.split("/")[1] for name in names(saved)}
  assert kept == {"1", "2", "1.sha256.json", "2.sha256.json"}


def files_of(saved, step):
  """The objects of a step."""
  return [p for p in (saved / "checkpoints" / str(step)).rglob("*") if p.is_file()]


@pytest.mark.parametrize("damage", ["a bit", "cut short", "gone", "no manifest", "killed"])
def test_damaged_checkpoints(saved, damage):
  """Are found, and the one before is read; what a save that was killed left does not count. Where
  listings are cached the next save fails, as Orbax sees what was removed.
  """
  largest = max(files_of(saved, 2), key=lambda p: p.stat().st_size)
  content = largest.read_bytes()
  if damage == "a bit":
    largest.write_bytes(bytes([content[0] ^ 1]) + content[1:])
  elif damage == "cut short":
    largest.write_bytes(content[:-1])
  elif damage == "gone":
    largest.unlink()
  else:
    (saved / "checkpoints/2.sha256.json").unlink()
    if damage == "killed":
      (saved / "checkpoints/2.saving").write_bytes(b"")
  with checkpoint.Checkpoints(saved) as checkpoints:
    assert checkpoints.steps() == ([1] if damage == "killed" else [2, 1])
    step, state, _ = checkpoints.restore(target=tree(0))
    assert step == 1 and trees.tree_hash(state) == trees.tree_hash(tree(1))
    checkpoints.discard_after(1)
    assert checkpoints.steps() == [1]
    checkpoints.save(2, state=tree(2), meta={"step": 2})
    checkpoints.wait()
    assert checkpoints.intact(2)
  assert not files_of(saved, 0) and not (saved / "checkpoints/2.saving").exists()


def test_a_bucket_that_cannot_be_used(gs, bucket, capsys):
  """Is one paragraph, when it is opened and later. It fails where check_reached writes nothing."""
  gone = paths.as_path("gs://no-such-bucket/run")
  for write in (False, True):
    paths.check_reached(gs, name="--workdir", write=write)
  with pytest.raises(UserError, match="--workdir is 'gs://no-such-bucket/run', which cannot be wr"):
    paths.check_reached(gone, name="--workdir", write=True)
  assert names(gs) == []
  with pytest.raises(SystemExit) as e:
    run_command(lambda: files.write_text(gone / "a.txt", "a"))
  assert e.value.code == 69  # it may come again
  said = capsys.readouterr().err
  assert said.startswith("error: ") and said.count("\n") == 1


@pytest.mark.parametrize(
  "module, name, code",
  [
    ("gcsfs.retry", "HttpError", 69),
    ("aiohttp", "ServerTimeoutError", 69),
    ("requests.exceptions", "ProxyError", 69),
    ("google.auth.exceptions", "TransportError", 69),
    ("google.auth.exceptions", "DefaultCredentialsError", 1),
  ],
)
def test_a_store_that_may_answer_again(module, name, code, gs, monkeypatch, capsys):
  """Ends a command with 69, in a paragraph, though some of its errors are OSErrors; without
  credentials none will.
  """
  raised = getattr(pytest.importorskip(module), name)

  def fail(*_, **__):
    raise raised({"code": 503, "message": "busy"} if name == "HttpError" else "busy")

  monkeypatch.setattr(gs.fs, "pipe_file", fail)
  monkeypatch.setattr(gs.fs, "open", fail)
  with pytest.raises(SystemExit) as e:
    run_command(lambda: paths.check_reached(gs, name="--workdir", write=True))
  assert e.value.code == code and capsys.readouterr().err.startswith("error: --workdir")
  if code == 69:
    with pytest.raises(SystemExit) as e:
      run_command(fail)
    assert e.value.code == code and capsys.readouterr().err.count("\n") == 1


def test_a_log_waits_for_a_bucket(gs, monkeypatch, caplog):
  """That does not answer: a run goes on until a checkpoint is due, and then nothing is lost."""
  monkeypatch.setattr(logs, "SENT_EVERY", 0.0)
  put = gs.fs.put_file
  monkeypatch.setattr(gs.fs, "put_file", lambda *_: 1 / 0)
  with logs.MetricsLog(gs, step=0) as log:
    log.scalars(1, {"loss": 0.5})
    assert "ZeroDivisionError" in caplog.text
    with pytest.raises(UserError, match="cannot be written"):
      log.send()
    monkeypatch.setattr(gs.fs, "put_file", put)
    log.send()
    assert steps_logged(gs) == [1]


def test_what_is_not_installed_is_named(monkeypatch):
  """With the command that installs it."""
  monkeypatch.setitem(__import__("sys").modules, "upath", None)
  with pytest.raises(UserError, match="pip install 'cfg\\[gcs\\]'"):
    paths.workdir_path("gs://bucket/run", name="--workdir")
