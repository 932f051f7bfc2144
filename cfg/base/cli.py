"""The command line of cfg.main: absl's flags, and a config file found, loaded and overridden.

Whatever is wrong with an option or a config file is one paragraph, a UserError.
"""

import contextlib
import inspect
import pathlib
import re
import sys
import traceback
import types
from collections.abc import Iterator

import ml_collections
from absl import app, flags
from ml_collections import config_dict, config_flags

from cfg.base import defaults
from cfg.base.errors import UserError, nearest
from cfg.base.paths import user_path, workdir_path

# --help lists --config among the options of the module that calls define_config
flags.disclaim_key_flags()

# options after which nothing is run
HELP = frozenset({"help", "helpshort", "helpfull", "helpxml", "?"})
# the command line in which ml_collections looks for overrides; filled by `parse_flags`
_ARGV: list[str] = []


class ConfigParser(flags.ArgumentParser):
  """`load_config` as absl's parser of --config."""

  def parse(self, argument: str) -> ml_collections.ConfigDict:
    return load_config(argument)

  def flag_type(self) -> str:
    return "config file"


def define_config(name: str, help_string: str) -> flags.FlagHolder:
  """Define --<name>=FILE, whose fields --<name>.section.field=value overrides."""
  holder = config_flags.DEFINE_config_file(name, None, help_string, sys_argv=_ARGV)
  # ml_collections' own parser imports nothing from beside the file, and hides what went wrong
  flags.FLAGS[name].parser = ConfigParser()
  return holder


def parse_flags(argv: list[str], *, workdir_config: pathlib.Path) -> list[str]:
  """Parse `argv` into absl's flags; returns what is left of it, which is its first word.

  Args:
    argv: a program and its options. Where --workdir is given without --config, the --config that
      loads that directory's own is inserted.
    workdir_config: the config file of which DIR is the option.

  Raises:
    UserError: an unknown option or field, a value that is not of its type, a config that cannot
      be loaded, no config.
  """
  app.define_help_flags()
  try:
    argv = [argv[0], *flags.FLAGS.read_flags_from_files(argv[1:], force_gnu=False)]
    workdir = values(argv, "workdir")
    if workdir and not values(argv, "config") and not HELP & names(argv):
      folder = workdir_path(workdir[-1], name="--workdir")
      argv.insert(1, f"--config={workdir_config}:{folder}")
    _ARGV[:] = argv
    rest = flags.FLAGS(argv)
  except flags.Error as e:
    raise UserError(f"{one_line(e)}. --help lists the options.") from e
  except (AttributeError, KeyError, TypeError, ValueError, SyntaxError) as e:
    said = str(e.args[0]) if e.args else str(e)
    said = " ".join(said.replace("\\n", ". ").replace("\\", "").split()).strip("'")
    raise UserError(
      f"a --config.* option names no field of the config, or not one of that type: {said} The "
      f"config file lists them all."
    ) from e
  if flags.FLAGS["config"].value is None:
    raise UserError(
      "give a config, --config=configs/digits.py for example (--help lists the options)."
    )
  if len(rest) > 1:
    raise UserError(f"unexpected argument {rest[1]!r}: options are written --name=value.")
  return rest


def names(argv: list[str]) -> set[str]:
  """The names of the options in `argv`."""
  return {word.lstrip("-").split("=")[0] for word in argv[1:] if word.startswith("-")}


def values(argv: list[str], name: str) -> list[str]:
  """The values that `argv` gives an option, in any of absl's spellings: --name=value, --name value,
  and both with one dash.
  """
  words = argv[1 : argv.index("--")] if "--" in argv else argv[1:]
  given = []
  for word, after in zip(words, [*words[1:], None]):
    match = re.fullmatch(rf"--?{name}(?:=(.*))?", word, re.DOTALL)
    if match and (value := after if match[1] is None else match[1]) is not None:
      given.append(value)
  return given


def split_config(text: str) -> tuple[str, str | None]:
  """FILE.py:OPTIONS -> (FILE.py, OPTIONS); the options are None where there are none."""
  file, colon, options = text.partition(".py:")
  return (f"{file}.py", options) if colon else (text, None)


