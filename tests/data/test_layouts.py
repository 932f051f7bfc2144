"""Which folder is a class: layouts as people have them, the same in a folder, a zip and a tar."""

import io
import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
from PIL import Image

from cfg.base.errors import UserError
from cfg.data import prepare, records, sources
from cfg.data.preparing import inputs, layout


def png(colour):
  """The bytes of a small picture of one grey."""
  out = io.BytesIO()
  Image.new("RGB", (6, 5), (colour, colour, colour)).save(out, "PNG")
  return out.getvalue()


PNG = png(7)


def pictures(*names):
  """{name: bytes}, each with two pictures for a name that ends in /."""
  return {
    file: PNG
    for name in names
    for file in ((f"{name}1.png", f"{name}2.png") if name.endswith("/") else (name,))
  }


def write(path, files, form):
  """The input of {name: bytes}, as a folder, a zip or a tar; returns its path."""
  if form == "folder":
    for name, data in files.items():
      (path / name).parent.mkdir(parents=True, exist_ok=True)
      (path / name).write_bytes(data)
    return path
  path = path.with_suffix(f".{form}")
  if form == "zip":
    with zipfile.ZipFile(path, "w") as archive:
      for name, data in files.items():
        archive.writestr(name, data)
  else:
    with tarfile.open(path, "w") as archive:
      for name, data in files.items():
        info = tarfile.TarInfo(name)
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
  return path


def classes_of(given):
  """{split: {class: number of images}} of an Input."""
  return {
    split: {
      name: int(np.sum(part.labels == label))
      for label, name in enumerate(given.class_names)
      if np.any(part.labels == label)
    }
    for split, part in given.splits.items()
  }


BOTH = {"cat": 2, "dog": 2}
PLAIN = pictures("cat/", "dog/")
SPLIT = pictures("train/cat/", "train/dog/", "val/cat/", "val/dog/")
NOTES = {"README.md": b"read me", "LICENSE": b"free", "labels.csv": b"a,b"}


def inside(folder, files):
  """The files in a folder."""
  return {f"{folder}/{name}": data for name, data in files.items()}


def renamed(files, **names):
  """The files with their first folder called otherwise."""
  change = lambda name: "/".join([names.get(name.split("/")[0]), *name.split("/")[1:]])
  return {change(name): data for name, data in files.items()}


