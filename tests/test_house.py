"""The rooms of the house: imports go down only, and each big dependency has one home."""

import ast

import pytest
from paths import ROOT

PAPER = (
  "schedules",
  "diffusion",
  "guidance",
  "rules",
  "losses",
  "limits",
  "particles",
  "mixtures",
  "sampling",
)
# a room may import from those after it, and from itself in the order of INSIDE
ROOMS = (
  ("main", "evaluate", "toy"),
  ("laboratory",),
  ("sweep", "training"),
  ("inference",),
  ("report",),
  ("features",),
  ("interop",),
  ("models", "data", "metrics"),
  ("base",),
  PAPER,
)
# the modules of a room, those that import first; modules on one line know nothing of each other
INSIDE = {
  "sweep": "run; strength; provenance variant",
  "laboratory": "study tables; learnt",
  "training": (
    "loop; not_finite heldout previews quick_metrics step_log dry_run stop; diagnosis estimates; "
    "step throughput guard; state objective chips compiled kept"
  ),
  "inference": "pictures weights_file workdir_config; meter; generator network checks; program",
  "report": "page; fronts; differences tilt meter curves grids levels plane; table drawing",
  "features": (
    "references; reference_files select; judge_files; placed; inception judge cifar_resnet; "
    "extractor"
  ),
  "interop": (
    "adm inception; cifar_resnet inception_formats; adm_weights weights; torch_file graph_def; "
    "arrays"
  ),
  "models": "networks; unet classifier; backbone; layers; attention; inception judge cifar_resnet",
  "data": "prepare pipeline; sources; tfds; preparing; records recipes decode synthetic dataset",
  "data.preparing": (
    "inputs; class_folders; cifar10 dataset_json imagenet; trees; parts layout tars"
  ),
  "metrics": (
    "summary reference; paired gauge meter; scores pairwise calibration sliced; statistics; metric"
  ),
  "base": (
    "preflight; config; cli checkpoint images sharding logs pickles fields lock; defaults; files "
    "trees runtime optim flops progress supervise; rendezvous; hosts untrusted paths; errors"
  ),
  "": "losses sampling rules mixtures; guidance limits particles; diffusion schedules",
}
HOMES = {
  "orbax": {"base.checkpoint"},
  "grain": {"data"},
  "array_record": {"data"},
  "optax": {"base.optim", "training.step", "features.judge"},
  "flax": {"models", "training.state"},
  "absl": {"main", "base.cli", "data.pipeline"},  # grain's worker processes want its flags parsed
  "ml_collections": {"base.cli", "base.config", "base.fields", "inference.workdir_config"},
  "safetensors": {"interop"},
  "google": {"interop"},  # google.protobuf
  "clu": {"training.loop"},
  "psutil": {"base.lock"},
  "tensorboardX": {"base.logs"},
  "tqdm": {"base.progress"},
  "PIL": {"data", "base.images"},
  "matplotlib": {f"report.{name}" for name in ("drawing", "curves", "grids", "levels", "plane")},
  "sklearn": {"data.sources"},
  "tensorflow_datasets": {"data.tfds"},
  "scipy": {"data", "metrics.paired"},
  "tensorflow": set(),
  "torch": set(),
}
PACKAGE = ROOT / "cfg"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p.name != "__init__.py")


def imports(path):
  """Dotted names that a file imports, `from a import b` as a.b."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def module(path):
  """cfg/data/sources.py -> "data.sources"; cfg/main.py -> "main"."""
  return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def imported_modules(path):
  """The modules of cfg that a file imports, as `module` names them."""
  found = set()
  for name in imports(path):
    parts = name.split(".")[1:] if name.startswith("cfg.") else []
    while parts and not (PACKAGE / "/".join(parts)).with_suffix(".py").is_file():
      parts.pop()
    if parts:
      found.add(".".join(parts))
  return found


def floor(name):
  """The floor of a module: larger is deeper."""
  room = name.split(".")[0]
  return next(i for i, rooms in enumerate(ROOMS) if room in rooms)


def depth(room, name):
  """How deep in its room a module, or a room in it, lies."""
  lines = INSIDE[room].split(";")
  return next(i for i, line in enumerate(lines) if name in line.split())


def goes_down(here, there):
  """Whether `here` may import `there`."""
  if here == there:
    return True
  if floor(here) != floor(there):
    return floor(here) < floor(there)
  if here in PAPER:
    return depth("", here) < depth("", there)
  ours, theirs = here.split("."), there.split(".")
  if ours[0] != theirs[0]:
    return False
  shared = 0
  while shared < min(len(ours), len(theirs)) - 1 and ours[shared] == theirs[shared]:
    shared += 1
  room = ".".join(ours[:shared])
  return depth(room, ours[shared]) < depth(room, theirs[shared])


@pytest.mark.smoke
@pytest.mark.parametrize("path", FILES, ids=module)
def test_imports_go_down_only(path):
  """A module imports from lower floors, and in its own room from lower modules."""
  up = [there for there in imported_modules(path) if not goes_down(module(path), there)]
  assert not up, f"{module(path)} imports {up}"


def test_every_module_has_its_place():
  """The order inside each room names its modules and no other."""
  for room, text in INSIDE.items():
    if not room:
      continue
    folder = PACKAGE / room.replace(".", "/")
    there = {p.stem for p in folder.iterdir() if p.suffix == ".py" or (p / "__init__.py").exists()}
    assert there - {"__init__"} == {name for line in text.split(";") for name in line.split()}, room


@pytest.mark.parametrize("path", FILES, ids=module)
def test_each_dependency_has_its_home(path):
  """A big dependency is imported in its own rooms alone; TensorFlow and PyTorch nowhere."""
  for name in imports(path):
    homes = HOMES.get(name.split(".")[0])
    here = module(path)
    assert homes is None or any(f"{here}.".startswith(f"{home}.") for home in homes), name


def test_configs_know_nothing_of_the_package():
  """configs/ import ml_collections and each other, nothing else."""
  for path in (ROOT / "configs").glob("*.py"):
    assert all(name.split(".")[0] in ("ml_collections", "configs") for name in imports(path)), path


def test_files_stay_small():
  """No file of the package is above 400 lines."""
  long = {module(p): n for p in FILES if (n := len(p.read_text("utf-8").splitlines())) > 400}
  assert not long
