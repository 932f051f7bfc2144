"""python -m cfg.evaluate: numbers that are their formulas, whatever the file, the batch and the devices, and that say what they are."""

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
from cfg.features import inception, placed
from cfg.metrics import pairwise, reference, scores, statistics
from cfg.models import inception as inception_lib

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
      evaluate.weights,
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


def run(places, net, images="a.npz", real="real.npz", **options):
  return evaluate.evaluate(
    places / images, net.open_reference(places / real), network=net, **options
  )


def test_numbers_are_their_formulas(network, places):
  """Each is what the functions of evaluation/ give for all features at once; ± is of random equal
  blocks.
  """
  row = run(places, network())
  ours, theirs = outputs_of(PIXELS), outputs_of(REAL)
  for space, name in inception.FRECHET.items():
    distance = lambda rows, space=space: scores.frechet_distance(
      statistics.Gaussian.of(ours[space][rows]), statistics.Gaussian.of(theirs[space])
    )
    assert row[name] == pytest.approx(distance(slice(None)), rel=1e-5)
    blocks = evaluate.block_of(90, num_blocks=5)
    assert np.bincount(blocks).tolist() == [18] * 5
    assert row[f"{name}_err"] == pytest.approx(
      scores.standard_error([distance(blocks == b) for b in range(5)]), rel=1e-3
    )
  for output, name in inception.SCORES.items():
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
  assert all(abs(row[name]) < 1e-6 for name in inception.FRECHET.values()) and (
    row["precision"],
    row["recall"],
  ) == (1, 1)
  assert row["kid"] <= 0


def test_partial_weights_never_say_fid(network, places):
  """Without pool_3 the distances have names of their own, and the table says that they are not FID."""
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
    and not row["extractor_complete"]
  )
  assert "not FID" in evaluate.table(row) and "not FID" not in evaluate.table(
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
  target = network().open_reference(places / "real.npz")
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(placed.Placed, "measure", None)  # it is said before the network is run
    with pytest.raises(
      UserError, match="it has 5 images; fid needs 7, sfid needs 6: .*--allow_few"
    ):
      evaluate.evaluate(places / "few.npz", target, network=network(), num_blocks=5)
  row = run(places, network(), images="few.npz", num_blocks=5, allow_few=True)
  assert row["allow_few"] and row["fid"] > 0 and "means little" in evaluate.table(row)
  with pytest.raises(UserError, match="the reference has 5 images; fid needs 7"):
    run(places, network(), real="few.npz")
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
  assert "fid " in text and " 0.0000" in text and "precision" in text
  for name, word in (("self", "reference_sha256"), ("blocks", "num_blocks is 5 and 3")):
    with pytest.raises(UserError, match=f"cannot be compared: .*{word}"):
      evaluate.compare(str(places / "a.json"), str(places / f"{name}.json"))
  (places / "none.json").write_text(json.dumps({"fid": 1}))
  with pytest.raises(UserError, match="no row of python -m cfg.evaluate, nor a sweep.json"):
    evaluate.compare(str(places / "a.json"), str(places / "none.json"))


def test_sweeps_are_compared_strength_by_strength(tmp_path):
  """Strengths that both have, with the differences; another judge, several rows of a strength, no
  common strength: refused with the reason.
  """
  row = dict(
    w=0.0,
    fid=2.0,
    fid_err=0.1,
    fid_heldout=None,
    fid_heldout_err=None,
    extractor_sha256="a",
    num_samples=10,
    judge_sha256="b",
  )

  def sweep(name, *rows):
    files.write_json(tmp_path / name, {"rows": list(rows)})
    return str(tmp_path / name)

  first = sweep("a.json", row, {**row, "w": 0.3, "fid": 1.5}, {**row, "w": 4.0})
  text = evaluate.compare(
    first, sweep("b.json", {**row, "w": 0.3, "fid": 1.75}, {**row, "fid": 2.5})
  ).splitlines()
  assert (
    len(text) == 6
    and text[0].startswith("w = 0 (scale = 1)")
    and text[3].startswith("w = 0.3 (scale = 1.3)")
  )
  assert (
    text[1].split() == ["fid", "2.0000", "2.5000", "0.5000"]
    and text[4].split() == ["fid", "1.5000", "1.7500", "0.2500"]
    and text[2].split()[1:] == ["-"] * 3
  )
  for rows, word in (
    ([{**row, "judge_sha256": "c"}], "judge_sha256 is 'b' and 'c'"),
    ([row, row], "several rows of one strength"),
    ([{**row, "w": 9.0}], "no strength in common"),
  ):
    with pytest.raises(UserError, match=word):
      evaluate.compare(first, sweep("c.json", *rows))
  files.write_json(tmp_path / "row.json", row)
  with pytest.raises(UserError, match="no strength in common"):
    evaluate.compare(first, str(tmp_path / "row.json"))


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
  assert f"{row['fid']:.4f}" in said and "90 images" in said and row["fid_infinity"] < row["fid"]
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


def test_numbers_in_tables():
  """Small ones keep two digits; what is not there is a dash; all have one width."""
  assert [evaluate._number(v).strip() for v in (123.45678, 0.05, -0.00123, 0.0, None)] == [
    "123.4568",
    "0.0500",
    "-1.2e-03",
    "0.0000",
    "-",
  ]
  assert {len(evaluate._number(v)) for v in (123.4, -0.001, None)} == {10}


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
