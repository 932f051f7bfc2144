"""What the processes of one run must have in common."""

import hashlib
import importlib.metadata
import os
import pathlib
import platform
import sys
import time
import uuid
from typing import Any

from cfg.base import config as config_lib
from cfg.base import files, hosts, trees
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError

# libraries that decide what is computed, and how it is divided
LIBRARIES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "grain")
SEEN_WITHIN = 90.0  # seconds: what network file systems remember of a folder is older
CODE = pathlib.Path(__file__).parents[1]


def facts(config: ConfigDict) -> dict[str, Any]:
  """JSON values that are the same at all processes of a run: versions, code, options, config."""
  values = {f"version of {name}": _version(name) for name in LIBRARIES}
  settings = trees.flatten(config_lib.to_json(config), separator=".")
  return {
    "version of Python": platform.python_version(),
    **values,
    "hash of the code": code_hash(),
    "options": [word for word in sys.argv[1:] if not word.startswith("--config.")],
    "JAX's variables": {
      name: value
      for name, value in sorted(os.environ.items())
      if name.startswith(("JAX_DEFAULT", "JAX_ENABLE", "JAX_DEBUG", "JAX_NUMPY", "JAX_NUM_CPU"))
    },
    **settings,
  }


def code_hash() -> str:
  """SHA-256 of the package's source files, by name and content; the first 16 digits."""
  digest = hashlib.sha256()
  for path in sorted(CODE.rglob("*.py")):
    digest.update(path.relative_to(CODE).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
  return digest.hexdigest()[:16]


def _version(name):
  try:
    return importlib.metadata.version(name)
  except importlib.metadata.PackageNotFoundError:
    return None


def check_shared(workdir: pathlib.Path) -> None:
  """Raise UserError, at all processes, unless they see what the writer writes in `workdir`."""
  if hosts.count() == 1:
    return
  token = hosts.agreed(uuid.uuid4().hex)
  path = workdir / f".shared-{token}"
  with hosts.together():
    files.write_text(path, token)
  with hosts.together():
    end = time.monotonic() + SEEN_WITHIN
    while not path.exists():
      if time.monotonic() > end:
        raise UserError(
          f"the work directory {str(workdir)!r} is not the first process's: give --workdir a "
          "folder that all hosts share, or a bucket."
        )
      time.sleep(0.5)
  if hosts.is_writer():
    path.unlink()
