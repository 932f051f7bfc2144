"""Starting jax: virtual CPU devices, XLA's flags, the cache of compiled programs, and settings that
would change what a run computes. Called before anything uses a device.
"""

import collections
import hashlib
import logging
import os
import pathlib
import platform
import re
from collections.abc import Mapping
from typing import Any

import jax

from cfg.base import hosts, rendezvous
from cfg.base.errors import Unavailable, UserError

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


# seconds: how long processes wait for each other at the start, how long one may give no sign of
# life, and how long one that is done waits for the others
MEETING, SIGN_OF_LIFE, PARTING = 100, 60, 3600


def start(
  *,
  cpu_devices: int,
  recompute: bool = False,
  together: Mapping[str, Any] | None = None,
  wait_s: float = MEETING,
) -> list[jax.Device]:
  """Start jax's devices, and keep compiled programs for the next run; returns the devices.

  Args:
    cpu_devices: how many virtual devices a CPU is split into. The user's own number
      (JAX_NUM_CPU_DEVICES, or XLA_FLAGS) goes first.
    recompute: model.remat; a CPU's scheduler is then the one that lets recomputation save memory.
    together: facts that must be the same at all processes of a run, which are joined; None for a
      process of its own.
    wait_s: how many seconds to wait for the other processes.

  XLA_FLAGS and JAX_COMPILATION_CACHE_DIR stay as they are set. The settings in FIXED are put back
  where the environment has others, and the log says so.

  Raises:
    UserError: there is no such platform (JAX_PLATFORMS), or no other process.
    HostGone: some processes did not come.
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
  if together is not None:
    join_processes(together, wait_s=wait_s)
  devices = find_devices()
  check_shares(devices)
  return devices


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


def join_processes(facts: Mapping[str, Any], *, wait_s: float) -> None:
  """Find the other processes of this run, see that they are there and alike, and join them.

  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say who they are, or what jax finds
  on a TPU slice, under Slurm or MPI, or in a Kubernetes job.

  Raises:
    UserError: it is not one of several, or they differ in a fact.
    HostGone: some did not come.
  """
  address, count, index, local_devices = find_processes(wait_s)
  rendezvous.meet(address, index=index, count=count, facts=facts, seconds=wait_s)
  # the loop turns SIGTERM into a save itself; jax's own service would swallow it elsewhere
  jax.config.update("jax_enable_preemption_service", False)
  jax.distributed.initialize(
    address,
    num_processes=count,
    process_id=index,
    local_device_ids=local_devices,
    cluster_detection_method="deactivate",
    initialization_timeout=MEETING,
    heartbeat_timeout_seconds=SIGN_OF_LIFE,
    shutdown_timeout_seconds=PARTING,
  )
  hosts.joined(index=index, count=count)


def find_processes(wait_s: float = MEETING) -> tuple[str, int, int, list[int] | None]:
  """(address of the first process, how many there are, number of this one, the devices of this host
  that are its own or None for all).

  Raises:
    UserError: it is not one of several, as far as can be seen.
  """
  # jax offers what it finds to its own initialize alone
  from jax._src.clusters import ClusterEnv

  address = os.environ.get("JAX_COORDINATOR_ADDRESS")
  count, index = _number("JAX_NUM_PROCESSES"), _number("JAX_PROCESS_ID")
  devices = None
  if None in (address, count, index):
    try:
      address, count, index, devices = ClusterEnv.auto_detect_unset_distributed_params(
        address, count, index, None, None, int(wait_s)
      )
    except (RuntimeError, OSError) as e:  # a name or a service that is not there yet
      raise Unavailable(_alone(_first_line(e) or type(e).__name__)) from e
    except (ValueError, KeyError) as e:
      raise UserError(_alone(_first_line(e) or type(e).__name__)) from e
  if address is None or count is None or index is None:
    raise UserError(_alone("jax finds no cluster"))
  if not 0 <= index < count or not re.fullmatch(r".+:\d{1,5}", address):
    raise UserError(
      f"--distributed: process {index} of {count} at {address!r} cannot be: the numbers go from 0, "
      "and the address is host:port (JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES, JAX_PROCESS_ID)."
    )
  return address, count, index, None if devices is None else list(devices)


def _number(name):
  """The number in an environment variable, or None. Raises UserError if it is none."""
  text = os.environ.get(name)
  if text is None:
    return None
  if not text.isdecimal():
    raise UserError(f"{name} is {text!r}: it must be a number, 0 or more. Unset or change it.")
  return int(text)


def _alone(why):
  """What is said where no other process can be found."""
  return (
    f"--distributed: this process cannot join any others ({why}): leave the option out, or start "
    "the command on every host of a TPU slice, Slurm job, Kubernetes job or MPI run, or with "
    "launch/local.sh (launch/README.md)."
  )


def find_devices() -> list[jax.Device]:
  """jax.devices(). Raises UserError if the platform that the environment asks for is not there."""
  try:
    return jax.devices()
  # jax ends in a bare AssertionError where a platform is known and none of it is there
  except (RuntimeError, AssertionError) as e:
    if hosts.count() > 1 and hosts.is_loss(e):
      raise
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


def check_shares(devices: list[jax.Device]) -> None:
  """Raise UserError unless each process has as many devices as the others."""
  counts = collections.Counter(device.process_index for device in devices)
  for index, count in sorted(counts.items()):
    if count != counts[0]:
      raise UserError(
        f"process {index} of this run has {count} devices, process 0 {counts[0]}: give all of them "
        f"the same number."
      )


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
