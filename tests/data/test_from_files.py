"""From image files to a swept model, by the command line alone: a folder of one's own, and real
JPEGs of ImageNet.
"""

import json
import subprocess
import sys

import jax
import numpy as np
import paths
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from cfg.base import files
from cfg.data import decode, records
from cfg.inference import network as network_lib
from cfg.models import unet
from cfg.report import drawing, page
from configs import folder, imagenet64

ROOT = paths.ROOT
NARROW = [
  "--config.cpu_devices=1",
  "--config.model.ch=8",
  "--config.model.emb_ch=16",
  "--config.model.norm_groups=4",
  "--config.model.head_dim=8",
  "--config.model.num_res_blocks=1",
  "--config.model.dtype=float32",
  "--config.train.batch_size=8",
  "--config.train.accumulate=1",
  "--config.train.num_steps=3",
  "--config.train.log_every_steps=1",
  "--config.heldout.num_images=8",
  "--config.heldout.batch_size=4",
  "--config.heldout.num_bins=2",
  "--config.preview.num_classes=2",
  "--config.preview.num_per_class=1",
  "--config.preview.w=(0.0,)",
  "--config.sampler.num_steps=2",
  "--config.sweep.w=(0.0,1.0)",
  "--config.sweep.num_blocks=2",
  "--config.sweep.batch_size=10",
  "--config.judge.ch=4",
  "--config.judge.feature_dim=4",
  "--config.judge.num_steps=3",
  "--config.judge.batch_size=16",
  "--config.judge.warmup_steps=1",
]


def command(*words):
  """The output of python -m ..., which must succeed."""
  done = subprocess.run(
    [sys.executable, "-m", *map(str, words)], cwd=ROOT, capture_output=True, text=True
  )
  assert done.returncode == 0, done.stderr
  return done.stdout + done.stderr


def check_losses(workdir):
  """The losses that were logged, of each step, are near 1, as an untrained network's."""
  losses = {
    line["step"]: line["loss"]
    for line in map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    if "loss" in line
  }
  assert list(losses) == [1, 2, 3] and all(0.5 < loss < 1.5 for loss in losses.values())


def check_run(workdir, *, num_classes, num_samples):
  """A whole run is there: losses, a row for each strength, the pictures. Returns its sweep.json and
  network.
  """
  check_losses(workdir)
  content = json.loads((workdir / "sweep.json").read_text())
  assert [row["w"] for row in content["rows"]] == [0.0, 1.0] and all(
    row["num_samples"] == num_samples and row["fid"] > 0 for row in content["rows"]
  )
  assert all((workdir / name).stat().st_size for name in page.FILES)
  network = network_lib.load_network(workdir)
  assert network.model.num_classes == len(network.class_names) == num_classes
  return content, network


def test_a_folder_becomes_a_swept_model(tmp_path):
  """Three classes of uneven sizes, deep folders, PNG and JPEG of any shape, at 8x8: one command, no
  edit; it names the classes and the rest.
  """
  photos, rng = load_sample_images().images, np.random.default_rng(0)
  for label, name in enumerate(("猫", "zebra", "a class of $many$ words, and more of them")):
    (tmp_path / "mine" / name / "deep").mkdir(parents=True)
    for i in range(4 + 5 * label):
      height, width = rng.integers(20, 90, 2)
      image = Image.fromarray(photos[label % 2][i : i + height, i : i + width])
      image.save(
        tmp_path / "mine" / name / ("deep" if i % 2 else ".") / f"{i}.{'jpg' if i % 3 else 'png'}"
      )
  workdir = tmp_path / "run"
  said = command(
    "cfg.main",
    "--config=configs/folder.py:resolution=8",
    f"--config.data.path={tmp_path / 'mine'}",
    f"--workdir={workdir}",
    *NARROW,
    "--config.sweep.num_samples=10",
    "--config.train.data_workers=1",
  )
  content, network = check_run(workdir, num_classes=3, num_samples=12)
  assert "12 samples at each strength instead of 10" in said and "Warning" not in said
  assert network.class_names == (
    "a class of $many$ words, and more of them",
    "zebra",
    "猫",
  ) and network.image_shape == (8, 8, 3)
  assert content["about"]["main/data"] == "mine"
  assert content["about"]["judge/name"].startswith("mine-judge-")
  assert content["references"][0]["num_samples"] == 3 and "precision" not in content["rows"][0]


