"""python -m cfg.data.prepare INPUT OUT --resolution=64: of labelled images, a data set to train on.

The work is cut into shards of the input's order. A shard is written whole or not at all, with
a note of what is in it; a run that was killed goes on with the shards that are missing, and
equal inputs give equal bytes, whatever the number of processes. The manifest comes last.
"""

import argparse
import concurrent.futures
import hashlib
import json
import logging
import multiprocessing
import os
import sys
from collections.abc import Sequence

import numpy as np
import threadpoolctl

from cfg.base import files, progress
from cfg.base.errors import UserError, run_command
from cfg.base.paths import user_path
from cfg.data import records
from cfg.data.preparing import inputs
from cfg.data.preparing.parts import list_classes
from cfg.data.recipes import RECIPES

log = logging.getLogger("cfg.data.prepare")  # also where it is __main__

SHARD_SIZE = 2048
PLAN = "plan.json"  # of a preparation that is not finished
MOST_SHOWN = 20


def make_shard(task):
  """Write one shard and its note; runs in a process of its own. Returns the number of examples
  tried.
  """
  part, path, resolution, recipe = task
  rows = []
  labels = []
  rejected = []
  with threadpoolctl.threadpool_limits(
    1
  ):  # the processes share the cores; products this small are slower on several
    for i in range(len(part)):
      try:
        rows.append(records.encode(RECIPES[recipe](part.read(i), resolution), int(part.labels[i])))
        labels.append(int(part.labels[i]))
      except UserError as e:
        rejected.append([part.title(i), str(e)])
  records.write_shard(path, rows)
  note = {
    "file": path.name,
    "count": len(rows),
    "bytes": path.stat().st_size,
    "sha256": records.sha256(path),
    "labels": labels,
    "rejected": rejected,
  }
  files.write_json(_note(path), note)
  return len(part)


def _note(path):
  return path.with_suffix(".json")


def _finished(path):
  """The note of a shard that is there as it was written, else None."""
  if not (path.is_file() and _note(path).is_file()):
    return None
  try:
    note = files.read_json(_note(path))
    whole = note["sha256"] == records.sha256(path) and note["file"] == path.name
    labels, rejected = note["labels"], dict(note["rejected"])
    whole = whole and all(type(label) is int for label in labels) and note["count"] == len(labels)
    return note if whole and all(isinstance(why, str) for why in rejected.values()) else None
  except (OSError, ValueError, KeyError, TypeError):
    return None


def prepare(
  source: str | os.PathLike,
  out: str | os.PathLike,
  *,
  resolution: int,
  recipe: str = "area",
  name: str | None = None,
  workers: int = 1,
  max_rejected: float = 0.01,
) -> dict:
  """Make the prepared data set `out` of the images at `source`; see the module's docstring.

  Args:
    source: see data.preparing.inputs.
    out: a folder, made if it is not there; it may hold a part of the same preparation.
    resolution: side of the images made.
    recipe: of data.recipes.
    name: of the data set; None for that of the source's last part.
    workers: processes.
    max_rejected: share of unreadable images above which nothing is made.

  Returns:
    The manifest.

  Raises:
    UserError: nothing to prepare there, `out` holds something else, or too many images cannot be
      read.
  """
  source = user_path(str(source), name="the input")
  out = user_path(str(out), name="the output")
  if resolution < 1 or workers < 1 or not 0 <= max_rejected <= 1:
    raise UserError(
      "--resolution and --workers must be at least 1, and --max_rejected a share from 0 to 1."
    )
  given = inputs.open_input(source)
  log.info("%s", given)
  plan = {
    "format": records.FORMAT,
    "name": name or source.resolve().stem,
    "input": given.kind,
    "recipe": recipe,
    "resolution": resolution,
    "class_names": list(given.class_names),
    "class_ids": None if given.class_ids is None else list(given.class_ids),
    "splits": {split: part.fingerprint() for split, part in given.splits.items()},
  }
  plan = {
    **plan,
    "plan_sha256": hashlib.sha256(json.dumps([plan, SHARD_SIZE]).encode()).hexdigest(),
  }
  if (out / records.MANIFEST).is_file():
    manifest = records.read_manifest(out)
    if manifest["plan_sha256"] != plan["plan_sha256"]:
      raise UserError(
        f"{str(out)!r} holds another prepared data set ({manifest['name']!r}, or other images or "
        f"settings): choose another folder, or remove it."
      )
    damaged = records.verify(out)
    if damaged:
      raise UserError(
        f"{', '.join(damaged)} in {str(out)!r} is not what was written there: remove the folder "
        f"and prepare it again."
      )
    return manifest
  _claim(out, plan)
  tasks = {
    split: _tasks(part, out, split, resolution, recipe) for split, part in given.splits.items()
  }
  _run([task for some in tasks.values() for task in some], workers)
  return _finish(out, plan, tasks, given, max_rejected)


