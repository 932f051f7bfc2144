"""The guidance sweep: the same noise at every strength, FID and IS against w, resumable.

Sample i is a function of (checkpoint, seed, i, label, w) and the sampler alone; label i
is i mod the number of classes. Each strength's row is written when it is complete; a
sweep that was killed goes on with the batch after the last that was kept.
"""

import dataclasses
import functools
import hashlib
import itertools
import json
import logging
import pathlib

import jax.numpy as jnp
import numpy as np

import cfg
from cfg.base import config as config_lib
from cfg.base import files, images, sharding
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.features import extractor as extractor_lib
from cfg.features import placed as features
from cfg.features import references as real
from cfg.features import select
from cfg.inference import generator
from cfg.inference.network import open_trained
from cfg.metrics import summary
from cfg.report import table
from cfg.sweep import strength

log = logging.getLogger(__name__)

# besides w, what a sweep can vary: fields of sweep, each empty for the value of sampler (or
# sweep.ema)
AXES = ("sampler", "num_steps", "var_interp", "ema_decays")


@dataclasses.dataclass(frozen=True, eq=False)
class Variant:
  """Everything but w: a config with one sampler, an average of the parameters, and the provenance
  of its rows.
  """

  config: object
  trained: object
  about: dict
  folder: pathlib.Path

  def path(self, w, ending):
    """The file of strength w."""
    return self.folder / f"{table.strength_name(w)}{ending}"

  def row(self, w):
    """The finished row of strength w, or None; without its pictures it is not finished."""
    path = self.path(w, ".json")
    return (
      json.loads(path.read_text(encoding="utf-8"))
      if path.exists() and self.path(w, ".npz").exists()
      else None
    )


def sweep(config, *, dataset, mesh, workdir):
  """Sample and measure at every config.sweep.w, with every sampler, T, v and average asked for;
  write the table and the pictures to `workdir`.

  Returns:
    The content of sweep.json.

  Raises:
    UserError: no usable checkpoint, or settings that cannot give the numbers.
  """
  workdir = pathlib.Path(workdir)
  settings = check(config, dataset=dataset, mesh=mesh)
  if settings.num_samples != config.sweep.num_samples:
    log.info(
      "%d samples at each strength instead of %d: %d equal blocks of %d classes",
      settings.num_samples,
      config.sweep.num_samples,
      settings.num_blocks,
      dataset.num_classes,
    )
  samplers = list(variants(config))
  networks = {
    ema: open_trained(workdir, config=config, mesh=mesh, ema=ema)
    for ema in dict.fromkeys(ema for _, ema in samplers)
  }
  found = select.get_extractors(config, dataset=dataset, workdir=workdir)
  placed = [features.Placed(extractor, mesh) for extractor in found]
  references = [
    real.references(config, settings, dataset=dataset, placed=p, workdir=workdir) for p in placed
  ]
  made = [
    make_variant(
      c, settings, trained=networks[ema], found=found, references=references, workdir=workdir
    )
    for c, ema in samplers
  ]

  together = extractor_lib.together(found)
  train, heldout = (real.together([pair[split] for pair in references]) for split in (0, 1))
  draw_missing(made, settings, extractor=together, references=(train, heldout), mesh=mesh)
  rows = [variant.row(w) for variant in made for w in settings.w]
  content = table.read(workdir)
  if (
    content is not None
    and content["rows"] == rows
    and all((workdir / name).exists() for name in table.FILES)
  ):
    log.info("the sweep is complete: %s", workdir / "sweep.json")
    return content
  return table.write(
    workdir,
    rows=rows,
    about=shared([variant.about for variant in made]),
    extractor=together,
    dataset=dataset,
    paper=config.get("paper"),
    references=[
      {
        "name": "real held-out images",
        **summary.of_reference(heldout, extractor=together, train=train),
      }
    ],
    pictures=[
      {w: files.read_npz(variant.path(w, ".npz"))["images"] for w in settings.w} for variant in made
    ],
  )


