"""python -m cfg.evaluate: numbers that are their formulas, whatever the file, the batch and the
devices, and that say what they are.
"""

import json
import zipfile

import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cfg import evaluate
from cfg.base import files
from cfg.base.errors import UserError
from cfg.data.preparing import inputs
from cfg.features import inception
from cfg.features.placed import PlacedExtractor
from cfg.interop import inception as weights
from cfg.metrics import pairwise, reference, scores, statistics
from cfg.metrics.metric import Metric
from cfg.models import inception as inception_lib
from cfg.report import table

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (90, 6, 6, 3), np.uint8)
REAL = (RNG.integers(0, 256, (110, 6, 6, 3)) * 0.8).astype(np.uint8)
DIMS = {"spatial": 5, "mixed_7": 3, "mixed_8": 4, "pool_3": 6, "logits": 7, "logits_no_bias": 7}
PROJECTIONS = {name: RNG.normal(size=(108, dim)).astype(np.float32) for name, dim in DIMS.items()}
PARTIAL = ("spatial", "mixed_7", "mixed_8")


def outputs_of(pixels, names=tuple(DIMS)):
  """The stand-in's outputs: linear ones."""
  return {
    name: pixels.reshape(len(pixels), -1).astype(np.float32) / 255 @ PROJECTIONS[name]
    for name in names
  }


@pytest.fixture
def network(monkeypatch, mesh1):
  """network(outputs, batch_size, mesh): evaluate.Network of a stand-in for Inception, small in
  every space.
  """
  monkeypatch.setattr(
    inception_lib, "OUTPUTS", {name: inception_lib.Output(10, dim) for name, dim in DIMS.items()}
  )
  monkeypatch.setattr(
    inception_lib,
    "apply",
    lambda params, pixels, outputs: {
      name: jnp.dot(pixels.reshape(len(pixels), -1) / 255, PROJECTIONS[name]) for name in outputs
    },
  )

  def make(outputs=tuple(DIMS), *, batch_size=32, mesh=mesh1, sha="ab" * 32):
    monkeypatch.setattr(
      weights,
      "read",
      lambda path: (
        {},
        {"weights_sha256": sha, "file": "stand-in", "complete": len(outputs) == len(DIMS)},
      ),
    )
    monkeypatch.setattr(inception_lib, "available", lambda params: outputs)
    return evaluate.Network("weights", mesh=mesh, batch_size=batch_size)

  return make


@pytest.fixture
def places(tmp_path):
  """The same images as an .npz, a folder, and a zip; and the real ones as an .npz."""
  np.savez(tmp_path / "a.npz", arr_0=PIXELS)
  np.savez(tmp_path / "real.npz", arr_0=REAL)
  (tmp_path / "folder" / "deep").mkdir(parents=True)
  with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
    for i, image in enumerate(PIXELS):
      path = tmp_path / "folder" / "deep" / f"{i:05d}.png"
      Image.fromarray(image).save(path)
      archive.write(path, f"x/{i:05d}.png")
  return tmp_path


def names(kind):
  """{output: key} of Inception's metrics of a kind."""
  return {metric.output: metric.key for metric in inception.METRICS if metric.kind == kind}


def run(places, net, images="a.npz", real="real.npz", **options):
  return evaluate.evaluate(places / images, places / real, network=net, **options)