READ = {
  "classes": (PLAIN, {"train": BOTH}),
  "in capitals": (
    {"cat/1.PNG": PNG, "cat/2.Png": PNG, "dog/1.png": PNG, "dog/2.PnG": PNG},
    {"train": BOTH},
  ),
  "deep": (pictures("cat/a/", "dog/b/c/"), {"train": BOTH}),
  "splits": (SPLIT, {"train": BOTH, "val": BOTH}),
  "tools' folders": (
    {
      **SPLIT,
      **pictures("__MACOSX/train/cat/", "@eaDir/cat/", "train/@eaDir/1.png/", "lost+found/"),
      **pictures("$RECYCLE.BIN/", "System Volume Information/", ".ipynb_checkpoints/cat/"),
      **pictures("train/cat/.ipynb_checkpoints/", "train/cat/@eaDir/"),
      "Thumbs.db": b"x",
      "train/cat/Thumbs.db": b"x",
      "train/cat/._1.png": b"x",
    },
    {"train": BOTH, "val": BOTH},
  ),
  "stray folders": (
    {**SPLIT, "docs/index.html": b"x", "scripts/a/b/c.py": b"x", **NOTES},
    {"train": BOTH, "val": BOTH},
  ),
  "Train, VALID": (renamed(SPLIT, train="Train", val="VALID"), {"train": BOTH, "val": BOTH}),
  "training, testing": (
    renamed(SPLIT, train="training", val="testing"),
    {"train": BOTH, "test": BOTH},
  ),
  "dev": (renamed(SPLIT, train="train", val="dev"), {"train": BOTH, "val": BOTH}),
  "training_set": (
    inside("training_set", inside("training_set", PLAIN))
    | inside("test_set", inside("test_set", PLAIN)),
    {"train": BOTH, "test": BOTH},
  ),
  "an empty validation beside val": (
    {**SPLIT, "validation/notes.txt": b"x"},
    {"train": BOTH, "val": BOTH},
  ),
  "wrapped": (inside("pets", PLAIN), {"train": BOTH}),
  "wrapped with notes": ({**inside("pets", {**PLAIN, **NOTES}), **NOTES}, {"train": BOTH}),
  "wrapped thrice": (inside("a", inside("b", inside("c", PLAIN))) | NOTES, {"train": BOTH}),
  "splits in a wrapper": ({**inside("a/b", SPLIT), **NOTES}, {"train": BOTH, "val": BOTH}),
  "wrapped beside tools' folders": (
    {**inside("pets", PLAIN), **pictures("__MACOSX/pets/cat/")},
    {"train": BOTH},
  ),
  "only train": (inside("train", PLAIN), {"train": BOTH}),
  "a class called train inside a split": (
    pictures("train/train/", "train/bus/", "val/train/", "val/bus/"),
    {"train": {"bus": 2, "train": 2}, "val": {"bus": 2, "train": 2}},
  ),
  "splits inside the classes": (
    pictures("cat/train/", "cat/test/", "dog/train/", "dog/test/"),
    {"train": BOTH, "test": BOTH},
  ),
  "pictures without labels to test": (
    {**SPLIT, **pictures("test/images/")},
    {"train": BOTH, "val": BOTH},
  ),
  "one class": (pictures("cat/", "cat/more/"), {"train": {"cat": 4}}),
  "a sub-folder like a split in one class": (
    pictures("cat/", "cat/test/", "dog/"),
    {"train": {"cat": 4, "dog": 2}},
  ),
}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("case", READ)
def test_layouts_are_read_as_they_are_meant(tmp_path, case, form):
  """The classes and the splits, with as many images, wherever they lie and whatever lies beside."""
  files, wanted = READ[case]
  given = inputs.open_input(write(tmp_path / "data", files, form))
  assert classes_of(given) == wanted
  for part in given.splits.values():
    for i in range(len(part)):
      assert part.read(i).shape == (5, 6, 3)
      # the label is that of the folder, and the name that is reported is a file's
      assert given.class_names[part.labels[i]] in part.title(i).split("/")
      assert part.title(i) in files


REFUSED = {
  "a class called train": (pictures("bus/", "car/", "train/"), "train .*bus, car"),
  "splits beside others": ({**SPLIT, **pictures("extra/")}, "extra cannot be splits"),
  "val and validation": ({**SPLIT, **pictures("validation/cat/")}, "val and validation"),
  "train and Train": (
    pictures("train/cat/", "train/dog/", "Train/cat/", "Train/dog/"),
    "Train and train",
  ),
  "no training images": (pictures("val/cat/", "test/cat/"), "none is the training images'"),
  "only val": (pictures("val/cat/", "val/dog/"), "none is the training images'"),
  "splits in each of two folders": (
    inside("one", SPLIT) | inside("two", SPLIT),
    "one, two.*named as splits",
  ),
  "splits in a split": (inside("train", SPLIT), "holds folders of splits: train, val"),
  "splits beside a picture in a wrapper": (
    {**inside("data", SPLIT), "data/logo.png": PNG},
    "train, val",
  ),
  "classes beside a picture in a wrapper": (
    {**inside("data", PLAIN), "data/logo.png": PNG},
    "only class .*'data'.* cat, dog",
  ),
  "other classes to validate": (
    pictures("train/cat/", "train/dog/", "val/0/", "val/1/"),
    "classes 0, 1",
  ),
  "nothing but tools' folders": (pictures("__MACOSX/cat/"), "no sub-folders with images"),
  "images beside their masks": (pictures("images/", "annotations/"), "images seems to hold"),
  "classes beside their masks": (
    pictures("images/cat/", "images/dog/", "masks/cat/", "masks/dog/"),
    "images seems to hold",
  ),
  "images in a folder": (pictures("images/"), "images seems to hold"),
  "images of a detector": (
    {**pictures("train/images/", "val/images/"), "train/labels/1.txt": b"0 0 0 1 1"},
    "images seems to hold",
  ),
  "WebDataset": (
    {"00/a.png": PNG, "00/a.cls": b"3", "01/b.png": PNG, "01/b.cls": b"4"},
    "WebDataset",
  ),
}


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("case", REFUSED)
def test_doubtful_layouts_are_refused(tmp_path, case, form):
  """What may be splits or classes is an error that names the folders."""
  files, words = REFUSED[case]
  with pytest.raises(UserError, match=words):
    inputs.open_input(write(tmp_path / "data", files, form))


