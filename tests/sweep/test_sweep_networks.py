"""A sweep in several networks at once: a stand-in for Inception and a judge. What rows hold, what a
kill costs, what devices change, further axes.
"""

import dataclasses
import json

import jax.numpy as jnp
import numpy as np
import pytest

from cfg import evaluate
from cfg.base import files
from cfg.base.errors import UserError
from cfg.data import dataset as dataset_lib
from cfg.data import sources
from cfg.features import extractor as extractor_lib
from cfg.features import references, select
from cfg.features.placed import PlacedExtractor, each
from cfg.inference import generator, network, weights_file
from cfg.interop import inception as inception_files
from cfg.metrics import pairwise, scores, statistics
from cfg.models import inception as inception_lib
from cfg.report import page, table
from cfg.sweep import run as sweep
from cfg.training import loop
from configs import digits as digits_config

DIMS = {"spatial": 5, "mixed_7": 3, "mixed_8": 4, "pool_3": 6, "logits": 7, "logits_no_bias": 7}
PROJECTIONS = {
  name: np.random.default_rng(0).normal(size=(192, dim)).astype(np.float32)
  for name, dim in DIMS.items()
}


def outputs_of(pixels, names):
  """The stand-in's outputs: linear ones."""
  return {
    name: jnp.dot(pixels.reshape(len(pixels), -1) / 255, PROJECTIONS[name], precision="highest")
    for name in names
  }


def small_config():
  config = digits_config.get_config()
  config.data.update(name="synthetic", num_images=120, num_classes=3, heldout_fraction=0.4)
  config.model.update(ch=8, emb_ch=16, norm_groups=4, ch_mult=(1,), attn_resolutions=())
  config.train.update(
    batch_size=16, num_steps=2, ema_decays=(0.9, 0.1), log_every_steps=2, checkpoint_every_steps=2
  )
  config.heldout.update(every_steps=2, num_images=16, batch_size=16, num_bins=2)
  config.meter.num_levels = 0
  config.preview.update(every_steps=2, num_classes=1, num_per_class=1, w=(0.0,))
  config.sampler.num_steps = 3
  config.sweep.update(w=(0.0, 1.0), num_samples=60, num_blocks=2, batch_size=16)
  config.judge.update(num_steps=3, ch=4, feature_dim=4, min_accuracy=0.0)
  config.inception.path = "weights"
  return config


@pytest.fixture(scope="module")
def stand_in():
  """A function that says which outputs the stand-in for Inception has; all at first."""
  with pytest.MonkeyPatch.context() as patch:

    def use(outputs):
      patch.setattr(inception_lib, "available", lambda params: outputs)
      complete = len(outputs) == len(DIMS)
      info = {
        "weights_sha256": ("ab" if complete else "cd") * 32,
        "file": "stand-in",
        "complete": complete,
      }
      patch.setattr(inception_files, "read", lambda path: ({}, info))

    patch.setattr(
      inception_lib, "OUTPUTS", {name: inception_lib.Output(10, dim) for name, dim in DIMS.items()}
    )
    patch.setattr(
      inception_lib, "apply", lambda params, pixels, outputs: outputs_of(pixels, outputs)
    )
    use(tuple(DIMS))
    yield use


@pytest.fixture(scope="module")
def data():
  return sources.load(small_config().data)


@pytest.fixture(scope="module")
def done(stand_in, data, mesh1, tmp_path_factory):
  """(work directory, content of sweep.json) of a trained and swept miniature."""
  workdir = tmp_path_factory.mktemp("run")
  loop.train(small_config(), dataset=data, mesh=mesh1, workdir=workdir)
  return workdir, sweep.sweep(small_config(), dataset=data, mesh=mesh1, workdir=workdir)


def killed(folder, *, after, **run):
  """Forget strength 1 in `folder`, and kill the sweep when it has written so many of its files; the
  names of the batches that are left.
  """
  for ending in ("json", "npz"):
    (folder / f"w1.{ending}").unlink(missing_ok=True)
  original, written = files.write_npz, []

  def write(path, arrays):
    if len(written) == after:
      raise KeyboardInterrupt
    written.append(path)
    original(path, arrays)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(files, "write_npz", write)
    with pytest.raises(KeyboardInterrupt):
      sweep.sweep(small_config(), **run)
  return sorted(path.name for path in (folder / "w1.partial").glob("*.npz"))


