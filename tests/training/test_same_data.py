"""A run goes on with the data that it began with, wherever they are, and with no others."""

import dataclasses
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cfg.base import checkpoint, sharding, trees
from cfg.base import config as config_lib
from cfg.base.errors import UserError
from cfg.data import prepare, sources
from cfg.features import references, select
from cfg.inference import network
from cfg.sweep import run as sweep
from cfg.training import loop
from configs import folder as folder_config


@pytest.fixture
def photos(tmp_path):
  """Class folders cat, dog, emu of small images, in a folder `data`."""
  rng = np.random.default_rng(0)
  root = tmp_path / "data"
  for name in ("cat", "dog", "emu"):
    (root / name).mkdir(parents=True)
    for i in range(6):
      pixels = rng.integers(0, 256, (9, 9, 3), np.uint8)
      Image.fromarray(pixels).save(root / name / f"{i}.png")
  return root


@pytest.fixture
def config(photos):
  """A config of those images."""
  config = folder_config.get_config("resolution=8")
  config.data.update(path=str(photos), heldout_fraction=0.34)
  config.train.update(batch_size=8, num_steps=4, ema_decays=(0.9,))
  config.heldout.batch_size = 8
  config.judge.update(num_steps=2, ch=4, levels=1, feature_dim=4, batch_size=8, warmup_steps=1)
  return config


@pytest.fixture
def trained(config, tmp_path):
  """A work directory at step 4 whose checkpoint tells of those images; it holds no real network."""
  dataset = sources.load(config.data)
  with checkpoint.Checkpoints(tmp_path / "run") as checkpoints:
    meta = loop.describe(config, dataset=dataset, step=4)
    checkpoints.save(4, state={"params": {"a": jnp.zeros(3)}}, meta=meta)
  return tmp_path / "run"


def go_on(config, workdir, mesh):
  loop.train(config, dataset=sources.load(config.data), mesh=mesh, workdir=workdir)


def add_class(root):
  shutil.copytree(root / "cat", root / "cow")


def rename_class(root):
  (root / "cat").rename(root / "zcat")


def remove_class(root):
  shutil.rmtree(root / "emu")


def add_image(root):
  shutil.copy(root / "cat" / "0.png", root / "cat" / "new.png")


def replace_image(root):
  Image.fromarray(np.zeros((20, 9, 3), np.uint8)).save(root / "cat" / "0.png")


def rename_image(root):
  (root / "cat" / "0.png").rename(root / "cat" / "z.png")


def swap_labels(root):
  shutil.move(root / "cat" / "0.png", root / "dog" / "zero.png")
  shutil.move(root / "dog" / "0.png", root / "cat" / "zero.png")


CHANGES = {
  add_class: "4 classes, the checkpoint 3; the checkpoint does not have cow",
  rename_class: "does not have zcat; the data set does not have cat",
  remove_class: "2 classes, the checkpoint 3; the data set does not have emu",
  add_image: "train has 13 images, the checkpoint's had 12",
  replace_image: "files or their labels were changed",
  rename_image: "files or their labels were changed",
  swap_labels: "files or their labels were changed",
}


@pytest.mark.parametrize("change", CHANGES)
def test_other_data_are_refused(config, trained, photos, mesh1, change):
  """Training, finished or not, and the sweep say what differs, and change nothing."""
  before = {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()}
  go_on(config, trained, mesh1)  # it is complete
  change(photos)
  for num_steps in (4, 8):
    config.train.num_steps = num_steps
    with pytest.raises(UserError, match=f"{CHANGES[change]}.*Nothing was changed"):
      go_on(config, trained, mesh1)
  dataset = sources.load(config.data)
  config.sweep.update(num_samples=60, batch_size=10)
  with pytest.raises(UserError, match=CHANGES[change]):
    sweep.sweep(config, dataset=dataset, mesh=mesh1, workdir=trained)
  assert {p: p.read_bytes() for p in trained.rglob("*") if p.is_file()} == before


def test_an_earlier_checkpoint_tells_its_classes(config, tmp_path, photos, mesh1):
  """One without facts of content still has class names and image shape, which are compared."""
  dataset = sources.load(config.data)
  meta = loop.describe(config, dataset=dataset, step=4)
  for name in ("content", "num_images", "unlogged"):
    del meta[name]
  config_lib.check_same_data(dataset, meta, workdir="runs/old")
  with pytest.raises(UserError, match="its images are 8x8x3, the checkpoint's are 16x16x3"):
    config_lib.check_same_data(dataset, {**meta, "image_shape": [16, 16, 3]}, workdir="runs/old")
  with pytest.raises(UserError, match="in another order"):
    names = ["dog", "cat", "emu"]
    config_lib.check_same_data(dataset, {**meta, "class_names": names}, workdir="runs/old")


def absolute(photos, _):
  return str(photos)


def slash(photos, _):
  return f"{photos}/"


def relative(photos, _):
  return os.path.relpath(photos)