def test_numbers_are_their_formulas(network, places):
  """Each is what the functions of evaluation/ give for all features at once; ± is of random equal
  blocks.
  """
  row = run(places, network())
  ours, theirs = outputs_of(PIXELS), outputs_of(REAL)
  for space, name in names("frechet").items():
    distance = lambda rows, space=space: scores.frechet_distance(
      statistics.Gaussian.of(ours[space][rows]), statistics.Gaussian.of(theirs[space])
    )
    assert row[name] == pytest.approx(distance(slice(None)), rel=1e-5)
    blocks = evaluate.block_of(90, num_blocks=5)
    assert np.bincount(blocks).tolist() == [18] * 5
    assert row[f"{name}_err"] == pytest.approx(
      scores.standard_error([distance(blocks == b) for b in range(5)]), rel=1e-3
    )
  for output, name in names("score").items():
    probs = np.exp(ours[output]) / np.exp(ours[output]).sum(axis=1, keepdims=True)
    assert row[name] == pytest.approx(
      scores.inception_score(statistics.ClassEntropy.of(probs)), rel=1e-5
    )
    assert 1 < row[f"{name}_block_mean"] < row[name]
  assert (row["precision"], row["recall"]) == pytest.approx(
    pairwise.precision_recall(ours["pool_3"], theirs["pool_3"])
  )
  assert (
    row["kid_subset"] == 90
    and abs(row["kid"] - pairwise.squared_mmd(ours["pool_3"], theirs["pool_3"]))
    < 5 * row["kid_err"]
  )


def test_batches_devices_and_files_change_nothing(network, places, mesh8):
  """Batches of 7 or 32, one device or eight, an .npz, a folder or a zip: the same images' hash, and
  numbers to 1e-5.
  """
  first = run(places, network())
  for options, images in (
    ({"batch_size": 7}, "folder"),
    ({"mesh": mesh8, "batch_size": 16}, "a.zip"),
    ({"batch_size": 1000}, "a.npz"),
  ):
    other = run(places, network(**options), images=images)
    assert other["images_sha256"] == first["images_sha256"] and other.keys() == first.keys()
    for name, value in first.items():
      if isinstance(value, float):
        assert other[name] == pytest.approx(value, rel=1e-5, abs=1e-7), name


def test_a_set_against_itself(network, places):
  """Fréchet distances below 1e-6, precision and recall 1, KID below its error or zero."""
  row = run(places, network(), real="a.npz")
  assert all(abs(row[name]) < 1e-6 for name in names("frechet").values()) and (
    row["precision"],
    row["recall"],
  ) == (1, 1)
  assert row["kid"] <= 0


def test_partial_weights_never_say_fid(network, places):
  """Without pool_3 the distances have names of their own, and the table says that none is FID."""
  row = run(places, network(PARTIAL))
  assert {
    "fid_768",
    "frechet_1280",
    "sfid",
    "precision_1280",
    "recall_1280",
    "kid_1280",
  } <= row.keys()
  assert (
    not {"fid", "inception_score", "precision", "kid"} & row.keys()
    and not row["inception/complete"]
  )
  assert "not FID" in table.image_table(row) and "not FID" not in table.image_table(
    run(places, network())
  )


def test_references_of_ours_adm_and_edm(network, places):
  """The same moments from our file, from ADM's keys and from EDM's give the same numbers; spaces
  that a file lacks are left out.
  """
  net = network()
  evaluate.make_reference(places / "real.npz", network=net, out=places / "ours.npz")
  direct, ours = run(places, net), run(places, net, real="ours.npz")
  theirs = {
    name: statistics.Gaussian.of(a) for name, a in outputs_of(REAL, ("pool_3", "spatial")).items()
  }
  adm = {
    "mu": theirs["pool_3"].mean,
    "sigma": theirs["pool_3"].cov,
    "mu_s": theirs["spatial"].mean,
    "sigma_s": theirs["spatial"].cov,
  }
  np.savez(places / "adm.npz", **adm, arr_0=REAL)
  np.savez(places / "edm.npz", mu=adm["mu"], sigma=adm["sigma"])
  adm, edm = run(places, net, real="adm.npz"), run(places, net, real="edm.npz")
  for name in ("fid", "sfid", "precision", "recall", "kid", "inception_score"):
    assert (
      direct[name] == pytest.approx(ours[name], rel=1e-6) == pytest.approx(adm[name], rel=1e-5)
    ), name
  assert (
    edm["fid"] == pytest.approx(direct["fid"], rel=1e-5)
    and not {"sfid", "fid_768", "precision"} & edm.keys()
  )
  assert (
    {"sfid", "precision"} <= adm.keys()
    and "fid_768" not in adm
    and direct["fid_768"] == pytest.approx(ours["fid_768"])
  )
  assert (
    ours["reference_about"]["num_images"] == 110
    and ours["reference_about"]["resize"] == inception.RESIZE
  )
  evaluate.make_reference(places / "real.npz", network=net, out=places / "again.npz")
  assert (places / "again.npz").read_bytes() == (places / "ours.npz").read_bytes()


