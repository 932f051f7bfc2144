"""Archives read where they lie: ILSVRC2012's tars, Kaggle's zip, CIFAR-10's pickles; and what
ImageNet's classes are called.
"""

import io
import os
import pathlib
import pickle
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image
from scipy import io as scipy_io
from sklearn.datasets import load_sample_image

from cfg.base.errors import UserError
from cfg.data import prepare, records
from cfg.data.preparing import imagenet, inputs, trees

SYNSETS = ("n01440764", "n02012849", "n03126707")
# the devkit numbers the synsets in another order than the alphabet's
NUMBERS = {"n01440764": 449, "n02012849": 383, "n03126707": 1}
VAL = ("n03126707", "n01440764", "n02012849", "n03126707")


def run(source, out, **options):
  return prepare.prepare(source, out, **{"resolution": 16, **options})


def shards(folder):
  """{file: bytes} of everything but the manifest."""
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.name != "manifest.json"}


def add(archive, name, data):
  info = tarfile.TarInfo(name)
  info.size = len(data)
  archive.addfile(info, io.BytesIO(data))


def tar_of(path, files, mode="w"):
  with tarfile.open(path, mode) as archive:
    for name, data in files.items():
      add(archive, name, data)
  return path.read_bytes()


@pytest.fixture(scope="module")
def images():
  """({"n01440764/n01440764_0.JPEG": bytes}, {"ILSVRC2012_val_00000001.JPEG": bytes}): three classes
  of four, four to validate.
  """
  photo = load_sample_image("china.jpg")[::8, ::8]

  def jpeg(shift):
    out = io.BytesIO()
    Image.fromarray(np.roll(photo, 9 * shift, axis=1)).save(out, "JPEG")
    return out.getvalue()

  train = {
    f"{synset}/{synset}_{i}.JPEG": jpeg(4 * n + i)
    for n, synset in enumerate(SYNSETS)
    for i in range(4)
  }
  val = {f"ILSVRC2012_val_{i:08d}.JPEG": jpeg(20 + i) for i in range(1, 5)}
  return train, val


@pytest.fixture(scope="module")
def expected(images, tmp_path_factory):
  """What the same images prepare to from class folders: (manifest, shards)."""
  root = tmp_path_factory.mktemp("expected")
  train, val = images
  files = {f"train/{name}": data for name, data in train.items()}
  files |= {f"val/{synset}/{name}": data for synset, (name, data) in zip(VAL, val.items())}
  for name, data in files.items():
    (root / "in" / name).parent.mkdir(parents=True, exist_ok=True)
    (root / "in" / name).write_bytes(data)
  return run(root / "in", root / "out"), shards(root / "out"), root / "in"


def of_row(folder, manifest, split, i):
  return records.open_split(folder, manifest, split)[i]


@pytest.fixture(scope="module")
def ilsvrc(images, tmp_path_factory):
  """A folder with the three archives of image-net.org, small."""
  root = tmp_path_factory.mktemp("ilsvrc")
  train, val = images
  inner = {}
  for synset in reversed(SYNSETS):
    files = {
      name.split("/")[1]: data for name, data in reversed(train.items()) if name.startswith(synset)
    }
    inner[f"{synset}.tar"] = tar_of(root / "scratch", files)
  tar_of(root / imagenet.TRAIN_TAR, inner)
  tar_of(root / imagenet.VAL_TAR, dict(reversed(val.items())))
  meta = np.array(
    [(NUMBERS[s], s, "words") for s in SYNSETS],
    dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")],
  )
  mat = io.BytesIO()
  scipy_io.savemat(mat, {"synsets": meta})
  truth = "".join(f"{NUMBERS[s]}\n" for s in VAL).encode()
  kit = "ILSVRC2012_devkit_t12/data/"
  tar_of(
    root / imagenet.DEVKIT,
    {f"{kit}ILSVRC2012_validation_ground_truth.txt": truth, f"{kit}meta.mat": mat.getvalue()},
    "w:gz",
  )
  (root / "scratch").unlink()
  return root


