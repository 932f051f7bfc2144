"""The config of a work directory: `python -m cfg.main --workdir=DIR` without --config loads this
file with the option DIR.
"""

from cfg.base import checkpoint
from cfg.base import config as config_lib
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.base.paths import workdir_path
from cfg.interop import weights


def get_config(workdir: str) -> ConfigDict:
  """The config that the network in `workdir` was made with; fields can be overridden as in any
  config.

  Raises:
    UserError: there is no network.
  """
  folder = workdir_path(workdir, name="--workdir")
  meta = checkpoint.read_meta(folder)
  if meta is None and (folder / weights.NAME).is_file():
    meta = weights.read_meta(folder / weights.NAME)
  if meta is None:
    raise UserError(
      f"there is no network in {str(folder)!r}: give a config, --config=configs/digits.py for "
      f"example, or the --workdir of a trained model."
    )
  return config_lib.from_json(meta.get("config", {}))
