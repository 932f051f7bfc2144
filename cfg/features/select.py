"""The feature extractors that a config asks for, by role."""

import functools

from cfg.base import hosts
from cfg.base.errors import UserError
from cfg.features import inception, judge_files
from cfg.features.extractor import Extractor, beside

# in the order of rows and tables; a further extractor is a line here
SOURCES = (inception.SOURCE, judge_files.SOURCE)


def extractors(config, *, dataset, workdir) -> tuple[Extractor, ...]:
  """Those that the config asks for, their metrics under different names.

  Raises:
    UserError: as `check`; a file that cannot be used; a judge that is not accurate enough.
  """
  check(config, dataset=dataset)
  given = dict(dataset=dataset, workdir=workdir)
  loaded = [
    hosts.writer_first(functools.partial(source.load, config, **given))
    for source in _wanted(config)
  ]
  weights = {extractor.name: extractor.info["weights_sha256"] for extractor in loaded}
  hosts.check_equal(weights, what="what they measure in")
  return beside(loaded)


def outlines(config, *, dataset) -> tuple[Extractor, ...]:
  """The same as far as they are known before a judge is trained: dimensions and metrics."""
  check(config, dataset=dataset)
  return beside(source.outline(config, dataset=dataset) for source in _wanted(config))


def check(config, *, dataset) -> None:
  """Raise UserError if there is nothing to measure in, or an extractor is not for such images."""
  if not _wanted(config):
    remedies = ", or ".join(source.remedy for source in SOURCES)
    raise UserError(f"there is no network to measure samples in: {remedies}.")
  for source in _wanted(config):
    source.check(config, dataset=dataset)


def _wanted(config):
  return [source for source in SOURCES if source.wanted(config)]
