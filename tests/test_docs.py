"""The documentation agrees with the code: links, commands, fields, paths and lengths."""

import ast
import functools
import json
import re
import shlex
from unittest import mock

import pytest
from absl import flags
from ml_collections import config_flags
from paths import ROOT

import cfg.main  # noqa: F401, defines the flags of python -m cfg.main
from cfg.base import config as config_lib
from cfg.base.errors import UserError
from configs import digits

# of config_flags, which loads the config files
pytestmark = pytest.mark.filterwarnings("ignore:the load_module")

PAGES = sorted(
  [
    ROOT / "README.md",
    ROOT / "benchmarks/README.md",
    ROOT / "launch/README.md",
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / "notebooks").glob("*.ipynb"),
  ]
)
CONFIGS = sorted((ROOT / "configs").glob("*.py"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`([^`\n]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
FIELD_ROW = re.compile(r"^\| `([\w.]+)`( \*)? \| `(.+?)` \| (.+?) \| (.+?) \|$", re.MULTILINE)
FOLDERS = "cfg|configs|docs|tests|benchmarks|launch|notebooks"
PATH = re.compile(rf"^(?:{FOLDERS})/[\w./]*$")
# programs of others in the commands
OTHERS = (
  "docker eval export gcloud git kill kubectl ps scancel scontrol squeue ssh-add ssh-keygen tail"
).split()
SETUP = (ROOT / "setup.py").read_text(encoding="utf-8")


def read(path):
  """The text of a file; of a notebook, that of its markdown cells."""
  text = path.read_text(encoding="utf-8")
  if path.suffix != ".ipynb":
    return text
  cells = json.loads(text)["cells"]
  return "\n\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def name_of(path):
  """A path relative to the repository's root, as text."""
  return path.relative_to(ROOT).as_posix()


def exists(path):
  """Whether a path relative to the repository's root is there."""
  return (ROOT / path).exists()


def prose(text):
  """A page without its code blocks."""
  return FENCE.sub("", text)


@functools.cache
def fields():
  """{"section.field": default} of configs/digits.py."""
  flat = {}
  for name, value in digits.get_config().to_dict().items():
    if isinstance(value, dict):
      flat |= {f"{name}.{field}": default for field, default in value.items()}
    else:
      flat[name] = value
  return flat


def is_field(name):
  """Whether a config has this field."""
  return name in fields()


# --- links


def anchors(path):
  """The anchors of a page's headings, as GitHub makes them."""
  headings = HEADING.findall(prose(read(path)))
  return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def link_problems(text, page):
  """What is wrong with the relative links in the text of a page."""
  problems = []
  for link in LINK.findall(INLINE.sub("", prose(text))):
    if re.match(r"[a-z]+:", link):
      continue
    target, _, anchor = link.partition("#")
    path = (page.parent / target).resolve() if target else page
    if not path.is_relative_to(ROOT) or not exists(name_of(path)):
      problems.append(f"{link}: no such file")
    elif anchor and anchor not in anchors(path):
      problems.append(f"{link}: no such heading")
  return problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page):
  """Every relative link leads to a file, and to a heading of it where it names one."""
  assert not link_problems(read(page), page)


@pytest.mark.parametrize("link", ["gone.md", "../README.md#gone", "#gone", "../../etc"])
def test_broken_links_are_noticed(link):
  """The check sees files and headings that are not there."""
  assert link_problems(f"see [it]({link})", ROOT / "docs/digits.md")


def test_the_readme_leads_to_every_page():
  """No page of the documentation is left out of the README."""
  links = {link.partition("#")[0] for link in LINK.findall(read(ROOT / "README.md"))}
  assert {name_of(page) for page in PAGES} - {"README.md"} <= links


# --- commands


def fenced_commands(text):
  """The commands in the bash blocks of a page."""
  blocks = [body for language, body in FENCE.findall(text) if language == "bash"]
  return [line for body in blocks for line in joined(body).splitlines() if line.strip()]


def inline_commands(text):
  """The commands in the prose of a page."""
  starts = ("python ", "pip ", "launch/", ".venv/bin/python ")
  return [code for code in INLINE.findall(prose(text)) if code.startswith(starts)]