def test_the_classes_are_always_said(tmp_path, config, caplog, capsys):
  """prepare prints what it took for classes, and training logs it; many are cut."""
  path = write(tmp_path / "data", PLAIN, "folder")
  prepare.main([str(path), str(tmp_path / "out"), "--resolution=4", "--workers=1"])
  assert "2 classes: cat, dog" in capsys.readouterr().out
  config.data.update(name="folder", path=str(path), resolution=4)
  with caplog.at_level("INFO", "cfg"):
    sources.load(config.data)
  assert any("2 classes: cat, dog" in line for line in caplog.messages)


def test_a_tool_s_folder_with_images_is_listed(tmp_path):
  """It may be a class after all: what was left out is said, with how many images."""
  given = inputs.open_input(
    write(tmp_path / "data", {**PLAIN, **pictures("lost+found/")}, "folder")
  )
  assert "not a class (2 images" in given.ignored["lost+found/"]


@pytest.mark.parametrize(
  "name, split",
  [
    ("train", "train"),
    ("Training", "train"),
    ("train_images", "train"),
    ("trainset", "train"),
    ("seg_train", "train"),
    ("train2017", "train"),
    ("valid", "val"),
    ("VALIDATION", "val"),
    ("dev", "val"),
    ("eval", "val"),
    ("Test-Set", "test"),
    ("testing", "test"),
    ("trains", None),
    ("train station", None),
    ("contest", None),
    ("devil", None),
    ("set", None),
    ("0", None),
    ("猫", None),
  ],
)
def test_names_of_splits(name, split):
  """In any case, with the words that people add; no word that only contains one."""
  assert layout.split_of(name) == split


# EDM's and StyleGAN's dataset.json


def labelled(rows, **files):
  """A data set of shards, as dataset_tool.py writes it, with these rows of labels."""
  names = ["00000/img00000000.png", "00000/img00000001.png", "00001/img00001000.png"]
  images = {name: png(40 * i) for i, name in enumerate(names)}
  return {**images, "dataset.json": json.dumps({"labels": rows}).encode(), **files}


ROWS = [["00000/img00000000.png", 2], ["00001/img00001000.png", 0], ["00000/img00000001.png", 2]]


@pytest.mark.parametrize("form", ["folder", "zip", "tar"])
@pytest.mark.parametrize("wrapper", ["", "edm/"])
def test_dataset_json_gives_the_labels(tmp_path, form, wrapper):
  """The classes are the numbers in it, and the shards' folders mean nothing."""
  files = {wrapper + name: data for name, data in labelled(ROWS).items()}
  path = write(tmp_path / "data", files, form)
  manifest = prepare.prepare(path, tmp_path / "out", resolution=5)
  assert manifest["class_names"] == ["0", "1", "2"]
  source = records.open_split(tmp_path / "out", manifest, "train")
  rows = [source[i] for i in range(len(source))]
  assert [(int(row["label"]), int(row["image"][0, 0, 0])) for row in rows] == [
    (2, 0),
    (2, 40),
    (0, 80),
  ]


def test_dataset_json_of_splits_and_of_flat_images(tmp_path):
  """One in each split; images that lie beside it."""
  flat = {name.replace("/", "-"): data for name, data in labelled(ROWS).items()}
  flat["dataset.json"] = json.dumps(
    {"labels": [[name.replace("/", "-"), label] for name, label in ROWS]}
  ).encode()
  path = write(tmp_path / "data", inside("train", flat) | inside("val", labelled(ROWS)), "folder")
  given = inputs.open_input(path)
  assert [part.labels.tolist() for part in given.splits.values()] == [[2, 2, 0], [2, 2, 0]]
  with pytest.raises(UserError, match="has no dataset.json"):
    (path / "val" / "dataset.json").unlink()
    inputs.open_input(path)


