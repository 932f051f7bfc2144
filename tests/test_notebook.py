"""notebooks/: the committed outputs are whole and clean, a run from top to bottom gives what the
text says, and the first cell installs only where it must.
"""

import base64
import io
import json
import os
import re
import shutil
import subprocess
import sys

import nbformat
import numpy as np
import paths
import pytest
from PIL import Image

from configs import imagenet64

ROOT = paths.ROOT
NOTEBOOK = "notebooks/evaluate.ipynb"
ABSOLUTE_PATH = re.compile(r"(^|[\s'\"(=])(/\w|[A-Z]:\\|~/)", re.MULTILINE)
MOST_BYTES = 600_000


@pytest.fixture(scope="module")
def committed():
  """The notebook of the repository."""
  return nbformat.read(ROOT / NOTEBOOK, as_version=4)


def code_cells(notebook):
  """{id: cell} of the code cells, in order."""
  return {cell.id: cell for cell in notebook.cells if cell.cell_type == "code"}


def text_of(cell):
  """What a cell printed and showed as text."""
  return "\n".join(
    out.text if out.output_type == "stream" else out.data.get("text/plain", "")
    for out in cell.outputs
  )


def pictures_of(cell):
  """The pictures a cell showed, as arrays."""
  found = [out.data["image/png"] for out in cell.outputs if "image/png" in out.get("data", {})]
  return [np.asarray(Image.open(io.BytesIO(base64.b64decode(png)))) for png in found]


def paper_rows(notebook):
  """The rows of the table beside the paper's, split: w, scale, the paper's FID and IS, and where
  they were measured the digits'.
  """
  return [
    line.split()
    for line in text_of(code_cells(notebook)["paper"]).splitlines()
    if line.strip()[:1].isdigit()
  ]