def folder_of(workdir, row):
  """Where a row is."""
  return next(
    path.parent
    for path in (workdir / "sweep").glob("*/w1.json")
    if json.loads(path.read_text())["main/weights_sha256"] == row["main/weights_sha256"]
  )


def samples(workdir, mesh, w, data):
  """All images of a strength, drawn again without any network to measure in."""
  return draw_all(small_config(), workdir, mesh, w, count=60, batch_size=16)


def draw_all(config, workdir, mesh, w, *, count, batch_size):
  """The first images of a strength, their labels 0, 1, 2, 0, ..."""
  networks = network.load_networks(config, workdir=workdir, mesh=mesh)
  made = generator.Generator(
    network.make_program(config, networks), mesh=mesh, batch_size=batch_size
  )
  index = np.arange(count)
  params = network.parameters(networks)
  return made(params, index=index, labels=index % 3, w=w, seed=0)


def test_numbers_are_those_of_the_images(done, data, mesh1):
  """FID, sFID, scores, precision and recall of a row are their formulas on the outputs of the very
  images that the sampler draws.
  """
  workdir, content = done
  real = outputs_of(np.stack([row["image"] for row in each(data.train)]), DIMS)
  for row in content["rows"]:
    ours = outputs_of(samples(workdir, mesh1, row["w"], data), DIMS)
    for output, name in {"pool_3": "fid", "spatial": "sfid"}.items():
      distance = scores.frechet_distance(
        statistics.Gaussian.of(ours[output]), statistics.Gaussian.of(real[output])
      )
      assert row[name] == pytest.approx(distance, rel=1e-4)
    for output, name in {
      "logits": "inception_score",
      "logits_no_bias": "inception_score_no_bias",
    }.items():
      entropy = statistics.ClassEntropy.of(statistics.softmax(ours[output]))
      assert row[name] == pytest.approx(scores.inception_score(entropy), rel=1e-5)
    assert (row["precision"], row["recall"]) == pytest.approx(
      pairwise.precision_recall(ours["pool_3"], real["pool_3"]), abs=0.02
    )
    assert (
      not {"fid_768", "frechet_1280"} & row.keys()
      and row["fid_heldout"] > 0
      and "sfid_heldout" not in row
    )
    assert {
      "fid_judge",
      "fid_judge_err",
      "fid_judge_heldout",
      "inception_score_judge",
      "label_accuracy",
      "label_accuracy_err",
      "kid",
      "kid_err",
    } <= row.keys()


def test_rows_say_what_made_them(done, data):
  """Hashes of both networks, of the real images, rules of rounding and resizing, counts; in the CSV
  too; the table tells the networks apart.
  """
  workdir, content = done
  row = content["rows"][1]
  assert row["inception/name"] == "inception-2015-12-05-abababab"
  assert row["inception/sha256"] == "ab" * 32
  assert row["inception/complete"] is True
  assert row["judge/name"].startswith("synthetic-judge-")
  assert row["judge/sha256"][:8] == row["judge/name"][-8:]
  assert row["inception/train_images"] == row["judge/train_images"] == len(data.train) == 120
  assert row["inception/train"] == "synthetic train"
  assert len(row["inception/train_sha256"]) == 64
  assert row["inception/train_sha256"] == row["judge/train_sha256"]
  assert row["inception/train_sha256"] != row["inception/heldout_sha256"]
  assert "299x299" in row["inception/resize"]
  assert "half to even" in row["uint8"]
  assert row["main/dtype"] == "float32"
  gauged = {name for name in row if name.startswith(("information", "tilt_"))}
  assert gauged and row.keys() - gauged == content["rows"][0].keys()
  for metric in table.from_json(content["metrics"]):
    assert metric.key in row and metric.err in row and len(row[metric.without]) == 2
  text = table.table(content)
  assert (
    "not Inception's" not in text
    and text.count("real") >= 2
    and "judge FID" in text
    and row["judge/name"] in text
  )
  both = dict.fromkeys([*content["rows"][0], *row])
  columns = [name for name in both if not isinstance(row[name], list)]
  assert (workdir / "sweep.csv").read_text().splitlines()[0].split(",") == columns
  assert content["references"][0]["num_samples"] == 48 and content["references"][0]["fid"] > 0


