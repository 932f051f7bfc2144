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
from cfg import runtime
runtime.start(cpu_devices=3, recompute={recompute})
import jax, os
jax.jit(lambda x: x @ x + 1)(jax.numpy.ones((8, 8))).block_until_ready()
print(jax.device_count(), os.environ.get("XLA_FLAGS", ""), jax.config.jax_compilation_cache_dir, sep="|")
"""


def start(recompute=False, **env):
  """What a fresh process sees after runtime.start: [devices, flags, cache]."""
  kept = {
    k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")
  }
  done = subprocess.run(
    [sys.executable, "-c", CODE.format(recompute=recompute)],
    capture_output=True,
    text=True,
    cwd=ROOT,
    env={**kept, **env},
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
  mine = "--xla_force_host_platform_device_count=2 --xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_CONCURRENCY_OPTIMIZED"
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
