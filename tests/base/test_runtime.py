"""Starting jax: devices, flags, and a cache that later runs find."""

import os
import pathlib
import subprocess
import sys

import jax
import paths
import pytest

from cfg.base import runtime

ROOT = paths.ROOT
CODE = """
from cfg.base import runtime
runtime.start(cpu_devices=3, recompute={recompute})
import jax, os
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
cache = jax.config.jax_compilation_cache_dir
print(jax.device_count(), os.environ.get("XLA_FLAGS", ""), cache, sep="|")
"""


def environment(**env):
  """This process's environment without what it sets for jax, and with `env`."""
  ours = ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
  return {**{name: value for name, value in os.environ.items() if name not in ours}, **env}


def start(recompute=False, **env):
  """What a fresh process sees after runtime.start: [devices, flags, cache]."""
  done = subprocess.run(
    [sys.executable, "-c", CODE.format(recompute=recompute)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment(**env),
    check=True,
  )
  return done.stdout.strip().split("|")


@pytest.mark.smoke
def test_defaults_and_what_the_user_set(tmp_path):
  """So many devices, the scheduler that saves memory, a cache in the user's folder with programs in
  it; the user's settings stay.
  """
  devices, flags, cache = start(
    XDG_CACHE_HOME=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0"
  )
  assert devices == "3" and flags == "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
  assert pathlib.Path(cache).parent == tmp_path / "cfg" and any(pathlib.Path(cache).iterdir())
  _, flags, _ = start(recompute=True, XDG_CACHE_HOME=str(tmp_path))
  assert (flags == "") == (jax.__version_info__ >= (0, 11))
  mine = (
    "--xla_force_host_platform_device_count=2 "
    "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"
  )
  devices, flags, cache = start(XLA_FLAGS=mine, JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
  assert devices == "2" and flags == mine and cache == str(tmp_path / "own")


def test_a_device_for_each_usable_core(monkeypatch):
  """Those that this process may use, at most 8; all where the system does not tell."""
  monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: {0, 3, 5}, raising=False)
  assert runtime.cores() == 3
  monkeypatch.setattr(runtime.os, "sched_getaffinity", lambda pid: set(range(64)))
  assert runtime.cores() == 8
  monkeypatch.delattr(runtime.os, "sched_getaffinity")
  monkeypatch.setattr(runtime.os, "cpu_count", lambda: 4)
  assert runtime.cores() == 4


def test_no_home_no_cache(monkeypatch):
  """A user without a home folder has no cache, and no error."""

  def nobody():
    raise RuntimeError("Could not determine home directory.")

  monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
  monkeypatch.setattr(runtime.pathlib.Path, "home", nobody)
  assert runtime.cache_dir() is None


START = """
import logging
logging.basicConfig(format="%(message)s")
from cfg.base import errors
def command():
  from cfg.base import runtime
  print(len(runtime.start(cpu_devices=3, together={together})))
  import jax
  print(jax.numpy.ones(2).astype(float).dtype, jax.random.key_impl(jax.random.key(0)))
errors.run_command(command)
"""


def fresh(together=None, **env):
  """(exit code, stdout, stderr) of a fresh process that starts jax."""
  done = subprocess.run(
    [sys.executable, "-c", START.format(together=together)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env=environment(**env),
  )
  return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("platform", ["cuda", "nonsense", "cuda,tpu"])
def test_a_platform_that_is_not_there(platform):
  """One line that names the variable; jax's own end is a bare AssertionError for some."""
  code, _, stderr = fresh(JAX_PLATFORMS=platform)
  if code == 0:
    pytest.skip("this machine has such a device")
  (error,) = [line for line in stderr.splitlines() if line.startswith("error:")]
  assert code == 1 and "Traceback" not in stderr
  assert f"JAX_PLATFORMS={platform}" in error and "unset" in error


def test_settings_that_would_change_a_run():
  """They are put back, with a word for each; those that are the user's business are said."""
  code, stdout, stderr = fresh(
    JAX_ENABLE_X64="1",
    JAX_DEFAULT_PRNG_IMPL="rbg",
    JAX_THREEFRY_PARTITIONABLE="0",
    JAX_DEFAULT_MATMUL_PRECISION="highest",
  )
  assert code == 0 and stdout.split() == ["3", "float32", "threefry2x32"], stderr
  for name in ("JAX_ENABLE_X64", "JAX_DEFAULT_PRNG_IMPL", "JAX_THREEFRY_PARTITIONABLE"):
    assert f"{name}=" in stderr
  assert stderr.count("is not used") == 3 and "JAX_DEFAULT_MATMUL_PRECISION=highest" in stderr


def test_the_users_number_of_devices_goes_first():
  """JAX_NUM_CPU_DEVICES, unless it is no number of devices."""
  code, stdout, _ = fresh(JAX_NUM_CPU_DEVICES="5")
  assert code == 0 and stdout.split()[0] == "5"
  code, _, stderr = fresh(JAX_NUM_CPU_DEVICES="0")
  assert code == 1 and "JAX_NUM_CPU_DEVICES is 0" in stderr and "Traceback" not in stderr


def test_distributed_without_others():
  """--distributed on a machine that is alone: one line."""
  code, _, stderr = fresh(together={})
  assert code == 1 and "--distributed" in stderr and "Traceback" not in stderr
