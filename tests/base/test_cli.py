"""Config files are found and loaded from anywhere, and whatever is wrong with one is one line."""

import subprocess
import sys

import paths
import pytest
from ml_collections.config_flags import config_path

from cfg.base import cli, fields
from cfg.base.errors import UserError

CONFIGS = sorted((paths.ROOT / "configs").glob("*.py"))
USES_DIGITS = "from configs import digits\ndef get_config(): return digits.get_config()\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
  """An empty working directory, from which nothing of the repository can be imported."""
  monkeypatch.chdir(tmp_path)
  monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(paths.ROOT))])
  return tmp_path


def write(path, text):
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_text(text)
  return path


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_config_loads_from_anywhere(path, folder):
  """By its full path, and as configs/NAME.py or NAME.py, which are not in the working directory."""
  before = {name: module for name, module in sys.modules.items() if name.startswith("configs")}
  loaded = [cli.load_config(name) for name in (str(path), f"configs/{path.name}", path.name)]
  assert loaded[0] == loaded[1] == loaded[2]
  assert before == {n: module for n, module in sys.modules.items() if n.startswith("configs")}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_each_field_can_be_set_on_the_command_line(path):
  """None has a type too, or ml_collections refuses to override it."""
  config = cli.load_config(str(path))
  types = {name: config_path.get_type(name, config) for name, _ in fields.leaves(config)}
  assert type(None) not in types.values()


def test_a_file_of_the_working_directory_goes_first(folder):
  """Also in what another config imports."""
  text = "import ml_collections\ndef get_config(): return ml_collections.ConfigDict({'mine': 1})\n"
  write(folder / "configs/digits.py", text)
  assert cli.load_config("configs/digits.py").mine == 1
  assert cli.load_config(str(write(folder / "other.py", USES_DIGITS))).mine == 1
  # the config of cfg goes on importing its own
  assert cli.load_config(str(paths.ROOT / "configs/cifar10.py")).seed == 0


@pytest.mark.parametrize("place", ["mine.py", "configs/mine.py", "deep/configs/mine.py"])
@pytest.mark.parametrize("package", [False, True])
def test_a_users_config_imports_cfgs_own(place, package, folder):
  """`from configs import digits` beside modules of the user's folder, whichever it is."""
  path = write(folder / place, USES_DIGITS)
  write(path.parent / "beside.py", "seed = 7\n")
  if package:
    write(path.parent / "__init__.py", "SEED = 7\n")
  if path.parent.name == "configs":
    path.write_text(f"from configs import beside as b\nfrom . import beside\n{USES_DIGITS}")
    if package:
      path.write_text(f"from configs import SEED\n{path.read_text()}")
  else:
    path.write_text(f"import beside\n{USES_DIGITS}")
  assert cli.load_config(place).seed == cli.load_config(str(path)).seed == 0


def test_a_built_package_has_the_configs(folder):
  """What a wheel is made of, alone on the path, loads its own configs; and no file is left out."""
  pytest.importorskip("setuptools")
  built = folder / "built"
  build = [sys.executable, "setup.py", "-q", "build_py", "-d", str(built)]
  subprocess.run(build, cwd=paths.ROOT, check=True, capture_output=True)
  code = "from cfg.base import cli; print(cli.load_config('configs/imagenet128.py').model.ch)"
  empty = folder / "empty"
  empty.mkdir()
  done = subprocess.run(
    [sys.executable, "-c", code],
    cwd=empty,
    env={"PYTHONPATH": str(built)},
    capture_output=True,
    text=True,
  )
  assert done.stdout.strip() == "256", done.stderr
  files = lambda root: {p.relative_to(root) for p in root.rglob("*.*") if p.suffix != ".pyc"}
  assert files(built / "cfg/configs") == files(paths.ROOT / "configs")
  assert files(built / "cfg") >= files(paths.ROOT / "cfg")


BAD = {
  "syntax": ("x = 1\ndef get_config(:\n", ["line 2", "SyntaxError"]),
  "indentation": ("def get_config():\nreturn 1\n", ["line 2", "IndentationError"]),
  "import": ("\nimport no_such_module\n", ["line 2", "no_such_module"]),
  "import of a name": ("from configs import nothing\n", ["line 1", "nothing"]),
  "file of another": ("x = open('nothing.txt')\n", ["line 1", "nothing.txt"]),
  "raises": ("def get_config():\n  raise RuntimeError('a\\nb')\n", ["line 2", "RuntimeError: a b"]),
  "raises nothing to read": ("def get_config():\n  assert False\n", ["line 2", "AssertionError"]),
  "exits": ("import sys\nsys.exit(3)\n", ["line 2", "SystemExit"]),
  "endless": ("def get_config():\n  return get_config()\n", ["RecursionError"]),
  "no function": ("x = 1\n", ["no function get_config()"]),
  "no function but a value": ("get_config = 3\n", ["no function get_config()"]),
  "wants options": ("def get_config(name): return name\n", ["needs an option after a colon"]),
  "nothing": ("def get_config(): pass\n", ["gives nothing", "ConfigDict"]),
  "a dict": ("def get_config(): return {}\n", ["gives a dict", "ConfigDict"]),
  "wrong type": (
    USES_DIGITS.replace("return", "c =").rstrip() + "; c.seed = 'x'; return c\n",
    ["TypeError", "seed"],
  ),
  "null byte": ("x = '\0'\n", ["null bytes"]),
}


@pytest.mark.parametrize("case", BAD)
def test_a_config_that_cannot_be_loaded_is_one_line(case, folder):
  """The file, the line and the reason."""
  text, words = BAD[case]
  write(folder / "mine.py", text)
  with pytest.raises(UserError) as caught:
    cli.load_config("mine.py")
  said = str(caught.value)
  assert len(said.splitlines()) == 1 and "mine.py" in said and "Traceback" not in said
  assert all(word in said for word in words), said


@pytest.mark.parametrize(
  "name, word",
  [
    ("configs/nothing.py", "there is no such file"),
    ("digit.py", "did you mean 'configs/digits.py'"),
    ("deep/digits.py", "there is no such file"),
    (".", "it is a folder"),
    ("", "it is a folder"),
    ("gs://bucket/digits.py", "file system"),
    ("digits.py:fast", "takes no option after a colon"),
    ("folder.py:resolution=abc", "must be resolution=R"),
    ("imagenet64.py:p_uncond=", "could not convert"),
  ],
)
def test_what_is_no_config(name, word, folder):
  """One line each."""
  with pytest.raises(UserError) as caught:
    cli.load_config(name)
  assert word in str(caught.value) and len(str(caught.value).splitlines()) == 1


def test_options_of_a_config():
  """Behind the first .py: alone."""
  assert cli.split_config("a.py") == ("a.py", None)
  assert cli.split_config("a:b/c.py:p=0.5:x") == ("a:b/c.py", "p=0.5:x")


@pytest.mark.parametrize(
  "words",
  ["--workdir=a b", "--workdir|a b", "-workdir=a b", "-workdir|a b", "--seed|1|-workdir|a b"],
)
def test_every_spelling_of_an_option(words):
  """As absl has them."""
  argv = ["main", *words.split("|")]
  assert cli.values(argv, "workdir") == ["a b"]
  assert cli.values(argv, "work") == cli.values(argv, "config") == []
  assert cli.values(["main", "--", *argv[1:]], "workdir") == []
