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
from cfg.base import files, images, logs, sharding
from cfg.base.errors import UserError
from cfg.features import references, select
from cfg.inference import generator
from cfg.inference.network import open_trained
from cfg.metrics import summary
from cfg.report import page, table
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
  extractors = select.extractors(config, dataset=dataset, workdir=workdir)
  measured = references.measure_all(
    config, settings, dataset=dataset, extractors=extractors, mesh=mesh, workdir=workdir
  )
  made = [
    make_variant(c, settings, trained=networks[ema], measured=measured, workdir=workdir)
    for c, ema in samplers
  ]
  combined = references.combined(measured)
  draw_missing(made, settings, measured=combined, mesh=mesh)
  rows = [variant.row(w) for variant in made for w in settings.w]
  content = table.read(workdir)
  if (
    content is not None
    and content["rows"] == rows
    and all((workdir / name).exists() for name in page.FILES)
  ):
    log.info("the sweep is complete: %s", workdir / "sweep.json")
    return content
  real = summary.of_reference(
    combined.heldout, metrics=combined.extractor.metrics, train=combined.train
  )
  report = page.Report(
    series=[
      page.Series(
        rows=[variant.row(w) for w in settings.w],
        pictures={w: files.read_npz(variant.path(w, ".npz"))["images"] for w in settings.w},
      )
      for variant in made
    ],
    metrics=combined.extractor.metrics,
    about=shared([variant.about for variant in made]),
    real=[{"name": "real held-out images", **real}],
    dataset=dataset,
    paper=config.get("paper"),
  )
  return page.write(workdir, report)


def draw_missing(made, settings, *, measured, mesh):
  """Draw, measure and write every row that is not there, with one compilation for each Variant."""
  missing = [(variant, w) for variant in made for w in settings.w if variant.row(w) is None]
  total, done = (
    sum(settings.num_samples * generator.nfe(variant.config) for variant, _ in missing),
    0,
  )
  with logs.Progress("sweep", total=total, unit="network evaluations") as progress:
    for variant, group in itertools.groupby(missing, key=lambda pair: pair[0]):
      sampler = generator.Generator(
        model=variant.trained.model,
        config=variant.config,
        image_shape=variant.trained.image_shape,
        mesh=mesh,
        batch_size=settings.batch_size,
        extractor=measured.extractor,
      )
      for _, w in group:
        values, pictures = strength.measure(
          settings,
          w,
          trained=variant.trained,
          measured=measured,
          sampler=sampler,
          folder=variant.path(w, ".partial"),
          on_images=functools.partial(show, progress, w=w, before=done, nfe=sampler.nfe),
        )
        keep_row(variant, w, values, pictures, nfe=sampler.nfe)
        log.info("%s", table.one_line(variant.row(w), measured.extractor.metrics))
        done += settings.num_samples * sampler.nfe


def show(progress, count, kept, *, w, before, nfe):
  """Tell a logs.Progress of `count` images at strength w, after `before` network evaluations; kept
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
  for one, _ in variants(config):
    generator.make_sampler(one)
  settings = check_settings(config.sweep, num_classes=dataset.num_classes, mesh=mesh)
  extractors = select.outlines(config, dataset=dataset)
  for extractor in extractors:
    check_numbers(settings, extractor, num_classes=dataset.num_classes)
  references.check(config, settings, dataset=dataset, extractors=extractors)
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


def check_numbers(settings, extractor, *, num_classes):
  """Raise UserError if samples are too few for an extractor's Fréchet distances: a covariance needs
  more than features.

  Each block has more than a judge has features; Inception has thousands, and errors of another
  kind.
  """
  blocks = settings.num_blocks if extractor.judges else 1
  unit = num_classes * settings.num_blocks
  few = summary.too_few(
    settings.num_samples, metrics=extractor.metrics, dims=extractor.dims, blocks=blocks
  )
  if few and (extractor.judges or not settings.allow_few):
    where = "a block of the sweep" if extractor.judges else "a strength"
    raise UserError(
      f"{where} has {settings.num_samples // blocks} samples, fewer than the features of "
      f"{', '.join(few)}: a covariance needs more samples than features. Raise sweep.num_samples "
      f"to {unit * -(-max(few.values()) // unit)} or more"
      f"{'' if extractor.judges else ', or set sweep.allow_few'}."
    )
  least = summary.least_images(extractor.metrics)
  without = settings.num_samples - settings.num_samples // settings.num_blocks
  if without < least:
    raise UserError(
      f"a strength has {settings.num_samples} samples, {without} without one of its "
      f"{settings.num_blocks} blocks: errors need at least {least} there. Raise sweep.num_samples."
    )


def make_variant(config, settings, *, trained, measured, workdir):
  """The Variant of one sampler and average; its folder is made."""
  about = provenance(config, settings, trained=trained, measured=measured)
  folder = workdir / "sweep" / fingerprint(about)
  folder.mkdir(parents=True, exist_ok=True)
  return Variant(config, trained, about, folder)


def provenance(config, settings, *, trained, measured):
  """The facts that make rows of a sweep comparable; stored in each."""
  return {
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
    **references.facts(measured),
  }


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
