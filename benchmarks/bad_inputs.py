"""Bad inputs to real commands and readers: what benchmarks/reliability.py calls as `inputs`.

A trial damages a small valid file at random, or takes one that is made to break its reader, and
gives it to a command in a process of its own, or to the reader. It must end with a result or an
error in one paragraph, without a traceback, with nothing written but its output, nothing run, less
than 1 GB of memory above a good run, and, where checksums or hashes cover it, with no other pixels
or weights than were there.
"""

import hashlib
import json
import os
import pathlib
import random
import resource
import shutil
import struct
import subprocess
import sys
import tempfile
import zipfile

import numpy as np

ROOT = pathlib.Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import hostile_files as hostile  # noqa: E402

WRONG = "WRONG"
GB = 2**30
PROCESSES = 36  # of each 100 trials
TIMEOUT = 120
DEEP = b"[" * 100_000


class Shell:
  """Its pickle makes a file."""

  def __reduce__(self):
    return os.system, ("touch $HOSTILE_MARK",)


def pictures():
  """{name: PNG} of four images in two classes."""
  return {f"{c}/{i}.png": hostile.picture(seed=i) for i, c in enumerate("aabb")}


def arrays():
  """Four images and their labels."""
  images = np.random.default_rng(0).integers(0, 256, (4, 5, 5, 3), np.uint8)
  return {"images": images, "labels": np.array([0, 1, 0, 1])}


