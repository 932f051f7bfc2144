"""The digits, image folders, and the stream."""

import dataclasses
import pathlib

import numpy as np
import pytest
from PIL import Image

from cfg.base.errors import UserError
from cfg.data import pipeline, recipes, sources


@pytest.mark.smoke
def test_digits_are_split_by_class_at_random(digits, config):
  """1,797 images; a fifth of each class held out, disjoint, seeded, not in the file's order; 17
  grey levels.
  """
  assert len(digits.train) + len(digits.heldout) == 1797
  for label in range(10):
    held, kept = (np.sum(s.labels == label) for s in (digits.heldout, digits.train))
    assert abs(held - 0.2 * (held + kept)) < 1
  assert (
    len(np.unique(digits.train.images)) == 17
    and digits.train.images.min() == 0
    and digits.train.images.max() == 255
  )
  labels = np.repeat(np.arange(10), 50)
  train, heldout = sources.split(labels, fraction=0.2, seed=0)
  assert not set(train) & set(heldout) and len(train) + len(heldout) == 500
  np.testing.assert_array_equal(sources.split(labels, fraction=0.2, seed=0)[1], heldout)
  assert not np.array_equal(sources.split(labels, fraction=0.2, seed=1)[1], heldout)


def test_split_keeps_a_row_on_each_side():
  """Two images of a class: one to train on, one to hold out, whatever the fraction."""
  for fraction in (0.01, 0.99):
    train, heldout = sources.split(np.array([0, 0, 1, 1]), fraction=fraction, seed=0)
    assert (
      sorted(np.array([0, 0, 1, 1])[train]) == sorted(np.array([0, 0, 1, 1])[heldout]) == [0, 1]
    )


def stream(source, **kw):
  return list(
    pipeline.train_stream(
      source, **{"batch_size": 32, "seed": 0, "start_step": 0, "num_steps": 100, **kw}
    )
  )


@pytest.fixture(scope="module")
def batches(digits):
  return stream(digits.train)


def same(a, b):
  return all(np.array_equal(a[name], b[name]) for name in ("image", "label", "index"))


@pytest.mark.smoke
def test_stream_resumes_anywhere(digits, batches):
  """Started at step k, also in the middle of an epoch, the stream goes on as the one from 0."""
  for start in (1, 17, 60):
    rest = stream(digits.train, start_step=start)
    assert len(rest) == 100 - start
    assert all(same(a, b) for a, b in zip(rest, batches[start:], strict=True))


@pytest.mark.parametrize("hosts", [2, 4])
def test_global_batches_do_not_depend_on_hosts(digits, batches, hosts):
  """The hosts' shares, side by side, are the one host's batch in its order."""
  shares = [stream(digits.train, shard=(h, hosts), num_steps=50) for h in range(hosts)]
  for step in (0, 3, 49):
    joined = {
      name: np.concatenate([s[step][name] for s in shares]) for name in ("image", "label", "index")
    }
    assert same(joined, batches[step])


@pytest.mark.parametrize("host", [0, 1])
def test_worker_processes_change_nothing(digits, batches, host):
  """Three workers, two hosts, from the middle of an epoch: the same shares of the same batches in
  the same order.
  """
  with pipeline.train_stream(
    digits.train,
    batch_size=32,
    seed=0,
    start_step=17,
    num_steps=60,
    shard=(host, 2),
    num_workers=3,
    place=lambda batch: (batch, "placed"),
  ) as placed:
    got = list(placed)
  assert len(got) == 43 and {word for _, word in got} == {"placed"}
  for (batch, _), whole in zip(got, batches[17:60], strict=True):
    assert same(batch, {name: a[16 * host : 16 * host + 16] for name, a in whole.items()})
    assert all(type(a) is np.ndarray for a in batch.values())


def test_workers_share_no_memory(digits):
  """Batches come through pipes: shared memory would be short in containers, and left over by a
  worker that ends at the wrong moment.
  """
  place = pathlib.Path("/dev/shm")
  if not place.is_dir():
    pytest.skip(f"there is no {place} to look at")
  segments = lambda: {path.name for path in place.glob("psm_*")}
  before = segments()
  with pipeline.train_stream(
    digits.train,
    batch_size=32,
    seed=0,
    start_step=0,
    num_steps=40,
    num_workers=2,
    place=lambda batch: batch,
  ) as placed:
    for _ in range(4):
      next(placed)
      assert not segments() - before
  assert list(placed) == []


