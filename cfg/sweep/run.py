"""The guidance sweep: the same noise at every strength, FID and IS against w, resumable.

Sample i is a function of (weights, seed, i, label, w) and the sampler alone; label i
is i mod the number of classes. Each strength's row is written when it is complete; a
sweep that was killed continues with the batch after the last that was kept.
"""

import functools
import itertools
import logging
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.sharding import Mesh

from cfg.base import files, hosts, lock, paths, sharding
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.data.dataset import Dataset
from cfg.features import references, select
from cfg.features.extractor import Extractor
from cfg.features.references import Measured
from cfg.guidance import MAIN
from cfg.inference import checks, meter, network, program
from cfg.inference.generator import Generator
from cfg.inference.network import Network
from cfg.metrics import summary
from cfg.report import page, table
from cfg.sweep import strength
from cfg.sweep.provenance import fingerprint, provenance, shared
from cfg.sweep.variant import Variant, combinations, within_budget

log = logging.getLogger(__name__)


def sweep(config: ConfigDict, *, dataset: Dataset, mesh: Mesh, workdir) -> dict[str, Any]:
  """Sample and measure every method at its strengths, in every combination of the sweep's axes.

  The table and the pictures are written to `workdir`.

  Returns:
    The content of sweep.json.

  Raises:
    UserError: no usable checkpoint, or settings that cannot give the numbers.
  """
  workdir = paths.as_path(workdir)
  settings = check(config, dataset=dataset, mesh=mesh)
  if settings.num_samples != config.sweep.num_samples:
    log.info(
      "%d samples at each strength instead of %d: %d equal blocks of %d classes",
      settings.num_samples,
      config.sweep.num_samples,
      settings.num_blocks,
      dataset.num_classes,
    )
  network.check_data(workdir, dataset=dataset)
  load = functools.cache(lambda ema: network.load_main(config, workdir=workdir, mesh=mesh, ema=ema))
  drawn = [
    (method, single, network.with_guides(single, load(single.sweep.ema), mesh=mesh))
    for method, single in combinations(config)
  ]
  extractors = select.extractors(config, dataset=dataset, workdir=workdir)
  measured = references.measure_all(
    config, settings, dataset=dataset, extractors=extractors, mesh=mesh, workdir=workdir
  )
  given = dict(config=config, dataset=dataset, mesh=mesh, workdir=workdir)
  meters = meter.of_networks([networks[MAIN] for *_, networks in drawn], **given)
  directions = meter.of_classifiers([networks for *_, networks in drawn], **given)
  variants = []
  for method, single, networks in drawn:
    single = meter.resolved(single, meters.get(networks[MAIN].weights_sha256))
    single = within_budget(single, flops_of(single, networks))
    facts = provenance(single, settings, networks=networks, measured=measured)
    folder = workdir / "sweep" / fingerprint(facts)
    folder.mkdir(parents=True, exist_ok=True)
    variants.append(Variant(method, single, networks, facts, folder))
  combined = references.combined(measured)
  draw_missing(variants, settings, measured=combined, mesh=mesh)
  write = functools.partial(
    report,
    variants,
    settings,
    measured=combined,
    dataset=dataset,
    workdir=workdir,
    by_level={"meters": list(meters.values()), "directions": directions},
  )
  return hosts.writer_first(write)


def flops_of(config: ConfigDict, networks: Mapping[str, Network]) -> dict[str, int] | None:
  """{role: FLOPs of one evaluation}, which only a limit of them asks for."""
  if config.sweep.gflops is None:
    return None
  drawing = network.make_program(config, networks)
  return program.flops_of_calls(drawing, network.parameters(networks))


def report(
  variants: Sequence[Variant],
  settings: ConfigDict,
  *,
  measured: Measured,
  dataset: Dataset,
  workdir: pathlib.Path,
  by_level: Mapping[str, Sequence[Mapping]],
) -> dict[str, Any]:
  """Write what finished rows say, unless it is there; the content of sweep.json.

  `by_level` is what was measured at each level, as page.Report has it.
  """
  rows = [variant.finished(w) for variant in variants for w in variant.strengths]
  content = table.read(workdir)
  if (
    content is not None
    and content["rows"] == rows
    and content.get("meters") == by_level["meters"]
    and content.get("implicit_classifier") == by_level["directions"]
    and all((workdir / name).exists() for name in page.FILES)
  ):
    log.info("the sweep is complete: %s", workdir / "sweep.json")
    return content
  metrics = measured.extractor.metrics
  real = summary.of_reference(measured.heldout, metrics=metrics, train=measured.train)
  series = [
    page.Series(
      rows=[variant.finished(w) for w in variant.strengths],
      pictures={w: files.read_npz(variant.path(w, ".npz"))["images"] for w in variant.strengths},
    )
    for variant in variants
  ]
  return page.write(
    workdir,
    page.Report(
      series=series,
      metrics=metrics,
      about=shared([variant.provenance for variant in variants]),
      real=[{"name": "real held-out images", **real}],
      dataset=dataset,
      paper=variants[0].config.paper,
      **by_level,
    ),
  )