def weights_file(**changes):
  """A weights file of this project with one array, its metadata changed."""
  from cfg.base import config
  from configs import digits

  meta = {
    "config": config.to_json(digits.get_config()),
    "class_names": ["x"],
    "image_shape": [8, 8, 1],
    "data_name": "d",
    "step": 1,
    "ema": "0.9",
  }
  about = {"format": "cfg-1", "meta": json.dumps(meta | changes)}
  table = {"__metadata__": about, "a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}
  text = json.dumps(table).encode()
  return struct.pack("<Q", len(text)) + text + bytes(4)


def graph():
  """A frozen graph of one constant."""
  from cfg.interop import graph_def

  found = graph_def.message_class("GraphDef")()
  tensor = found.node.add(name="k", op="Const").attr.add(key="value").value.tensor
  tensor.dtype, tensor.tensor_content = 1, bytes(24)
  for n in (2, 3):
    tensor.tensor_shape.dim.add(size=n)
  return found.SerializeToString()


def evil_pickle():
  """A pickle with a command in it."""
  import pickle

  return pickle.dumps({b"data": Shell(), b"labels": [0]}, protocol=2)


def file_of(kind):
  """(ending, bytes) of a small valid file."""
  data = ROOT / "tests/data"
  row = {"rows": [{"w": 0.0, "fid": 1.0}], "metrics": []}
  return {
    "zip": lambda: (".zip", hostile.zipped(pictures())),
    "tar": lambda: (".tar", hostile.tarred(pictures())),
    "edm zip": lambda: (
      ".zip",
      hostile.zipped(
        {
          **pictures(),
          "dataset.json": json.dumps({"labels": [[n, 0] for n in pictures()]}).encode(),
        }
      ),
    ),
    "npz": lambda: (".npz", hostile.npz(**arrays())),
    "cifar tar.gz": lambda: (".tar.gz", hostile.tarred(hostile.cifar(), mode="w:gz")),
    "torch zip": lambda: (".pt", (data / "torch_zip.pt").read_bytes()),
    "torch legacy": lambda: (".pt", (data / "torch_legacy.pt").read_bytes()),
    "graph": lambda: (".pb", graph()),
    "weights": lambda: (".safetensors", weights_file()),
    "row": lambda: (".json", json.dumps(row).encode()),
    "reference": lambda: (".npz", hostile.npz(mu=np.zeros(3), sigma=np.eye(3))),
    **{form: lambda form=form: (".png", hostile.picture(form)) for form in ("PNG", "JPEG", "TIFF")},
  }[kind]()


def attacks(kind):
  """{what it is: bytes} of files made to break the reader of a kind."""
  huge = hostile.npy(hostile.shaped((10**12,)))
  zeros = hostile.zipped({"a/1.png": bytes(300 * 2**20)})
  evil = zipfile.ZIP_STORED
  return {
    "zip": {"bomb": zeros, "leads out": hostile.zipped({"../a/1.png": hostile.picture()})},
    "tar": {
      "8 GB name": hostile.tar_header("x", 8**11 - 1, b"L") + bytes(1024),
      "headers without end": hostile.tar_header("x", 0, b"L") * 3000,
      "leads back": hostile.tar_header("a/1.png", 0, raw=b"\xff" * 10 + b"\xfc\0") + bytes(1024),
      "leads out": hostile.tarred({"../a/1.png": hostile.picture()}),
      "60000x60000": hostile.tarred({"a/1.png": hostile.png(60000, 60000)}),
    },
    "edm zip": {"deep": hostile.zipped({**pictures(), "dataset.json": DEEP})},
    "npz": {"10^12 images": hostile.zipped({"images.npy": huge, "labels.npy": huge})},
    "cifar tar.gz": {
      "command": hostile.tarred(hostile.cifar(data_batch_1=evil_pickle()), mode="w:gz")
    },
    "torch zip": {"command": hostile.zipped({"a/data.pkl": evil_pickle()}, method=evil)},
    "torch legacy": {"command": evil_pickle()},
    "graph": {"deep": b"\x0a\x82\x20" * 1000},
    "weights": {"deep": weights_file(config=json.loads("[" * 200 + "]" * 200))},
    "row": {"deep": DEEP, "no text": b"\xff\xfe"},
    "reference": {"10^12": hostile.zipped({"mu.npy": huge, "sigma.npy": huge})},
    "PNG": {"60000x60000": hostile.png(60000, 60000)},
  }.get(kind, {})


# command: the kinds of files that it is given
COMMANDS = {
  "prepare": ("zip", "tar", "edm zip", "npz", "cifar tar.gz"),
  "evaluate": ("row", "graph", "torch zip", "weights"),
  "main": ("weights",),
  "adm": ("torch zip", "torch legacy"),
  "inception": ("graph", "torch zip", "weights"),
}
READERS = ("zip", "tar", "edm zip", "npz", "cifar tar.gz", "torch zip", "torch legacy", "graph",
           "weights", "row", "reference", "PNG", "JPEG", "TIFF")  # fmt: skip


def command_line(command, path, out):
  """The arguments of a command for a file."""
  return {
    "prepare": [
      *("cfg.data.prepare", path, out, "--resolution=5", "--workers=1", "--max_rejected=0.9")
    ],
    "evaluate": ["cfg.evaluate", "--compare", path, path]
    if path.suffix == ".json"
    else ["cfg.evaluate", path, f"--reference={path}", f"--inception={path}"],
    "main": ["cfg.main", f"--workdir={path.parent}", "--mode=sample", "--w=0", "--num=1"],
    "adm": ["cfg.interop.adm", path, out],
    "inception": ["cfg.interop.inception", out.with_suffix(".safetensors"), f"--source={path}"],
  }[command]


def bad_file(kind, rng):
  """(ending, bytes, what was done) of a file that is damaged or made to break its reader."""
  ending, content = file_of(kind)
  made = attacks(kind)
  if made and rng.random() < 0.4:
    what = rng.choice(sorted(made))
    return ending, made[what], what
  steps = [
    (rng.choice(hostile.KINDS), rng.random(), rng.random(), rng.randrange(256))
    for _ in range(rng.randrange(1, 4))
  ]
  what = "+".join(step[0] for step in steps)
  if content.startswith(b"PK") and rng.random() < 0.4:
    return ending, hostile.inside_a_zip(content, steps), f"{what} in a part"
  return ending, hostile.damaged(content, steps), what


def trial(seed):
  """{reader, damage, how, outcome} of one trial."""
  rng = random.Random(f"inputs {seed}")
  is_process = seed % 100 < PROCESSES
  command = list(COMMANDS)[seed % len(COMMANDS)] if is_process else ""
  kind = rng.choice(COMMANDS[command] if is_process else READERS)
  ending, content, what = bad_file(kind, rng)
  with tempfile.TemporaryDirectory() as folder:
    folder = pathlib.Path(folder)
    (folder / "in").mkdir()
    (folder / "here").mkdir()
    name = "weights" if command == "main" else "given"
    path = folder / "in" / f"{name}{ending}"
    path.write_bytes(content)
    os.environ["HOSTILE_MARK"] = str(folder / "mark")
    before = {p for p in folder.rglob("*")}
    out = folder / "out"
    outcome = by_process(command, path, out, folder / "here") if is_process else by_call(kind, path)
    new = {p for p in folder.rglob("*")} - before
    outside = [p for p in new if not p.is_relative_to(out) and p != out.with_suffix(".safetensors")]
    if outside:
      outcome = f"{WRONG}: wrote {outside[0].name}"
    elif "error" in outcome and command in ("adm", "inception") and new:
      outcome = f"{WRONG}: an error, and {sorted(new)[0].name} is there"
    elif not outcome.startswith(WRONG) and "in a part" not in what:
      outcome = strange_pixels(kind, out) or outcome
  reader = f"{command} {kind}" if is_process else kind
  return {
    "reader": reader,
    "damage": what,
    "how": "process" if is_process else "call",
    "outcome": outcome,
  }


def by_process(command, path, out, here):
  """What a command makes of a file."""
  arguments = list(map(str, command_line(command, path, out)))
  env = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
  with (here.parent / "in" / "log.txt").open("w+") as log:
    process = subprocess.Popen(
      [sys.executable, "-m", *arguments], env=env, cwd=here, stdout=log, stderr=log
    )
    try:
      # waiting for it with its resources: Popen.wait would throw them away
      _, status, used = wait(process)
    except TimeoutError:
      process.kill()
      process.wait()
      return f"{WRONG}: no end in {TIMEOUT} s"
    process.returncode = os.waitstatus_to_exitcode(status)
    log.seek(0)
    said = log.read()
  (here.parent / "in" / "log.txt").unlink()
  if used.ru_maxrss * 1024 > 1.5 * GB:  # a good run takes up to half of one
    return f"{WRONG}: {used.ru_maxrss / 2**20:.1f} GB"
  if "Traceback" in said or process.returncode not in (0, 1):
    return f"{WRONG}: exit code {process.returncode}: {said.strip()[-200:]}"
  if process.returncode == 1:
    return "error" if "\nerror: " in f"\n{said}" else f"{WRONG}: no error: {said[-200:]}"
  return "result"


def wait(process):
  """os.wait4 of a process; TimeoutError after TIMEOUT seconds."""
  import time

  end = time.monotonic() + TIMEOUT
  while time.monotonic() < end:
    pid, status, used = os.wait4(process.pid, os.WNOHANG)
    if pid:
      return pid, status, used
    time.sleep(0.05)
  raise TimeoutError


def by_call(kind, path):
  """What a reader makes of a file."""
  from cfg.base.errors import UserError

  start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
  try:
    read(kind, path)
    outcome = "result"
  except UserError as e:
    outcome = "error" if "\n" not in str(e).strip() else f"{WRONG}: several lines: {e}"
  except Exception as e:  # noqa: BLE001  this is what is looked for
    outcome = f"{WRONG}: {type(e).__name__}: {e}"[:300]
  more = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - start
  return f"{WRONG}: {more / 2**20:.1f} GB" if more * 1024 > GB else outcome


def read(kind, path):
  """Read everything in a file of a kind."""
  from cfg import evaluate
  from cfg.data import decode
  from cfg.interop import graph_def, torch_file, weights
  from cfg.metrics import reference

  readers = {
    "torch zip": torch_file.read,
    "torch legacy": torch_file.read,
    "graph": lambda path: graph_def.constant(graph_def.parse(path.read_bytes()), "k", shape=(2, 3)),
    "weights": weights.read,
    "row": lambda path: evaluate._read_rows(str(path)),
    "reference": reference.read,
    **dict.fromkeys(("PNG", "JPEG", "TIFF"), decode.read_rgb),
  }
  readers.get(kind, read_images)(path)


def read_images(path):
  """Prepare a file in memory; images that cannot be read are left out."""
  from cfg.base.errors import UserError
  from cfg.data.preparing import inputs

  for part in inputs.open_input(path).splits.values():
    for i in range(len(part)):
      try:
        part.read(i)
      except UserError:
        continue


def strange_pixels(kind, out):
  """WRONG if a prepared data set has an image that none of the pictures is; else None."""
  if kind not in ("zip", "tar", "npz", "edm zip") or not (out / "manifest.json").exists():
    return None
  from cfg.data import records

  found = pixels(out, records)
  with tempfile.TemporaryDirectory() as folder:
    good = pathlib.Path(folder)
    from cfg.data import prepare

    ending, content = file_of(kind)
    (good / f"in{ending}").write_bytes(content)
    prepare.prepare(good / f"in{ending}", good / "out", resolution=5)
    known = pixels(good / "out", records)
  shutil.rmtree(out)
  return None if found <= known else f"{WRONG}: other pixels without a word"


def pixels(folder, records):
  """Hashes of the images of a prepared data set."""
  source = records.open_split(folder, records.read_manifest(folder), "train")
  return {hashlib.sha256(source[i]["image"].tobytes()).hexdigest() for i in range(len(source))}
