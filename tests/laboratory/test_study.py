"""The study of three Gaussians: each of its numbers, and the command from end to end."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cfg import mixtures, toy
from cfg.base.errors import UserError
from cfg.laboratory import learnt, study
from cfg.laboratory.study import Cell, Settings

MIXTURE = mixtures.figure_2()
SMALL = Settings(w=(0.0, 2.0), num_samples=512, num_steps=(48,), particles=(64,), train_steps=0)


@pytest.fixture(scope="module")
def known():
  """The exact laws at w = 1."""
  rng = np.random.default_rng(0)
  return study.exact(MIXTURE, 1.0, num_samples=512, rng=rng)


def rows_of(cell, known, w=1.0):
  """{method: row} of a cell with exact noise."""
  draw = study.make_draw(cell, mixtures.make_eps_fn(MIXTURE), mixture=MIXTURE, settings=SMALL)
  rows, _ = study.measure(cell, w, *draw(jnp.float32(w)), known=known)
  return {row["method"]: row for row in rows}


def test_weights_and_particles_come_nearer_to_the_law(known):
  """Guided samples are several errors farther from the law than its own draws; weighted ones and
  particles are nearer, and their log Z is near the exact one.
  """
  floor = study.distance(known.draws, known)
  plain = rows_of(Cell(study.EXACT, study.PLAIN, 48), known)
  group = rows_of(Cell(study.EXACT, study.PLAIN, 48, 64), known)[study.PARTICLES]
  guided, weighted = plain[study.PLAIN], plain[study.WEIGHTED]
  gap = guided["distance"] - floor["distance"]
  assert gap > 5 * np.hypot(guided["distance_err"], floor["distance_err"])
  assert weighted["distance"] < guided["distance"] - 0.3 * gap
  assert group["distance"] < guided["distance"] - 0.5 * gap
  assert abs(group["log_z"] - known.log_z) < 0.35 and 0 < weighted["ess"] < 0.5
  assert weighted["kl"] > 0.1


def test_errors_are_those_of_blocks(known):
  """Blocks that are all alike have no error; of samples far from the law the distance is that of
  their means, and its error theirs.
  """
  same = np.tile(known.draws[:, :64], (1, 8, 1))
  assert study.distance(same, known)["distance_err"] < 1e-12
  far = study.distance(known.draws + np.array([100.0, 0.0]), known)
  directions = known.targets[0].directions
  np.testing.assert_allclose(far["distance"], 100 * np.abs(directions[:, 0]).mean(), rtol=0.01)
  towards = np.mean(np.sign(directions[:, :1]) * directions, axis=0)
  each = (known.draws @ towards).mean(axis=0)  # of sample i of all classes
  err = each.std() / np.sqrt(len(each))
  assert 0.5 * err < far["distance_err"] < 1.8 * err


def test_examples_are_of_the_mixture():
  """Class k of the stream has the mean and the spread of class k, and every place its own."""
  index = jnp.arange(6000, dtype=jnp.uint32)
  draw = jax.jit(lambda key: learnt.examples(key, index, mixture=MIXTURE)[:2])
  x, y = map(np.asarray, draw(jax.random.key(0)))
  assert x.shape == (6000, 1, 1, 2) and len(np.unique(x)) > 11_900
  for k in range(3):
    of_class = x[y == k].reshape(-1, 2)
    np.testing.assert_allclose(of_class.mean(axis=0), MIXTURE.means[k], atol=0.06)
    np.testing.assert_allclose(of_class.std(axis=0), MIXTURE.stds[k], atol=0.05)


def run_command(tmp_path, monkeypatch, *options):
  """What toy.json holds after the command with these options, of few samples and levels."""
  monkeypatch.setattr(toy.runtime, "start", lambda **_: None)
  toy.main([f"--out={tmp_path / 'a'}", "--num_samples=32", "--num_steps=6", *options])
  content = json.loads((tmp_path / "a/toy.json").read_text())
  assert all(np.isfinite(row["distance"]) for row in content["rows"])
  with Image.open(tmp_path / "a/figure2.png") as picture:
    assert min(picture.size) > 300 and len(np.unique(np.asarray(picture))) > 50
  return content


def test_the_command(tmp_path, capsys, monkeypatch):
  """Writes the figure and every number, and prints them; w = 0 is drawn once."""
  options = ("--w=0,1.5", "--particles=4", "--train_steps=0", "--rules=")
  content = run_command(tmp_path, monkeypatch, *options)
  text = capsys.readouterr().out
  assert "w = 1.5" in text and "particles" in text and "log Z" in text
  methods = {w: {row["method"] for row in content["rows"] if row["w"] == w} for w in (0, 1.5)}
  assert methods[0] == {study.DRAWS, study.PLAIN, study.DETERMINISTIC}
  assert methods[1.5] == {
    *methods[0],
    *(study.PARTICLES, study.WEIGHTED, f"{study.WEIGHTED}, ddim"),
  }


@pytest.mark.slow
def test_the_command_with_a_network(tmp_path, capsys, monkeypatch):
  """Trains it, draws with its noise, and knows its error; every rule is there."""
  content = run_command(tmp_path, monkeypatch, "--w=1.5", "--particles=4", "--train_steps=300")
  assert 0 < content["network_error"] < 0.05 and "mean square" in capsys.readouterr().out
  learnt_rows = [row["method"] for row in content["rows"] if row["network"] == study.LEARNT]
  assert learnt_rows == [study.PLAIN, study.WEIGHTED, study.PARTICLES]
  assert {*study.OTHERS} <= {row["method"] for row in content["rows"]}


@pytest.mark.parametrize(
  "option, words",
  [
    ("--w=0,x", "commas between"),
    ("--w=", "one value or more"),
    ("--w=1,1", "none of them twice"),
    ("--w=-0.5", "between 0 and 20"),
    ("--w=nan", "between 0 and 20"),
    ("--num_steps=1", "at least 2 levels"),
    ("--num_steps=2.5", "whole numbers"),
    ("--particles=1", "at least 2"),
    ("--num_samples=100", "a multiple of 2048"),
    ("--rules=cfg", "known: 'interval'"),
    ("--train_steps=-1", "--train_steps"),
    ("--seed=-1", "--seed"),
  ],
)
def test_nonsense_is_refused(tmp_path, option, words):
  """Before any work."""
  with pytest.raises(UserError, match=words):
    toy.main([f"--out={tmp_path / 'x'}", option])
  assert not (tmp_path / "x").exists()
