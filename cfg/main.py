"""python -m cfg.main --config=configs/digits.py [--mode=...] [--workdir=...] [--config.seed=...]

Without --config, the config is that of the network in --workdir. The options are absl's flags:
--name=value or --name value, --flag or --noflag. The other commands (cfg.evaluate,
cfg.data.prepare, cfg.interop.*) read theirs with argparse.
"""

import logging
import math
import os
import pathlib
import sys
from collections.abc import Callable
from typing import NamedTuple

import absl.logging
from absl import flags

from cfg.base import cli, hosts, supervise
from cfg.base.errors import UserError, run_command
from cfg.base.paths import check_reached, user_path, workdir_path

log = logging.getLogger("cfg.main")  # __name__ is "__main__" here

WORKDIR_CONFIG = pathlib.Path(__file__).parent / "inference/workdir_config.py"


class Run(NamedTuple):
  """What a mode works with: the config, the mesh, and the work directory, None for a dry run."""

  config: object
  mesh: object
  workdir: pathlib.Path | None


class Mode(NamedTuple):
  """What --mode=<name> does.

  Attributes:
    run: does it.
    workdir: "make" the work directory if it is not there, "read" one that is, or "none".
    help: in a line.
  """

  run: Callable[[Run], None]
  workdir: str
  help: str


def train_and_sweep(run):
  """--mode=all."""
  from cfg.sweep import run as sweep

  dataset = load_data(run)
  sweep.check(run.config, dataset=dataset, mesh=run.mesh)  # now, not after days of training
  train_on(run, dataset)
  sweep_on(run, dataset)


def train(run):
  """--mode=train."""
  train_on(run, load_data(run))
  say_where(run)


def sweep(run):
  """--mode=sweep."""
  sweep_on(run, load_data(run))


def sample(run):
  """--mode=sample."""
  from cfg.inference import pictures, program
  from cfg.report import table

  w = pictures.parse_strength(w=W.value, scale=SCALE.value)
  out = pictures.sample(
    run.config,
    mesh=run.mesh,
    workdir=run.workdir,
    labels=LABEL.value,
    num=NUM.value,
    w=w,
    seed=SEED.value,
    ema=EMA.value,
    out=out_path(),
  )
  strength = program.strength_facts(program.make_rule(run.config, null_label=0), w)
  said = table.strength_text(strength)
  say(f"{said}: pictures, grid.png and samples.json are in {out}")


def export(run):
  """--mode=export."""
  from cfg.inference import weights_file

  out = out_path() or run.workdir / "weights.safetensors"
  exported = weights_file.export(run.workdir, out, ema=EMA.value, half=HALF.value)
  say(
    f"{out}: the EMA of decay {exported.ema_decay:g} at step {exported.step}, hash "
    f"{exported.weights_sha256[:12]}"
  )


def reproduce(run):
  """--mode=reproduce."""
  from cfg.training import not_finite

  step, found = not_finite.reproduce(
    run.config, dataset=load_data(run), mesh=run.mesh, workdir=run.workdir
  )
  say(f"step {step}: {found}")


def dry_run(run):
  """--mode=dry_run."""
  from cfg.training import dry_run

  dry_run.check(run.config)
  given = dict(mesh=run.mesh, memory_gb=MEMORY_GB.value)
  if TOPOLOGY.value:
    from cfg.base import config as config_lib
    from cfg.base import sharding
    from cfg.training import chips, kept

    topology = chips.find(TOPOLOGY.value)
    mesh = sharding.make_mesh(chips.devices(topology), fsdp=run.config.train.fsdp)
    given |= dict(topology=topology, mesh=mesh)
    question = dict(
      config=config_lib.to_json(run.config), topology=TOPOLOGY.value, memory_gb=MEMORY_GB.value
    )

    def compute():
      log.info("compiling for %s: %s", TOPOLOGY.value, chips.EXPECT[topology.platform])
      return dry_run.dry_run(run.config, **given)

    cost = kept.result(question, compute)
  else:
    cost = dry_run.dry_run(run.config, **given)
  say(dry_run.table(cost))