class Damaged:
  """A source one of whose images cannot be read."""

  def __len__(self):
    return 64

  def __getitem__(self, i):
    if i == 40:
      raise UserError("file 40 cannot be read")
    return {"image": np.zeros((2, 2, 3), np.uint8), "label": np.int32(0)}


def test_what_a_worker_cannot_read_is_named():
  """The error of a worker process, and of the thread that places, is the one that a user reads."""
  with pytest.raises(UserError, match="file 40"):
    with pipeline.train_stream(
      Damaged(),
      batch_size=8,
      seed=0,
      start_step=0,
      num_steps=8,
      num_workers=1,
      place=lambda batch: batch,
    ) as placed:
      list(placed)


def test_every_epoch_is_a_new_permutation(digits, batches):
  """An epoch has every image once; the next has them in another order; the index is the place in
  the stream.
  """
  index = np.concatenate([b["index"] for b in batches])
  np.testing.assert_array_equal(index, np.arange(3200))
  pixels = np.concatenate([b["image"] for b in batches])
  count = len(digits.train)
  first, second = pixels[:count], pixels[count : 2 * count]
  rows = lambda a: sorted(map(bytes, a))
  assert rows(first) == rows(second) == rows(digits.train.images)
  assert not np.array_equal(first, second) and not np.array_equal(first, digits.train.images)
  assert not np.array_equal(
    stream(digits.train, seed=1, num_steps=1)[0]["image"], batches[0]["image"]
  )


def test_stream_refuses_uneven_hosts(digits):
  """A batch that hosts cannot share is an error."""
  with pytest.raises(UserError, match="3 hosts"):
    stream(digits.train, shard=(0, 3))


def test_epoch_batches_cover_everything_once(digits):
  """In order, one shape; the last is padded and says how much is real."""
  got = list(pipeline.epoch_batches(digits.heldout, batch_size=100))
  assert [valid for _, valid in got] == [100, 100, 100, 59] and {
    len(b["label"]) for b, _ in got
  } == {100}
  np.testing.assert_array_equal(
    np.concatenate([b["image"][:v] for b, v in got]), digits.heldout.images
  )


def test_every_nth_is_evenly_spaced(digits):
  """At most so many, first and last among them; all where 0 is asked for."""
  some = pipeline.every_nth(digits.heldout, most=5)
  assert len(some) == 5 and np.array_equal(some[4]["image"], digits.heldout.images[-1])
  assert pipeline.every_nth(digits.heldout, most=0) is digits.heldout


@pytest.fixture
def folder(tmp_path, config):
  """Two classes of five pictures, PNG and JPEG, colour and grey; returns (path, load)."""
  rng = np.random.default_rng(0)
  for name in ("zebra", "猫"):
    (tmp_path / name).mkdir()
    for i in range(5):
      pixels = rng.integers(0, 256, (20, 30, 3), np.uint8)
      image = Image.fromarray(pixels if i % 2 else pixels[..., 0])
      image.save(tmp_path / name / f"{i}.{'png' if i < 3 else 'jpg'}")

  def load(**fields):
    config.data.update({"name": "folder", "path": str(tmp_path), "resolution": 8, **fields})
    return sources.load(config.data)

  return tmp_path, load


def name_of(rows, i):
  """The file of an example of a folder."""
  return pathlib.PurePath(rows.source.part.names[rows.rows[i]])


def test_folder_of_class_folders(folder):
  """Classes by name, labels by folder, pictures as uint8 RGB squares; a fifth of each class held
  out.
  """
  path, load = folder
  data = load()
  assert data.class_names == ("zebra", "猫") and data.image_shape == (8, 8, 3)
  assert len(data.train) == 8 and len(data.heldout) == 2
  for i in range(8):
    example = data.train[i]
    assert example["image"].shape == (8, 8, 3) and example["image"].dtype == np.uint8
    assert name_of(data.train, i).parent.name == data.class_names[example["label"]]
  batch = next(pipeline.train_stream(data.train, batch_size=4, seed=0, start_step=0, num_steps=1))
  assert batch["image"].shape == (4, 8, 8, 3)