def docstring_commands(path):
  """The commands in a config's docstring: its lines that begin with a program."""
  source = joined(read(path).split('"""')[1])
  return re.findall(r"^ +((?:python|launch/).*)$", source, re.MULTILINE)


def joined(text):
  """Lines that end in a backslash put together."""
  return re.sub(r"\\\n\s*", "", text)


def command_problems(line):
  """What is wrong with a shell command, as it stands in the documentation."""
  words = shlex.split(line, comments=True)
  problems = []
  while words:
    end = words.index("&&") if "&&" in words else len(words)
    problems += program_problems(words[:end])
    words = words[end + 1 :]
  return problems


def program_problems(words):
  """What is wrong with one program's command line."""
  words = without_shell(words)
  program, *rest = words
  name = program.split("/")[-1]
  if name == "sbatch":
    program, *rest = words[words.index("launch/slurm.sbatch") :]
  if program.startswith("launch/"):
    return launch_problems(program, rest)
  if name in OTHERS:
    return []
  if name == "pip":
    return pip_problems(rest)
  if name not in ("python", "python3"):
    return [f"{program}: a program that this test does not know"]
  if rest[0] != "-m":
    return [] if exists(rest[0]) else [f"{rest[0]}: no such file"]
  module, options = rest[1], rest[2:]
  if module in ("venv", "pytest"):
    return []
  if not module.startswith("cfg.") or not module_path(module):
    return [f"{module}: no such module"]
  return main_problems(options) if module == "cfg.main" else argparse_problems(module, options)


def without_shell(words):
  """A program's words without variables and nohup before them, and redirections behind."""
  start = next(i for i, word in enumerate(words) if not re.match(r"\w+=|nohup$", word))
  words = words[start:]
  ends = [i for i, word in enumerate(words) if re.match(r"[|&]$|\d?>", word)]
  return words[: min(ends, default=len(words))]


def pip_problems(words):
  """What is wrong with a pip command: extras that setup.py does not have."""
  extras = [extra for word in words for extra in re.findall(r"\.\[(.+)\]", word)]
  return [f"{extra}: no such extra" for extra in extras if f'"{extra}":' not in SETUP]


def launch_problems(script, words):
  """What is wrong with a call of a launch script."""
  if not exists(script):
    return [f"{script}: no such script"]
  if not words:
    return []  # its name alone
  before = 1 if script.endswith("local.sh") else 0  # words before CONFIG and WORKDIR
  if script.endswith("tpu_pod.sh"):
    action = words[0]
    if f"\n  {action}) " not in tpu_actions():
      return [f"{action}: no such action"]
    before = {"start": 3, "watch": 4}.get(action)
    if before is None:
      return []
  config, workdir, *options = words[before:]
  return main_problems([f"--config={config}", f"--workdir={workdir}", *options])


def tpu_actions():
  """launch/tpu_pod.sh with every action's label followed by a space."""
  return read(ROOT / "launch/tpu_pod.sh").replace(")\n", ") \n")


def module_path(name):
  """The file of a module of this package, or None."""
  path = ROOT / name.replace(".", "/")
  candidates = (path.with_suffix(".py"), path / "__init__.py")
  return next((candidate for candidate in candidates if candidate.is_file()), None)


def main_problems(words):
  """What is wrong with the options of python -m cfg.main: flags, config files, fields, values."""
  values = flags.FlagValues()
  config_flags.DEFINE_config_file("config", None, flag_values=values)
  for module, defined in flags.FLAGS.flags_by_module_dict().items():
    for flag in defined if module.startswith("cfg.") else ():
      if flag.name not in values:
        values[flag.name] = flag
  if not any(word.startswith("--config=") for word in words):
    words = ["--config=configs/digits.py", *words]  # the work directory's own has the same fields
  try:
    with mock.patch("sys.argv", ["main", *words]):  # config_flags looks for the fields there
      rest = values(["main", *words])
    config_lib.check_values(values["config"].value)
  except (flags.Error, AttributeError, KeyError, TypeError, ValueError, OSError, UserError) as e:
    return [str(e)]
  return [f"{word}: not an option" for word in rest[1:]]