def test_a_kill_costs_a_batch(done, data, mesh1, monkeypatch):
  """Killed after the second batch of four, it goes on with the third; the row is the same bit by
  bit, and nothing of the batches is left.

  Progress is told which were kept.
  """
  workdir, content = done
  folder = folder_of(workdir, content["rows"][1])
  left = killed(folder, after=2, dataset=data, mesh=mesh1, workdir=workdir)
  assert left == ["00000000-00000016.npz", "00000016-00000032.npz"]
  skipped = []
  monkeypatch.setattr(sweep.Progress, "skip", lambda self, done: skipped.append(done))
  drawn, batches = [], generator.Generator.batches
  monkeypatch.setattr(
    generator.Generator,
    "batches",
    lambda self, *args, index, **kw: (
      drawn.append(list(index)) or batches(self, *args, index=index, **kw)
    ),
  )
  assert (
    sweep.sweep(small_config(), dataset=data, mesh=mesh1, workdir=workdir)["rows"]
    == content["rows"]
  )
  assert drawn == [list(range(32, 60))] and not (folder / "w1.partial").exists()
  assert skipped == [16 * 6, 32 * 6]  # network evaluations


@pytest.mark.parametrize("damage", ["cut", "strange", "none"])
def test_a_damaged_batch_is_drawn_again(done, data, mesh1, monkeypatch, damage):
  """Of a strength killed when all its batches were there: one that was cut short or holds something
  else is not taken. The row is the same.
  """
  workdir, content = done
  folder = folder_of(workdir, content["rows"][1])
  assert len(killed(folder, after=4, dataset=data, mesh=mesh1, workdir=workdir)) == 4
  first, second, *_ = sorted((folder / "w1.partial").glob("*.npz"))
  if damage == "cut":
    second.write_bytes(second.read_bytes()[:-50])
  elif damage == "strange":
    files.write_npz(second, {**files.read_npz(first), "more": np.zeros(16)})
  drawn, batches = [], generator.Generator.batches
  monkeypatch.setattr(
    generator.Generator,
    "batches",
    lambda self, *args, index, **kw: (
      drawn.append(len(index)) or batches(self, *args, index=index, **kw)
    ),
  )
  assert (
    sweep.sweep(small_config(), dataset=data, mesh=mesh1, workdir=workdir)["rows"]
    == content["rows"]
  )
  assert drawn == [0 if damage == "none" else 44]


def test_devices_and_batches_change_nothing(done, data, mesh8, tmp_path):
  """Eight devices, batches of 24: the same images, at most a grey level apart, and the same numbers
  nearly.
  """
  workdir, content = done
  weights_file.export(workdir, tmp_path / "weights.safetensors")
  (tmp_path / "judge.npz").write_bytes((workdir / "judge.npz").read_bytes())
  config = small_config()
  config.sweep.update(batch_size=24, w=(1.0,))
  other = sweep.sweep(config, dataset=data, mesh=mesh8, workdir=tmp_path)["rows"][0]
  pictures = [
    np.load(next((place / "sweep").glob("*/w1.npz")))["images"].astype(int)
    for place in (workdir, tmp_path)
  ]
  assert np.abs(pictures[0] - pictures[1]).max() <= 1
  for name, value in content["rows"][1].items():
    assert other[name] == (
      pytest.approx(value, rel=0.02, abs=0.02) if isinstance(value, (float, list)) else value
    ), name