def _claim(out, plan):
  """Make `out` this plan's, or raise UserError."""
  try:
    out.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(f"{str(out)!r} cannot be made ({e.strerror}): choose another folder.") from e
  path = out / PLAN
  if path.is_file():
    try:
      theirs = files.read_json(path)["plan_sha256"]
    except (OSError, ValueError, KeyError, TypeError) as e:
      raise UserError(
        f"{str(path)!r}, the plan of a part that was prepared, is damaged ({e}): remove the folder "
        f"and prepare it again."
      ) from e
    if theirs != plan["plan_sha256"]:
      raise UserError(
        f"{str(out)!r} holds a part of another preparation (other images or settings): choose "
        f"another folder, or remove it."
      )
  elif any(out.iterdir()):
    raise UserError(f"{str(out)!r} is not empty: choose another folder, or empty it.")
  else:
    files.write_json(path, plan)


def _tasks(part, out, split, resolution, recipe):
  """The arguments of make_shard for every shard of a split."""
  count = -(-len(part) // SHARD_SIZE)
  path = lambda n: out / f"{split}-{n:05d}-of-{count:05d}.array_record"
  return [
    (part.select(slice(n * SHARD_SIZE, (n + 1) * SHARD_SIZE)), path(n), resolution, recipe)
    for n in range(count)
  ]


def _run(tasks, workers):
  """make_shard of the tasks that are not finished, in so many processes."""
  missing = [task for task in tasks if _finished(task[1]) is None]
  total = sum(len(task[0]) for task in tasks)
  done = total - sum(len(task[0]) for task in missing)
  with progress.Progress("prepare", total=total, unit="images") as bar:
    bar.update(done)
    for count in _made(missing, workers):
      done += count
      bar.update(done)


def _made(tasks, workers):
  """make_shard of each task, in so many processes; yields what it returns when it is done."""
  if workers == 1:
    yield from map(make_shard, tasks)
    return
  with concurrent.futures.ProcessPoolExecutor(
    workers, mp_context=multiprocessing.get_context("spawn")
  ) as pool:
    futures = [pool.submit(make_shard, task) for task in tasks]
    try:
      for future in concurrent.futures.as_completed(futures):
        yield future.result()
    except BaseException:
      pool.shutdown(wait=False, cancel_futures=True)
      raise


def _finish(out, plan, tasks, given, max_rejected):
  """Write labels and manifest from the shards' notes; the notes and the plan go."""
  notes = {split: [_finished(task[1]) for task in some] for split, some in tasks.items()}
  everything = [note for some in notes.values() for note in some]
  rejected = {name: reason for note in everything for name, reason in note["rejected"]}
  total = sum(len(part) for part in given.splits.values())
  if len(rejected) > max_rejected * total:
    shown = "; ".join(list(rejected.values())[:3])
    raise UserError(
      f"{len(rejected)} of {total} images cannot be read, more than the share {max_rejected:g} "
      f"that --max_rejected allows. The first: {shown} "
      f"The shards' notes in {str(out)!r} list them all."
    )
  labels = {
    split: np.asarray([label for note in some for label in note["labels"]], np.int32)
    for split, some in notes.items()
  }
  if any(len(some) == 0 for some in labels.values()):
    raise UserError(f"a split of {str(out)!r} has no image at all that can be read.")
  files.write_npz(out / records.LABELS, labels)
  count = len(plan["class_names"])
  shards = lambda some: [
    {name: note[name] for name in ("file", "count", "bytes", "sha256")}
    for note in some
    if note["count"]
  ]
  manifest = {
    **plan,
    "image_shape": [plan["resolution"], plan["resolution"], 3],
    "splits": {
      split: {
        "count": len(labels[split]),
        "class_counts": np.bincount(labels[split], minlength=count).tolist(),
        "shards": shards(some),
      }
      for split, some in notes.items()
    },
    "labels_sha256": records.sha256(out / records.LABELS),
    "rejected": rejected,
    "ignored": given.ignored,
  }
  files.write_json(out / records.MANIFEST, manifest)
  for note in everything:
    path = out / note["file"]
    _note(path).unlink()
    if not note["count"]:
      path.unlink()
  (out / PLAN).unlink()
  return manifest


def report(manifest: dict) -> str:
  """What was made and what was left out, as text."""
  lines = [list_classes(manifest["class_names"], most=MOST_SHOWN)]
  for split, about in manifest["splits"].items():
    counts = about["class_counts"]
    lines.append(
      f"{split}: {about['count']:,} images of {manifest['resolution']}x{manifest['resolution']} in "
      f"{len(counts):,} classes of {min(counts):,} to {max(counts):,}"
    )
    empty = [name for name, n in zip(manifest["class_names"], counts) if n == 0]
    if empty:
      lines.append(f"  classes without a readable image: {', '.join(empty[:MOST_SHOWN])}")
  for what, entries in (
    ("cannot be read and were left out", manifest["rejected"]),
    ("were passed over", manifest["ignored"]),
  ):
    if entries:
      lines.append(f"{len(entries)} {what}:")
      lines += [f"  {name}: {reason}" for name, reason in list(entries.items())[:MOST_SHOWN]]
      lines += [f"  ... and {len(entries) - MOST_SHOWN} more, in {records.MANIFEST}"] * (
        len(entries) > MOST_SHOWN
      )
  return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cfg.data.prepare",
    description="Make a data set to train on from labelled images. Run it again to go on after a "
    "kill.",
  )
  parser.add_argument(
    "input",
    help="a folder of class sub-folders, or a zip or tar of them; EDM's and StyleGAN's data sets, "
    "with a dataset.json of labels; a folder with ILSVRC2012's tars; "
    "Kaggle's ImageNet archive, zipped or "
    "extracted; an .npz of images and labels; CIFAR-10's binary or python archive, compressed or "
    "extracted",
  )
  parser.add_argument("out", help="folder of the prepared data set")
  parser.add_argument("--resolution", type=int, required=True, help="side of the images made")
  parser.add_argument(
    "--recipe",
    choices=sorted(RECIPES),
    default="area",
    help="area: the paper's; adm, edm: those models'",
  )
  parser.add_argument("--name", help="of the data set; default: the input's")
  parser.add_argument("--workers", type=int, default=os.cpu_count(), help="processes")
  parser.add_argument(
    "--max_rejected",
    type=float,
    default=0.01,
    help="share of unreadable images above which nothing is made",
  )
  options = vars(parser.parse_args(argv))
  source, out = options.pop("input"), options.pop("out")
  manifest = prepare(source, out, **options)
  print(report(manifest))
  print(
    f"{out} is ready: --config.data.name=prepared --config.data.path={out} "
    f"--config.data.resolution={manifest['resolution']}"
  )


if __name__ == "__main__":
  progress.to_stderr()
  sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be text
  run_command(main)
