"""Starting jax: virtual CPU devices, XLA's flags, and the cache of compiled programs. Called before
anything uses a device.
"""

import hashlib
import os
import pathlib
import platform

import jax

# a training step takes two thirds of the memory that it takes under XLA's default scheduler, for
# no speed that could be measured; but it undoes recomputation (benchmarks/README.md, Memory)
CPU_SCHEDULER = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
# since when the default scheduler puts off recomputation until it is needed
LATE_RECOMPUTATION = (0, 11)


def start(*, cpu_devices, recompute=False, distributed=False):
  """Where jax finds only a CPU, give it so many virtual devices; keep compiled programs for the
  next run.

  With `recompute` (model.remat) a CPU's scheduler is the one that lets recomputation save memory.
  With `distributed`, join the other processes of a TPU slice, a SLURM job or an MPI run, as jax
  finds them. What is already set in XLA_FLAGS or JAX_COMPILATION_CACHE_DIR stays.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_cpu_scheduler_type" not in flags and not (
    recompute and jax.__version_info__ >= LATE_RECOMPUTATION
  ):
    os.environ["XLA_FLAGS"] = f"{flags} {CPU_SCHEDULER}".strip()
  if "xla_force_host_platform_device_count" not in flags:
    jax.config.update("jax_num_cpu_devices", cpu_devices)
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
  if distributed:
    jax.distributed.initialize()


def cores():
  """How many virtual devices make the best of this machine's CPU: one for each core that this
  process may use, at most 8.
  """
  usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return min(8, usable)


def cache_dir():
  """<user's cache>/cfg/xla-<processor>: a program compiled for one processor may not run on
  another.
  """
  home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  return home / "cfg" / f"xla-{_processor()}"


def _processor():
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
  except OSError:
    text = platform.processor()
  facts = sorted(
    {
      line
      for line in text.splitlines()
      if line.startswith(("model name", "flags", "Features", "CPU part"))
    }
  ) or [text]
  return hashlib.sha256("\n".join([platform.machine(), *facts]).encode()).hexdigest()[:12]