def load_config(text: str) -> ml_collections.ConfigDict:
  """The config of FILE.py or FILE.py:OPTIONS: what get_config() or get_config(OPTIONS) of it gives.

  A relative path is that of a file in the working directory or, if there is none, of a config that
  comes with cfg. While it is loaded, the package `configs` is the file's own folder if it is called
  that, the working directory's, and cfg's, in that order.

  Raises:
    UserError: there is no such file, or it gives no config: the file, the line and the reason.
  """
  name, options = split_config(text)
  path = find_config(name)
  arguments = [] if options is None else [options]
  try:
    with imports_for(path):
      get_config = execute(path).get("get_config")
      if not callable(get_config):
        raise UserError(f"{cannot(name)}: it has no function get_config().")
      check_arguments(get_config, arguments, name=name)
      config = get_config(*arguments)
  except UserError:
    raise
  except (Exception, SystemExit) as e:
    raise UserError(f"{cannot(name)}: {reason(e, path)}.") from e
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f"{cannot(name)}: get_config() gives {kind(config)}, and must return an "
      f"ml_collections.ConfigDict."
    )
  if isinstance(config, config_dict.FrozenConfigDict):
    config = ml_collections.ConfigDict(config)
  return config.lock()


def find_config(name: str) -> pathlib.Path:
  """The file that `name` means: see `load_config`.

  Raises:
    UserError: there is none.
  """
  path = user_path(name, name="--config")
  if path.is_file():
    return path.absolute()
  folder = defaults.configs_folder()
  installed = folder / path.name
  if path.parent in (pathlib.Path("."), pathlib.Path("configs")) and installed.is_file():
    return installed
  known = [f"configs/{file.name}" for file in sorted(folder.glob("*.py"))]
  what = "it is a folder" if path.is_dir() else "there is no such file"
  raise UserError(f"{cannot(name)}: {what}. Give the path of a config; {nearest(name, known)}")


def execute(path: pathlib.Path) -> dict[str, object]:
  """Execute the config file `path` as a module, one of `configs` if its folder has that name; what
  it defines.
  """
  package = "configs" if path.parent.name == "configs" else ""
  module = types.ModuleType(f"{package}.{path.stem}" if package else "config_file")
  module.__file__ = str(path)
  module.__package__ = package
  sys.modules[module.__name__] = module
  exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
  return module.__dict__


@contextlib.contextmanager
def imports_for(path: pathlib.Path) -> Iterator[None]:
  """While it lasts, what the config file `path` imports is found: see `load_config`; modules that
  lie beside it too, after all others. Afterwards the imports are as they were.
  """
  ours = lambda: [name for name in sys.modules if name.split(".")[0] in ("configs", "config_file")]
  saved = {name: sys.modules.pop(name) for name in ours()}
  search = list(sys.path)
  try:
    sys.path.append(str(path.parent))
    import_configs(path)
    yield
  finally:
    sys.path[:] = search
    for name in ours():
      del sys.modules[name]
    sys.modules.update(saved)


def import_configs(path: pathlib.Path) -> None:
  """Make the package `configs` for the config file `path`: the modules of several folders."""
  folders = [path.parent] if path.parent.name == "configs" else []
  folders += [pathlib.Path("configs").absolute(), defaults.configs_folder()]
  folders += [pathlib.Path(entry).absolute() / "configs" for entry in sys.path]
  folders = [folder for folder in dict.fromkeys(folders) if folder.is_dir()]
  package = types.ModuleType("configs")
  package.__path__ = [str(folder) for folder in folders]
  sys.modules["configs"] = package
  for folder in folders[:1]:
    if (init := folder / "__init__.py").is_file():
      package.__file__ = str(init)
      exec(compile(init.read_bytes(), str(init), "exec"), package.__dict__)


def check_arguments(get_config, arguments: list[str], *, name: str) -> None:
  """Raise UserError if get_config cannot be called with what is behind the colon, or needs it."""
  try:
    inspect.signature(get_config).bind(*arguments)
  except TypeError as e:
    has = "takes no option" if arguments else "needs an option"
    raise UserError(f"{cannot(name)}: it {has} after a colon ({e}).") from e


def cannot(name: str) -> str:
  """How every sentence about a config that cannot be loaded begins."""
  return f"the config file {name!r} cannot be loaded"


def reason(error: BaseException, path: pathlib.Path) -> str:
  """What went wrong while the config file `path` was loaded, and where, in one line."""
  what = type(error).__name__
  if isinstance(error, SyntaxError):
    return f"{error.filename or path}, line {error.lineno}: {what}: {error.msg}"
  frames = traceback.extract_tb(error.__traceback__)
  lines = [frame.lineno for frame in frames if frame.filename == str(path)]
  where = f"{path}, line {lines[-1]}: " if lines else ""
  return f"{where}{what}: {one_line(error)}" if str(error) else f"{where}{what}"


def one_line(error: BaseException) -> str:
  """The text of an exception without line breaks and its last full stop."""
  return " ".join(str(error).split()).removesuffix(".")


def kind(value: object) -> str:
  """A phrase for the type of a value."""
  return "nothing" if value is None else f"a {type(value).__name__}"