MODES = {
  "all": Mode(train_and_sweep, "make", "train, then sweep the guidance strength"),
  "train": Mode(train, "make", "train, or go on training"),
  "sweep": Mode(sweep, "read", "FID and the rest of a trained network against w"),
  "sample": Mode(sample, "read", "pictures of chosen classes"),
  "export": Mode(export, "read", "the weights as safetensors"),
  "reproduce": Mode(reproduce, "read", "the step whose loss was not finite, looked at again"),
  "dry_run": Mode(dry_run, "none", "what training costs, without training"),
}

CONFIG = cli.define_config(
  "config", "A file of configs/; override fields as --config.train.batch_size=64."
)
MODE = flags.DEFINE_enum(
  "mode", "all", list(MODES), "; ".join(f"{name}: {mode.help}" for name, mode in MODES.items())
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where everything goes. Default: runs/<name of the config file>."
)
LABEL = flags.DEFINE_string(
  "label",
  "",
  "sample: classes by name or number, comma-separated; a name that has a comma itself stands alone "
  "or in doubled quotes: --label='\"crane, bird\",7'. Default: the first ten.",
)
NUM = flags.DEFINE_integer("num", 8, "sample: how many of each class.")
W = flags.DEFINE_float(
  "w", None, "sample: the paper's guidance strength; 0 is unguided. Default: 1."
)
SCALE = flags.DEFINE_float("scale", None, "sample: the same as others write it, scale = 1 + w.")
SEED = flags.DEFINE_integer(
  "seed", 0, "sample: seed of the noise, 0 to 2^32 - 1.", lower_bound=0, upper_bound=2**32 - 1
)
EMA = flags.DEFINE_float(
  "ema", None, "sample, export: which average of the parameters, by decay. Default: the first."
)
OUT = flags.DEFINE_string(
  "out",
  None,
  "sample: folder for the pictures; default <workdir>/samples/w<w>_seed<seed>. export: the file; "
  "default <workdir>/weights.safetensors.",
)
HALF = flags.DEFINE_bool("half", False, "export: in float16, in half the space.")
DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "This process is one of several, on a TPU slice, under Slurm or MPI, in a Kubernetes job, or of "
  "launch/local.sh: find the others first.",
)
WAIT_FOR_HOSTS = flags.DEFINE_float(
  "wait_for_hosts",
  100.0,
  "distributed: seconds until a process that has not come is missing. More where they start at "
  "different times.",
  lower_bound=0.0,
)
TOPOLOGY = flags.DEFINE_string(
  "topology",
  None,
  "dry_run: compile for chips that are not there: v4-32, v5e-8, v5p-16, v6e-8, h100, h100x8, ...",
)
MEMORY_GB = flags.DEFINE_float(
  "memory_gb", None, "dry_run: memory of one device in 1e9 bytes. Default: what it has."
)
flags.register_validator(
  "memory_gb", lambda gb: gb is None or 0 < gb < math.inf, message="it must be above 0"
)


def main() -> None:
  """Parse the flags, start jax, run the mode."""
  cli.parse_flags(sys.argv, workdir_config=WORKDIR_CONFIG)
  if DISTRIBUTED.value:
    supervise.in_child()
  mode = MODES[MODE.value]
  config = CONFIG.value
  if TOPOLOGY.value:
    if MODE.value != "dry_run":
      raise UserError(f"--topology is for --mode=dry_run, not {MODE.value}: leave it out.")
    os.environ["JAX_PLATFORMS"] = "cpu"  # its devices are made up
  import_jax()
  check_config(config)
  workdir = None if mode.workdir == "none" else find_workdir(create=mode.workdir == "make")
  from cfg.base import preflight, sharding

  with hosts.noticing_loss():
    start_devices(config)
    if workdir is not None:
      preflight.check_shared(workdir)
    mesh = sharding.make_mesh(fsdp=config.train.fsdp)
    mode.run(Run(config=config, mesh=mesh, workdir=workdir))