BAD = {
  "none": (None, "no labels"),
  "empty": ([], "no labels"),
  "an image that is not listed": (ROWS[:2], "does not list 00000/img00000001.png"),
  "an image that is not there": ([*ROWS, ["00002/img00002000.png", 0]], "img00002000.png.*not"),
  "a latent": ([*ROWS, ["00002/img00002000.npy", 0]], "img00002000.npy.*no image"),
  "vectors": ([[name, [0.0, 1.0]] for name, _ in ROWS], "vector of 2"),
  "fractions": ([[name, 1.0] for name, _ in ROWS], "class 1.0"),
  "words": ([[name, "cat"] for name, _ in ROWS], "class 'cat'"),
  "truths": ([[name, True] for name, _ in ROWS], "class True"),
  "below 0": ([*ROWS[:2], [ROWS[2][0], -1]], "from -1"),
  "no classes": ([*ROWS[:2], [ROWS[2][0], 2**33]], "integers from 0"),
  "beyond all": ([*ROWS[:2], [ROWS[2][0], 2**70]], "integers from 0|no numbers"),
  "two classes": ([*ROWS, [ROWS[0][0], 1]], "two classes"),
  "no pairs": ([1, 2, 3], "must be"),
  "a table": ({"0": "background"}, "must be"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_dataset_json_without_usable_labels_is_refused(tmp_path, case):
  """The folders of shards are never taken for classes."""
  rows, words = BAD[case]
  with pytest.raises(UserError, match=words):
    inputs.open_input(write(tmp_path / "data", labelled(rows), "zip"))


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b"\xff"])
def test_a_dataset_json_that_is_none_is_refused(tmp_path, content):
  """Damaged, or of another kind."""
  files = labelled(ROWS) | {"dataset.json": content}
  with pytest.raises(UserError, match="dataset.json of .*(no labels|cannot be read)"):
    inputs.open_input(write(tmp_path / "data", files, "folder"))


def test_a_dataset_json_elsewhere_is_named(tmp_path):
  """Two labelled data sets side by side are not two classes."""
  files = inside("one", labelled(ROWS)) | inside("two", labelled(ROWS))
  with pytest.raises(UserError, match="one/dataset.json"):
    inputs.open_input(write(tmp_path / "data", files, "zip"))


# links, and files that are none


def test_links_are_followed_once(tmp_path):
  """A link that leads back, up, or to a folder that is read already adds no image, and is said; one
  to a folder elsewhere is followed.
  """
  path = write(tmp_path / "data", PLAIN, "folder")
  elsewhere = write(tmp_path / "elsewhere", pictures("1.png", "deep/2.png"), "folder")
  (path / "cat" / "self").symlink_to(".")
  (path / "aardvark").symlink_to("dog")  # before the real folder in the alphabet
  (path / "dog" / "up").symlink_to("../..")
  (path / "emu").symlink_to(elsewhere)
  (elsewhere / "back").symlink_to(path / "emu")
  (path / "fox").symlink_to("/nowhere/fox")
  given = inputs.open_input(path)
  assert classes_of(given) == {"train": {**BOTH, "emu": 2}}
  assert set(given.ignored) == {"cat/self/", "aardvark/", "dog/up/", "emu/back/", "fox"}
  assert all("link" in why for why in given.ignored.values())


@pytest.fixture
def with_unreadable(tmp_path):
  """(class folders, names of those that cannot be read): links, a pipe, an empty file."""
  path = write(tmp_path / "data", PLAIN, "folder")
  (path / "cat" / "gone.png").symlink_to("/nowhere/x.png")
  (path / "cat" / "itself.png").symlink_to("itself.png")
  os.mkfifo(path / "dog" / "pipe.png")
  (path / "dog" / "empty.png").write_bytes(b"")
  return path, {"cat/gone.png", "cat/itself.png", "dog/pipe.png", "dog/empty.png"}


def test_files_that_cannot_be_read_are_listed(with_unreadable, tmp_path):
  """Broken links and pipes like damaged files; the plan is the same when it is run again."""
  path, bad = with_unreadable
  for _ in range(2):
    manifest = prepare.prepare(path, tmp_path / "out", resolution=4, max_rejected=0.6)
    assert set(manifest["rejected"]) == bad and manifest["splits"]["train"]["count"] == 4