def test_too_few_images_are_refused_unless_asked_for(network, places):
  """As many images as features: an error that says how many each number needs; by name it is given,
  and the row says so.
  """
  np.savez(places / "few.npz", arr_0=PIXELS[:5])
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(PlacedExtractor, "measure", None)  # it is said before the network is run
    with pytest.raises(
      UserError,
      match=r"5 images of '.*few.npz' are too few: .*fid \(6\), .*sfid \(5\).*--allow_few",
    ):
      run(places, network(), images="few.npz", num_blocks=5)
    with pytest.raises(
      UserError, match=r"5 images of the reference '.*few.npz' are too .*fid \(6\)"
    ):
      run(places, network(), real="few.npz")
    np.savez(places / "four.npz", arr_0=PIXELS[:4])
    with pytest.raises(
      UserError, match="3 images of '.*', without one of the 4 blocks.*at least 4"
    ):
      run(places, network(), images="four.npz", num_blocks=4, allow_few=True)
    np.savez(places / "one.npz", arr_0=PIXELS[:1])
    with pytest.raises(UserError, match="1 images of the reference .*at least 4"):
      run(places, network(), real="one.npz", allow_few=True)
    with pytest.raises(UserError, match="1 images of .*one.npz.*at least 4"):
      evaluate.make_reference(places / "one.npz", network=network(), out=places / "r.npz")
  row = run(places, network(), images="few.npz", num_blocks=5, allow_few=True)
  assert row["allow_few"] and row["fid"] > 0 and "means little" in table.image_table(row)
  np.savez(places / "nine.npz", arr_0=PIXELS[:9])
  assert (
    run(places, network(), images="nine.npz", num_blocks=3)["fid_err"] > 0
  )  # from 6 images at a time
  with pytest.raises(UserError, match="num_blocks is 1"):
    run(places, network(), num_blocks=1)


def test_what_cannot_be_used_is_said(network, places):
  """Another network's statistics, images of two sizes, no images, something else: what, where, what
  to do.
  """
  evaluate.make_reference(places / "real.npz", network=network(), out=places / "ours.npz")
  with pytest.raises(
    UserError, match="ours.npz' was made with the weights abababab, these are cdcdcdcd"
  ):
    run(places, network(sha="cd" * 32), real="ours.npz")
  Image.fromarray(PIXELS[0][:, :4]).save(places / "folder" / "z.png")
  with pytest.raises(UserError, match="z.png is 4x6 and .*00000.png is 6x6"):
    run(places, network(), images="folder")
  (places / "empty").mkdir()
  with pytest.raises(UserError, match="has no images"):
    run(places, network(), images="empty")
  np.savez(places / "float.npz", arr_0=PIXELS / 255)
  with pytest.raises(UserError, match="float64.*must be uint8"):
    run(places, network(), images="float.npz")
  np.savez(places / "wrong.npz", mu=np.zeros(3), sigma=np.eye(3))
  with pytest.raises(UserError, match="which has 6 features"):
    run(places, network(), real="wrong.npz")
  (places / "cut.npz").write_bytes((places / "ours.npz").read_bytes()[:-200])
  np.save(places / "single.npy", PIXELS)
  (places / "single.npy").rename(places / "single.npz")
  for name in ("cut.npz", "single.npz"):
    with pytest.raises(UserError, match=f"{name}.*no whole .npz"):
      run(places, network(), real=name)


