"""The whole path in miniature: train, sweep, sample; what is in its files, what they depend on."""

import csv
import dataclasses
import itertools
import json
import shutil

import numpy as np
import pytest
from PIL import Image

from cfg.base import lock
from cfg.base.errors import UserError
from cfg.data import dataset as dataset_lib
from cfg.inference import generator, pictures, program
from cfg.report import page, table
from cfg.sweep import provenance, run, variant
from cfg.training import loop
from configs import digits as digits_config

NAMED = [
  "w",
  "scale",
  "fid",
  "fid_err",
  "inception_score",
  "inception_score_err",
  "label_accuracy",
  "num_samples",
  "nfe",
  "nfe/main",
  "sampler.name",
  "sampler.num_steps",
  "guidance.rule",
  "sweep.seed",
  "main/ema_decay",
  "main/weights_sha256",
  "judge/name",
]


def small_config():
  config = digits_config.get_config()
  config.model.update(dict(ch=8, emb_ch=16, norm_groups=4))
  config.train.update(
    dict(
      batch_size=16,
      num_steps=6,
      ema_decays=(0.99, 0.1),
      log_every_steps=2,
      checkpoint_every_steps=3,
    )
  )
  config.heldout.update(dict(every_steps=6, num_images=40, batch_size=20, num_bins=4))
  config.meter.update(every_steps=3, num_levels=4, num_images=20)
  config.preview.update(dict(every_steps=6, num_per_class=1))
  config.sampler.num_steps = 4
  config.sweep.update(dict(w=(0.0, 1.0), num_samples=100, num_blocks=2, batch_size=40))
  config.judge.update(dict(num_steps=10, ch=8, feature_dim=8, min_accuracy=0.0))
  return config


@pytest.fixture(scope="module")
def done(digits, mesh1, tmp_path_factory):
  """(work directory, content of sweep.json, programs compiled for sampling) of a trained and swept
  miniature.
  """
  workdir, config = tmp_path_factory.mktemp("run"), small_config()
  generators = []
  original = generator.Generator.__init__

  def watched(self, *args, **kw):
    original(self, *args, **kw)
    generators.append(self)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(generator.Generator, "__init__", watched)
    loop.train(config, dataset=digits, mesh=mesh1, workdir=workdir)
    content = run.sweep(config, dataset=digits, mesh=mesh1, workdir=workdir)
  programs = [made.compiled(guided) for made in generators for guided in (False, True)]
  return workdir, content, [program._cache_size() for program in programs]