@pytest.mark.parametrize("resolution", [1, 8, 24, 32, 37, 48, 64, 100, 128, 256, 1024])
def test_a_network_for_any_side(resolution):
  """Every side and number of classes has a network: its levels fit, attention is at sides of 16 and
  less that occur.
  """
  config = folder.get_config(f"resolution={resolution}")
  assert config.data.resolution == resolution and config.data.num_classes == 0
  model = unet.from_config(config.model, num_classes=1, image_shape=(resolution, resolution, 3))
  sides = [resolution // 2**level for level in range(len(model.ch_mult))]
  assert set(model.attn_resolutions) == {side for side in sides if side <= 16}
  shapes = jax.eval_shape(
    lambda key: unet.init_params(model, key=key, image_shape=(resolution, resolution, 3)),
    jax.random.key(0),
  )
  assert unet.num_params(shapes) > 1e6


@pytest.mark.parametrize(
  "options", ["64", "resolution=", "resolution=0", "resolution=-8", "size=64", "resolution=64.0"]
)
def test_what_is_no_side_is_refused(options):
  """Only resolution=R, R a whole number from 1."""
  with pytest.raises(ValueError, match="resolution=R"):
    folder.get_config(options)


def test_names_in_pictures():
  """What no font can write is called by its number; long names are cut; $ is not mathematics."""
  drawing._families.cache_clear()
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(drawing, "EAST_ASIAN", ())
    assert drawing.class_titles(("cat", "猫", "naïve $x$"), [2, 1, 1]) == [
      "naïve \\$x\\$",
      "class 1",
      "class 1",
    ]
    assert drawing.printable("abcdefghij" * 3, otherwise="") == "abcdefghijabcdefghijabc…"
  drawing._families.cache_clear()


def test_imagenet64_is_prepared_as_the_paper_s():
  """The default is our area preparation at 64x64, not a folder read as it is and not TFDS's
  imagenet_resized.
  """
  data = imagenet64.get_config().data
  assert (data.name, data.path, data.recipe, data.resolution) == (
    "prepared",
    "prepared/imagenet64",
    "area",
    64,
  )


@pytest.fixture(scope="module")
def tiny_imagenet(tmp_path_factory):
  """(class folders of the real JPEGs, the data set prepared of them, what prepare said)."""
  packed, root = (
    ROOT.parent / "shared" / "data" / "tiny_imagenet_10.npz",
    tmp_path_factory.mktemp("tiny"),
  )
  if not packed.exists():
    pytest.skip(f"there is no {packed}")
  arrays = files.read_npz(packed)
  for split in ("train", "val"):
    ends = np.cumsum(arrays[f"{split}_sizes"])
    for i, (last, label) in enumerate(zip(ends, arrays[f"{split}_labels"])):
      folder = root / "files" / split / str(arrays["names"][label]).split(",")[0].replace(" ", "_")
      folder.mkdir(parents=True, exist_ok=True)
      (folder / f"{i:05d}.JPEG").write_bytes(
        arrays[f"{split}_jpeg"][last - arrays[f"{split}_sizes"][i] : last].tobytes()
      )
  said = command(
    "cfg.data.prepare",
    root / "files",
    root / "prepared",
    "--resolution=64",
    "--workers=2",
    "--name=tiny",
  )
  return root / "files", root / "prepared", said


def test_real_jpegs_are_prepared(tiny_imagenet):
  """Ten classes of Tiny ImageNet, 5,000 and 500 JPEGs, grey ones among them: none is refused, each
  is in its class, and at their own size pixels stay.
  """
  root, out, said = tiny_imagenet
  manifest = records.read_manifest(out)
  assert (
    not manifest["rejected"]
    and not manifest["ignored"]
    and "train: 5,000 images of 64x64 in 10 classes of 500 to 500" in said
  )
  assert manifest["class_names"] == sorted(path.name for path in (root / "train").iterdir())
  for split, count in (("train", 500), ("val", 50)):
    assert set(manifest["splits"][split]["class_counts"]) == {count}
    source, paths = records.open_split(out, manifest, split), sorted((root / split).glob("*/*"))
    assert len(source) == len(paths) == 10 * count
    for i in range(0, len(paths), 7):
      example = source[i]
      np.testing.assert_array_equal(example["image"], decode.read_rgb(paths[i]))
      assert manifest["class_names"][example["label"]] == paths[i].parent.name


@pytest.mark.parametrize(
  "mode, levels",
  [("train", ["--config.model.ch_mult=(1,1)"]), pytest.param("all", [], marks=pytest.mark.slow)],
)
def test_real_jpegs_through_the_imagenet64_pipeline(tiny_imagenet, tmp_path, mode, levels):
  """A narrow imagenet64 with p_uncond = 0.2 trains on them, its own val/ held out; and (slow) with
  all its levels it is swept too.
  """
  command(
    "cfg.main",
    "--config=configs/imagenet64.py:p_uncond=0.2",
    f"--config.data.path={tiny_imagenet[1]}",
    "--config.data.num_classes=10",
    f"--workdir={tmp_path}",
    f"--mode={mode}",
    *NARROW,
    *levels,
    "--config.sweep.num_samples=20",
    "--config.inception.path=",
  )
  if mode == "all":
    content, network = check_run(tmp_path, num_classes=10, num_samples=20)
    assert content["references"][0]["num_samples"] == 20 and content["about"]["main/data"] == "tiny"
  else:
    check_losses(tmp_path)
    network = network_lib.load_network(tmp_path)
  assert (
    network.image_shape == (64, 64, 3)
    and len(network.class_names) == 10
    and network.config.train.p_uncond == 0.2
  )