def test_ilsvrc_tars(ilsvrc, expected, images, tmp_path):
  """Tars in a tar, in any order, give what the extracted folders do; validation labels come through
  the devkit's numbers.
  """
  manifest = run(ilsvrc, tmp_path / "out", workers=2)
  assert manifest["input"] == "ilsvrc2012" and manifest["class_ids"] == list(SYNSETS)
  assert manifest["class_names"] == ["tench", "crane (n02012849)", "crane (n03126707)"]
  assert manifest["splits"]["val"]["class_counts"] == [1, 1, 2]
  train, _, _ = expected
  assert (
    shards(tmp_path / "out")["train-00000-of-00001.array_record"]
    == expected[1]["train-00000-of-00001.array_record"]
  )
  # image by image: the flat folder is in the order of its names
  labels = [of_row(tmp_path / "out", manifest, "val", i)["label"] for i in range(4)]
  assert labels == [SYNSETS.index(synset) for synset in VAL]
  alone = tmp_path / "alone"
  alone.mkdir()
  os.link(ilsvrc / imagenet.TRAIN_TAR, alone / imagenet.TRAIN_TAR)
  assert run(alone, tmp_path / "train_only")["splits"].keys() == {"train"}
  assert (
    run(alone / imagenet.TRAIN_TAR, tmp_path / "the_tar")["splits"]["train"]
    == manifest["splits"]["train"]
  )
  os.link(ilsvrc / imagenet.VAL_TAR, alone / imagenet.VAL_TAR)
  with pytest.raises(UserError, match="devkit_t12.tar.gz, which holds its labels"):
    inputs.open_input(alone)
  whole = (ilsvrc / imagenet.TRAIN_TAR).read_bytes()
  (tmp_path / "cut").mkdir()
  (tmp_path / "cut" / imagenet.TRAIN_TAR).write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="img_train.tar.*cut short"):
    inputs.open_input(tmp_path / "cut")
  (alone / imagenet.DEVKIT).write_bytes((ilsvrc / imagenet.DEVKIT).read_bytes()[:200])
  with pytest.raises(UserError, match="not the development kit"):
    inputs.open_input(alone)


@pytest.fixture(scope="module")
def kaggle(images):
  """{name: bytes} of Kaggle's archive, in miniature."""
  train, val = images
  base = "ILSVRC/Data/CLS-LOC"
  boxes = "".join(
    f"{name.removesuffix('.JPEG')},{synset} 1 2 30 40 {synset} 5 6 70 80\n"
    for name, synset in zip(val, VAL)
  )
  return {
    **{f"{base}/train/{name}": data for name, data in train.items()},
    **{f"{base}/val/{name}": data for name, data in val.items()},
    f"{base}/test/ILSVRC2012_test_00000001.JPEG": b"unlabelled",
    "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml": b"<xml/>",
    "LOC_val_solution.csv": f"ImageId,PredictionString\n{boxes}".encode(),
    "LOC_synset_mapping.txt": b"n01440764 tench, Tinca tinca\n",
  }


@pytest.mark.parametrize("form", ["stored", "deflated", "extracted"])
def test_kaggle(kaggle, expected, tmp_path, form):
  """Zipped or extracted: the class folders' training shard to the byte; validation labels from the
  table of boxes.
  """
  path = tmp_path / "imagenet"
  if form == "extracted":
    for name, data in kaggle.items():
      (path / name).parent.mkdir(parents=True, exist_ok=True)
      (path / name).write_bytes(data)
  else:
    path = tmp_path / "imagenet.zip"
    with zipfile.ZipFile(
      path, "w", zipfile.ZIP_DEFLATED if form == "deflated" else zipfile.ZIP_STORED
    ) as archive:
      for name, data in kaggle.items():
        with archive.open(
          name, "w", force_zip64=True
        ) as file:  # as in an archive of 155 GB: the local headers have an extra field
          file.write(data)
  manifest = run(path, tmp_path / "out")
  assert (
    manifest["input"] == "kaggle"
    and shards(tmp_path / "out")["train-00000-of-00001.array_record"]
    == expected[1]["train-00000-of-00001.array_record"]
  )
  assert [of_row(tmp_path / "out", manifest, "val", i)["label"] for i in range(4)] == [
    SYNSETS.index(synset) for synset in VAL
  ]


