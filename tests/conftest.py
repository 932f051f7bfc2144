"""Eight virtual CPU devices, strict jax, and the small things that several tests share."""

import json
import os
import subprocess
import sys
import tempfile

import jaxlib

# before jax starts: tests compile more than they run (level 0 halves one and doubles the other)
FLAGS = [
  "--xla_backend_optimization_level=0",
  "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED",
]
# a third less time to compile; later versions do not know the flag, and end
if jaxlib.__version__.startswith("0.10."):
  FLAGS.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(FLAGS))
os.environ.setdefault("JAX_PLATFORMS", "cpu")
# in the environment, so that the programs that tests start check their keys too
os.environ.setdefault("JAX_DEBUG_KEY_REUSE", "1")

# programs that several tests, or the programs they start, compile are compiled once
CACHE = tempfile.TemporaryDirectory(prefix="cfg-tests-")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", CACHE.name)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import jax  # noqa: E402
import paths  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from cfg.base import sharding  # noqa: E402
from cfg.data import sources  # noqa: E402
from configs import digits as digits_config  # noqa: E402


@pytest.fixture
def config():
  """The digits config, small enough for tests: a fresh copy each time."""
  config = digits_config.get_config()
  config.model.ch = 8
  config.model.emb_ch = 16
  config.model.norm_groups = 4
  config.train.batch_size = 16
  config.sampler.num_steps = 4
  return config


@pytest.fixture(scope="session")
def digits():
  """The embedded digits, split as the default config does."""
  return sources.load(digits_config.get_config().data)


@pytest.fixture(scope="session")
def mesh1():
  """A mesh of one device."""
  return sharding.make_mesh(jax.devices()[:1])


@pytest.fixture(scope="session")
def mesh8():
  """A mesh of eight devices."""
  return sharding.make_mesh(jax.devices()[:8])


@pytest.fixture(scope="session")
def cfg_main(tmp_path_factory):
  """cfg_main(*options, cwd=..., **env): `python -m cfg.main` in a process of its own that need not
  import anything first; a subprocess.CompletedProcess.

  jax is imported already: what of the environment it reads then is that of the tests.
  """
  out = str(tmp_path_factory.mktemp("commands") / "last")
  command = [sys.executable, str(paths.TESTS / "command_server.py")]
  env = {**os.environ, "PYTHONPATH": str(paths.ROOT)}
  pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
  with subprocess.Popen(command, env=env, cwd=paths.ROOT, **pipes) as server:

    def run(*options, cwd=paths.ROOT, **env):
      request = dict(argv=list(map(str, options)), cwd=str(cwd), env=env, out=out)
      server.stdin.write(f"{json.dumps(request)}\n")
      server.stdin.flush()
      code = int(server.stdout.readline())
      texts = [open(f"{out}.{name}", encoding="utf-8").read() for name in ("stdout", "stderr")]
      return subprocess.CompletedProcess(request["argv"], code, *texts)

    yield run
    server.stdin.close()