def draw_missing(made, settings, *, extractor, references, mesh):
  """Draw, measure and write every row that is not there, with one compilation for each Variant."""
  missing = [(variant, w) for variant in made for w in settings.w if variant.row(w) is None]
  total, done = (
    sum(settings.num_samples * generator.nfe(variant.config) for variant, _ in missing),
    0,
  )
  with Progress("sweep", total=total, unit="network evaluations") as progress:
    for variant, group in itertools.groupby(missing, key=lambda pair: pair[0]):
      sampler = generator.Generator(
        model=variant.trained.model,
        config=variant.config,
        image_shape=variant.trained.image_shape,
        mesh=mesh,
        batch_size=settings.batch_size,
        extractor=extractor,
      )
      for _, w in group:
        measured = strength.measure(
          settings,
          w,
          trained=variant.trained,
          extractor=extractor,
          sampler=sampler,
          references=references,
          folder=variant.path(w, ".partial"),
          on_images=functools.partial(show, progress, w=w, before=done, nfe=sampler.nfe),
        )
        keep_row(variant, w, *measured, nfe=sampler.nfe)
        done += settings.num_samples * sampler.nfe


def show(progress, count, kept, *, w, before, nfe):
  """Tell a Progress of `count` images at strength w, after `before` network evaluations; kept
  ones took no time now.
  """
  done = before + count * nfe
  if kept:
    progress.skip(done)
  else:
    progress.update(done, w=f"= {w:g}")


def keep_row(variant, w, values, pictures, *, nfe):
  """Write a strength's pictures and its row, and forget its batches."""
  row = {"w": float(w), "scale": 1.0 + float(w), **values, "nfe": nfe, **variant.about}
  # the pictures first: a row means that all of its strength is there
  files.write_npz(variant.path(w, ".npz"), {"images": pictures})
  files.write_json(variant.path(w, ".json"), row)
  strength.forget(variant.path(w, ".partial"))
  log.info("%s", table.one_line(row))


def variants(config):
  """Yield (config, ema) for every combination of the sweep's axes; of those that draw the same
  samples, one.
  """
  axes = [tuple(config.sweep.get(axis, ())) for axis in AXES]
  own = (config.sampler.name, config.sampler.num_steps, config.sampler.var_interp, config.sweep.ema)
  seen = set()
  for name, num_steps, var_interp, ema in itertools.product(
    *(axis or (value,) for axis, value in zip(axes, own, strict=True))
  ):
    # DDIM has no v
    same = (name, num_steps, None if name == "ddim" else var_interp, ema)
    if same in seen:
      continue
    seen.add(same)
    one = config.copy_and_resolve_references()
    one.sampler.update(name=name, num_steps=num_steps, var_interp=var_interp)
    yield one, ema


def check(config, *, dataset, mesh):
  """The sweep's settings, their num_samples rounded up to equal blocks of balanced labels; it costs
  nothing, before a long training.

  Raises:
    UserError: settings, data or a judge that cannot give the numbers.
  """
  config_lib.check_guidable(config, config.sweep.w)
  select.check(config, dataset=dataset)
  for one, _ in variants(config):
    generator.make_sampler(one)
  settings = check_settings(config.sweep, num_classes=dataset.num_classes, mesh=mesh)
  for extractor in select.shapes(config):
    check_numbers(
      settings,
      extractor,
      num_classes=dataset.num_classes,
      num_real=len(dataset.train),
      most_real=config.get("inception", {}).get("num_reference", 0),
    )
  return settings