def argparse_options(module):
  """({option: (takes a value, choices or None)}, number of positional arguments) of a module."""
  options = {}
  positional = 0
  for node in ast.walk(ast.parse(read(module_path(module)))):
    if not (isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "add_argument"):
      continue
    name = node.args[0].value
    keywords = {keyword.arg: keyword.value for keyword in node.keywords}
    if not name.startswith("--"):
      positional += 1
      continue
    choices = keywords.get("choices")
    constants = isinstance(choices, ast.Tuple) and all(
      isinstance(choice, ast.Constant) for choice in choices.elts
    )
    allowed = [str(choice.value) for choice in choices.elts] if constants else None
    options[name] = ("action" not in keywords and "nargs" not in keywords, allowed)
  return options, positional


def argparse_problems(module, words):
  """What is wrong with the options of a module that reads them with argparse."""
  known, positional = argparse_options(module)
  problems = []
  given = [word for word in words if not word.startswith("--")]
  if len(given) > positional and "--compare" not in words:
    problems.append(f"{given}: only {positional} such arguments")
  for word in words:
    name, equals, value = word.partition("=")
    if not name.startswith("--"):
      continue
    takes_value, choices = known.get(name, (None, None))
    if takes_value is None:
      problems.append(f"{name}: no such option of {module}")
    elif takes_value != bool(equals):
      problems.append(f"{word}: {'a value is missing' if takes_value else 'it takes no value'}")
    elif choices and value not in choices:
      problems.append(f"{word}: not one of {choices}")
  return problems


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_are_real(page, monkeypatch):
  """Every module, script, flag, config file, field and value in a page's commands exists."""
  monkeypatch.chdir(ROOT)
  lines = fenced_commands(read(page)) + inline_commands(read(page))
  problems = {line: command_problems(line) for line in lines}
  assert not {line: found for line, found in problems.items() if found}


@pytest.mark.parametrize("path", CONFIGS, ids=name_of)
def test_commands_of_configs_are_real(path, monkeypatch):
  """The same of the commands in a config's docstring, of which there is one or more."""
  monkeypatch.chdir(ROOT)
  problems = {line: command_problems(line) for line in docstring_commands(path)}
  assert problems
  assert not {line: found for line, found in problems.items() if found}


@pytest.mark.parametrize(
  "line",
  [
    "python -m cfg.trainer --config=configs/digits.py",
    "python -m cfg.main --config=configs/numbers.py",
    "python -m cfg.main --config=configs/imagenet64.py:resolution=64",
    "python -m cfg.main --config=configs/digits.py --mode=distill",
    "python -m cfg.main --config=configs/digits.py --colour=red",
    "python -m cfg.main --config=configs/digits.py --config.train.batchsize=64",
    "python -m cfg.main --config=configs/digits.py --config.train.batch_size=many",
    "python -m cfg.main --config=configs/digits.py --config.train.p_uncond=2",
    "python -m cfg.main --workdir=runs/x --config.nothing.at_all=1",
    "python -m cfg.main configs/digits.py",
    "python -m cfg.data.prepare DIR OUT --side=64",
    "python -m cfg.data.prepare DIR OUT MORE --resolution=64",
    "python -m cfg.evaluate x.npz --make_reference=yes",
    "python -m cfg.interop.adm x.pt runs/x --schedule=square",
    "python benchmarks/gone.py",
    "launch/gone.sh configs/digits.py runs/x",
    "launch/local.sh 1 configs/gone.py runs/x",
    "SPOT=1 launch/tpu_pod.sh watch NAME ZONE v4-32 configs/gone.py gs://x/y",
    "sbatch --nodes=4 launch/slurm.sbatch configs/digits.py runs/x --colour=red",
    "nohup launch/local.sh 2 configs/digits.py runs/x --colour=red > local.txt 2>&1 &",
    "launch/tpu_pod.sh explode NAME ZONE",
    "pip install -e '.[gpu]'",
    "python3 -m venv .venv && python -m cfg.gone",
  ],
)
def test_wrong_commands_are_noticed(line, monkeypatch):
  """The check sees each kind of mistake."""
  monkeypatch.chdir(ROOT)
  assert command_problems(line)


