"""python -m cfg.main --config=configs/digits.py [--mode=...] [--workdir=...] [--config.section.field=value]

Without --config, the config is that of the network in --workdir.
"""

import logging
import pathlib
import sys

import absl.logging
from absl import app, flags
from ml_collections import config_flags

from cfg.base import config as config_lib
from cfg.base import progress
from cfg.base.errors import UserError, run_command

log = logging.getLogger("cfg.main")  # __name__ is "__main__" here

MODES = ("all", "train", "sweep", "sample", "export", "dry_run")

CONFIG = config_flags.DEFINE_config_file(
  "config", None, "A file of configs/; override fields as --config.train.batch_size=64."
)
MODE = flags.DEFINE_enum(
  "mode",
  "all",
  MODES,
  "all: train, then sweep the guidance strength. export: weights as safetensors. dry_run: what "
  "training costs, without training.",
)
WORKDIR = flags.DEFINE_string(
  "workdir", None, "Where everything goes. Default: runs/<name of the config file>."
)
LABEL = flags.DEFINE_list(
  "label", [], "sample: classes by name or number, comma-separated. Default: the first ten."
)
NUM = flags.DEFINE_integer("num", 8, "sample: how many of each class.")
W = flags.DEFINE_float(
  "w", None, "sample: the paper's guidance strength; 0 is unguided. Default: 1."
)
SCALE = flags.DEFINE_float("scale", None, "sample: the same as others write it, scale = 1 + w.")
SEED = flags.DEFINE_integer("seed", 0, "sample: seed of the noise.")
EMA = flags.DEFINE_float(
  "ema", None, "sample, export: which average of the parameters, by decay. Default: the first."
)
OUT = flags.DEFINE_string(
  "out",
  None,
  "sample: folder for the pictures; default <workdir>/samples/w<w>_seed<seed>. export: the file; "
  "default <workdir>/weights.safetensors.",
)
DISTRIBUTED = flags.DEFINE_bool(
  "distributed",
  False,
  "This process is one of several, on a TPU slice or under SLURM: find the others first.",
)
MEMORY_GB = flags.DEFINE_float(
  "memory_gb", None, "dry_run: memory of one device in 1e9 bytes. Default: what it has."
)


def main(argv):
  if len(argv) > 1:
    raise UserError(f"unexpected argument {argv[1]!r}: options are written --name=value.")
  config = CONFIG.value
  workdir = None if MODE.value == "dry_run" else find_workdir(create=MODE.value in ("all", "train"))
  start_devices(config)
  # after start_devices: these import jax
  from cfg.base import sharding
  from cfg.data import sources
  from cfg.inference import network as trained
  from cfg.inference import pictures
  from cfg.report import table
  from cfg.sweep import run as sweep
  from cfg.training import dry_run, loop

  mesh = sharding.make_mesh(fsdp=config.train.get("fsdp", 1))
  if MODE.value == "dry_run":
    dry_run.check(config)
    print(dry_run.table(dry_run.dry_run(config, mesh=mesh, memory_gb=MEMORY_GB.value)))
    return
  if MODE.value == "sample":
    w = pictures.parse_strength(w=W.value, scale=SCALE.value)
    out = pictures.sample(
      config,
      mesh=mesh,
      workdir=workdir,
      labels=LABEL.value,
      num=NUM.value,
      w=w,
      seed=SEED.value,
      ema=EMA.value,
      out=OUT.value,
    )
    print(f"w = {w:g} (scale = {1 + w:g}): pictures, grid.png and samples.json are in {out}")
    return
  if MODE.value == "export":
    out = OUT.value or workdir / "weights.safetensors"
    network = trained.export(workdir, out, ema=EMA.value)
    print(
      f"{out}: the EMA of decay {network.ema} at step {network.step}, hash "
      f"{network.checkpoint_hash[:12]}"
    )
    return
  dataset = sources.load(config.data)
  if MODE.value == "all":
    sweep.check(config, dataset=dataset, mesh=mesh)  # now, not after days of training
  if MODE.value in ("all", "train"):
    loop.train(config, dataset=dataset, mesh=mesh, workdir=workdir)
  if MODE.value in ("all", "sweep"):
    content = sweep.sweep(config, dataset=dataset, mesh=mesh, workdir=workdir)
    print(table.table(content))
  print(
    f"everything is in {workdir}: "
    f"{', '.join(sorted(p.name for p in workdir.iterdir() if not p.name.startswith('.')))}"
  )


def find_workdir(*, create):
  """The work directory; made if it is not there, where a mode may start one."""
  workdir = pathlib.Path(
    WORKDIR.value or f"runs/{pathlib.Path(flags.FLAGS['config'].config_filename).stem}"
  )
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


def start_devices(config):
  """Start jax as the config says."""
  import jax

  from cfg.base import runtime

  runtime.start(
    cpu_devices=config.cpu_devices, recompute=config.model.remat, distributed=DISTRIBUTED.value
  )
  hosts = f" on {jax.process_count()} hosts" if jax.process_count() > 1 else ""
  log.info("%d devices%s: %s", jax.device_count(), hosts, jax.devices()[0].device_kind)


def config_of_workdir(argv):
  """Where --workdir is given without --config, insert the --config that loads that directory's own."""
  values = lambda name: [
    a.split("=", 1)[1] for a in argv[1:] if a.lstrip("-").startswith(f"{name}=")
  ]
  if values("workdir") and not values("config") and not {"--help", "--helpfull"} & set(argv):
    argv.insert(
      1, f"--config={pathlib.Path(__file__).with_name('workdir_config.py')}:{values('workdir')[-1]}"
    )


def parse_flags(argv):
  """absl's parser; what is wrong with an option is said in one line, with the nearest name where it
  has one.
  """
  app.define_help_flags()
  try:
    config_of_workdir(argv)
    rest = flags.FLAGS(argv)
    if flags.FLAGS["config"].value is None:
      raise UserError(
        "give a config, --config=configs/digits.py for example (--help lists the options)."
      )
    config_lib.check_values(CONFIG.value)
    return rest
  except flags.Error as e:
    raise UserError(f"{e}. --help lists the options.") from e
  except (AttributeError, KeyError, TypeError) as e:
    said = " ".join(str(e.args[0]).replace("\\n", ". ").replace("\\", "").split()).strip("'")
    raise UserError(
      f"a --config.* option names no field of the config, or not one of that type: {said} The "
      f"config file lists them all."
    ) from e
  except (OSError, ImportError, SyntaxError) as e:
    name = flags.FLAGS["config"].config_filename
    said = str(e).split("Failed loading config file ")[-1]
    raise UserError(
      f"the config file {name!r} cannot be loaded ({' '.join(said.split())}): give the path of a "
      f"file of configs/."
    ) from e


def run():
  """Entry point."""
  progress.to_stderr()
  absl.logging.set_verbosity(absl.logging.ERROR)
  run_command(lambda: main(parse_flags(sys.argv)))


if __name__ == "__main__":
  run()
