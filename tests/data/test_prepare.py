"""From files to a prepared data set: every kind of input, odd files, kills, and equal bytes."""

import json
import os
import subprocess
import sys

import numpy as np
import paths
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

from cfg.base.errors import UserError
from cfg.data import decode, prepare, recipes, records, sources
from cfg.data.preparing import inputs

ROOT = paths.ROOT


@pytest.fixture(scope="module")
def photo():
  return load_sample_image("china.jpg")[::4, ::4]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory, photo):
  """Two classes, one with a Chinese name, of odd and good files; an empty class; a note. (folder,
  readable, unreadable)
  """
  root = tmp_path_factory.mktemp("in")
  for name in ("flower", "猫", "empty"):
    (root / name).mkdir()
  picture = Image.fromarray(photo)
  for i in range(8):
    Image.fromarray(np.roll(photo, 7 * i, axis=1)).save(root / "flower" / f"{i}.jpg")
    Image.fromarray(255 - np.roll(photo, 7 * i, axis=1)).save(root / "猫" / f"图{i}.png")
  picture.convert("CMYK").save(root / "flower" / "cmyk.jpg")
  picture.convert("L").save(root / "flower" / "grey.jpg")
  Image.fromarray(photo[:, :, 0].astype(np.uint16) * 257).save(root / "flower" / "sixteen.png")
  exif = Image.Exif()
  exif[0x0112] = 6  # a quarter turn
  picture.save(root / "flower" / "turned.jpg", exif=exif)
  whole = (root / "flower" / "0.jpg").read_bytes()
  (root / "flower" / "cut.jpg").write_bytes(whole[: len(whole) // 2])
  (root / "猫" / "words.jpg").write_text("not a picture")
  (root / "猫" / "notes.txt").write_text("left alone")
  return root


def run(root, out, **options):
  return prepare.prepare(root, out, **{"resolution": 16, "max_rejected": 0.2, **options})


def content(folder):
  """{file: bytes}."""
  return {p.name: p.read_bytes() for p in sorted(folder.iterdir())}


def test_odd_files_become_a_data_set(pictures, tmp_path):
  """What can be read is there in order, by the recipe; what cannot is listed with its reason; the
  empty class too.
  """
  manifest = run(pictures, tmp_path / "out")
  assert manifest["class_names"] == ["flower", "猫"] and manifest["splits"]["train"][
    "class_counts"
  ] == [12, 8]
  assert set(manifest["rejected"]) == {"flower/cut.jpg", "猫/words.jpg"}
  assert manifest["ignored"] == {
    "empty/": "a class without images",
    "猫/notes.txt": "not an image by its ending",
  }
  source = records.open_split(tmp_path / "out", manifest, "train")
  good = sorted(
    f
    for f in pictures.rglob("*.*")
    if f.suffix in (".jpg", ".png") and f.name not in ("cut.jpg", "words.jpg")
  )
  assert len(source) == len(good) == 20
  for i, file in enumerate(good):
    example = source[i]
    assert (
      manifest["class_names"][example["label"]] == file.parent.name
      and example["label"] == source.labels[i]
    )
    np.testing.assert_array_equal(example["image"], recipes.area(decode.read_rgb(file), 16))
  text = prepare.report(manifest)
  for words in ("20 images of 16x16 in 2 classes of 8 to 12", "cut.jpg", "words.jpg", "empty/"):
    assert words in text
  assert sorted(content(tmp_path / "out")) == [
    "labels.npz",
    "manifest.json",
    "train-00000-of-00001.array_record",
  ]


def test_odd_files_are_read_right(pictures, photo):
  """CMYK and grey as RGB, 16 bits by their high byte, a turned picture upright."""
  read = lambda name: decode.read_rgb(pictures / "flower" / name).astype(int)
  assert np.abs(read("cmyk.jpg") - photo).mean() < 12
  assert (
    np.abs(read("grey.jpg") - np.asarray(Image.fromarray(photo).convert("L"))[:, :, None]).mean()
    < 6
  )
  np.testing.assert_array_equal(read("sixteen.png"), photo[:, :, :1].repeat(3, axis=2))
  assert np.abs(read("turned.jpg") - np.rot90(photo, -1)).mean() < 12
  for name, reason in (("cut.jpg", "truncated"), ("../猫/words.jpg", "cannot identify")):
    with pytest.raises(UserError, match=reason):
      decode.read_rgb(pictures / "flower" / name)


def test_equal_bytes(pictures, tmp_path, monkeypatch):
  """Again, in another number of processes, and after kills at every shard: the same files to the
  byte.
  """
  monkeypatch.setattr(prepare, "SHARD_SIZE", 5)
  run(pictures, tmp_path / "a")
  expected = content(tmp_path / "a")
  assert len(expected) == 7
  run(pictures, tmp_path / "b", workers=2)
  whole = prepare.make_shard
  made = []

  def killed_after_one(task):
    if made:
      raise KeyboardInterrupt
    made.append(task[1].name)
    return whole(task)

  monkeypatch.setattr(prepare, "make_shard", killed_after_one)
  for _ in range(4):
    made.clear()
    with pytest.raises(KeyboardInterrupt):
      run(pictures, tmp_path / "c")
    assert not (tmp_path / "c" / "manifest.json").exists()
  monkeypatch.setattr(prepare, "make_shard", whole)
  # a shard that was damaged meanwhile is made again
  shard = next((tmp_path / "c").glob("*.array_record"))
  shard.write_bytes(shard.read_bytes()[:-1])
  run(pictures, tmp_path / "c")
  assert content(tmp_path / "b") == content(tmp_path / "c") == expected


def test_a_killed_process_goes_on(pictures, tmp_path):
  """SIGKILL while it works: the folder says that it is not finished; the command finishes it."""
  many = tmp_path / "in"
  for label in range(3):
    (many / str(label)).mkdir(parents=True)
    for i in range(1500):
      os.link(pictures / "flower" / f"{i % 8}.jpg", many / str(label) / f"{i:04d}.jpg")
  command = [
    sys.executable,
    "-m",
    "cfg.data.prepare",
    str(many),
    str(tmp_path / "out"),
    "--resolution=16",
    "--workers=1",
  ]
  started = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
  while not list((tmp_path / "out").glob("train-*.json")):
    assert started.poll() is None
  started.kill()
  started.wait()
  with pytest.raises(UserError, match="not finished"):
    records.read_manifest(tmp_path / "out")
  done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
  assert (
    done.returncode == 0 and "4,500 images of 16x16 in 3 classes of 1,500 to 1,500" in done.stdout
  )
  assert "images: train 4,500; 3 classes: 0, 1, 2" in done.stderr
  assert "prepare 4500/4500 images (100%)" in done.stderr
  assert records.verify(tmp_path / "out") == []


def test_refusals(pictures, tmp_path):
  """Too many unreadable images, another data set in the folder, a folder in use, nothing to
  prepare: one paragraph, nothing made.
  """
  with pytest.raises(UserError, match="2 of 22 images cannot be read"):
    run(pictures, tmp_path / "out", max_rejected=0.01)
  assert not (tmp_path / "out" / "manifest.json").exists()
  with pytest.raises(UserError, match="part of another preparation"):
    run(pictures, tmp_path / "out", recipe="adm")
  manifest = run(pictures, tmp_path / "out")
  assert run(pictures, tmp_path / "out") == manifest
  with pytest.raises(UserError, match="another prepared data set"):
    run(pictures, tmp_path / "out", resolution=8)
  (tmp_path / "used").mkdir()
  (tmp_path / "used" / "thesis.tex").write_text("mine")
  with pytest.raises(UserError, match="not empty"):
    run(pictures, tmp_path / "used")
  for path in (tmp_path / "absent", tmp_path / "used"):
    with pytest.raises(UserError, match="is not there|no sub-folders"):
      inputs.open_input(path)


def test_damage_is_noticed(pictures, tmp_path, config):
  """A missing or short shard when it is opened, a flipped bit by verify."""
  out = tmp_path / "out"
  run(pictures, out)
  [shard] = out.glob("*.array_record")
  whole = shard.read_bytes()
  shard.write_bytes(whole[:-1])
  with pytest.raises(UserError, match="cut short"):
    records.read_manifest(out)
  shard.write_bytes(whole[:100] + bytes([whole[100] ^ 1]) + whole[101:])
  assert records.verify(out) == [shard.name]
  with pytest.raises(UserError, match="is not what was written"):
    run(pictures, out)
  (out / "manifest.json").write_text("{}")
  with pytest.raises(UserError, match="not a manifest"):
    records.read_manifest(out)


@pytest.mark.parametrize("text", ["[" * 100_000, "", "[]", "{}"])
def test_damaged_notes(pictures, tmp_path, text):
  """Of what was finished: a shard's note, and its shard is written again; a plan is refused."""
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(prepare, "_finish", lambda *_: None)  # as if it was killed before
    run(pictures, tmp_path / "out")
  [note] = (tmp_path / "out").glob("train-*.json")
  note.write_text(text)
  plan = tmp_path / "out" / prepare.PLAN
  whole = plan.read_text()
  plan.write_text(text)
  with pytest.raises(UserError, match="is damaged"):
    run(pictures, tmp_path / "out")
  plan.write_text(whole)
  manifest = run(pictures, tmp_path / "out")
  assert records.verify(tmp_path / "out") == [] and manifest["name"]


def test_npz(tmp_path, photo):
  """Images and labels in an archive; class names if it has them; pickled objects and wrong shapes
  are refused.
  """
  images = np.stack([np.roll(photo[:40, :40], i, axis=0) for i in range(6)])
  path = tmp_path / "set.npz"
  np.savez(
    path, images=images, labels=np.array([0, 1, 2, 0, 1, 2]), class_names=np.array(["a", "b", "c"])
  )
  manifest = run(path, tmp_path / "out")
  assert manifest["name"] == "set" and manifest["class_names"] == ["a", "b", "c"]
  source = records.open_split(tmp_path / "out", manifest, "train")
  for i in range(6):
    np.testing.assert_array_equal(source[i]["image"], recipes.area(images[i], 16))
  np.savez(
    path,
    images=images ^ 1,
    labels=np.array([0, 1, 2, 0, 1, 2]),
    class_names=np.array(["a", "b", "c"]),
  )
  with pytest.raises(UserError, match="other images"):
    run(path, tmp_path / "out")
  bad = (
    {"labels": np.arange(5)},
    {"labels": np.array([0, 1, -1, 0, 1, 2])},
    {"class_names": np.array(["a"])},
    {"images": np.array([None] * 6)},
  )
  for change in bad:
    np.savez(path, **{"images": images, "labels": np.array([0, 1, 2, 0, 1, 2]), **change})
    with pytest.raises(UserError):
      inputs.open_input(path)


NPZ = {"images": np.zeros((4, 5, 5, 3), np.uint8), "labels": np.array([0, 1, 1, 0])}


@pytest.mark.parametrize(
  "change, words",
  [
    ({"labels": np.array([0.0, 1.0, 1.0, 0.0])}, "integers from 0"),
    ({"labels": np.eye(2)[[0, 1, 1, 0]]}, r"labels float64\[4, 2\]"),
    ({"labels": np.eye(2, dtype=int)[[0, 1, 1, 0]]}, r"labels int64\[4, 2\]"),
    ({"labels": np.array([[0], [1], [1], [0]])}, r"labels int64\[4, 1\]"),
    ({"labels": np.array([False, True, True, False])}, "integers from 0"),
    ({"labels": np.array(["0", "1", "1", "0"])}, "integers from 0"),
    ({"labels": np.array([0, 1, 1, 2**32])}, "from 0 to 4294967296"),
    ({"labels": np.array([0, 1, 1, 2**63], np.uint64)}, "from 0 to 9223372036854775808"),
    ({"class_names": np.array(["a", "a"])}, "two classes of one name"),
  ],
)
def test_labels_of_an_npz_that_are_no_classes(tmp_path, change, words):
  """Fractions, vectors and identifiers are refused: none is cut to a class without a word."""
  np.savez(tmp_path / "set.npz", **{**NPZ, **change})
  with pytest.raises(UserError, match=words):
    inputs.open_input(tmp_path / "set.npz")


def test_splits_and_names_of_an_npz(tmp_path):
  """x_val is a split as x_test is; names that are bytes are text."""
  x = NPZ["images"]
  y = NPZ["labels"]
  names = np.array([b"cat", b"dog"])
  np.savez(tmp_path / "set.npz", x_train=x, y_train=y, x_val=x[:1], y_val=y[:1], class_names=names)
  given = inputs.open_input(tmp_path / "set.npz")
  assert {split: len(part) for split, part in given.splits.items()} == {"train": 4, "val": 1}
  assert given.class_names == ("cat", "dog")


@pytest.mark.parametrize("address", ["gs://bucket/set", "s3://bucket/set", "https://host/a.zip"])
def test_addresses_are_refused(tmp_path, address):
  """As input and as output; nothing is made."""
  before = sorted(path.name for path in ROOT.iterdir())
  (tmp_path / "in").mkdir()
  for source, out in ((address, tmp_path / "out"), (tmp_path / "in", address)):
    with pytest.raises(UserError, match=f"(input|output) is '{address}'"):
      run(source, out)
  assert sorted(path.name for path in ROOT.iterdir()) == before


def test_home_is_expanded(pictures, tmp_path, monkeypatch):
  """~ is the home folder, for the input and the output."""
  monkeypatch.setenv("HOME", str(tmp_path))
  (tmp_path / "in").symlink_to(pictures)
  run("~/in", "~/out")
  assert (tmp_path / "out" / "manifest.json").is_file()


def test_preparing_imports_no_jax_and_is_not_silent(pictures, tmp_path):
  """Off a terminal there are lines that say what is read and how far it is; JAX is not loaded."""
  program = (
    "import sys; from cfg.base import progress; progress.to_stderr();"
    "from cfg.data import prepare; prepare.main(sys.argv[1:]);"
    "assert not {'jax', 'tensorboardX', 'grain'} & sys.modules.keys()"
  )
  options = [str(pictures), str(tmp_path / "out"), "--resolution=8", "--max_rejected=0.2"]
  done = subprocess.run(
    [sys.executable, "-c", program, *options], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  for words in ("listing", "2 classes: flower, 猫", "prepare 22/22 images (100%)"):
    assert words in done.stderr


def test_splits_of_a_folder_and_of_an_npz(pictures, tmp_path, photo):
  """train and val side by side share their classes' numbers, and so do x_train and x_test; a class
  of val alone is refused.
  """
  for split, names in (("train", "abc"), ("val", "bc")):
    for name in names:
      (tmp_path / "in" / split / name).mkdir(parents=True)
      os.link(pictures / "flower" / "0.jpg", tmp_path / "in" / split / name / "0.JPEG")
    (tmp_path / "in" / split / "b" / "bad.jpg").write_text("no picture")
  manifest = run(tmp_path / "in", tmp_path / "out", max_rejected=0.5)
  assert set(manifest["rejected"]) == {"train/b/bad.jpg", "val/b/bad.jpg"}
  assert {name: split["class_counts"] for name, split in manifest["splits"].items()} == {
    "train": [1, 1, 1],
    "val": [0, 1, 1],
  }
  assert [records.open_split(tmp_path / "out", manifest, "val")[i]["label"] for i in (0, 1)] == [
    1,
    2,
  ]
  for file in ("0.JPEG", "bad.jpg"):
    (tmp_path / "in" / "train" / "b" / file).unlink()
  with pytest.raises(UserError, match="classes b in"):
    inputs.open_input(tmp_path / "in")
  flat = tmp_path / "flat"
  for name in ("train/a/0.jpg", "val/0.jpg", "train/1.jpg"):
    (flat / name).parent.mkdir(parents=True, exist_ok=True)
    os.link(pictures / "flower" / "0.jpg", flat / name)
  found = inputs.open_input(flat)
  assert found.splits.keys() == {"train"}
  assert found.ignored == {
    "train/1.jpg": "not in a class folder",
    "val/0.jpg": "not in a class folder",
    "val/": "no class folders with images",
  }
  x = np.stack([photo[:20, :20]] * 3)
  np.savez(
    tmp_path / "k.npz",
    x_train=x,
    y_train=np.uint8([0, 1, 2]),
    x_test=x[:1],
    y_test=np.uint8([1]),
    names=np.array(["a", "b", "c"]),
  )
  found = inputs.open_input(tmp_path / "k.npz")
  assert (
    found.class_names == ("a", "b", "c")
    and found.splits["test"].labels.tolist() == [1]
    and len(found.splits["train"]) == 3
  )


def test_cifar10_binary(tmp_path):
  """The published layout: five batches and the test batch, planes of colour; the test images are
  what is held out.
  """
  rng = np.random.default_rng(0)
  (tmp_path / "batches.meta.txt").write_text("airplane\nautomobile\n\n")
  pixels = {}
  for batch in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
    rows = rng.integers(0, 256, (4, 3073), np.uint8)
    rows[:, 0] = [0, 1, 0, 1]
    rows.tofile(tmp_path / batch)
    pixels[batch] = rows[:, 1:]
  run(tmp_path, tmp_path / "out", resolution=32)
  manifest = records.read_manifest(tmp_path / "out")
  assert {name: split["count"] for name, split in manifest["splits"].items()} == {
    "train": 20,
    "test": 4,
  }
  image = records.open_split(tmp_path / "out", manifest, "train")[5]["image"]
  np.testing.assert_array_equal(
    image[3, 7], pixels["data_batch_2.bin"][1].reshape(3, 32, 32)[:, 3, 7]
  )
  from ml_collections import ConfigDict

  data = sources.load(
    ConfigDict(dict(name="prepared", path=str(tmp_path / "out"), resolution=32, num_classes=2))
  )
  assert (
    len(data.train) == 20
    and len(data.heldout) == 4
    and data.class_names == ("airplane", "automobile")
  )
  (tmp_path / "data_batch_3.bin").unlink()
  with pytest.raises(UserError, match="data_batch_3.bin"):
    inputs.open_input(tmp_path)


def test_cifar10_itself(tmp_path):
  """The real 60,000 images, prepared and read back: their published mean and standard deviation,
  5,000 and 1,000 of each class.
  """
  script = ROOT.parent / "shared" / "data" / "decode.py"
  if not script.exists():
    pytest.skip(f"there is no {script}")
  subprocess.run([sys.executable, script, "cifar10", tmp_path / "c.npz"], check=True)
  manifest = run(tmp_path / "c.npz", tmp_path / "out", resolution=32, workers=2)
  assert {name: set(split["class_counts"]) for name, split in manifest["splits"].items()} == {
    "train": {5000},
    "test": {1000},
  }
  source = records.open_split(tmp_path / "out", manifest, "train")
  pixels = np.stack([source[i]["image"] for i in range(len(source))]).reshape(-1, 3)
  np.testing.assert_allclose(
    pixels.mean(axis=0) / 255, [0.49139968, 0.48215841, 0.44653091], atol=1e-7
  )
  np.testing.assert_allclose(
    pixels.std(axis=0) / 255, [0.24703223, 0.24348513, 0.26158784], atol=1e-7
  )


def test_a_prepared_set_trains(pictures, tmp_path):
  """From odd files to a trained step: prepare's own words are the options that training takes."""
  out = tmp_path / "out"
  made = subprocess.run(
    [
      sys.executable,
      "-m",
      "cfg.data.prepare",
      str(pictures),
      str(out),
      "--resolution=8",
      "--max_rejected=0.2",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert made.returncode == 0, made.stderr
  options = made.stdout.strip().splitlines()[-1].partition("is ready: ")[2].split()
  narrow = [
    "--config.train.batch_size=4",
    "--config.train.num_steps=2",
    "--config.heldout.batch_size=4",
    "--config.sampler.num_steps=2",
  ]
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "cfg.main",
      "--config=configs/digits.py",
      "--mode=train",
      f"--workdir={tmp_path / 'run'}",
      *options,
      *narrow,
      "--config.preview.num_per_class=1",
      "--config.preview.w=(0.0,)",
      "--config.heldout.num_bins=2",
      "--config.model.ch=8",
      "--config.model.norm_groups=4",
      "--config.model.ch_mult=(1,)",
      "--config.model.attn_resolutions=()",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  records_ = [
    json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
  ]
  assert any("loss" in r for r in records_)
  refused = subprocess.run(
    [
      sys.executable,
      "-m",
      "cfg.data.prepare",
      str(pictures),
      str(out),
      "--resolution=8",
      "--recipe=edm",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert (
    refused.returncode == 1
    and refused.stderr.splitlines()[-1].startswith("error:")
    and "another prepared" in refused.stderr
  )