def test_real_images_are_measured_once(done, data, mesh1, monkeypatch):
  """A second sweep reads them; fewer of them, or a damaged file, are measured anew and make rows of
  their own.
  """
  workdir, content = done
  measured, measure = [], PlacedExtractor.measure
  monkeypatch.setattr(
    PlacedExtractor,
    "measure",
    lambda self, *args, what, **kw: measured.append(what) or measure(self, *args, what=what, **kw),
  )
  settings = sweep.check(small_config(), dataset=data, mesh=mesh1)

  def get(config):
    inception, _ = select.extractors(config, dataset=data, workdir=workdir)
    (result,) = references.measure_all(
      config, settings, dataset=data, extractors=[inception], mesh=mesh1, workdir=workdir
    )
    return result.train, result.heldout

  train_, heldout = get(small_config())
  assert not measured and (train_.about["num_images"], heldout.about["num_images"]) == (120, 48)
  fewer = small_config()
  fewer.inception.num_reference = 50
  assert get(fewer)[0].about["num_images"] == 50 and measured == ["real images (train)"]
  path = next((workdir / "real").glob("inception*heldout.npz"))
  path.write_bytes(path.read_bytes()[:-9])
  again, heldout_again = get(small_config())
  assert (
    measured[1:] == ["real images (train)", "real images (heldout)"]
    and heldout_again.sha256 == heldout.sha256
  )
  assert (
    again.about == train_.about
    and again.entropies["logits"].plogp_sum == train_.entropies["logits"].plogp_sum
  )


def test_a_reference_that_somebody_published(done, data, mesh1, tmp_path):
  """inception.reference takes the place of the training split: with mu and sigma alone there is
  FID, and neither sFID nor precision.
  """
  workdir, content = done
  mean, cov = np.zeros(6), np.eye(6)
  np.savez(tmp_path / "edm.npz", mu=mean, sigma=cov)
  config = small_config()
  config.inception.reference = str(tmp_path / "edm.npz")
  rows = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=workdir)["rows"]
  for row in rows:
    ours = statistics.Gaussian.of(
      outputs_of(samples(workdir, mesh1, row["w"], data), ["pool_3"])["pool_3"]
    )
    assert row["fid"] == pytest.approx(
      scores.frechet_distance(ours, statistics.Moments(mean, cov)), rel=1e-4
    )
    assert (
      not {"sfid", "precision", "kid"} & row.keys()
      and row["inception/train"] == "edm.npz"
      and row["inception/train_images"] is None
    )
    assert row["fid_judge"] == next(r for r in content["rows"] if r["w"] == row["w"])["fid_judge"]


def test_inception_alone(done, data, mesh1):
  """Without a judge, as the ImageNet configs are: the same numbers of Inception, no label accuracy,
  one table.
  """
  config = small_config()
  config.judge.num_steps = 0
  content = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=done[0])
  for row, beside in zip(content["rows"], done[1]["rows"], strict=True):
    assert not [name for name in row if "judge" in name] and "label_accuracy" not in row
    for name in ("fid", "fid_err", "fid_heldout", "sfid", "inception_score", "precision", "kid"):
      assert row[name] == pytest.approx(beside[name], rel=1e-3, abs=0.02), name
  text = table.table(content)
  assert text.count("real ") == 1 and "judge" not in text and "label" not in text


COLOURS = np.random.default_rng(1).normal(size=(192, 3)).astype(np.float32)


def colours(sha256):
  """A made-up third source of an extractor: two outputs, of which one has a Fréchet distance and
  precision, the other KID, whatever the config says.
  """
  fid = extractor_lib.Metric("fid", "FID", "colours", "frechet", "lower")
  extractor = extractor_lib.Extractor(
    role="colours",
    name=f"colours-{sha256[:8]}",
    apply=lambda params, pixels: {
      "colours": jnp.dot(pixels.reshape(len(pixels), -1) / 255, params, precision="highest"),
      "doubled": jnp.dot(pixels.reshape(len(pixels), -1) / 127.5, params, precision="highest"),
    },
    params=COLOURS,
    dims={"colours": 3, "doubled": 3},
    metrics=(
      fid,
      fid.heldout(),
      extractor_lib.Metric("precision", "precision", "colours", "precision", "higher"),
      extractor_lib.Metric("kid", "KID", "doubled", "kid", "lower", "{:.4f}"),
    ),
    info={"weights_sha256": sha256, "note": "Colours are no likeness."},
  )
  get = lambda config, *, dataset, workdir=None: extractor
  return extractor_lib.Source(
    wanted=lambda config: True,
    remedy="ask for colours",
    check=lambda config, *, dataset: None,
    outline=get,
    load=get,
  )