def test_both_inputs_are_looked_at_before_any_is_measured(network, places, monkeypatch):
  """What is not there is "not found"; what is of another kind is named, with what is needed."""
  monkeypatch.setattr(PlacedExtractor, "measure", lambda *_, **__: pytest.fail("it was measured"))
  mean = np.zeros(6)
  cov = np.eye(6)
  np.save(places / "array.npy", PIXELS)
  (places / "object.pkl").write_bytes(b"\x80\x04N.")
  np.savez(places / "named.npz", ref_mu=mean, ref_sigma=cov)
  np.savez(places / "short.npz", m=mean, s=cov)
  np.savez(places / "nan.npz", mu=mean, sigma=np.full((6, 6), np.nan))
  np.savez(places / "infinite.npz", mu=np.full(6, np.inf), sigma=cov)
  np.savez(places / "deep.npz", mu=mean, sigma=cov)
  no_images = "is no set of images: give an .npz with arr_0"
  for names, words in (
    ({"images": "nowhere"}, "nowhere' was not found"),
    ({"real": "nowhere.npz"}, "nowhere.npz' was not found"),
    ({"images": "array.npy"}, f"array.npy' {no_images}"),
    ({"real": "object.pkl"}, f"object.pkl' {no_images}"),
    ({"real": "named.npz"}, "named.npz' has ref_mu, ref_sigma: .*must .*have mu and sigma"),
    ({"real": "short.npz"}, "short.npz' has m, s: .*must .*have mu and sigma"),
    ({"real": "nan.npz"}, "covariance of the reference .*nan.npz' in pool_3 has NaN"),
    ({"real": "infinite.npz"}, "mean of the reference .*infinite.npz' in pool_3 has infinite"),
  ):
    with pytest.raises(UserError, match=words):
      run(places, network(), **names)
  with pytest.raises(UserError, match=r"weights \(stand-in\) have no pool_3, which is all that"):
    run(places, network(PARTIAL), real="deep.npz")


def test_a_sample_run_is_known(network, places):
  """Of what --mode=sample left, the samples count and not the grid; w, scale and the checkpoint go
  into the row.
  """
  folder = places / "run"
  folder.mkdir()
  for i in range(20):
    Image.fromarray(PIXELS[i]).save(folder / f"class0000_{i:05d}.png")
  Image.fromarray(PIXELS[0].repeat(3, axis=0)).save(folder / "grid.png")
  rows = [{"file": f"class0000_{i:05d}.png", "w": 1.5, "scale": 2.5, "seed": 7} for i in range(20)]
  files.write_json(
    folder / "samples.json", {"about": {"checkpoint_hash": "c0ffee"}, "samples": rows}
  )
  row = run(places, network(), images="run")
  assert row["num_samples"] == 20 and row["sampled"] == {
    "checkpoint_hash": "c0ffee",
    "w": 1.5,
    "scale": 2.5,
    "seed": 7,
  }


def test_a_sample_run_that_is_not_whole(network, places):
  """samples.json that lists a lost file, or is something else, is an error that names it."""
  folder = places / "run"
  folder.mkdir()
  Image.fromarray(PIXELS[0]).save(folder / "a.png")
  row = {"w": 1, "scale": 2, "seed": 0}
  for samples, word in (
    ([{**row, "file": "b.png"}], "lists b.png, which is not there"),
    ([], "not what --mode=sample wrote"),
    ([row], "'file'"),
  ):
    files.write_json(folder / "samples.json", {"about": {}, "samples": samples})
    with pytest.raises(UserError, match=word):
      inputs.open_images(folder)


