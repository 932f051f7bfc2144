"""The guidance sweep: the same noise at every strength, FID and IS against w, resumable.

Sample i is a function of (checkpoint, seed, i, label, w) alone; label i is i mod
the number of classes. Each strength's row is written when it is complete, and a
sweep that was killed goes on with the next.
"""

import hashlib
import json
import logging
import pathlib

import jax.numpy as jnp
import numpy as np

import cfg
from cfg import config as config_lib
from cfg import extractors, files, generate, logs, report, sharding
from cfg.errors import UserError
from cfg.evaluation import metrics, statistics
from cfg.trained import open_trained

log = logging.getLogger(__name__)

# pictures kept of each strength, for the grid and the nearest training images
KEPT = 100


def sweep(config, *, dataset, mesh, workdir):
  """Sample and measure at every config.sweep.w; write the table and the pictures to `workdir`.

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
      settings.num_samples, config.sweep.num_samples, settings.num_blocks, dataset.num_classes,
    )
  trained = open_trained(workdir, config=config, mesh=mesh, ema=settings.ema)
  extractor = extractors.get_judge(config, dataset=dataset, workdir=workdir)
  about = provenance(config, settings, trained=trained, extractor=extractor)
  folder = workdir / "sweep" / fingerprint(about)
  folder.mkdir(parents=True, exist_ok=True)

  missing = [w for w in settings.w if read_row(folder, w) is None]
  if missing or not (folder / "references.json").exists():
    judge = extractors.Placed(extractor, mesh)
    references = measure_references(judge, dataset=dataset, batch_size=settings.batch_size)
    files.write_json(folder / "references.json", [heldout_row(references, extractor)])
    sampler = generate.Generator(
      model=trained.model, config=config, image_shape=trained.image_shape, mesh=mesh, batch_size=settings.batch_size
    )
    total = settings.num_samples * len(missing)
    with logs.Progress("sweep", total=total, unit="images") as progress:
      for n, w in enumerate(missing):
        row, pictures = measure(
          settings, w, trained=trained, judge=judge, sampler=sampler, references=references,
          on_images=lambda done, n=n, w=w: progress.update(n * settings.num_samples + done, w=f"= {w:g}"),
        )
        # the pictures first: a row means that all of its strength is there
        files.write_npz(folder / f"{report.strength_name(w)}.npz", {"images": pictures})
        files.write_json(folder / f"{report.strength_name(w)}.json", {**row, **about})
        log.info("%s", report.one_line(row))
  rows = [read_row(folder, w) for w in settings.w]
  content = report.read(workdir)
  if content is not None and content["rows"] == rows and all((workdir / name).exists() for name in report.FILES):
    log.info("the sweep is complete: %s", workdir / "sweep.json")
    return content
  return report.write(
    workdir, rows=rows, about=about, dataset=dataset,
    references=json.loads((folder / "references.json").read_text(encoding="utf-8")),
    pictures={w: files.read_npz(folder / f"{report.strength_name(w)}.npz")["images"] for w in settings.w},
  )


def check(config, *, dataset, mesh):
  """The sweep's settings, their num_samples rounded up to equal blocks of balanced labels; it costs nothing, before a long training.

  Raises:
    UserError: settings, data or a judge that cannot give the numbers.
  """
  config_lib.check_guidable(config, config.sweep.w)
  extractors.check(config, dataset=dataset)
  feature_dim = extractors.feature_dim(config)
  settings = check_settings(config.sweep, num_classes=dataset.num_classes, feature_dim=feature_dim, mesh=mesh)
  if len(dataset.train) <= feature_dim:
    raise UserError(
      f"the training split has {len(dataset.train)} images but the extractor {feature_dim} features: FID needs more images "
      "than features. Use more images, or a judge with fewer (judge.feature_dim of one that is trained here)."
    )
  return settings


def check_settings(settings, *, num_classes, feature_dim, mesh):
  """A copy of the sweep's settings that makes balanced blocks; UserError unless each is larger than the feature dimension."""
  sharding.check_batch_size(mesh, "sweep.batch_size", settings.batch_size)
  if not settings.w or any(not np.isfinite(w) or w < -1 for w in settings.w) or len(set(settings.w)) != len(settings.w):
    raise UserError(f"sweep.w is {tuple(settings.w)}: give distinct strengths w >= -1 (w = 0 is unguided, scale = 1 + w).")
  if settings.num_blocks < 2 or settings.num_samples < 1:
    raise UserError(
      f"sweep.num_samples is {settings.num_samples} with {settings.num_blocks} blocks: errors need at least 2 blocks, and samples."
    )
  unit = num_classes * settings.num_blocks
  rounded = settings.copy_and_resolve_references()
  rounded.num_samples = unit * -(-settings.num_samples // unit)
  block = rounded.num_samples // settings.num_blocks
  if block <= feature_dim:
    raise UserError(
      f"a block of the sweep has {block} samples but the extractor {feature_dim} features: the error of FID needs more "
      f"samples than features in each block. Raise sweep.num_samples to {unit * -(-(feature_dim + 1) * settings.num_blocks // unit)} or more."
    )
  return rounded


def provenance(config, settings, *, trained, extractor):
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
    "precision": str(jnp.dtype(trained.model.dtype)),
    "data": trained.data_name,
    "extractor": extractor.name,
    "extractor_sha256": extractor.info["weights_sha256"],
    "checkpoint_hash": trained.checkpoint_hash,
    "num_samples": settings.num_samples,
    "num_blocks": settings.num_blocks,
    "cfg_version": cfg.__version__,
  }


