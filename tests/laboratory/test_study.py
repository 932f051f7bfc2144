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
SMALL = Settings(w=(0.0, 2.0), num_samples=512, num_steps=(24,), particles=(64,), train_steps=0)


@pytest.fixture(scope="module")
def known():
  """The exact laws at w = 2."""
  rng = np.random.default_rng(0)
  return study.exact(MIXTURE, 2.0, num_samples=512, rng=rng)


def rows_of(cell, known, w=2.0):
  """{method: row} of a cell with exact noise."""
  draw = study.make_draw(cell, mixtures.make_eps_fn(MIXTURE), mixture=MIXTURE, settings=SMALL)
  rows, _ = study.measure(cell, w, *draw(jnp.float32(w)), known=known)
  return {row["method"]: row for row in rows}


def test_weights_and_particles_come_nearer_to_the_law(known):
  """Guided samples are several errors farther from the law than its own draws; weighted ones and
  particles are nearer, and their log Z is near the exact one.
  """
  floor = study.distance(known.draws, known)
  plain = rows_of(Cell(study.EXACT, study.PLAIN, 24), known)
  group = rows_of(Cell(study.EXACT, study.PLAIN, 24, 64), known)[study.PARTICLES]
  guided, weighted = plain[study.PLAIN], plain[study.WEIGHTED]
  gap = guided["distance"] - floor["distance"]
  assert gap > 5 * np.hypot(guided["distance_err"], floor["distance_err"])
  assert weighted["distance"] < guided["distance"] - 0.3 * gap
  assert group["distance"] < guided["distance"] - 0.5 * gap
  assert abs(group["log_z"] - known.log_z) < 0.35 and 0 < weighted["ess"] < 0.5
  assert weighted["kl"] > 0.1


def test_errors_are_those_of_blocks(known):
  """Blocks that are all alike have no error; a shift of all samples is the distance."""
  same = np.tile(known.draws[:, :64], (1, 8, 1))
  assert study.distance(same, known)["distance_err"] < 1e-12
  far = study.distance(known.draws + np.array([10.0, 0.0]), known)["distance"]
  want = np.mean([np.abs(law.directions[:, 0]).mean() for law in known.targets])
  np.testing.assert_allclose(far, 10 * want, rtol=0.02)


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


def test_the_command(tmp_path, capsys):
  """Writes the figure and every number; w = 0 is drawn once, and the network is trained."""
  toy.main(
    [
      f"--out={tmp_path / 'a'}",
      "--w=0,1.5",
      "--num_samples=32",
      "--num_steps=6",
      "--particles=4",
      "--train_steps=3",
    ]
  )
  text = capsys.readouterr().out
  assert "w = 1.5" in text and "particles" in text and "trained" in text
  content = json.loads((tmp_path / "a/toy.json").read_text())
  rows = content["rows"]
  assert {row["w"] for row in rows} == {0.0, 1.5} and content["network_error"] > 0
  assert {row["method"] for row in rows if row["w"] == 0} == {
    *(study.DRAWS, study.PLAIN, study.DETERMINISTIC)
  }
  names = {row["method"] for row in rows if row["w"] == 1.5}
  assert {*study.methods(MIXTURE), study.WEIGHTED, study.PARTICLES} <= names
  assert all(np.isfinite(row["distance"]) for row in rows)
  with Image.open(tmp_path / "a/figure2.png") as picture:
    assert min(picture.size) > 300 and len(np.unique(np.asarray(picture))) > 50


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
    ("--train_steps=-1", "--train_steps"),
    ("--seed=-1", "--seed"),
  ],
)
def test_nonsense_is_refused(tmp_path, option, words):
  """Before any work."""
  with pytest.raises(UserError, match=words):
    toy.main([f"--out={tmp_path / 'x'}", option])
  assert not (tmp_path / "x").exists()