def test_a_folder_follows_its_recipe(folder):
  """Each recipe gives its own images, those of data.recipes; an unknown one is answered with the
  known.
  """
  _, load = folder
  found = {}
  for name, recipe in recipes.RECIPES.items():
    source = load(recipe=name).train
    found[name] = source[0]["image"]
    with Image.open(source.source.part.path / name_of(source, 0)) as image:
      np.testing.assert_array_equal(found[name], recipe(np.asarray(image.convert("RGB")), 8))
  assert not np.array_equal(found["area"], found["adm"]) and not np.array_equal(
    found["adm"], found["edm"]
  )
  with pytest.raises(UserError, match="data.recipe is 'are'.*did you mean 'area'"):
    load(recipe="are")


def test_folder_errors_name_the_place(folder, tmp_path_factory, caplog):
  """Missing, empty, too few, not an image: one sentence each, with the path; an empty class and
  other files are passed over aloud.
  """
  path, load = folder
  with pytest.raises(UserError, match="is not a folder"):
    load(path=str(path / "nowhere"))
  with pytest.raises(UserError, match="no sub-folders with images"):
    load(path=str(tmp_path_factory.mktemp("empty")))
  with pytest.raises(UserError, match="data.path is empty"):
    load(path="")
  lonely = tmp_path_factory.mktemp("lonely")
  for name in ("zebra", "猫"):
    (lonely / name).mkdir()
    (lonely / name / "0.png").write_bytes((path / "zebra" / "0.png").read_bytes())
  with pytest.raises(UserError, match="no class has more than one image"):
    load(path=str(lonely))
  (path / "alone").mkdir()
  (path / "zebra" / "notes.txt").write_text("not a picture")
  assert load().class_names == ("zebra", "猫")
  assert all(any(word in line for line in caplog.messages) for word in ("alone", "notes.txt"))
  (path / "zebra" / "notes.jpg").write_text("not a picture")
  with pytest.raises(UserError, match="notes.jpg"):
    load(path=str(path))


def test_a_folder_s_own_split_is_held_out(folder):
  """train/ and val/ of class folders: all of val/ is held out, numbered as train/ is."""
  path, load = folder
  for name in ("zebra", "猫"):
    (path / "train" / name).mkdir(parents=True)
    (path / "val" / name).mkdir(parents=True)
    for i, file in enumerate(sorted((path / name).iterdir())):
      file.rename(path / ("val" if i < 2 else "train") / name / file.name)
    (path / name).rmdir()
  data = load()
  assert data.class_names == ("zebra", "猫") and (len(data.train), len(data.heldout)) == (6, 4)
  assert [int(data.heldout[i]["label"]) for i in range(4)] == [0, 0, 1, 1]
  with Image.open(path / "val" / "猫" / "1.png") as image:
    np.testing.assert_array_equal(
      data.heldout[3]["image"], recipes.area(np.asarray(image.convert("RGB")), 8)
    )


def test_a_truncated_image_is_named_when_it_is_read(folder):
  """The header is whole and the pixels are not: reading says which file."""
  path, load = folder
  file = path / "zebra" / "1.png"
  file.write_bytes(file.read_bytes()[:-400])
  data = load()
  with pytest.raises(UserError, match="1.png"):
    for source in (data.train, data.heldout):
      list(pipeline.epoch_batches(source, batch_size=2))
  # and through the reading threads of the stream
  if any(name_of(data.train, i) == pathlib.PurePath("zebra/1.png") for i in range(len(data.train))):
    with pytest.raises(UserError, match="1.png"):
      stream(data.train, batch_size=4, num_steps=4)


def test_the_shape_is_known_without_loading(folder, config, monkeypatch):
  """What `load` would give: of a folder by its names alone, of the rest without any file, and
  nothing where the number of classes is given.
  """
  path, load = folder
  load()  # sets the config
  monkeypatch.setattr(sources.parts.ImageFiles, "check", lambda self: pytest.fail("looked at"))
  assert sources.shape(config.data) == (2, (8, 8, 3))
  config.data.update(num_classes=7, path="/nowhere")
  assert sources.shape(config.data) == (7, (8, 8, 3))
  monkeypatch.setitem(
    sources.KINDS, "digits", dataclasses.replace(sources.KINDS["digits"], load=None)
  )
  config.data.update(name="digits", num_classes=0)
  assert sources.shape(config.data) == (10, (8, 8, 1))


def test_unknown_data_is_named_with_the_known():
  """data.name = 'digit' is answered with 'digits'."""
  from ml_collections import ConfigDict

  with pytest.raises(UserError, match="did you mean 'digits'"):
    sources.load(ConfigDict({"name": "digit"}))