def test_only_comparable_rows_are_compared(network, places):
  """Rows of one reference, network and N stand side by side; other rows are refused with what
  differs.
  """
  net = network()
  rows = {
    "a": run(places, net),
    "b": run(places, net, images="folder"),
    "self": run(places, net, real="a.npz"),
    "blocks": run(places, net, num_blocks=3),
  }
  for name, row in rows.items():
    files.write_json(places / f"{name}.json", row)
  text = evaluate.compare(str(places / "a.json"), str(places / "b.json"))
  assert "FID  " in text and " 0.000" in text and "precision" in text
  for name, word in (("self", "inception/train_sha256"), ("blocks", "num_blocks is 5 and 3")):
    with pytest.raises(UserError, match=f"cannot be compared: .*{word}"):
      evaluate.compare(str(places / "a.json"), str(places / f"{name}.json"))
  (places / "none.json").write_text(json.dumps({"fid": 1}))
  with pytest.raises(UserError, match="no row of python -m cfg.evaluate, nor a sweep.json"):
    evaluate.compare(str(places / "a.json"), str(places / "none.json"))


def test_sweeps_are_compared_strength_by_strength(tmp_path):
  """Strengths that both have, with the differences; another judge, several rows of a strength, no
  common strength: refused with the reason.
  """
  fid = Metric("fid", "FID", "pool_3", "frechet", role="inception")
  metrics = table.to_json([fid, fid.heldout()])
  row = {
    "w": 0.0,
    "fid": 2.0,
    "fid_err": 0.1,
    "fid_heldout": None,
    "fid_heldout_err": None,
    "num_samples": 10,
    "inception/sha256": "a",
  }

  def sweep(name, *rows):
    files.write_json(tmp_path / name, {"metrics": metrics, "rows": list(rows)})
    return str(tmp_path / name)

  first = sweep("a.json", row, {**row, "w": 0.3, "fid": 1.5}, {**row, "w": 4.0})
  second = sweep("b.json", {**row, "w": 0.3, "fid": 1.75}, {**row, "fid": 2.5})
  lines = [line.split() for line in evaluate.compare(first, second).splitlines()]
  assert len(lines) == 7
  assert lines[0][:9] == ["w", "=", "0", "(scale", "=", "1)", "first", "second", "difference"]
  assert lines[1] == ["FID", "2.000", "2.500", "+0.500", "-", "-", "-"]
  assert lines[2] == ["FID", "held-out", *"------"]
  assert lines[3][2:6] == ["0.3", "(scale", "=", "1.3)"]
  assert lines[4] == ["FID", "1.500", "1.750", "+0.250", "-", "-", "-"]
  assert "earlier version" in " ".join(lines[6])
  for rows, word in (
    ([{**row, "inception/sha256": "c"}], "inception/sha256 is 'a' and 'c'"),
    ([row, row], "several rows of one strength"),
    ([{**row, "w": 9.0}], "no strength in common"),
  ):
    with pytest.raises(UserError, match=word):
      evaluate.compare(first, sweep("c.json", *rows))
  files.write_json(tmp_path / "row.json", {**row, "metrics": metrics})
  with pytest.raises(UserError, match="no strength in common"):
    evaluate.compare(first, str(tmp_path / "row.json"))