@pytest.mark.smoke
def test_everything_is_there(done):
  """Table, pictures, metrics, TensorBoard, checkpoint; a row per strength with what made it; the
  same in the CSV.
  """
  workdir, content, _ = done
  for name in (
    *page.FILES,
    "metrics.jsonl",
    "checkpoints/6",
    "previews/step_00000006.png",
    "parameters.txt",
    "judge.npz",
  ):
    assert (workdir / name).exists(), name
  assert list((workdir / "tensorboard").iterdir())
  assert json.loads((workdir / "sweep.json").read_text()) == content
  rows = content["rows"]
  assert [(r["w"], r["scale"]) for r in rows] == [(0, 1), (1, 2)]
  for row in rows:
    assert all(name in row for name in NAMED)
    # one branch is enough at w = 0
    assert row["nfe"] == row["nfe/main"] == (8 if row["w"] else 4)
    assert row["flops"] == row["flops/main"] == row["nfe"] / 4 * rows[0]["flops"] > 0
    assert row["num_samples"] == 100 and row["main/ema_decay"] == 0.99
    assert row["judge/name"].startswith("digits-judge-")
  # what guidance did, where there was any; x_hat was clipped, so that no weights are told
  assert "information" not in rows[0] and len(rows[1]["information_by_class"]) == 10
  assert rows[1]["information"] > 0 and len(rows[1]["information_by_level"]) == 4
  assert "limited" in rows[1]["tilt_unresolved"] and "log_z" not in rows[1]
  with (workdir / "sweep.csv").open() as f:
    assert [float(r["fid"]) for r in csv.DictReader(f)] == [r["fid"] for r in rows]
  assert content["references"][0]["num_samples"] == 100  # as many as a strength has
  text = page.text(content)
  assert "not Inception's" in text and content["rows"][0]["judge/name"] in text and "real" in text
  assert "Differences from w = 0:" in text and "2 blocks" in text and "Not paired" not in text
  assert "What guidance did:" in text and "not resolved at w = 1: x_hat was limited" in text
  (difference,) = content["differences"]
  assert (difference["row"], difference["baseline"], difference["paired"]) == (1, 0, True)
  assert difference["fid"]["value"] == rows[1]["fid"] - rows[0]["fid"]
  records = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
  assert {r["step"] for r in records if "loss" in r} == {2, 4, 6}
  (held,) = (r for r in records if "heldout/loss_cond" in r)
  assert "heldout/loss_null" in held and len(held) == 1 + 2 * 5
  # what the branches know, of the network that was swept and while it was trained
  (meter,) = content["meters"]
  assert meter["about"]["main/weights_sha256"] == rows[0]["main/weights_sha256"]
  assert meter["evaluations"] == {"main": 2 * 20 * 4} and meter["num_images"] == 20
  assert "What the network's branches know:" in text and "160 network evaluations" in text
  logged = {r["step"]: r for r in records if "meter/M1" in r}
  assert logged.keys() == {3, 6}
  for name in ("M1", "M1_err", "M2", "M2_err", "M1_minus_M2", "M2_plus_log_p"):
    assert logged[6][f"meter/{name}"] == pytest.approx(meter[name], rel=1e-3, abs=1e-6)
  for name in ("curve.png", "grid.png", "nearest.png", "information.png", "meter.png"):
    assert np.asarray(Image.open(workdir / name)).std() > 0


def test_one_compilation_for_all_strengths(done):
  """The previews' and the sweep's each are compiled once for w = 0 and once for all others."""
  assert done[2] == [1, 1, 1, 1]


def test_a_finished_sweep_draws_nothing(done, digits, mesh1, monkeypatch):
  """Asked again, it reads its rows; sampling would raise here."""
  workdir, content, _ = done
  monkeypatch.setattr(
    generator.Generator, "batches", lambda *a, **k: pytest.fail("it sampled again")
  )
  assert run.sweep(small_config(), dataset=digits, mesh=mesh1, workdir=workdir) == content


def taken_over(self):
  raise UserError("taken over")


@pytest.mark.parametrize(
  "lost, text", [("w1.json", None), ("w1.npz", None), ("w1.json", "[" * 100_000)]
)
def test_a_lost_row_comes_back_the_same(done, digits, mesh1, lost, text):
  """One strength recomputed in batches of another size: the same samples, at most a grey level
  apart, so the same row nearly; also where the row, or the table, is damaged.
  """
  workdir, content, _ = done
  folder = next((workdir / "sweep").iterdir())
  before = np.load(folder / "w1.npz")["images"].astype(int)
  (folder / lost).unlink() if text is None else (folder / lost).write_text(text)
  (workdir / "sweep.json").write_text("{" if text is None else text)
  config = small_config()
  config.sweep.batch_size = 25
  # one sweep of a variant at a time; and who was taken over keeps nothing more
  another = lock.Lock(folder / "writer.lock", what="sweeps")
  with another, pytest.raises(UserError, match="is sweeping this variant in"):
    run.sweep(config, dataset=digits, mesh=mesh1, workdir=workdir)
  with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="taken over"):
    patch.setattr(lock.Lock, "check", taken_over)
    run.sweep(config, dataset=digits, mesh=mesh1, workdir=workdir)
  assert not list((folder / "w1.partial").iterdir())
  again = run.sweep(config, dataset=digits, mesh=mesh1, workdir=workdir)
  assert again["rows"][0] == content["rows"][0]
  for name in ("fid", "inception_score", "label_accuracy"):
    assert again["rows"][1][name] == pytest.approx(content["rows"][1][name], rel=0.02, abs=0.011)
  assert np.abs(np.load(folder / "w1.npz")["images"].astype(int) - before).max() <= 1