def test_the_readmes_two_commands():
  """The README's first environment is for the main job, the second for the tests."""
  lines = [x for x in read(ROOT / "README.md").splitlines() if x.startswith("python3 -m venv ")]
  assert len(lines) == 2
  assert "&&" in lines[0] and lines[0].endswith("-m cfg.main --config=configs/digits.py")
  assert "'.[test]'" in lines[1] and "-m pytest" in lines[1]


# --- names in the prose


def name_problems(text):
  """Fields, files and Python names in the prose of a page that do not exist."""
  sections = {name.split(".")[0] for name in fields() if name.count(".") == 1}
  codes = INLINE.findall(prose(text))
  problems = [
    code
    for code in codes
    if (PATH.match(code) and not exists(code))
    or (re.fullmatch(rf"(?:{'|'.join(sections)})\.[a-z_]+", code) and not is_field_or_file(code))
    or (re.fullmatch(r"cfg(?:\.\w+)+", code) and not is_python_name(code))
  ]
  overrides = [name for code in codes for name in re.findall(r"--config\.([\w.]+)", code)]
  return problems + [name for name in overrides if not is_field(name)]


def is_field_or_file(code):
  """Whether `section.name` is a field, or the name of a file such as judge.npz or sweep.json."""
  return is_field(code) or code.split(".")[1] in ("json", "csv", "npz", "png", "py")


def is_python_name(name):
  """Whether a dotted name is a module of the package, or something that a module defines."""
  if module_path(name):
    return True
  module, _, attribute = name.rpartition(".")
  path = module_path(module)
  if not path:
    return False
  defined = ast.parse(read(path)).body
  return any(getattr(node, "name", None) == attribute for node in defined)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_names_in_the_prose_exist(page):
  """Every field of the config, path and dotted Python name that a page mentions is there."""
  assert not name_problems(read(page))


@pytest.mark.parametrize(
  "code",
  [
    "train.batchsize",
    "--config.train.batchsize=2",
    "cfg/gone.py",
    "tests/gone/",
    "cfg.gone",
    "cfg.evaluate.gone",
  ],
)
def test_wrong_names_are_noticed(code):
  """The check sees each kind of mistake."""
  assert name_problems(f"see `{code}`") and not name_problems("see `train.batch_size`")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_python_blocks_import_what_there_is(page):
  """Python blocks parse, and import modules and names that exist."""
  for language, body in FENCE.findall(read(page)):
    if language != "python":
      continue
    for node in ast.walk(ast.parse(body)):
      if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "cfg":
        assert all(is_python_name(f"{node.module}.{alias.name}") for alias in node.names)


# --- the pages' own promises


def test_every_field_is_documented():
  """docs/config.md has one row for each field of configs/digits.py, with range, meaning and the
  default that the config has.
  """
  rows = FIELD_ROW.findall(read(ROOT / "docs/config.md"))
  documented = {name: ast.literal_eval(default) for name, _, default, *_ in rows}
  assert len(documented) == len(rows)
  assert documented.keys() == fields().keys()
  differ = {
    name: (default, fields()[name])
    for name, default in documented.items()
    if name in fields() and default != fields()[name]
  }
  assert not differ


def test_fields_that_may_change_are_marked():
  """docs/config.md marks the fields that may change when a run is resumed, and no others."""
  rows = FIELD_ROW.findall(read(ROOT / "docs/config.md"))
  marked = {name for name, mark, *_ in rows if mark}
  assert marked == config_lib.FREE


def test_every_config_is_in_the_table():
  """The README's table links to every file of configs/."""
  rows = [line for line in read(ROOT / "README.md").splitlines() if line.startswith("| [")]
  linked = {link for row in rows for link in LINK.findall(row.split(" | ")[0])}
  assert linked == {name_of(path) for path in CONFIGS}


def test_every_module_is_in_the_layout():
  """docs/layout.md names every folder and file directly in cfg/."""
  codes = INLINE.findall(read(ROOT / "docs/layout.md"))
  modules = [p for p in (ROOT / "cfg").iterdir() if not p.name.startswith("__")]
  assert {name_of(p) + "/" * p.is_dir() for p in modules} <= set(codes)


def test_the_readme_stays_short():
  """Between 500 and 900 words without its code blocks: what does not fit belongs in docs/."""
  assert 500 <= len(prose(read(ROOT / "README.md")).split()) <= 900
