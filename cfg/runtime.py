"""Starting jax: virtual CPU devices, XLA's flags, and the cache of compiled programs. Called before anything uses a device."""

import hashlib
import os
import pathlib
import platform

import jax

# XLA's other scheduler runs recomputation early: it takes half as much memory again, and
# makes remat useless, for no speed that could be measured here (benchmarks/README.md)
CPU_FLAGS = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"


def start(*, cpu_devices, distributed=False):
  """Where jax finds only a CPU, give it so many virtual devices; keep compiled programs for the next run.

  With `distributed`, join the other processes of a TPU slice, a SLURM job or an MPI run, as jax finds them. What is already set in XLA_FLAGS or JAX_COMPILATION_CACHE_DIR stays.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_cpu_scheduler_type" not in flags:
    os.environ["XLA_FLAGS"] = f"{flags} {CPU_FLAGS}".strip()
  if "xla_force_host_platform_device_count" not in flags:
    jax.config.update("jax_num_cpu_devices", cpu_devices)
  if jax.config.jax_compilation_cache_dir is None:
    jax.config.update("jax_compilation_cache_dir", str(cache_dir()))
  if distributed:
    jax.distributed.initialize()


def cache_dir():
  """<user's cache>/cfg/xla-<processor>: a program compiled for one processor may not run on another."""
  home = pathlib.Path(os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache")
  return home / "cfg" / f"xla-{_processor()}"


def _processor():
  try:
    text = pathlib.Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
  except OSError:
    text = platform.processor()
  facts = sorted({line for line in text.splitlines() if line.startswith(("model name", "flags", "Features", "CPU part"))}) or [text]
  return hashlib.sha256("\n".join([platform.machine(), *facts]).encode()).hexdigest()[:12]