def test_a_third_extractor(done, data, mesh1, monkeypatch, tmp_path):
  """A line in select.py: its metrics are in rows, table, curve and CSV under names of their own,
  its weights and real images in the provenance and in what rows must share to be compared; the
  others' numbers stay as they are.
  """
  workdir, before = done
  monkeypatch.setattr(select, "SOURCES", (*select.SOURCES, colours("cc" * 32)))
  config = small_config()
  config.sweep.w = (1.0,)
  content = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=workdir)
  (row,) = content["rows"]
  ours = samples(workdir, mesh1, 1.0, data).reshape(60, -1) / 255 @ COLOURS
  real = np.stack([row["image"] for row in each(data.train)]).reshape(120, -1) / 255 @ COLOURS
  distance = scores.frechet_distance(statistics.Gaussian.of(ours), statistics.Gaussian.of(real))
  assert row["fid_colours"] == pytest.approx(distance, rel=1e-4)
  precision, _ = pairwise.precision_recall(ours, real)
  assert row["precision_colours"] == pytest.approx(precision, abs=0.02)
  kid = pairwise.kid(2 * ours, 2 * real, num_subsets=100, subset_size=60).kid
  assert row["kid_colours"] == pytest.approx(kid, rel=1e-3)
  for name, value in before["rows"][1].items():
    real = isinstance(value, (float, list))
    close = pytest.approx(value, rel=1e-3, abs=0.02) if real else value
    assert row[name] == close, name

  metrics = table.from_json(content["metrics"])
  titles = [m.title for m in metrics if m.role == "colours"]
  assert titles == ["colours FID", "colours FID held-out", "colours precision", "colours KID"]
  text = table.table(content)
  assert all(title in text for title in titles)
  assert text.count("real ") == 3 and "Colours are no likeness." in text
  panels = page.panels(metrics, content["rows"], several=False)
  assert {"colours FID", "colours precision", "colours KID"} <= {panel.title for panel in panels}
  header, values = (workdir / "sweep.csv").read_text().splitlines()
  assert float(values.split(",")[header.split(",").index("fid_colours")]) == row["fid_colours"]
  assert content["references"][0]["fid_colours"] > 0

  assert row["colours/sha256"] == "cc" * 32 and len(row["colours/heldout_sha256"]) == 64
  assert row["colours/train_sha256"] == row["judge/train_sha256"]
  folders = set((workdir / "sweep").iterdir())
  paths = [str(tmp_path / name) for name in ("a.json", "b.json", "c.json")]
  files.write_json(paths[0], content)
  assert "colours FID" in evaluate.compare(paths[0], paths[0])
  for name in ("colours/sha256", "colours/train_sha256", "colours/heldout_sha256"):
    files.write_json(paths[1], {**content, "rows": [{**row, name: "else"}]})
    with pytest.raises(UserError, match=f"cannot be compared: {name} is"):
      evaluate.compare(paths[0], paths[1])
  files.write_json(paths[2], before)
  with pytest.raises(UserError, match="cannot be compared: colours/sha256 is"):
    evaluate.compare(paths[0], paths[2])

  monkeypatch.setattr(select, "SOURCES", (*select.SOURCES[:2], colours("dd" * 32)))
  other = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=workdir)
  assert other["rows"][0]["colours/sha256"] == "dd" * 32
  assert len(set((workdir / "sweep").iterdir()) - folders) == 1