def test_another_setting_is_another_sweep(done, digits, mesh1):
  """DDIM and the second average make rows of their own beside the first ones, which stay."""
  workdir, content, _ = done
  config = small_config()
  config.sampler.name, config.sweep.ema, config.sweep.w = "ddim", 0.1, (1.0,)
  other = run.sweep(config, dataset=digits, mesh=mesh1, workdir=workdir)
  row = other["rows"][0]
  assert (row["sampler.name"], row["main/ema_decay"]) == ("ddim", 0.1)
  assert row["main/weights_sha256"] != content["rows"][0]["main/weights_sha256"]
  assert "sampler.var_interp" not in row
  assert len(list((workdir / "sweep").iterdir())) == 2
  run.sweep(small_config(), dataset=digits, mesh=mesh1, workdir=workdir)
  assert table.read(workdir)["rows"][0] == content["rows"][0]


@pytest.mark.parametrize(
  "name, value, differs",
  [
    ("sampler.var_interp", 0.5, True),
    ("sampler.limit", "none", True),
    ("sampler.rho", 3.0, False),  # of another spacing
    ("sampler.tomorrow", 1, True),
    ("guidance.logsnr_max", 3.0, True),
    ("guidance.momentum", -0.5, False),  # of another rule
    ("guidance.tomorrow", 1, True),
    ("sweep.seed", 1, True),
    ("sweep.extrapolate", True, True),
    ("sweep.tomorrow", 1, True),
    ("sweep.batch_size", 7, False),
  ],
)
def test_a_field_in_use_makes_another_sweep(name, value, differs):
  """Of the sections that decide a row every field is hashed, also one that nobody knows of; not
  those of constructors that are not in use.
  """
  config = small_config()
  facts = lambda config: provenance.provenance(config, config.sweep, networks={}, measured=())
  before = provenance.fingerprint(facts(config))
  section, field = name.split(".")
  config.unlock()
  config[section][field] = value
  assert (provenance.fingerprint(facts(config)) != before) == differs


def test_combinations_that_draw_the_same_samples_are_one():
  """DDIM has no v, and ancestral sampling no eta: each is swept over what it has."""
  config = small_config()
  config.sweep.update(
    sampler=("ancestral", "ddim"),
    var_interp=(0.0, 0.3, 1.0),
    eta=(0.0, 1.0),
    spacing=("u", "logsnr"),
    num_steps=(4, 8),
  )
  drawn = [
    (c.sampler.name, c.sampler.num_steps, c.sampler.spacing)
    for _, c in variant.combinations(config)
  ]
  for num_steps, spacing in itertools.product((4, 8), ("u", "logsnr")):
    assert drawn.count(("ancestral", num_steps, spacing)) == 3
    assert drawn.count(("ddim", num_steps, spacing)) == 2


def test_strengths_share_their_noise(done):
  """At an untrained network's zero estimate all strengths would be equal; here they are close,
  sample by sample, and differ.
  """
  folder = next(p for p in (done[0] / "sweep").iterdir() if (p / "w0.npz").exists())
  a, b = (np.load(folder / f"{name}.npz")["images"].astype(float) for name in ("w0", "w1"))
  distance = np.abs(a[:, None] - b[None]).mean(axis=(2, 3, 4))
  assert np.array_equal(distance.argmin(axis=1), np.arange(len(a)))