def fingerprint(about):
  """A short hash of the provenance: rows of one folder are of one experiment."""
  return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]


def read_row(folder, w):
  """The finished row of strength w, or None; without its pictures it is not finished."""
  path = folder / f"{report.strength_name(w)}.json"
  return json.loads(path.read_text(encoding="utf-8")) if path.exists() and path.with_suffix(".npz").exists() else None


def measure_references(judge, *, dataset, batch_size):
  """{"train", "heldout"}: SampleStatistics of the real images."""
  return {
    "train": judge.measure(dataset.train, batch_size=batch_size),
    "heldout": judge.measure(dataset.heldout, batch_size=batch_size),
  }


def measure(settings, w, *, trained, judge, sampler, references, on_images):
  """One strength: (row, kept pictures). Statistics stream; only the kept pictures leave the devices."""
  index = np.arange(settings.num_samples)
  labels = index % trained.model.num_classes
  block_of = index // (settings.num_samples // settings.num_blocks)
  blocks = [judge.empty()] * settings.num_blocks
  keep = min(settings.num_samples, KEPT)
  pictures = []

  for rows, batch in sampler.batches(trained.params, index=index, labels=labels, w=w, seed=settings.seed):
    count = rows.stop - rows.start
    features, probs = judge(batch, count=count)
    for block in np.unique(block_of[rows]):
      mine = block_of[rows] == block
      part = statistics.SampleStatistics.of(features=features[mine], probs=probs[mine], labels=labels[rows][mine])
      blocks[block] = blocks[block].merge(part)
    if rows.start < keep:
      pictures.append(np.asarray(batch)[: min(count, keep - rows.start)])
    on_images(rows.stop)

  values = metrics.summarise(blocks, train=references["train"].features, heldout=references["heldout"].features)
  return {"w": float(w), "scale": 1.0 + float(w), **values, "nfe": sampler.nfe}, np.concatenate(pictures)


def heldout_row(references, extractor):
  """The real held-out images, judged as samples are: what so many fresh draws from the data get."""
  heldout = references["heldout"]
  return {
    "name": "real held-out images",
    "fid": metrics.frechet_or_none(heldout.features, references["train"].features),
    "inception_score": metrics.inception_score(heldout.classes),
    "label_accuracy": heldout.correct / heldout.count,
    "num_samples": heldout.count,
    "extractor": extractor.name,
  }