def test_further_axes(done, data, mesh1):
  """Every combination of sampler, T and v has its rows, those of DDIM once for all v; its samples
  are those of that sampler alone.
  """
  workdir, content = done
  config = small_config()
  own = config.sampler.var_interp
  config.sweep.update(
    w=(1.0,), sampler=("ancestral", "ddim"), num_steps=(3, 4), var_interp=(0.2, own)
  )
  several = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=workdir)
  axes = ("sampler.name", "sampler.num_steps", "sampler.var_interp")
  found = [tuple(row.get(axis) for axis in axes) for row in several["rows"]]
  assert len(found) == len(set(found)) == 6 and sum(name == "ddim" for name, *_ in found) == 2
  assert len(
    {row["fid"] for row in several["rows"] if row["sampler.name"] == "ancestral"}
  ) == 4 and {row["nfe"] for row in several["rows"]} == {6, 8}
  assert several["rows"][found.index(("ancestral", 3, own))] == content["rows"][1]
  assert not set(axes) & several["about"].keys() and several["about"]["main/ema_decay"] == 0.9
  text = table.table(several)
  assert all(word in text.splitlines()[0].split() for word in ("sampler", "T", "v"))
  assert (
    len(list(workdir.glob("grid_*T4*.png"))) == 3 and len(list(workdir.glob("grid_*T3*.png"))) == 2
  )


def test_averages_are_an_axis(done, data, mesh1):
  """A row for each of the averages that were kept, with its own hash."""
  config = small_config()
  config.sweep.update(w=(1.0,), ema_decays=(0.9, 0.1))
  rows = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=done[0])["rows"]
  assert [row["main/ema_decay"] for row in rows] == [0.9, 0.1] and rows[0] == done[1]["rows"][1]
  assert (
    rows[0]["main/weights_sha256"] != rows[1]["main/weights_sha256"]
    and rows[0]["fid"] != rows[1]["fid"]
  )


def test_the_weights_are_not_complete(done, data, mesh1, stand_in):
  """Without the last layers there are distances of other names, and the table says that none is
  FID.
  """
  config = small_config()
  config.sweep.w = (1.0,)
  stand_in(("spatial", "mixed_7", "mixed_8"))
  try:
    content = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=done[0])
  finally:
    stand_in(tuple(DIMS))
  row, text = content["rows"][0], table.table(content)
  assert {
    "frechet_1280",
    "fid_768",
    "sfid",
    "precision_1280",
    "kid_1280",
    "fid_judge",
    "frechet_1280_heldout",
  } <= row.keys()
  assert (
    not {"fid", "inception_score", "precision"} & row.keys()
    and "not FID" in text
    and "paper" not in content
  )


@pytest.mark.parametrize(
  "sections, words",
  [
    (
      dict(sweep=dict(num_samples=6, num_blocks=2), judge=dict(num_steps=0)),
      "a strength has 6 samples, fewer than the features of fid: .*num_samples to 12",
    ),
    (
      dict(inception=dict(num_reference=6)),
      r"6 images of the training split are too few: .*fid \(6\)",
    ),
    (
      dict(inception=dict(path=""), judge=dict(num_steps=0)),
      "no network to measure samples in: give inception.path",
    ),
    (dict(sweep=dict(num_steps=(2, 0))), "section sampler cannot be used: num_steps"),
    (dict(sweep=dict(sampler=("hoin",))), "did you mean 'heun'"),
  ],
)
def test_what_no_sweep_can_measure_is_told_before_training(stand_in, data, mesh1, sections, words):
  """Too few samples or real images for Inception's spaces, no network at all, an axis that no
  sampler has: said with what to do.
  """
  config = small_config()
  for name, fields in sections.items():
    config[name].update(fields)
  with pytest.raises(UserError, match=words):
    sweep.check(config, dataset=data, mesh=mesh1)


def test_few_images_are_allowed_by_name(stand_in, data, mesh1):
  """With sweep.allow_few fewer samples or real images than features are taken, but none that no
  number can be made of: without a block, precision and recall need more than their 3 neighbours.
  """
  config = small_config()
  config.judge.num_steps = 0
  config.inception.num_reference = 6
  config.sweep.update(num_samples=12, allow_few=True)
  sweep.check(config, dataset=data, mesh=mesh1)
  config.sweep.num_samples = 6
  with pytest.raises(UserError, match="6 samples, 3 without one of its 2 blocks: .*at least 4"):
    sweep.check(config, dataset=data, mesh=mesh1)
  config.sweep.num_samples = 12
  config.inception.num_reference = 3
  with pytest.raises(UserError, match="3 images of the training split are too few: at least 4"):
    sweep.check(config, dataset=data, mesh=mesh1)