def test_kaggle_without_its_table(kaggle, tmp_path):
  """Without the labels of the validation images there is no such split, and the manifest says why;
  with wrong ones it is an error.
  """
  path = tmp_path / "k.zip"
  for change in (
    {"LOC_val_solution.csv": b"a,b\n1,2\n"},
    {"LOC_val_solution.csv": None},
    {"LOC_val_solution.csv": b"ImageId,PredictionString\nother,n01440764 1 2 3 4\n"},
  ):
    with zipfile.ZipFile(path, "w") as archive:
      for name, data in {**kaggle, **change}.items():
        if data is not None:
          archive.writestr(name, data)
    if change["LOC_val_solution.csv"] is None:
      found = inputs.open_input(path)
      assert (
        found.splits.keys() == {"train"}
        and "LOC_val_solution.csv" in found.ignored["ILSVRC/Data/CLS-LOC/val/"]
      )
    else:
      with pytest.raises(
        UserError, match="nothing is known of ILSVRC2012_val_00000001.JPEG|not Kaggle's table"
      ):
        inputs.open_input(path)


@pytest.mark.parametrize("kind", ["zip", "tar"])
@pytest.mark.parametrize("top", ["", "my pictures/"])
def test_archives_of_class_folders(expected, tmp_path, kind, top, monkeypatch):
  """An archive of train and val, inside one folder or not, gives the extracted folder's bytes;
  hidden files and macOS's are passed over.
  """
  root = expected[2]
  monkeypatch.setattr(prepare, "SHARD_SIZE", 5)
  run(root, tmp_path / "wanted")
  files = {
    f"{top}{p.relative_to(root).as_posix()}": p.read_bytes()
    for p in root.rglob("*.*")
    if p.is_file()
  }
  files |= {f"{top}train/.DS_Store": b"x", f"__MACOSX/{top}train/{SYNSETS[0]}/._a.JPEG": b"x"}
  path = tmp_path / f"set.{kind}"
  if kind == "tar":
    tar_of(path, files)
  else:
    with zipfile.ZipFile(path, "w") as archive:
      archive.mkdir("__MACOSX")
      for name, data in files.items():
        archive.writestr(name, data)
  manifest = run(path, tmp_path / "out")
  assert (
    shards(tmp_path / "out") == shards(tmp_path / "wanted")
    and len(shards(tmp_path / "out")) == 5
    and not manifest["ignored"]
  )


