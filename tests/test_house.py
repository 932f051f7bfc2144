"""The rooms of the house: imports go down only, and each big dependency has one home."""

import ast
import pathlib

import pytest

ROOT = pathlib.Path(__file__).parent.parent
# a module may import from a lower level, or from its own package
LEVELS = [
  {"errors", "files", "schedules", "diffusion", "flops", "runtime"},
  {"images", "guidance", "config", "models", "pickles"},
  {"losses", "sampling", "train_state", "optim", "sharding", "checkpoint", "logs", "data", "evaluation"},
  {"interop", "features"},
  {"generate", "trained", "extractors", "real", "figures", "train_step", "workdir_config"},
  {"report", "measure"},
  {"watch", "sweep", "sample", "dry_run", "evaluate"},
  {"train"},
  {"main"},
]
HOMES = {
  "orbax": {"checkpoint"},
  "grain": {"data"},
  "array_record": {"data"},
  "optax": {"optim", "train_step", "evaluation"},
  "flax": {"models", "train_state"},
  "absl": {"main", "data"},  # grain's worker processes want its flags parsed
  "ml_collections": {"main", "config"},
  "safetensors": {"interop"},
  "google": {"interop"},  # google.protobuf
  "clu": {"train"},
  "tensorboardX": {"logs"},
  "matplotlib": {"figures"},
  "sklearn": {"data"},
  "tensorflow_datasets": {"data"},
  "scipy": {"data"},
  "tensorflow": set(),
  "torch": set(),
}


def imports(path):
  """Dotted names that a file imports, `from a import b` as a.b."""
  names = set()
  for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
    if isinstance(node, ast.Import):
      names |= {alias.name for alias in node.names}
    elif isinstance(node, ast.ImportFrom):
      names |= {f"{node.module}.{alias.name}" for alias in node.names}
  return names


def room(path):
  """cfg/data/sources.py -> "data"; cfg/train.py -> "train"."""
  return path.relative_to(ROOT / "cfg").parts[0].removesuffix(".py")


FILES = sorted(p for p in (ROOT / "cfg").rglob("*.py") if p != ROOT / "cfg" / "__init__.py")
LEVEL_OF = {name: level for level, names in enumerate(LEVELS) for name in names}


@pytest.mark.smoke
@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_only(path):
  """A room imports from lower levels and from itself."""
  here = room(path)
  for name in imports(path):
    if name.startswith("cfg."):
      there = name.split(".")[1]
      if there == "__version__":
        continue
      assert there == here or LEVEL_OF[there] < LEVEL_OF[here], f"{here} imports {name}"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_each_dependency_has_its_home(path):
  """A big dependency is imported in its own rooms alone; TensorFlow and PyTorch nowhere."""
  for name in imports(path):
    homes = HOMES.get(name.split(".")[0])
    assert homes is None or room(path) in homes, f"{path.name} imports {name}"


def test_configs_know_nothing_of_the_package():
  """configs/ import ml_collections and each other, nothing else."""
  for path in (ROOT / "configs").glob("*.py"):
    assert all(name.split(".")[0] in ("ml_collections", "configs") for name in imports(path)), path


def test_files_stay_small():
  """No file of the package is above 300 lines."""
  long = {p.name: n for p in FILES if (n := len(p.read_text(encoding="utf-8").splitlines())) > 300}
  assert not long