def test_training_names_files_that_cannot_be_read(with_unreadable, config):
  """One of them, how many there are, and the way to do without."""
  path, bad = with_unreadable
  config.data.update(name="folder", path=str(path), resolution=4)
  with pytest.raises(UserError, match="gone.png.*4 of 8 files.*cfg.data.prepare"):
    sources.load(config.data)
  for name in bad - {"dog/pipe.png"}:
    (path / name).unlink()
  with pytest.raises(UserError, match="pipe.png.*not a regular file"):
    sources.load(config.data)


def test_a_sample_is_measured_once_too(tmp_path, caplog):
  """Images to evaluate are read by the same walk: a loop adds none, and is logged."""
  path = write(tmp_path / "data", pictures("1.png", "2.png"), "folder")
  (path / "self").symlink_to(".")
  assert inputs.open_images(path).count == 2
  assert any("self" in line and "link" in line for line in caplog.messages)
  (path / "3.png").symlink_to("/nowhere")
  images = inputs.open_images(path)
  with pytest.raises(UserError, match="3.png"):
    images.read(2)


def test_links_in_a_tar(tmp_path):
  """Hard links and links to members are the images they lead to; others are unreadable, or said."""
  path = tmp_path / "set.tar"
  with tarfile.open(path, "w") as archive:
    for name, kind, target in (
      ("cat/1.png", tarfile.REGTYPE, ""),
      ("cat/hard.png", tarfile.LNKTYPE, "cat/1.png"),
      ("dog/soft.png", tarfile.SYMTYPE, "../cat/hard.png"),
      ("dog/gone.png", tarfile.SYMTYPE, "/nowhere/1.png"),
      ("dog/loop.png", tarfile.SYMTYPE, "loop.png"),
      ("dog/pipe.png", tarfile.FIFOTYPE, ""),
      ("emu", tarfile.SYMTYPE, "cat"),
    ):
      info = tarfile.TarInfo(name)
      info.type = kind
      info.linkname = target
      info.size = len(PNG) if kind == tarfile.REGTYPE else 0
      archive.addfile(info, io.BytesIO(PNG))
  manifest = prepare.prepare(path, tmp_path / "out", resolution=4, max_rejected=0.6)
  assert set(manifest["rejected"]) == {"dog/gone.png", "dog/loop.png", "dog/pipe.png"}
  assert manifest["splits"]["train"]["class_counts"] == [2, 1]
  assert "link" in manifest["ignored"]["emu"]


# names in archives


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize(
  "change",
  [
    lambda name: name.replace("/", "\\"),
    lambda name: f"pets\\{name}".replace("/", "\\"),
    lambda name: f".\\{name}",
    lambda name: f"/{name}",
    lambda name: "C:\\" + name.replace("/", "\\"),
    lambda name: f"./{name}",
    lambda name: name.replace("/", "//"),
  ],
)
def test_names_of_windows_and_absolute_ones(tmp_path, form, change):
  """Backslashes are slashes, and where an absolute path began is left away."""
  files = {change(name): data for name, data in PLAIN.items()}
  given = inputs.open_input(write(tmp_path / "data", files, form))
  assert classes_of(given) == {"train": BOTH}
  assert given.splits["train"].read(3).shape == (5, 6, 3)


@pytest.mark.parametrize("form", ["zip", "tar"])
@pytest.mark.parametrize("name", ["../cat/3.png", "cat/../../3.png", "cat\\..\\..\\3.png"])
def test_names_that_lead_out_are_refused(tmp_path, form, name):
  """.. in an archive is an error that shows the name."""
  with pytest.raises(UserError, match="leads out of the archive"):
    inputs.open_input(write(tmp_path / "data", {**PLAIN, name: PNG}, form))


def test_a_name_that_comes_twice_is_said(tmp_path):
  """The last is read, as when the archive is extracted."""
  path = write(tmp_path / "data", {**PLAIN, "/cat/1.png": png(200)}, "zip")
  given = inputs.open_input(path)
  assert classes_of(given) == {"train": BOTH} and "more than once" in given.ignored["cat/1.png"]
  assert given.splits["train"].read(0)[0, 0, 0] == 200