def execute(folder, **variables):
  """Run a copy of the notebook in a copy of the files it needs, as docs/digits.md says; returns the
  notebook with its new outputs.
  """
  for name in ("cfg", "configs", "notebooks"):
    shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
  (folder / "docs/cifar10").mkdir(parents=True)
  shutil.copy(ROOT / "docs/cifar10/cifar10_cpu.safetensors", folder / "docs/cifar10")
  notebook = nbformat.read(folder / NOTEBOOK, as_version=4)
  for cell in code_cells(notebook).values():
    cell.outputs, cell.execution_count = [], None
  nbformat.write(notebook, folder / NOTEBOOK)
  # the user's backend must not hide the figures; other tests check that no key is used twice, which
  # takes time
  environment = {**os.environ, "MPLBACKEND": "Agg", "JAX_DEBUG_KEY_REUSE": "0", **variables}
  done = subprocess.run(
    [sys.executable, "notebooks/execute.py", NOTEBOOK],
    cwd=folder,
    env=environment,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr[-3000:]
  return nbformat.read(folder / NOTEBOOK, as_version=4)


def check_outputs(notebook):
  """Each code cell ran once, in order, without an error, a warning or the name of a folder of the
  machine; and what the text promises is there.
  """
  nbformat.validate(notebook)
  cells = code_cells(notebook)
  assert [cell.execution_count for cell in cells.values()] == list(range(1, len(cells) + 1))
  for name, cell in cells.items():
    assert cell.outputs, f"cell {name} shows nothing"
    assert not {"execution", "ExecuteTime"} & cell.metadata.keys(), name
    for out in cell.outputs:
      assert (
        out.output_type in ("stream", "display_data", "execute_result")
        and out.get("name") != "stderr"
      ), f"cell {name}: {out}"
    assert not ABSOLUTE_PATH.search(text_of(cell)), f"cell {name}: {text_of(cell)}"
  assert (
    notebook.metadata.keys() == {"kernelspec", "language_info"}
    and notebook.metadata.kernelspec.name == "python3"
  )

  assert "3,163,491" in text_of(cells["open"])
  strengths, num_samples, swept = re.search(
    r"^(\d+) samples of .* at w = \((.*)\); .* w = \((.*)\)$", text_of(cells["parameters"])
  ).group(2, 1, 3)
  drawn = re.search(r"(\d+) noises at (\d+) strengths", text_of(cells["draw"])).groups()
  assert drawn == (num_samples, str(len(strengths.split(","))))
  for name in ("draw", "curve", "paper"):
    assert [picture.std() > 0 for picture in pictures_of(cells[name])] == [True], name
  swept, table = [float(w) for w in swept.split(",")], text_of(cells["sweep"])
  assert "not Inception's" in table and all(
    re.search(rf"^ *{w:g} +{1 + w:g} +\d", table, re.MULTILINE) for w in swept
  )
  assert f"of {len(swept)} strengths" in text_of(cells["own"])
  # the paper's table is whole, and beside it the digits' rows of the same w
  rows = {float(row[0]): row for row in paper_rows(notebook)}
  assert len(rows) == 14 and {w for w, row in rows.items() if len(row) == 6} == rows.keys() & set(
    swept
  )


def test_committed_outputs(committed):
  """The notebook in the repository was run from top to bottom in a fresh kernel, is clean, and not
  large.
  """
  check_outputs(committed)
  check_claims(committed)
  assert (ROOT / NOTEBOOK).stat().st_size < MOST_BYTES


def test_the_papers_numbers(committed):
  """The table's rows are those of the 64x64 config at p_uncond = 0.1, all 14."""
  paper = {float(w): (float(fid), float(score)) for w, _, fid, score, *_ in paper_rows(committed)}
  assert paper == {w: (row[0], row[3]) for w, row in imagenet64.TABLE_1.items()}


def test_runs_from_top_to_bottom(tmp_path):
  """With CFG_NOTEBOOK_SMALL=1, few steps and samples: every cell runs, and shows what it should."""
  # it compiles more than it runs, and for one device sooner
  flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=1"
  check_outputs(execute(tmp_path, CFG_NOTEBOOK_SMALL="1", XLA_FLAGS=flags))


@pytest.mark.slow
def test_runs_at_full_size(tmp_path):
  """As a reader runs it: what the text says of the curve is so, and of the digits that a classifier
  takes for the asked-for ones.
  """
  notebook = execute(tmp_path, CFG_NOTEBOOK_SMALL="", XLA_FLAGS="")
  check_outputs(notebook)
  check_claims(notebook)
  rows = json.loads((tmp_path / "runs/notebook/sweep.json").read_text())["rows"]
  assert rows[-1]["label_accuracy"] > rows[0]["label_accuracy"]


def check_claims(notebook):
  """The least FID of the digits is at a small w; from w = 0.5 on it rises at each, to twice the
  least and more; IS rises from w = 0 to 1.
  """
  fid, score = (
    {float(row[0]): float(row[i]) for row in paper_rows(notebook) if len(row) == 6} for i in (4, 5)
  )
  large = [fid[w] for w in sorted(fid) if w >= 0.5]
  assert (
    min(fid, key=fid.get) <= 0.3 and large == sorted(large) and large[-1] > 2 * min(fid.values())
  )
  assert score[0] < score[0.3] < score[1]


def first_cell(committed, folder, *, colab=False, repository="", installed=False):
  """Run the first cell in an empty folder, without this package; (process, what it gave to git and
  pip).

  With `colab`, google.colab can be imported. git and pip are stand-ins that write down their
  arguments; git makes a clone. With `installed`, cfg can be imported, and the folder is one of a
  clone.
  """
  fake = folder / "fake"
  (fake / "pip").mkdir(parents=True)
  log = folder / "log"
  note = f"import sys; open({str(log)!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
  (fake / "pip/__init__.py").touch()
  (fake / "pip/__main__.py").write_text(note)
  git = fake / "git"
  git.write_text(
    f"#!{sys.executable}\n{note}import pathlib\n"
    "for name in ('cfg/sampling.py', 'configs/digits.py'):\n"
    "  path = pathlib.Path(sys.argv[-1]) / name\n  path.parent.mkdir(parents=True)\n  "
    "path.touch()\n"
  )
  git.chmod(0o755)
  (fake / "google/colab").mkdir(parents=True)
  if colab:
    (fake / "google/colab/__init__.py").touch()
  else:
    (fake / "google/colab").rmdir()
  source = code_cells(committed)["setup"].source
  assert 'REPOSITORY = ""' in source
  here = folder / "here/notebooks"
  here.mkdir(parents=True)
  for path in (
    (fake / "cfg/__init__.py", folder / "here/cfg/sampling.py", folder / "here/configs/digits.py")
    if installed
    else ()
  ):
    path.parent.mkdir()
    path.touch()
  # -S: without the packages of this environment, cfg among them
  done = subprocess.run(
    [sys.executable, "-S", "-c", source.replace('REPOSITORY = ""', f"REPOSITORY = {repository!r}")],
    cwd=here,
    capture_output=True,
    text=True,
    env={**os.environ, "PYTHONPATH": str(fake), "PATH": f"{fake}{os.pathsep}{os.environ['PATH']}"},
  )
  return done, log.read_text().splitlines() if log.exists() else []


def test_the_first_cell_outside_a_clone(committed, tmp_path):
  """Without a clone and without Colab: an error that says what to do; nothing is fetched or
  installed.
  """
  done, log = first_cell(committed, tmp_path)
  assert (
    done.returncode == 1
    and "clone it" in done.stderr
    and "Traceback" not in done.stderr
    and not log
  )


def test_the_first_cell_in_colab_needs_an_address(committed, tmp_path):
  """In Colab with REPOSITORY empty: an error that names it; nothing is fetched or installed."""
  done, log = first_cell(committed, tmp_path, colab=True)
  assert (
    done.returncode == 1
    and "REPOSITORY is empty" in done.stderr
    and "Traceback" not in done.stderr
    and not log
  )


def test_the_first_cell_in_colab_installs(committed, tmp_path):
  """In Colab with an address: it is cloned, and the package installed from the clone."""
  done, log = first_cell(committed, tmp_path, colab=True, repository="https://example.org/cfg.git")
  assert done.returncode == 0, done.stderr
  clone = tmp_path / "here/notebooks/cfg-clone"
  assert log == [
    f"clone -q --depth=1 https://example.org/cfg.git {clone}",
    f"install -q -e {clone}",
  ]


@pytest.mark.parametrize("colab", [False, True])
def test_the_first_cell_installs_once(committed, tmp_path, colab):
  """In a clone, with the package there: nothing is fetched or installed, in Colab neither."""
  done, log = first_cell(
    committed, tmp_path, colab=colab, repository="https://example.org/cfg.git", installed=True
  )
  assert done.returncode == 0 and not log, done.stderr
