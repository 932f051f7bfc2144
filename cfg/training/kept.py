"""What a dry run found, kept: compiling for a TPU takes a quarter of an hour."""

import hashlib
import importlib.metadata
import json
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from cfg.base import files, runtime

PACKAGE = pathlib.Path(__file__).parents[1]
# what decides a compiled program beside this package
DECIDES = ("jax", "jaxlib", "libtpu", "jax-cuda12-plugin", "flax", "optax")
log = logging.getLogger(__name__)


def result(question: Mapping[str, Any], compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
  """The answer to `question` (JSON values) that is kept for this code and these versions, or what
  `compute` gives, which is kept then: <user's cache>/cfg/dry_run/<hash>.json.
  """
  cache = runtime.cache_dir()
  if cache is None:
    return compute()
  file = cache.parent / "dry_run" / f"{fingerprint(question)}.json"
  try:
    found = files.read_json(file)
  except FileNotFoundError:
    pass
  except (OSError, ValueError) as e:
    log.warning("%s cannot be read (%s): it is made anew", file, e)
  else:
    log.info("compiled before: %s", file)
    return found
  found = compute()
  file.parent.mkdir(parents=True, exist_ok=True)
  files.write_json(file, found)
  return found


def fingerprint(question: Mapping[str, Any]) -> str:
  """A hash of the question, of the versions of what compiles, and of this package's code."""
  digest = hashlib.sha256(json.dumps([question, versions()], sort_keys=True).encode())
  for source in sorted(PACKAGE.rglob("*.py")):
    digest.update(str(source.relative_to(PACKAGE)).encode())
    digest.update(source.read_bytes())
  return digest.hexdigest()[:24]


def versions() -> dict[str, str]:
  """{package: version} of what compiles, as far as it is installed."""
  found = {}
  for name in DECIDES:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
      continue
  return found
