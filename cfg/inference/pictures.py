"""Pictures of chosen classes at one guidance strength."""

import csv
import math
import pathlib
from collections.abc import Sequence

import numpy as np

from cfg.base import files, images, paths, sharding
from cfg.base.errors import UserError, nearest
from cfg.guidance import MAIN
from cfg.inference import checks, meter, network, program
from cfg.inference.generator import Generator
from cfg.report import drawing, grids, table

MOST_DEFAULT_CLASSES = 10


def parse_strength(*, w: float | None, scale: float | None) -> float:
  """The paper's w from w or scale = 1 + w, whichever was given; w = 1 if neither.

  Raises:
    UserError: both given, not finite, or w < -1.
  """
  if w is not None and scale is not None:
    raise UserError(
      f"--w={w:g} and --scale={scale:g} were given together: give one of them (scale = 1 + w)."
    )
  strength = 1.0
  if w is not None:
    strength = w
  elif scale is not None:
    strength = scale - 1.0
  if not math.isfinite(strength) or strength < -1:
    raise UserError(
      f"the guidance strength is w = {strength:g} (scale = {1 + strength:g}): it must be finite "
      f"and at least -1 (w = 0 is unguided)."
    )
  return strength


def parse_label(text: str, class_names: Sequence[str]) -> int:
  """The label of a class given by name or by number.

  Raises:
    UserError: no such class; the message has the nearest names.
  """
  text = str(text).strip()
  if text in class_names:
    return class_names.index(text)
  try:
    label = int(text)
  except ValueError:
    raise UserError(f"there is no class {text!r}: {nearest(text, class_names)}") from None
  if not 0 <= label < len(class_names):
    raise UserError(
      f"label {label} is out of range: this model has {len(class_names)} classes, 0 to "
      f"{len(class_names) - 1}."
    )
  return label


def parse_labels(labels: str | Sequence[str], class_names: Sequence[str]) -> list[int]:
  """The labels of classes given by name or by number: a list, or text with commas between them.

  Text that is a class's name is that class, commas and all; otherwise a name that has a comma is
  written in doubled quotes, as in a CSV file.

  Raises:
    UserError: no such class, or quotes that do not end.
  """
  if isinstance(labels, str):
    if labels.strip() in class_names:
      return [parse_label(labels, class_names)]
    try:
      rows = list(csv.reader([labels], skipinitialspace=True, strict=True))
    except csv.Error as e:
      raise UserError(f"--label is {labels!r}: {e}. Write --label=NAME,NUMBER,...") from e
    labels = [text for row in rows for text in row]
  return [parse_label(text, class_names) for text in labels]


def sample(config, *, mesh, workdir, labels, num, w, seed, ema=None, out=None):
  """Write `num` samples of each class as PNGs, a labelled grid and samples.json.

  Sample j of every class starts from the same noise, and is the same whatever the
  other classes and numbers asked for.

  Args:
    config: the config the work directory was trained with.
    mesh: from sharding.make_mesh.
    workdir: of the trained model.
    labels: class names or numbers (see parse_labels); empty for the first ten classes.
    num: samples of each class.
    w: the paper's guidance strength.
    seed: of the noise.
    ema: which average, by decay; None for the first.
    out: folder to write to; None for `<workdir>/samples/w<w>_seed<seed>`.

  Returns:
    The folder.
  """
  if num < 1:
    raise UserError(f"--num is {num}: give the number of samples of each class, at least 1.")
  if not 0 <= seed < 2**32:
    raise UserError(f"--seed is {seed}: it must lie between 0 and 2^32 - 1.")
  checks.check(config, [w])
  particles = config.sampler.particles
  if num % particles:
    raise UserError(
      f"--num is {num}, but sampler.particles is {particles}: a class's samples are whole groups "
      f"of that many, so give a multiple of {particles}."
    )
  networks = network.load_networks(config, workdir=workdir, mesh=mesh, ema=ema)
  main = networks[MAIN]
  config = meter.resolved(config, meter.kept(main, config, workdir=workdir))
  names = network.class_names(networks)
  chosen = parse_labels(labels, names) or list(range(min(len(names), MOST_DEFAULT_CLASSES)))
  index = np.tile(np.arange(num), len(chosen))
  y = np.repeat(chosen, num)
  generator = Generator(
    network.make_program(config, networks),
    mesh=mesh,
    batch_size=sharding.round_up(mesh, min(len(y), config.sweep.batch_size), parts=particles),
  )
  pictures = generator(network.parameters(networks), index=index, labels=y, w=w, seed=seed)

  out = (
    pathlib.Path(out)
    if out
    else paths.as_path(workdir) / "samples" / f"{table.strength_name(w)}_seed{seed}"
  )
  out.mkdir(parents=True, exist_ok=True)
  strength = program.strength_facts(generator.program.rule, w)
  rows = []
  for i, label, picture in zip(index, y, pictures):
    file = f"class{label:04d}_{i:05d}.png"
    images.write_png(out / file, picture)
    rows.append(
      {
        "file": file,
        "index": int(i),
        "label": int(label),
        "class_name": names[label],
        "seed": seed,
        **strength,
      }
    )
  grids.write_grid(
    out / "grid.png",
    pictures.reshape(len(chosen), num, *main.image_shape),
    row_names=drawing.class_titles(names, chosen),
    column_names=[str(i) for i in range(num)],
    row_title="class",
    column_title=f"sample index; {table.strength_text(strength)}, seed {seed}",
  )
  calls = generator.nfe(w)
  about = {
    **program.facts(config),
    **network.facts(networks),
    "nfe": sum(calls.values()),
    **{f"nfe/{role}": rows for role, rows in calls.items()},
  }
  files.write_json(out / "samples.json", {"about": about, "samples": rows})
  return out
