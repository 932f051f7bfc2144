"""Orbax checkpoints that check themselves: content hashes, and a fall-back to the newest intact
one.

Orbax renames a finished step into place, so a killed save leaves nothing behind
that counts. What it does not see is damage after that; hence a manifest of
SHA-256 hashes is written beside each step and compared when it is opened.
"""

import hashlib
import json
import logging
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cfg.base import files
from cfg.base.errors import UserError

log = logging.getLogger(__name__)

META = "meta"
STATE = "state"


class Checkpoints:
  """The checkpoints of one work directory, `<workdir>/checkpoints/<step>`.

  Args:
    workdir: the work directory; its folder `checkpoints` is made if it is not there.
    keep: how many of the newest steps to keep.
    keep_every: and every multiple of this one for good; 0 for none.
  """

  def __init__(self, workdir: str | pathlib.Path, *, keep: int = 2, keep_every: int = 0) -> None:
    self._dir = directory(workdir)
    self._dir.mkdir(parents=True, exist_ok=True)
    options = ocp.CheckpointManagerOptions(
      max_to_keep=keep, keep_period=keep_every or None, enable_async_checkpointing=False
    )
    handlers = {STATE: ocp.StandardCheckpointHandler(), META: ocp.JsonCheckpointHandler()}
    self._manager = ocp.CheckpointManager(self._dir, options=options, item_handlers=handlers)

  def __enter__(self):
    return self

  def __exit__(self, *_):
    self._manager.close()

  def steps(self) -> list[int]:
    """Steps that are there, newest first."""
    return sorted(self._manager.all_steps(), reverse=True)

  def save(self, step: int, *, state: Any, meta: Mapping[str, Any]) -> None:
    """Write `state` (a tree of arrays) and `meta` (JSON-able), then the manifest of what was
    written.
    """
    args = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
    self._manager.save(step, args=args, force=True)
    self._manager.wait_until_finished()
    if jax.process_index() == 0:
      files.write_json(self._manifest_path(step), _hash_files(self._dir / str(step)))
      for manifest in self._dir.glob("*.sha256.json"):
        if not (self._dir / manifest.name.split(".")[0]).is_dir():
          manifest.unlink()

  def restore(
    self, *, target: Any = None, step: int | None = None
  ) -> tuple[int, Any, dict[str, Any]] | None:
    """The newest intact checkpoint: (step, state, meta), or None where there is none.

    Args:
      target: tree of arrays like the saved state, each leaf restored to the sharding of its
        array, whatever that of the saved one was; or None: every leaf a numpy array.
      step: this one alone; None for the newest.

    Raises:
      UserError: there are checkpoints but none is intact, or not `step`, or an intact one does not
        hold arrays of target's names and shapes.
    """
    steps = self.steps()
    if step is not None:
      if step not in steps:
        raise UserError(
          f"there is no checkpoint of step {step} in {str(self._dir)!r}, which has "
          f"{sorted(steps) or 'none'}: choose another step (train.keep_every_steps keeps some)."
        )
      steps = [step]
    for step in steps:
      problem = self._damage(step)
      if problem is None:
        try:
          if target is not None:
            self._check_fits(step, target)
          return step, *self._read(step, target)
        except UserError:  # it is whole, and of another network
          raise
        except Exception as e:  # orbax raises many kinds for a file that is cut short
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
    return self._damage(step) is None

  def discard_after(self, step: int) -> None:
    """Remove steps newer than `step`: those that were found damaged when it was restored."""
    for newer in self.steps():
      if newer > step:
        self._manager.delete(newer)
        self._manifest_path(newer).unlink(missing_ok=True)

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

  def _read(self, step, target):
    if target is None:
      # arrays of the host, so that the devices and shardings of the run that saved it do not matter
      saved = self._manager.item_metadata(step)[STATE]
      state_args = ocp.args.StandardRestore(
        jax.tree.map(lambda a: np.empty(a.shape, a.dtype), saved)
      )
    else:
      state_args = ocp.args.StandardRestore(
        jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target)
      )
    args = ocp.args.Composite(state=state_args, meta=ocp.args.JsonRestore())
    restored = self._manager.restore(step, args=args)
    return restored[STATE], restored[META]

  def _manifest_path(self, step):
    return self._dir / f"{step}.sha256.json"

  def _damage(self, step):
    """What differs from the step's manifest, or None. A step without one was saved just before a
    kill.
    """
    path = self._manifest_path(step)
    if not path.exists():
      return None
    try:
      recorded = json.loads(path.read_text())
    except ValueError:
      return f"its manifest {path.name} is not JSON"
    found = _hash_files(self._dir / str(step))
    wrong = sorted(name for name in recorded if found.get(name) != recorded[name])
    return f"content differs from its hash: {', '.join(wrong)}" if wrong else None


def directory(workdir: str | pathlib.Path) -> pathlib.Path:
  """Where the checkpoints of a work directory are."""
  return pathlib.Path(workdir).absolute() / "checkpoints"


def read_meta(workdir: str | pathlib.Path) -> dict[str, Any] | None:
  """The meta of the newest step whose meta can be read; None where there is none.

  Orbax's manager, which would start jax's devices, is left out: the meta holds the config that says
  how to start them.
  """
  folder = directory(workdir)
  steps = [int(p.name) for p in folder.iterdir() if p.name.isdecimal()] if folder.is_dir() else []
  for step in sorted(steps, reverse=True):
    try:
      return json.loads((folder / str(step) / META / "metadata").read_text())
    except (OSError, ValueError):
      continue
  return None


def _hash_files(directory):
  hashes = {}
  for path in sorted(p for p in directory.rglob("*") if p.is_file()):
    with path.open("rb") as f:
      hashes[path.relative_to(directory).as_posix()] = hashlib.file_digest(f, "sha256").hexdigest()
  return hashes
