"""The weights of FID's Inception network, downloaded or from a file, in our own format.

Usage: python -m cfg.interop.inception OUT.safetensors [--source=FILE]

Read are TensorFlow's frozen graph (classify_image_graph_def.pb of
inception-2015-12-05.tgz), its PyTorch port (pytorch-fid's and torch-fidelity's
.pth, one file under two names), arrays with the batch norms folded (.npz), and
our own .safetensors; the format is told from the content.
"""

import argparse
import hashlib
import http.client
import logging
import pathlib
import tempfile
import urllib.request
import zipfile

import numpy as np
import safetensors

from cfg.base import files, progress, trees, untrusted
from cfg.base.errors import UserError, run_command
from cfg.base.paths import path_argument
from cfg.interop import arrays as arrays_lib
from cfg.interop import inception_formats as formats
from cfg.interop import weights
from cfg.models import inception

log = logging.getLogger("cfg.interop.inception")  # __name__ is "__main__" when it is run

FORMAT = "cfg-inception-1"
URL = "https://github.com/mseitzer/pytorch-fid/releases/download/fid_weights/pt_inception-2015-12-05-6726825d.pth"
SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
BYTES = 95_628_359
TIMEOUT_S = 30


def read(path):
  """(params, info) of a file of the Inception network of 2015-12-05: the parameters of
  models.inception and where they are from.

  `info` has "format", "file", "weights_sha256" (trees.tree_hash) and "complete". An .npz or
  .safetensors file may lack the last blocks, and is then not complete; models.inception.available
  says what it is enough for.

  Raises:
    UserError: not such a file, damaged, of another network, or not enough for any output.
  """
  path = pathlib.Path(path).expanduser()
  kind, load = _reader(path)
  try:
    flat = load(path)
  except UserError as e:
    raise UserError(
      f"{str(path)!r}, read as {kind}, is not the Inception network of 2015-12-05: {e}"
    ) from e
  if strange := [name for name, a in flat.items() if not np.isfinite(a).all()]:
    raise UserError(
      f"{str(path)!r}, read as {kind}, is damaged: {arrays_lib.some(strange)} has numbers that are "
      f"not finite."
    )
  params = trees.unflatten(flat)
  if not inception.available(params):
    missing = [name for name in inception.needed("spatial") if name not in flat]
    raise UserError(
      f"{str(path)!r}, read as {kind}, has too little of the Inception network for any output: it "
      f"lacks {arrays_lib.some(missing)}."
    )
  complete = flat.keys() == inception.layout().keys()
  return params, {
    "format": kind,
    "file": path.name,
    "weights_sha256": trees.tree_hash(params),
    "complete": complete,
  }


def write(path, params):
  """Write parameters, complete or not, to a .safetensors file that `read` gives back bit by bit."""
  weights.save(path, params, metadata={"format": FORMAT, "weights_sha256": trees.tree_hash(params)})


def _reader(path):
  """(name, function) of the format that a file has by its first bytes."""
  try:
    with path.open("rb") as file:
      start = file.read(9)
  except OSError as e:
    raise UserError(f"cannot read {str(path)!r}: {e.strerror or e}.") from e
  if start[8:] == b"{":  # after the length of its header
    return "safetensors", _read_safetensors
  if start.startswith(b"PK"):
    return (
      ("folded arrays", formats.read_folded)
      if _has_arrays(path)
      else ("PyTorch", formats.read_torch)
    )
  if start.startswith(b"\x80"):  # a pickle, as before PyTorch 1.6
    return "PyTorch", formats.read_torch
  if start.startswith(b"\x0a"):  # the first field, its nodes
    return "frozen graph", formats.read_graph
  unpack = " Unpack classify_image_graph_def.pb from it." if start.startswith(b"\x1f\x8b") else ""
  raise UserError(
    f"{str(path)!r} is no file of Inception weights: it is neither a frozen TensorFlow graph "
    f"(.pb), nor of PyTorch (.pth), .npz or .safetensors.{unpack}"
  )


def _has_arrays(path):
  try:
    with untrusted.reading(), zipfile.ZipFile(path) as archive:
      return any(name.endswith(".npy") for name in archive.namelist())
  except (OSError, ValueError):
    return path.suffix == ".npz"  # the reader says what is wrong with it


def _read_safetensors(path):
  try:
    with untrusted.reading(), safetensors.safe_open(path, framework="np") as file:
      about = file.metadata() or {}
      arrays = (
        {name: file.get_tensor(name) for name in file.keys()}
        if about.get("format") == FORMAT
        else {}
      )
  except (OSError, ValueError) as e:
    raise UserError(f"it is damaged ({e}).") from e
  if about.get("format") != FORMAT:
    raise UserError(f"its metadata has format {about.get('format')!r}, not {FORMAT!r}.")
  arrays_lib.check(arrays, inception.layout(), optional=inception.layout())
  if trees.tree_hash(trees.unflatten(arrays)) != about.get("weights_sha256"):
    raise UserError("its arrays differ from the hash that was written with them: it is damaged.")
  return arrays


def download(path):
  """Download the PyTorch port (96 MB) to `path`, whole and with the right SHA-256, or not at all.

  Raises:
    UserError: no network, or another file is there now.
  """
  digest = hashlib.sha256()
  try:
    with (
      urllib.request.urlopen(URL, timeout=TIMEOUT_S) as source,
      files.replacing(path) as temporary,
      temporary.open("wb") as out,
    ):
      with progress.Progress("download", total=BYTES, unit="bytes") as bar:
        while block := source.read(2**20):
          out.write(block)
          digest.update(block)
          bar.update(out.tell())
      if digest.hexdigest() != SHA256:
        raise UserError(
          f"what {URL} gave is not the file of old: its SHA-256 is {digest.hexdigest()}, not "
          f"{SHA256}. Nothing was kept."
        )
  except (OSError, http.client.HTTPException) as e:
    raise UserError(
      f"cannot download {URL}: {getattr(e, 'reason', e)}. Where there is no network, bring that "
      f"file, or "
      "classify_image_graph_def.pb of inception-2015-12-05.tgz, from elsewhere and give it with "
      "--source=FILE."
    ) from e


def main(argv=None):
  """The command line."""
  parser = argparse.ArgumentParser(
    prog="python -m cfg.interop.inception",
    description="Write the weights of FID's Inception network in our own format: of the file "
    "--source, or of "
    f"{URL} ({BYTES / 1e6:.0f} MB, SHA-256 {SHA256}).",
  )
  parser.add_argument("out", type=path_argument("OUT"), help="the .safetensors file to write")
  parser.add_argument(
    "--source",
    type=path_argument("--source"),
    help="classify_image_graph_def.pb of inception-2015-12-05.tgz, that .pth, or an .npz of folded "
    "arrays",
  )
  options = parser.parse_args(argv)
  if not pathlib.Path(options.out).parent.is_dir():
    raise UserError(f"cannot write {options.out!r}: its folder is not there. Make it first.")
  with tempfile.TemporaryDirectory() as folder:
    source = options.source or pathlib.Path(folder) / URL.rpartition("/")[2]
    if not options.source:
      download(source)
    params, info = read(source)
  write(options.out, params)
  whole = (
    "complete"
    if info["complete"]
    else f"not complete: enough for {', '.join(inception.available(params))}"
  )
  log.info(
    "%s: the weights %s of %s, %s", options.out, info["weights_sha256"][:8], info["file"], whole
  )


if __name__ == "__main__":
  progress.to_stderr()
  run_command(main)