def moved(photos, elsewhere):
  shutil.copytree(photos, elsewhere / "other name")
  shutil.rmtree(photos)
  return str(elsewhere / "other name")


@pytest.mark.parametrize("place", [absolute, slash, relative, moved])
def test_the_same_data_elsewhere(config, trained, photos, mesh1, tmp_path_factory, place):
  """However the path is written, wherever they are, by however many processes they are read: the
  run is complete, and what is kept of real images has the same identity.
  """
  before = sources.load(config.data)
  kept = config_lib.data_identity(config, before)
  config.data.path = place(photos, tmp_path_factory.mktemp("elsewhere"))
  config.data.num_classes = 3  # it is only compared
  config.train.data_workers = 2
  go_on(config, trained, mesh1)
  after = sources.load(config.data)
  assert config_lib.data_identity(config, after) == kept
  network.check_data(trained, dataset=after)
  config.data.split_seed = 5
  assert config_lib.data_identity(config, after) != kept


def test_judge_and_real_images_are_kept_after_a_move(config, photos, mesh1, tmp_path):
  """A judge is trained once, and real images measured once, for the data under any name."""
  dataset = sources.load(config.data)
  (tmp_path / "run").mkdir()

  def measure(dataset):
    workdir = tmp_path / "run"
    (judge,) = select.extractors(config, dataset=dataset, workdir=workdir)
    config.sweep.num_samples = 6
    (real,) = references.measure_all(
      config, config.sweep, dataset=dataset, extractors=(judge,), mesh=mesh1, workdir=workdir
    )
    written = {p: p.stat().st_mtime_ns for p in workdir.rglob("*.npz")}
    return judge.name, real.train.about, real.heldout.about, written

  first = measure(dataset)
  config.data.path = moved(photos, tmp_path)
  assert len(first[-1]) == 3 and measure(sources.load(config.data)) == first


def test_prepared_data_are_their_records(config, photos, tmp_path):
  """Prepared data are the same after a move or made again; of other images they are others."""
  options = dict(resolution=8, workers=1)
  identity = lambda name: sources.load(section(name)).identity

  def section(name):
    config.data.update(name="prepared", path=str(tmp_path / name), resolution=8)
    return config.data

  prepare.prepare(photos, tmp_path / "a", **options)
  shutil.copytree(tmp_path / "a", tmp_path / "b")
  prepare.prepare(photos, tmp_path / "c", **options, name="another")
  assert identity("a") == identity("b") == identity("c")
  replace_image(photos)
  prepare.prepare(photos, tmp_path / "d", **options)
  assert identity("d") != identity("a") and identity("d")["content"]


def test_a_network_that_does_not_fit_is_no_damage(tmp_path, mesh8, caplog):
  """Arrays of other shapes, more or fewer: an error that names them; no older step is opened."""
  whole = sharding.replicated(mesh8)
  state = {"params": {"a": jnp.zeros((3, 2)), "b": jnp.zeros(4)}, "step": jnp.int32(0)}
  with checkpoint.Checkpoints(tmp_path) as checkpoints:
    for step in (1, 2):
      checkpoints.save(step, state=state, meta={})
    others = {
      r"params/a first \(it is 3x2 there, 5x2 here\)": {"a": jnp.zeros((5, 2)), "b": jnp.zeros(4)},
      r"params/b first \(it is 4 there, absent here\)": {"a": jnp.zeros((3, 2))},
      r"params/c first \(it is absent there, a number here\)": {
        **state["params"],
        "c": jnp.zeros(()),
      },
    }
    for words, params in others.items():
      with pytest.raises(UserError, match=f"another network.*{words}"):
        checkpoints.restore(target=jax.device_put({**state, "params": params}, whole))
    step, restored, _ = checkpoints.restore(target=jax.device_put(state, whole))
    assert step == 2 and trees.tree_hash(restored) == trees.tree_hash(state)
  assert "cannot be used" not in caplog.text


def test_imported_weights_know_no_names(config, tmp_path):
  """Weights of other origin number their classes: their count is compared, not the names."""
  from cfg.interop import weights

  dataset = sources.load(config.data)
  meta = {
    "config": config_lib.to_json(config),
    "class_names": ["0", "1", "2"],
    "image_shape": [8, 8, 3],
    "data_name": "unknown",
    "step": 0,
    "ema": "0.9999",
  }
  write = lambda **fields: weights.write(
    tmp_path / weights.NAME, params={"a": np.zeros(2)}, meta={**meta, **fields}
  )
  write()
  network.check_data(tmp_path, dataset=dataset)
  write(class_names=["0", "1"])
  with pytest.raises(UserError, match="3 classes, the checkpoint 2"):
    network.check_data(tmp_path, dataset=dataset)
  write(data_name="birds")
  with pytest.raises(UserError, match="does not have cat, dog, emu"):
    network.check_data(tmp_path, dataset=dataset)
  larger = dataclasses.replace(dataset, image_shape=(16, 16, 3))
  write()
  with pytest.raises(UserError, match="16x16x3"):
    network.check_data(tmp_path, dataset=larger)