def draw_missing(
  variants: Sequence[Variant], settings: ConfigDict, *, measured: Measured, mesh: Mesh
) -> None:
  """Draw, measure and write every row that is not there, with one compilation for each Variant."""
  asked = [(variant, w) for variant in variants for w in variant.strengths]
  is_there = hosts.agreed([variant.row(w) is not None for variant, w in asked])
  missing = [pair for pair, there in zip(asked, is_there, strict=True) if not there]
  cost = lambda variant, w: sum(program.nfe(variant.program.at(w)).values())
  total = settings.num_samples * sum(cost(variant, w) for variant, w in missing)
  done = 0
  with Progress("sweep", total=total, unit="network evaluations") as progress:
    for variant, group in itertools.groupby(missing, key=lambda pair: pair[0]):
      drawing = variant.program
      generator = Generator(
        drawing, mesh=mesh, batch_size=settings.batch_size, extractor=measured.extractor
      )
      flops = program.flops_of_calls(drawing, network.parameters(variant.networks))
      path = variant.folder / "writer.lock"
      with lock.Lock(path, what="is sweeping this variant") as held:
        for _, w in group:
          calls = generator.nfe(w)
          values, pictures = strength.measure_strength(
            variant,
            w,
            settings=settings,
            measured=measured,
            generator=generator,
            may_write=held.check,
            on_images=functools.partial(
              show, progress, w=w, before=done, evaluations=sum(calls.values())
            ),
          )
          with hosts.together():
            keep_row(variant, w, values, pictures, calls=calls, flops=flops)
          log.info("%s", table.one_line(variant.finished(w), measured.extractor.metrics))
          done += settings.num_samples * sum(calls.values())


def show(progress, count: int, kept: bool, *, w: float, before: int, evaluations: int) -> None:
  """Tell a Progress of `count` images at strength w; kept ones took no time now.

  Args:
    progress: a progress.Progress.
    count: images of this strength that are done.
    kept: whether the last of them were kept by an earlier call.
    w: the strength.
    before: network evaluations of the strengths before.
    evaluations: of the networks for each image.
  """
  done = before + count * evaluations
  if kept:
    progress.skip(done)
  else:
    progress.update(done, w=f"= {w:g}")


def keep_row(
  variant: Variant,
  w: float,
  values: dict,
  pictures: np.ndarray,
  *,
  calls: dict[str, int],
  flops: dict[str, int],
) -> None:
  """Write a strength's pictures and its row, and forget its batches.

  Args:
    variant: what was drawn.
    w: the strength.
    values: its metrics.
    pictures: that are kept.
    calls: {role: evaluations of that network for each image}.
    flops: {role: of one evaluation}.
  """
  costs = {role: rows * flops[role] for role, rows in calls.items()}
  row = {
    **program.strength_facts(variant.program.rule, w),
    **values,
    "nfe": sum(calls.values()),
    **{f"nfe/{role}": rows for role, rows in calls.items()},
    "flops": sum(costs.values()),
    **{f"flops/{role}": cost for role, cost in costs.items()},
    **variant.provenance,
  }
  # the pictures first: a row means that all of its strength is there
  files.write_npz(variant.path(w, ".npz"), {"images": pictures})
  files.write_json(variant.path(w, ".json"), row)
  strength.forget(variant, w)


def check(config: ConfigDict, *, dataset: Dataset, mesh: Mesh) -> ConfigDict:
  """Validate the sweep's settings; cheap, so that it can run before training.

  Returns:
    A copy of them, num_samples rounded up to equal blocks of balanced labels.

  Raises:
    UserError: settings, data or a judge that cannot give the numbers.
  """
  for name in ("evaluations", "gflops"):
    if config.sweep[name] is not None and config.sweep.num_steps:
      raise UserError(
        f"sweep.{name} and sweep.num_steps both say how many steps there are: leave one empty."
      )
  for method, single in combinations(config):
    where = f"methods.{method}.sweep.w" if method else "sweep.w"
    check_strengths(single.sweep.w, where=where)
    checks.check_no_particles(single, "a sweep")
    checks.check(single, single.sweep.w, where=where)
    within_budget(checks.with_some_interval(single))
  settings = check_settings(config.sweep, num_classes=dataset.num_classes, mesh=mesh)
  extractors = select.outlines(config, dataset=dataset)
  for extractor in extractors:
    check_numbers(settings, extractor, num_classes=dataset.num_classes)
  references.check(config, settings, dataset=dataset, extractors=extractors)
  return settings


def check_strengths(strengths: Sequence[float], *, where: str) -> None:
  """Raise UserError unless there are strengths, each w >= -1 and none twice."""
  if (
    not strengths
    or any(not np.isfinite(w) or w < -1 for w in strengths)
    or len(set(strengths)) != len(strengths)
  ):
    raise UserError(
      f"{where} is {tuple(strengths)}: give distinct strengths w >= -1 (w = 0 is unguided, scale "
      f"= 1 + w)."
    )


def check_settings(settings: ConfigDict, *, num_classes: int, mesh: Mesh) -> ConfigDict:
  """A copy of the sweep's settings that makes balanced blocks.

  Raises:
    UserError: settings that no sweep could have.
  """
  sharding.check_batch_size(mesh, "sweep.batch_size", settings.batch_size)
  if settings.num_blocks < 2 or settings.num_samples < 1:
    raise UserError(
      f"sweep.num_samples is {settings.num_samples} with {settings.num_blocks} blocks: errors need "
      f"at least 2 blocks, and samples."
    )
  unit = num_classes * settings.num_blocks
  rounded = settings.copy_and_resolve_references()
  rounded.num_samples = unit * -(-settings.num_samples // unit)
  return rounded


def check_numbers(settings: ConfigDict, extractor: Extractor, *, num_classes: int) -> None:
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
