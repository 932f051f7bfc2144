"""Orbax checkpoints that check themselves: written beside the run, and counted once their content
hashes are there; a fall-back to the newest intact one.

A step is a folder of Orbax's and a manifest of SHA-256 hashes of its files, written last: without
it the step does not count. `<step>.saving` stands beside it until then, so that a save which was
killed is told from a manifest that was lost.

Of several processes each writes its own part of the arrays; the first one hashes, makes room, and
decides what is restored.
"""

import contextlib
import functools
import hashlib
import logging
import pathlib
import sys
import threading
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cfg.base import files, hosts, paths
from cfg.base.errors import Stopped, Unavailable, UserError

log = logging.getLogger(__name__)

META = "meta"
STATE = "state"
MOST_SAID = 120  # characters of an error of Orbax's


class Checkpoints:
  """The checkpoints of one work directory, `<workdir>/checkpoints/<step>`.

  Leaving the `with` block waits for the save that goes on.

  Args:
    workdir: the work directory; its folder `checkpoints` is made by the first save.
    keep: how many of the newest steps to keep.
    keep_every: and every multiple of this one for good; 0 for none.
    may_write: is called before each save, and raises if this process must not write any more.
  """

  def __init__(
    self,
    workdir: str | pathlib.Path,
    *,
    keep: int = 2,
    keep_every: int = 0,
    may_write: Callable[[], None] = lambda: None,
  ) -> None:
    self._dir = directory(workdir)
    self._keep = keep
    self._keep_every = keep_every
    self._may_write = may_write
    self._saving: threading.Thread | None = None
    self._failed: BaseException | None = None

  @functools.cached_property
  def _manager(self):
    """Orbax's, which keeps everything: a step is removed once a newer one counts."""
    self._dir.mkdir(parents=True, exist_ok=True)
    _say_once()
    return ocp.CheckpointManager(
      str(self._dir),
      options=ocp.CheckpointManagerOptions(enable_async_checkpointing=True),
      item_handlers={STATE: ocp.StandardCheckpointHandler(), META: ocp.JsonCheckpointHandler()},
    )

  def __enter__(self):
    return self

  def __exit__(self, kind, error, _):
    try:
      self.wait()
    except UserError as e:
      if kind is None or issubclass(kind, Stopped):  # or else there is something worse to say
        raise
      log.error("%s", e)
    finally:
      if "_manager" in self.__dict__:
        with contextlib.suppress(Exception):  # an error of a save, which `wait` has told
          self._manager.close()

  def steps(self) -> list[int]:
    """Steps that are there, newest first; whether they are intact is another question."""
    return sorted(set(_steps(self._dir)) - set(self._unfinished()), reverse=True)

  def save(self, step: int, *, state: Any, meta: Mapping[str, Any]) -> None:
    """Copy `state` (a tree of arrays) to the host, and write it and `meta` (JSON-able) in the
    background: first what they are, then the manifest of it, then older steps make room.

    Raises:
      UserError: the save before could not be finished.
    """
    self._may_write()
    self.wait()
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    try:
      manager = self._manager
      if hosts.is_writer():
        self._mark(step).write_bytes(b"")
      manager.save(step, args=args, force=True)
    except Exception as e:
      raise self._unwritable(step, e) from e
    self._saving = threading.Thread(target=self._finish, args=(step,), name=f"checkpoint {step}")
    self._saving.start()

  def wait(self) -> None:
    """Until the save that goes on, if one does, is finished.

    Raises:
      UserError: it cannot be.
    """
    if self._saving is None:
      return
    step = int(self._saving.name.split()[1])
    self._saving.join()
    self._saving = None
    error, self._failed = self._failed, None
    if error is not None:
      raise self._unwritable(step, error) from error

  def _finish(self, step):
    """In the background: wait for Orbax, write the manifest, make room."""
    try:
      self._manager.wait_until_finished()
      if hosts.is_writer():
        files.write_json(self._manifest_path(step), _hash_files(self._dir / str(step)))
        self._mark(step).unlink()
        self._make_room()
    except Exception as e:  # told by `wait`
      self._failed = e

  def _make_room(self):
    """Remove what is older than the newest `keep` steps that count, and not kept for good."""
    counted = [step for step in self.steps() if self._manifest_path(step).exists()]
    kept = set(counted[: self._keep])
    for step in self.steps():
      for_good = self._keep_every and step % self._keep_every == 0
      if step < min(kept) and not for_good:
        self._remove(step)

  def _remove(self, step):
    """A step, its manifest first: without it what is left does not count."""
    self._mark(step).write_bytes(b"")
    self._manifest_path(step).unlink(missing_ok=True)
    files.remove_tree(self._dir / str(step))
    self._mark(step).unlink()
    self._manager.reload()

  def _unwritable(self, step, error):
    """What is said of a save that failed."""
    if hosts.count() > 1 and hosts.is_loss(error):
      return hosts.HostGone(hosts.gone(f"while step {step} was saved"))
    said = str(error).strip().split("\n")[0] or type(error).__name__
    said = said if len(said) < MOST_SAID else f"... {said[-MOST_SAID:]}"  # the cause comes last
    # a disk that is full stays so, and a bucket that does not answer may again
    kind = Unavailable if paths.is_remote(self._dir) else UserError
    return kind(
      f"the checkpoint of step {step} cannot be written to {str(self._dir)!r} ({said}). Those "
      f"before it are as they were: make room or set its permissions, and run the same command "
      f"again."
    )

  def restore(
    self,
    *,
    target: Any = None,
    step: int | None = None,
    part: Callable[[Any, Mapping[str, Any]], Any] | None = None,
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest intact checkpoint: (step, state, meta), or None where there is none. A save that
    goes on is waited for.

    Args:
      target: tree of arrays like the saved state, each leaf restored to the sharding of its
        array, whatever that of the saved one was; or None: every leaf a numpy array.
      step: this one alone; None for the newest.
      part: without a target, (what is saved, as a tree of shapes; meta) -> the part of that tree
        that is to be read; None: all.

    Raises:
      UserError: there are checkpoints but none is intact, or not `step`, or an intact one does not
        hold arrays of target's names and shapes.
    """
    self.wait()
    steps = hosts.agreed(self.steps())
    if step is not None:
      if step not in steps:
        raise UserError(
          f"there is no checkpoint of step {step} in {str(self._dir)!r}, which has "
          f"{sorted(steps) or 'none'}: choose another step (train.keep_every_steps keeps some)."
        )
      steps = [step]
    for step in steps:
      problem = hosts.agreed(self._damage(step) if hosts.is_writer() else None)
      if problem is None:
        try:
          if target is not None:
            self._check_fits(step, target)
          return step, *self._read(step, target, part)
        except UserError:  # it is whole, and of another network
          raise
        except Exception as e:  # orbax raises many kinds for a file that is cut short
          if hosts.count() > 1:  # the others have read it: they must not go on without this one
            raise
          problem = f"{type(e).__name__}: {e}"
      log.warning(
        "checkpoint %s cannot be used (%s); looking for an older one",
        self._dir / str(step),
        problem,
      )
    if steps:
      raise UserError(
        f"none of the checkpoints {steps} in {str(self._dir)!r} is intact (the log says why). "
        "Restore the folder from a copy, or choose another --workdir."
      )
    return None

  def intact(self, step: int) -> bool:
    """Whether the files of `step` are what was written."""
    return hosts.agreed(hosts.is_writer() and self._damage(step) is None)

  def discard_after(self, step: int) -> None:
    """Remove steps newer than `step`, those that were found damaged when it was restored, and what
    saves that were killed left.
    """
    if hosts.count() > 1:
      _ = self._manager  # all processes make theirs at once: Orbax synchronises them
    with hosts.together():
      if hosts.is_writer():
        for other in (*(newer for newer in self.steps() if newer > step), *self._unfinished()):
          self._remove(other)
        for left in self._dir.glob("*.orbax-checkpoint-tmp*"):
          files.remove_tree(left)
    if hosts.count() > 1:
      self._manager.reload()

  def _check_fits(self, step, target):
    """Raise UserError unless the state of `step` has the names and shapes of `target`."""
    shapes = lambda tree: {
      jax.tree_util.keystr(path, simple=True, separator="/"): tuple(leaf.shape)
      for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }
    ours = shapes(target)
    theirs = shapes(self._manager.item_metadata(step)[STATE])
    wrong = [name for name in sorted(ours | theirs) if ours.get(name) != theirs.get(name)]
    if wrong:
      words = lambda shape: "absent" if shape is None else "x".join(map(str, shape)) or "a number"
      name = wrong[0]
      raise UserError(
        f"the checkpoint {str(self._dir / str(step))!r} is of another network or optimizer: "
        f"{len(wrong)} of its arrays differ, {name} first (it is {words(theirs.get(name))} there, "
        f"{words(ours.get(name))} here). Nothing was changed. Choose another --workdir, or the "
        f"config and data that it was made with."
      )

  def _read(self, step, target, part):
    meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))[META]
    if target is None:
      saved = self._manager.item_metadata(step)[STATE]
      return self._read_on_host(step, saved if part is None else part(saved, meta)), meta
    wanted = jax.tree.map(
      lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target
    )
    args = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
    return self._manager.restore(step, args=args)[STATE], meta

  def _read_on_host(self, step, shapes):
    """Those arrays of a state on the host, so that the devices and shardings of the run that saved
    it do not matter.
    """
    args = ocp.args.PyTreeRestore(
      jax.tree.map(lambda a: np.empty(a.shape, a.dtype), shapes),
      restore_args=jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes),
      partial_restore=True,
    )
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
      return reader.restore(str(self._dir / str(step) / STATE), args=args)

  def _manifest_path(self, step):
    return self._dir / f"{step}.sha256.json"

  def _mark(self, step):
    return self._dir / f"{step}.saving"

  def _unfinished(self):
    """Steps whose save was killed before they counted."""
    marked = [int(path.stem) for path in self._dir.glob("*.saving") if path.stem.isdecimal()]
    return [step for step in marked if not self._manifest_path(step).exists()]

  def _damage(self, step):
    """What differs from the step's manifest, or None."""
    path = self._manifest_path(step)
    if not path.exists():
      return f"its manifest {path.name} is not there"
    try:
      recorded = files.read_json(path)
    except (OSError, ValueError):
      return f"its manifest {path.name} is not JSON"
    if not isinstance(recorded, dict):
      return f"its manifest {path.name} is no table of hashes"
    found = _hash_files(self._dir / str(step))
    names = recorded.keys() | found.keys()
    wrong = sorted(name for name in names if found.get(name) != recorded.get(name))
    return f"content differs from its hash: {', '.join(wrong)}" if wrong else None


@functools.cache
def _say_once():
  """Of a save that fails, which `wait` tells, say nothing else: TensorStore and asyncio would print
  a traceback for each of its other arrays, whose event loop is closed by then.
  """
  logging.getLogger("asyncio").setLevel(logging.CRITICAL)
  warnings.filterwarnings("ignore", "coroutine 'async_serialize", RuntimeWarning)
  others = sys.unraisablehook

  def hook(args):
    if not (args.exc_type is RuntimeError and str(args.exc_value) == "Event loop is closed"):
      others(args)

  sys.unraisablehook = hook


def directory(workdir: str | pathlib.Path) -> pathlib.Path:
  """Where the checkpoints of a work directory are."""
  return paths.as_path(workdir).absolute() / "checkpoints"


def read_meta(workdir: str | pathlib.Path) -> dict[str, Any] | None:
  """The meta of the newest step whose meta can be read; None where there is none.

  Orbax's manager, which would start jax's devices, is left out: the meta holds the config that says
  how to start them.
  """
  folder = directory(workdir)
  for step in sorted(_steps(folder), reverse=True):
    try:
      meta = files.read_json(folder / str(step) / META / "metadata")
    except (OSError, ValueError):
      continue
    if isinstance(meta, dict):
      return meta
  return None


def _steps(folder):
  """Numbers of the folders that are steps."""
  return [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []


def _hash_files(directory):
  hashes = {}
  for path in sorted(p for p in directory.rglob("*") if p.is_file()):
    with path.open("rb") as f:
      hashes[path.relative_to(directory).as_posix()] = hashlib.file_digest(f, "sha256").hexdigest()
  return hashes