@pytest.mark.parametrize(
  "fields, word",
  [
    (dict(num_samples=0), "num_samples is 0"),
    (dict(num_blocks=1), "2 blocks"),
    (dict(w=(1.0, 1.0)), "distinct"),
    (dict(w=(-2.0,)), "w >= -1"),
    (dict(num_samples=20, num_blocks=2), "features"),
    (dict(batch_size=0), "sweep.batch_size"),
  ],
)
def test_settings_that_cannot_give_the_numbers(fields, word, digits, mesh1):
  """No samples, one block, too small ones, strengths twice: named, with what would do."""
  config = small_config()
  config.sweep.update(fields)
  with pytest.raises(UserError, match=word):
    config.judge.feature_dim = 16
    run.check(config, dataset=digits, mesh=mesh1)


@pytest.mark.parametrize(
  "num_classes, asked, got",
  [(10, 100, 100), (10, 101, 120), (7, 100, 112), (1, 35, 36), (100, 35, 200)],
)
def test_samples_make_equal_blocks_of_balanced_labels(num_classes, asked, got, mesh1):
  """Any number of classes: num_samples is rounded up to a multiple of blocks times classes; the
  config stays as it is.
  """
  config = small_config()
  config.sweep.num_samples = asked
  settings = run.check_settings(config.sweep, num_classes=num_classes, mesh=mesh1)
  assert (
    settings.num_samples == got and config.sweep.num_samples == asked and settings.num_blocks == 2
  )


def test_too_few_images_are_told_before_training(digits, mesh1):
  """The sweep's check needs no network: fewer training images than features are refused at once."""
  config = small_config()
  few = dataclasses.replace(digits, train=dataset_lib.Rows(digits.train, np.arange(8)))
  with pytest.raises(UserError, match="8 images of the training split .*fid \\(8\\)"):
    run.check(config, dataset=few, mesh=mesh1)


def test_a_poor_judge_is_refused(done, digits, mesh1):
  """Below judge.min_accuracy there are no numbers."""
  config = small_config()
  config.judge.min_accuracy = 1.0
  with pytest.raises(UserError, match="min_accuracy"):
    run.sweep(config, dataset=digits, mesh=mesh1, workdir=done[0])


def test_samples_of_chosen_classes(done, mesh1, tmp_path):
  """PNGs, a grid and a JSON; sample i of a class is the same whatever else is asked for, and the
  sweep's own.
  """
  workdir, config = done[0], small_config()
  out = pictures.sample(
    config, mesh=mesh1, workdir=workdir, labels=["1", "7"], num=2, w=1.0, seed=0, out=tmp_path / "a"
  )
  about, rows = json.loads((out / "samples.json").read_text()).values()
  assert about["main/data"] == "digits" and about["nfe"] == 8
  assert [(r["label"], r["index"]) for r in rows] == [(1, 0), (1, 1), (7, 0), (7, 1)]
  assert all(r["seed"] == 0 and r["w"] == 1 and r["scale"] == 2 for r in rows)
  picture = lambda folder, label, i: np.asarray(
    Image.open(folder / f"class{label:04d}_{i:05d}.png")
  ).astype(int)
  assert picture(out, 1, 0).shape == (8, 8) and (out / "grid.png").exists()
  other = pictures.sample(
    config, mesh=mesh1, workdir=workdir, labels=["7"], num=1, w=1.0, seed=0, out=tmp_path / "b"
  )
  assert np.abs(picture(other, 7, 0) - picture(out, 7, 0)).max() <= 1
  folder = next(p for p in (workdir / "sweep").iterdir() if (p / "w0.npz").exists())
  swept = np.load(folder / "w1.npz")["images"][1, ..., 0].astype(int)  # index 1 has label 1
  assert np.abs(picture(out, 1, 1) - swept).max() <= 1
  with pytest.raises(UserError, match="no EMA of decay 0.7"):
    pictures.sample(config, mesh=mesh1, workdir=workdir, labels=[], num=1, w=0.0, seed=0, ema=0.7)