def test_rows_of_one_seed_are_compared_pair_by_pair(network, places):
  """Of sample runs of one seed the error is the pairs', near zero for images that hardly differ; of
  two seeds, and of images of which nothing is known, that of independent samples, which is said.
  """
  net = network(("pool_3",))
  seeds = {"a": 0, "b": 0, "c": 1}
  for name, seed in seeds.items():
    pixels = PIXELS if name == "a" else np.minimum(PIXELS, 220)
    (places / name).mkdir()
    rows = [{"file": f"{i:05d}.png", "w": 1.0, "scale": 2.0, "seed": seed} for i in range(90)]
    for row, image in zip(rows, pixels, strict=True):
      Image.fromarray(image).save(places / name / row["file"])
    about = {"about": {"main/data": "noise"}, "samples": rows}
    files.write_json(places / name / "samples.json", about)
  measured = {name: run(places, net, images=name) for name in seeds}
  measured["unknown"] = run(places, net)
  for name, row in measured.items():
    files.write_json(places / f"{name}.json", row)

  def fid(other):
    text = evaluate.compare(str(places / "a.json"), str(places / f"{other}.json"))
    (line,) = (line for line in text.splitlines() if line.split()[0] == "FID")
    return line.split(maxsplit=6)[1:], text

  (first, second, difference, err, ratio, _), text = fid("b")
  row, other = measured["a"], measured["b"]
  assert (first, second) == (f"{row['fid']:.3f}", f"{other['fid']:.3f}")
  shift = np.subtract(other["fid_without"], row["fid_without"])
  assert float(difference) == pytest.approx(other["fid"] - row["fid"], abs=6e-4)
  assert float(err) == pytest.approx(scores.jackknife_error(shift), abs=6e-4)
  assert float(ratio) < 0.3 and "Not paired" not in text and "5 blocks" in text
  for name, reason in (("c", "the seed is 0 and 1"), ("unknown", "not of one seed")):
    (*_, err, ratio, verdict), text = fid(name)
    errs = [scores.jackknife_error(measured[n]["fid_without"]) for n in ("a", name)]
    assert float(err) == pytest.approx(np.hypot(*errs), rel=0.1)
    assert (ratio, verdict) == ("-", "not resolved")
    assert "Not paired (" in text and reason in text


def test_the_command_line(network, places, monkeypatch, capsys):
  """Statistics made, images measured against them, row written; what is missing is asked for."""
  network()
  monkeypatch.setattr(evaluate.runtime, "start", lambda **_: None)
  at = lambda name: str(places / name)
  evaluate.main([at("real.npz"), "--make_reference", "--inception=w", f"--out={at('ref.npz')}"])
  evaluate.main(
    [
      at("a.npz"),
      f"--reference={at('ref.npz')}",
      "--inception=w",
      f"--out={at('row.json')}",
      "--batch_size=8",
      "--extrapolate",
    ]
  )
  row = json.loads((places / "row.json").read_text())
  said = capsys.readouterr().out
  assert f"{row['fid']:.3f}" in said and "90 images" in said and row["fid_infinity"] < row["fid"]
  with pytest.raises(UserError, match="its folder is not there"):
    evaluate.main(
      [at("real.npz"), "--make_reference", "--inception=w", f"--out={at('no/ref.npz')}"]
    )
  for missing, words in (
    ([], "IMAGES, --inception, --reference"),
    (["x", "--make_reference"], "--inception, --out"),
  ):
    with pytest.raises(UserError, match=f"give {words}"):
      evaluate.main(missing)


def test_softmax_of_large_logits():
  """Each row has its own maximum taken off: no overflow, no zero row, and adding a number to a row
  changes nothing.
  """
  logits = np.array([[2000.0, 1999.0, 0.0], [0.0, -1.0, -2000.0]])
  expected = np.exp([[0, -1, -np.inf]] * 2) / (1 + np.exp(-1))
  np.testing.assert_allclose(statistics.softmax(logits), expected, rtol=1e-12)


def test_the_jackknife_of_a_mean_is_its_standard_error():
  """Of a mean over equal blocks it is exactly the standard error over the blocks."""
  values = RNG.normal(size=(5, 40))
  without = [np.delete(values, i, axis=0).mean() for i in range(5)]
  assert scores.jackknife_error(without) == pytest.approx(
    scores.standard_error(values.mean(axis=1))
  )


def test_reference_files_say_what_they_are(tmp_path):
  """A file of something else is refused with what it has."""
  for content, word in (
    ({"x": np.zeros(3)}, "has x"),
    ({"about": np.asarray("{}"), "x": np.zeros(1)}, "cannot be used"),
  ):
    np.savez(tmp_path / "r.npz", **content)
    with pytest.raises(UserError, match=word):
      reference.read(tmp_path / "r.npz")
  with pytest.raises(UserError, match="cannot read the reference"):
    reference.read(tmp_path / "nowhere.npz")