def test_damaged_members_are_rejected_by_name(expected, tmp_path):
  """A flipped byte of a zip's member is found by its checksum, and named; the others are kept."""
  _, _, root = expected
  path = tmp_path / "set.zip"
  with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
    for p in sorted((root / "train").rglob("*.JPEG")):
      archive.write(p, p.relative_to(root / "train").as_posix())
  place = trees.zip_archive(path).places[f"{SYNSETS[1]}/{SYNSETS[1]}_2.JPEG"]
  raw = bytearray(path.read_bytes())
  raw[place.header + 60 + place.stored // 2] ^= 1
  path.write_bytes(raw)
  manifest = run(path, tmp_path / "out", max_rejected=0.2)
  assert list(manifest["rejected"]) == [f"{SYNSETS[1]}/{SYNSETS[1]}_2.JPEG"] and "damaged" in next(
    iter(manifest["rejected"].values())
  )
  assert manifest["splits"]["train"]["count"] == 11


def test_archives_that_cannot_be_read(tmp_path, expected):
  """Cut short, compressed as a whole, encrypted or of no known kind: one sentence with the path and
  what to do.
  """
  _, _, root = expected
  files = {
    p.relative_to(root / "train").as_posix(): p.read_bytes()
    for p in (root / "train").rglob("*.JPEG")
  }
  tar_of(tmp_path / "set.tar.gz", files, "w:gz")
  with pytest.raises(UserError, match="set.tar.gz.*extract it"):
    inputs.open_input(tmp_path / "set.tar.gz")
  whole = tar_of(tmp_path / "set.tar", files)
  (tmp_path / "set.tar").write_bytes(whole[: len(whole) // 2])
  with pytest.raises(UserError, match="set.tar.*cut short"):
    inputs.open_input(tmp_path / "set.tar")
  (tmp_path / "noise.zip").write_bytes(b"noise" * 200)
  with pytest.raises(UserError, match="noise.zip.*no folder, no zip"):
    inputs.open_input(tmp_path / "noise.zip")
  with zipfile.ZipFile(tmp_path / "lzma.zip", "w", zipfile.ZIP_LZMA) as archive:
    archive.writestr("a/1.jpg", b"x" * 100)
  with pytest.raises(UserError, match="lzma.zip.*extract"):
    inputs.open_input(tmp_path / "lzma.zip")


class Evil:
  def __reduce__(self):
    return os.mkdir, ("evil",)


@pytest.fixture(scope="module")
def cifar():
  """{file: dict} of the python archive with four images a batch, pickled as the published one."""
  rng = np.random.default_rng(0)
  batch = lambda name: {
    "batch_label": name,
    "labels": [0, 1, 1, 0],
    "data": rng.integers(0, 256, (4, 3072), np.uint8),
    "filenames": ["a.png"] * 4,
  }
  return {
    **{f"data_batch_{i}": batch("b") for i in range(1, 6)},
    "test_batch": batch("t"),
    "batches.meta": {"label_names": ["airplane", "automobile"], "num_vis": 3072},
  }


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_cifar10_python(cifar, tmp_path, protocol):
  """Each pickle protocol, extracted or as the .tar.gz that is published: the binary archive's
  shards to the byte.
  """
  files = {name: pickle.dumps(content, protocol) for name, content in cifar.items()}
  (tmp_path / "py").mkdir()
  (tmp_path / "bin").mkdir()
  for name, data in files.items():
    (tmp_path / "py" / name).write_bytes(data)
    if name != "batches.meta":
      rows = np.concatenate([np.uint8(cifar[name]["labels"])[:, None], cifar[name]["data"]], axis=1)
      rows.tofile(tmp_path / "bin" / f"{name}.bin")
  (tmp_path / "bin" / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
  tar_of(
    tmp_path / "cifar-10-python.tar.gz",
    {f"cifar-10-batches-py/{name}": data for name, data in files.items()},
    "w:gz",
  )
  for name in ("py", "bin", "cifar-10-python.tar.gz"):
    manifest = run(tmp_path / name, tmp_path / f"out_{name}")
    assert manifest["class_names"] == ["airplane", "automobile"]
  wanted = shards(tmp_path / "out_bin")
  assert shards(tmp_path / "out_py") == wanted == shards(tmp_path / "out_cifar-10-python.tar.gz")


def test_cifar10_pickles_are_not_run(cifar, tmp_path, monkeypatch):
  """A batch that asks for a function, or holds another array or label than CIFAR-10's, is refused;
  nothing is called.
  """
  monkeypatch.chdir(tmp_path)
  good = cifar["data_batch_1"]
  bad = [
    Evil(),
    {**good, "data": Evil()},
    {**good, "data": good["data"].astype(np.float32)},
    {**good, "data": good["data"].astype(np.int8)},
    {**good, "data": [1, 2]},
    {**good, "labels": [0, 1, 1]},
    {**good, "labels": [0, 1, 2, 0]},
    {**good, "labels": [0, -1, 0, 0]},
    {"labels": [0]},
    [1],
    {**good, "data": good["data"][:, :9]},
  ]
  (tmp_path / "py").mkdir()
  for name, content in cifar.items():
    (tmp_path / "py" / name).write_bytes(pickle.dumps(content, 2))
  for content in bad:
    (tmp_path / "py" / "data_batch_1").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(UserError, match="data_batch_1"):
      inputs.open_input(tmp_path / "py")
  (tmp_path / "py" / "data_batch_1").write_bytes(pickle.dumps(good, 2)[:-200])
  with pytest.raises(UserError, match="data_batch_1"):
    inputs.open_input(tmp_path / "py")
  assert not pathlib.Path("evil").exists()


def test_synsets():
  """1,000 in the alphabet's order, each name once whatever its case; a subset keeps its names,
  other folders theirs.
  """
  table = imagenet.synsets()
  assert len(table) == 1000 == len({name.lower() for name in table.values()}) and list(
    table
  ) == sorted(table)
  assert [list(table.values())[i] for i in (0, 1, 207, 999)] == [
    "tench",
    "goldfish",
    "golden retriever",
    "toilet tissue",
  ]
  assert {table["n02113186"], table["n02963159"]} == {
    "Cardigan (n02113186)",
    "cardigan (n02963159)",
  }
  assert imagenet.class_names(["n01440764", "n02012849"]) == (
    ("tench", "crane (n02012849)"),
    ("n01440764", "n02012849"),
  )
  assert imagenet.class_names(["n01440764", "cat"]) == (("n01440764", "cat"), None)
  assert imagenet.class_names([]) == ((), None)