@pytest.mark.parametrize("count", [0, 1, 3])
def test_too_few_held_out_images_are_told_before_training(stand_in, data, mesh1, count):
  """Of 3 images or fewer there is no precision, of 1 no covariance: said at once, not after the
  samples were drawn.
  """
  config = small_config()
  few = dataclasses.replace(data, heldout=dataset_lib.Rows(data.heldout, np.arange(count)))
  with pytest.raises(
    UserError, match=f"{count} images of the held-out split are too few.*Hold out"
  ):
    sweep.check(config, dataset=few, mesh=mesh1)


def test_the_weights_are_read_once(stand_in, data, mesh1, monkeypatch, tmp_path):
  """However often a sweep is checked and its networks are got, a file of 95 MB is read and hashed
  once; another file under its name is read again.
  """
  path = tmp_path / "weights"
  path.write_bytes(b"a")
  config = small_config()
  config.inception.path = str(path)
  config.judge.num_steps = 0
  reads = []
  read = inception_files.read
  monkeypatch.setattr(inception_files, "read", lambda path: reads.append(path) or read(path))
  for _ in range(2):
    sweep.check(config, dataset=data, mesh=mesh1)
    select.extractors(config, dataset=data, workdir=tmp_path)
  assert len(reads) == 1
  path.write_bytes(b"bb")
  sweep.check(config, dataset=data, mesh=mesh1)
  assert len(reads) == 2


def test_fid_of_few_samples_while_training(stand_in, data, mesh1, tmp_path):
  """Every two steps and at the end, by name biased: of each network and strength, the numbers of
  those very samples; 0 steps is never.
  """
  config = small_config()
  config.train.update(num_steps=5, log_every_steps=5)
  config.watch.update(every_steps=2, num_samples=6, w=(0.0, 1.0))  # fewer than features
  config.sweep.batch_size = 4
  loop.train(config, dataset=data, mesh=mesh1, workdir=tmp_path)
  records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  watched = {record["step"]: record for record in records if "biased_n6/w0/fid" in record}
  assert list(watched) == [2, 4, 5]
  names = (
    "fid",
    "fid_judge",
    "inception_score",
    "inception_score_no_bias",
    "inception_score_judge",
    "label_accuracy",
  )
  assert watched[5].keys() == {"step"} | {
    f"biased_n6/w{w}/{name}" for w in (0, 1) for name in names
  }
  images = draw_all(config, tmp_path, mesh1, 1.0, count=6, batch_size=6)
  ours = outputs_of(images, ["pool_3", "logits"])
  real_images = outputs_of(np.stack([row["image"] for row in each(data.train)]), ["pool_3"])[
    "pool_3"
  ]
  distance = scores.frechet_distance(
    statistics.Gaussian.of(ours["pool_3"]), statistics.Gaussian.of(real_images), allow_few=True
  )
  assert (
    watched[5]["biased_n6/w1/fid"]
    == pytest.approx(distance, rel=1e-4)
    != watched[5]["biased_n6/w0/fid"]
  )
  entropy = statistics.ClassEntropy.of(statistics.softmax(ours["logits"]))
  assert watched[5]["biased_n6/w1/inception_score"] == pytest.approx(
    scores.inception_score(entropy), rel=1e-5
  )
  assert watched[2]["biased_n6/w0/fid"] != watched[5]["biased_n6/w0/fid"] and watched[2][
    "biased_n6/w1/label_accuracy"
  ] in [n / 6 for n in range(7)]


def test_grey_images_are_not_inception_s(stand_in, digits, mesh1):
  """One channel is refused."""
  config = digits_config.get_config()
  config.inception.path = "weights"
  with pytest.raises(UserError, match="images in colour, and digits has 1 channel"):
    sweep.check(config, dataset=digits, mesh=mesh1)
