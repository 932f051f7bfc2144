"""Starting jax: virtual CPU devices, XLA's flags, the cache of compiled programs, and settings that
would change what a run computes. Called before anything uses a device.
"""

import hashlib
import logging
import os
import pathlib
import platform

import jax

from cfg.base.errors import UserError

log = logging.getLogger(__name__)

# a training step takes two thirds of the memory that it takes under XLA's default scheduler, for
# no speed that could be measured; but it undoes recomputation (benchmarks/README.md, Memory)
CPU_SCHEDULER = "--xla_cpu_scheduler_type=CPU_SCHEDULER_TYPE_MEMORY_OPTIMIZED"
# since when the default scheduler puts off recomputation until it is needed
LATE_RECOMPUTATION = (0, 11)
# a run is a function of (config, seed, step): jax's settings that would make it another one
FIXED = {
  "jax_enable_x64": False,
  "jax_default_prng_impl": "threefry2x32",
  "jax_threefry_partitionable": True,
  "jax_random_seed_offset": 0,
  "jax_numpy_dtype_promotion": "standard",
}
# settings that are left, and what they do
REPORTED = {
  "jax_default_matmul_precision": "the last digits of every number differ from those without it",
  "jax_disable_jit": "nothing is compiled, and everything takes hundreds of times as long",
  "jax_debug_nans": "every result is waited for, and the first NaN ends the run with a traceback",
  "jax_debug_infs": "every result is waited for, and the first infinity ends the run",
}


def start(
  *, cpu_devices: int, recompute: bool = False, distributed: bool = False
) -> list[jax.Device]:
  """Start jax's devices, and keep compiled programs for the next run; returns the devices.

  Args:
    cpu_devices: how many virtual devices a CPU is split into. The user's own number
      (JAX_NUM_CPU_DEVICES, or XLA_FLAGS) goes first.
    recompute: model.remat; a CPU's scheduler is then the one that lets recomputation save memory.
    distributed: join the other processes of a TPU slice, a SLURM job or an MPI run, as jax finds
      them.

  XLA_FLAGS and JAX_COMPILATION_CACHE_DIR stay as they are set. The settings in FIXED are put back
  where the environment has others, and the log says so.

  Raises:
    UserError: there is no such platform (JAX_PLATFORMS), or no other process.
  """
  flags = os.environ.get("XLA_FLAGS", "")
  if "xla_cpu_scheduler_type" not in flags and not (
    recompute and jax.__version_info__ >= LATE_RECOMPUTATION
  ):
    os.environ["XLA_FLAGS"] = f"{flags} {CPU_SCHEDULER}".strip()
  if "xla_force_host_platform_device_count" not in flags:
    split_cpu(cpu_devices)
  if jax.config.jax_compilation_cache_dir is None and (folder := cache_dir()):
    jax.config.update("jax_compilation_cache_dir", str(folder))
  fix_settings()
  if distributed:
    join_processes()
  return find_devices()


def split_cpu(count: int) -> None:
  """Let a CPU be `count` devices, or what JAX_NUM_CPU_DEVICES says.

  Raises:
    UserError: it says 0 or less.
  """
  if "JAX_NUM_CPU_DEVICES" not in os.environ:
    jax.config.update("jax_num_cpu_devices", count)
    return
  own = jax.config.jax_num_cpu_devices
  if own < 1:
    raise UserError(f"JAX_NUM_CPU_DEVICES is {own}: it must be at least 1. Unset or change it.")
  if own != count:
    log.info("%d CPU devices, as JAX_NUM_CPU_DEVICES says (cpu_devices is %d)", own, count)


def fix_settings() -> None:
  """Put back the settings of FIXED, and say what others are set; each in the log."""
  for name, value in FIXED.items():
    # a setting that this version of jax does not have needs no care
    if (own := getattr(jax.config, name, value)) != value:
      jax.config.update(name, value)
      log.warning(
        "%s=%s is not used, it is set back to %s: a run is a function of its config, seed and step",
        name.upper(),
        own,
        value,
      )
  for name, effect in REPORTED.items():
    if own := getattr(jax.config, name, None):
      log.warning("%s=%s is set: %s", name.upper(), own, effect)


def join_processes() -> None:
  """jax.distributed.initialize. Raises UserError if there are no others to join."""
  try:
    jax.distributed.initialize()
  except (RuntimeError, ValueError) as e:
    raise UserError(
      f"--distributed: this process cannot join any others ({_first_line(e)}): leave the option "
      f"out, or start the command on every host of a TPU slice, SLURM job or MPI run."
    ) from e


def find_devices() -> list[jax.Device]:
  """jax.devices(). Raises UserError if the platform that the environment asks for is not there."""
  try:
    return jax.devices()
  # jax ends in a bare AssertionError where a platform is known and none of it is there
  except (RuntimeError, AssertionError) as e:
    asked = [
      f"{name}={os.environ[name]}"
      for name in ("JAX_PLATFORMS", "JAX_PLATFORM_NAME")
      if os.environ.get(name)
    ]
    what = " and ".join(asked) or "this machine"
    raise UserError(
      f"jax has no device for {what}{f' ({said})' if (said := _first_line(e)) else ''}: unset "
      f"JAX_PLATFORMS to use what is there, or install jax for that device (pip install -e "
      f"'.[cuda]' or '.[tpu]')."
    ) from e


def _first_line(error):
  return str(error).strip().split("\n")[0].removesuffix(".")


def cores() -> int:
  """How many virtual devices make the best of this machine's CPU: one for each core that this
  process may use, at most 8.
  """
  usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
  return min(8, usable)


def cache_dir() -> pathlib.Path | None:
  """<user's cache>/cfg/xla-<processor>: a program compiled for one processor may not run on
  another. None where the user has no home folder, as in some containers.
  """
  own = os.environ.get("XDG_CACHE_HOME")
  try:
    home = pathlib.Path(own) if own else pathlib.Path.home() / ".cache"
  except RuntimeError:
    return None
  return home / "cfg" / f"xla-{_processor()}"


def _processor() -> str:
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