def test_an_interval_from_the_meter(done, digits, mesh1, tmp_path):
  """A method with guidance.interval="meter" is guided up to the level where M2 ends, which its rows
  say, beside plain guidance; so are samples. Without a meter samples are refused, and so are
  previews while the network trains.
  """
  workdir = tmp_path / "run"
  shutil.copytree(done[0], workdir)
  path, *_ = (
    path
    for path in (workdir / "meter").iterdir()
    if json.loads(path.read_text()) == done[1]["meters"][0]
  )
  path.write_text(json.dumps({**done[1]["meters"][0], "end_level": 1.0}))
  config = small_config()
  config.methods = {"plain": {}, "meter": {"guidance": {"interval": "meter"}}}
  config.sweep.update(methods=("plain", "meter"), w=(1.0,))
  plain, guided = run.sweep(config, dataset=digits, mesh=mesh1, workdir=workdir)["rows"]
  assert plain["fid"] == done[1]["rows"][1]["fid"] and plain["guidance.logsnr_max"] is None
  assert guided["guidance.logsnr_max"] == 1.0 and guided["guidance.interval"] == "meter"
  below = int(np.sum(program.make_sampler(config)[2] < 1.0))
  assert guided["nfe"] == 4 + below < plain["nfe"] and guided["fid"] != plain["fid"]
  alone = small_config()
  alone.guidance.interval = "meter"
  given = dict(mesh=mesh1, workdir=workdir, labels=["1"], num=1, w=1.0, seed=0)
  out = pictures.sample(alone, **given, out=tmp_path / "a")
  about = json.loads((out / "samples.json").read_text())["about"]
  assert about["guidance.logsnr_max"] == 1.0 and about["nfe"] == guided["nfe"]
  path.unlink()
  with pytest.raises(UserError, match="have not been measured"):
    pictures.sample(alone, **given)
  with pytest.raises(UserError, match="preview.every_steps draws while it trains"):
    loop.train(alone, dataset=digits, mesh=mesh1, workdir=workdir)


@pytest.mark.smoke
def test_strength_by_w_or_scale():
  """scale = 1 + w; both, or nonsense, is refused; neither is w = 1."""
  assert (
    pictures.parse_strength(w=None, scale=3.0) == 2
    and pictures.parse_strength(w=0.0, scale=None) == 0
  )
  assert pictures.parse_strength(w=None, scale=None) == 1
  for w, scale in [(1.0, 2.0), (float("nan"), None), (None, -1.0)]:
    with pytest.raises(UserError):
      pictures.parse_strength(w=w, scale=scale)


@pytest.mark.smoke
def test_class_by_name_or_number():
  """Names first, then numbers; for what is not there, the nearest names or the range."""
  names = ("cat", "dog", "horse", "2")
  assert [pictures.parse_label(t, names) for t in ("dog", "0", "2")] == [1, 0, 3]
  with pytest.raises(UserError, match="did you mean 'horse'"):
    pictures.parse_label("hose", names)
  for text in ("4", "-1"):
    with pytest.raises(UserError, match="0 to 3"):
      pictures.parse_label(text, names)


def test_classes_whose_names_have_commas():
  """The whole text is tried as a name first; otherwise such a name stands in doubled quotes."""
  names = ("tench", "crane, bird", "crane", "bird", "1, 2")
  labels = {
    "crane, bird": [1],
    " crane, bird ": [1],
    "1, 2": [4],
    "crane,bird": [2, 3],
    '"crane, bird",0': [1, 0],
    '0, "crane, bird", "tench"': [0, 1, 0],
    "": [],
  }
  assert {text: pictures.parse_labels(text, names) for text in labels} == labels
  assert pictures.parse_labels(["crane, bird", "0"], names) == [1, 0]
  with pytest.raises(UserError, match="--label"):
    pictures.parse_labels('"crane, bird', names)