def check_settings(settings, *, num_classes, mesh):
  """A copy of the sweep's settings that makes balanced blocks.

  Raises:
    UserError: settings that no sweep could have.
  """
  sharding.check_batch_size(mesh, "sweep.batch_size", settings.batch_size)
  if (
    not settings.w
    or any(not np.isfinite(w) or w < -1 for w in settings.w)
    or len(set(settings.w)) != len(settings.w)
  ):
    raise UserError(
      f"sweep.w is {tuple(settings.w)}: give distinct strengths w >= -1 (w = 0 is unguided, scale "
      f"= 1 + w)."
    )
  if settings.num_blocks < 2 or settings.num_samples < 1:
    raise UserError(
      f"sweep.num_samples is {settings.num_samples} with {settings.num_blocks} blocks: errors need "
      f"at least 2 blocks, and samples."
    )
  unit = num_classes * settings.num_blocks
  rounded = settings.copy_and_resolve_references()
  rounded.num_samples = unit * -(-settings.num_samples // unit)
  # a work directory may hold a config that is older than these
  for name in ("allow_few", "extrapolate"):
    rounded[name] = settings.get(name, False)
  return rounded


def check_numbers(settings, extractor, *, num_classes, num_real, most_real):
  """Raise UserError if samples or real images are too few for an extractor's Fréchet distances: a
  covariance needs more than features.

  Each block has more than a judge has features; Inception has thousands, and errors of another
  kind.
  """
  judged = extractor.classes is not None
  blocks = settings.num_blocks if judged else 1
  unit = num_classes * settings.num_blocks
  few = summary.too_few(settings.num_samples, extractor, blocks=blocks)
  if few and (judged or not settings.allow_few):
    where = (
      f"a block of the sweep has {settings.num_samples // blocks}"
      if judged
      else f"a strength has {settings.num_samples}"
    )
    raise UserError(
      f"{where} samples, fewer than the features of {', '.join(few)}: a covariance needs more "
      f"samples than features. "
      f"Raise sweep.num_samples to {unit * -(-max(few.values()) // unit)} or "
      f"more{'' if judged else ', or set sweep.allow_few'}."
    )
  count = num_real if judged else min(num_real, most_real or num_real)
  few = summary.too_few(count, extractor)
  if few and (judged or not settings.allow_few):
    raise UserError(
      f"{count} images of the training split are measured, fewer than the features of "
      f"{', '.join(few)} ({max(few.values()) - 1}): FID needs more "
      f"images than features. Use more images, or "
      f"{'a judge with fewer (judge.feature_dim of one that is trained here)' if judged else 'set sweep.allow_few'}."
    )


def make_variant(config, settings, *, trained, found, references, workdir):
  """The Variant of one sampler and average; its folder is made."""
  about = provenance(config, settings, trained=trained, found=found, references=references)
  folder = workdir / "sweep" / fingerprint(about)
  folder.mkdir(parents=True, exist_ok=True)
  return Variant(config, trained, about, folder)


def provenance(config, settings, *, trained, found, references):
  """The facts that make rows of a sweep comparable; stored in each."""
  facts = {
    "sampler": config.sampler.name,
    "num_steps": config.sampler.num_steps,
    "var_interp": config.sampler.var_interp,
    "clip_x": config.sampler.clip_x,
    "logsnr_min": config.schedule.logsnr_min,
    "logsnr_max": config.schedule.logsnr_max,
    "seed": settings.seed,
    "ema": float(trained.ema),
    "step": trained.step,
    "dtype": str(jnp.dtype(trained.model.dtype)),
    "data": trained.data_name,
    "checkpoint_hash": trained.checkpoint_hash,
    "uint8": images.UINT8,
    "num_samples": settings.num_samples,
    "num_blocks": settings.num_blocks,
    "allow_few": settings.allow_few,
    "cfg_version": cfg.__version__,
  }
  # the first is the row's; a second is a judge beside Inception
  for prefix, extractor, (train, heldout) in zip(("", "judge_"), found, references):
    facts |= {
      "judge" if prefix else "extractor": extractor.name,
      f"{prefix or 'extractor_'}sha256": extractor.info["weights_sha256"],
      f"{prefix}reference": train.about.get("name"),
      f"{prefix}reference_sha256": train.about.get("images_sha256", train.sha256),
      f"{prefix}reference_images": train.about.get("num_images"),
      f"{prefix}heldout_sha256": heldout.about["images_sha256"],
    }
    facts |= {
      name: extractor.info[name] for name in ("resize", "complete") if name in extractor.info
    }
  return facts


def fingerprint(about):
  """A short hash of the provenance: rows of one folder are of one experiment."""
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def shared(abouts):
  """The facts that all have in common."""
  return {
    name: value
    for name, value in abouts[0].items()
    if all(about.get(name) == value for about in abouts)
  }
