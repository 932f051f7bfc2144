"""The paper's tables in the ImageNet configs, and the comparison printed with them."""

import json

import numpy as np

from cfg.metrics.metric import Metric
from cfg.report import differences, table
from configs import imagenet64, imagenet128


def test_the_paper_s_numbers_beside():
  """Cells of the same w and T, of the whole Inception network alone; their differences; another N
  is said.
  """
  row = dict(w=0.1, fid=1.75, inception_score=60.0, num_samples=10_000)
  row["sampler.num_steps"] = 256
  row["inception/complete"] = True
  paper = imagenet64.get_config().paper
  beside = table.beside_paper([row, {**row, "w": 0.15}, {**row, "w": 4.0, "fid": None}], paper)
  assert [(r["w"], r["fid_paper"], r["inception_score_paper"]) for r in beside["rows"]] == [
    (0.1, 1.55, 66.11)
  ]
  text = table.paper_table(beside)
  assert (
    "+0.20" in text
    and "-6.11" in text
    and "table 1, p_uncond = 0.1" in text
    and "10,000 here cannot be compared with 50,000" in text
  )
  assert "cannot" not in table.paper_table({**beside, "own_num_samples": 50_000})
  assert (
    table.beside_paper([{**row, "inception/complete": False}], paper) is None
    and imagenet64.get_config("p_uncond=0.3").paper["rows"] == ()
  )
  table_2 = imagenet128.get_config().paper
  at = lambda num_steps: table.beside_paper([{**row, "sampler.num_steps": num_steps}], table_2)
  assert [at(num_steps)["rows"][0]["fid_paper"] for num_steps in (128, 256, 1024)] == [
    5.31,
    4.53,
    4.5,
  ] and at(512) is None


def test_numbers_keep_the_format_of_their_metric():
  """Three decimals, five of KID, a share in percent; one that would be all zeros keeps two digits;
  what is not there is a dash.
  """
  fid = Metric("fid", "FID", "pool_3", "frechet")
  kid = fid._replace(format="{:.5f}")
  accuracy = fid._replace(format="{:.1%}")
  values = [(fid, 123.45678), (fid, -0.00012), (fid, 0.0), (kid, 0.00123), (accuracy, 0.4567)]
  assert [table.number(*value) for value in values] == [
    "123.457",
    "-1.2e-04",
    "0.000",
    "0.00123",
    "45.7%",
  ]
  assert table.number(fid, None) == "-"


def test_a_strength_that_is_not_the_papers_has_its_own_name():
  """lambda of CFG++ in sentence, table and footnote, without a scale; the paper's w has one, and a
  row of an earlier version is of w.
  """
  fid = Metric("fid", "FID", "pool_3", "frechet", "lower", role="inception")
  row = {"w": 0.5, "scale": None, "strength": "lambda", "fid": 2.0, "num_samples": 9, "nfe": 8}
  assert table.one_line(row, [fid]) == "lambda = 0.5: FID 2.000"
  about = {"sweep.allow_few": False, "guidance.rule": "any"}
  text = table.table(
    {"metrics": table.to_json([fid]), "rows": [row], "references": [], "about": about}
  )
  assert text.split()[0] == "lambda" and "lambda is the strength of guidance.rule 'any'" in text
  alone = differences.difference_table(differences.between(row, row, [fid]), [fid])
  assert alone.startswith("lambda = 0.5 ")
  papers = {**row, "scale": 1.5}
  del papers["strength"]
  assert table.one_line(papers, [fid]) == "w = 0.5 (scale = 1.5): FID 2.000"


def test_metrics_survive_json():
  """What sweep.json keeps of a metric is all of it."""
  fid = Metric("fid", "FID", "pool_3", "frechet", "lower", role="inception")
  metrics = (fid, fid.heldout())
  assert table.from_json(json.loads(json.dumps(table.to_json(metrics)))) == metrics


def test_the_paper_s_tables_are_whole():
  """14 strengths each; least FID 1.55 at w = 0.1 (64x64) and 2.43 at 0.3 (128x128, T >= 256), 3.02
  at 0.4 (T = 128); IS rises with w.
  """
  for module, columns, best in (
    (imagenet64.TABLE_1, 3, [(0.1, 1.55), (0.1, 1.62), (0.1, 1.91)]),
    (imagenet128.TABLE_2, 3, [(0.4, 3.02), (0.3, 2.43), (0.3, 2.43)]),
  ):
    assert list(module) == [
      0.0,
      0.1,
      0.2,
      0.3,
      0.4,
      0.5,
      0.6,
      0.7,
      0.8,
      0.9,
      1.0,
      2.0,
      3.0,
      4.0,
    ] and {len(row) for row in module.values()} == {2 * columns}
    for column in range(columns):
      assert min((row[column], w) for w, row in module.items()) == best[column][::-1]
      assert np.all(np.diff([row[columns + column] for row in module.values()]) > 0)