def import_jax() -> None:
  """Import jax, and with it most of cfg: after the flags, since it takes longer than --help or a
  mistyped option should.
  """
  try:
    import jax  # noqa: F401
  except ValueError as e:
    raise UserError(
      f"jax cannot start: {e}. It reads environment variables (JAX_...): change or unset that one."
    ) from e
  from cfg.base import progress

  progress.to_stderr()


def check_config(config) -> None:
  """Write out the paths in a config. Raise UserError if no run could use it."""
  from cfg.base import config as config_lib
  from cfg.base import fields

  # what an import or an older version wrote into a work directory may lack fields
  if not loaded_from_workdir():
    fields.check_complete(config)
  config_lib.check_values(config)
  fields.expand_paths(config)


def loaded_from_workdir() -> bool:
  """Whether the config is the work directory's own."""
  name, _ = cli.split_config(flags.FLAGS["config"].config_filename)
  return pathlib.Path(name) == WORKDIR_CONFIG


def find_workdir(*, create: bool) -> pathlib.Path:
  """The work directory; made if it is not there, where a mode may start one."""
  name, _ = cli.split_config(flags.FLAGS["config"].config_filename)
  workdir = workdir_path(WORKDIR.value or f"runs/{pathlib.Path(name).stem}", name="--workdir")
  check_reached(workdir, name="--workdir", write=create)
  if not create and not workdir.is_dir():
    raise UserError(
      f"there is no work directory {str(workdir)!r}: train first (--mode=train), or give the "
      f"--workdir of a trained model."
    )
  try:
    workdir.mkdir(parents=True, exist_ok=True)
  except OSError as e:
    raise UserError(
      f"--workdir {str(workdir)!r} cannot be made ({e.strerror}): choose another."
    ) from e
  return workdir


def out_path() -> pathlib.Path | None:
  """--out, if it was given."""
  return user_path(OUT.value, name="--out") if OUT.value else None


def start_devices(config):
  """Start jax as the config says."""
  from cfg.base import preflight, progress, runtime

  devices = runtime.start(
    cpu_devices=config.cpu_devices,
    recompute=config.model.remat,
    together=preflight.facts(config) if DISTRIBUTED.value else None,
    wait_s=WAIT_FOR_HOSTS.value,
  )
  if not hosts.is_writer():
    progress.only_warnings(f"process {hosts.index()}: ")
  several = f" of {hosts.count()} processes" if hosts.count() > 1 else ""
  log.info("%d devices%s: %s", len(devices), several, devices[0].device_kind)


def load_data(run):
  """The data set of a config, the same at all processes."""
  from cfg.data import sources

  with hosts.together():
    dataset = sources.load(run.config.data)
  hosts.check_equal({"name": dataset.name, **dataset.identity}, what="their data")
  return dataset


def train_on(run, dataset):
  """Train on a data set."""
  from cfg.training import loop

  loop.train(run.config, dataset=dataset, mesh=run.mesh, workdir=run.workdir)


def sweep_on(run, dataset):
  """Sweep with a data set's references, and print what it found."""
  from cfg.report import page
  from cfg.sweep import run as sweep

  content = sweep.sweep(run.config, dataset=dataset, mesh=run.mesh, workdir=run.workdir)
  say(page.text(content))
  say_where(run)


def say(text):
  """Print a result, once."""
  if hosts.is_writer():
    print(text)


def say_where(run):
  """What is in the work directory."""
  visible = sorted(path.name for path in run.workdir.iterdir() if not path.name.startswith("."))
  say(f"everything is in {run.workdir}: {', '.join(visible)}")


def run() -> None:
  """Entry point."""
  # what libraries log as errors they raise as well
  absl.logging.set_verbosity(absl.logging.FATAL)
  with hosts.parting():
    run_command(main)


if __name__ == "__main__":
  run()
