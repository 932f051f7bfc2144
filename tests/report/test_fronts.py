"""Methods of a sweep against each other: what is compared with what, and how it is shown."""

import json

import numpy as np
import pytest

from cfg.metrics.metric import Metric
from cfg.report import differences, fronts, page, table

IS = Metric("inception_score", "IS", "logits", "score", "higher", role="judge")
FID = Metric("fid", "FID", "features", "frechet", "lower", role="judge")
METRICS = (FID, IS)
SPREAD = np.array([-0.02, -0.01, 0.0, 0.01, 0.02])
SHARED = {
  "sweep.seed": 0,
  "sweep.num_samples": 50,
  "num_samples": 50,
  "num_blocks": 5,
  "main/data": "digits",
}


def row(method, w, fid, score, *, sampler="ancestral", num_steps=32, rule="classifier_free"):
  return {
    "method": method,
    "w": w,
    "scale": 1 + w,
    "strength": "w",
    "nfe": 64,
    "fid": fid,
    "fid_err": 0.02,
    "fid_without": list(fid + SPREAD),
    "inception_score": score,
    "inception_score_err": 0.01,
    "inception_score_without": [score] * 5,
    "sampler.name": sampler,
    "sampler.num_steps": num_steps,
    "guidance.rule": rule,
    **SHARED,
  }


PLAIN = [row("plain", 1.0, 3.0, 9.0), row("plain", 0.0, 1.0, 5.0)]  # not in order
OTHER = [
  row("weak", w, fid, score, num_steps=48, rule="second_network")
  for w, fid, score in ((0.5, 1.5, 7.0), (2.0, 9.0, 9.5))
]


def content(rows):
  about = {**SHARED, "sweep.allow_few": False, "main/data": "digits", "judge/name": "judge"}
  return {"metrics": table.to_json(METRICS), "rows": rows, "references": [], "about": about}


def test_each_row_is_held_against_the_first_methods_curve():
  """At IS 7 the plain curve has FID 2: the other method's 1.5 is better by 0.5, with no error left
  where blocks move together; at IS 9.5 there is no plain sample.
  """
  found = fronts.fronts(PLAIN + OTHER, METRICS)
  assert [front.row["w"] for front in found] == [0.5, 2.0]
  difference = found[0].values["fid"]
  assert difference.value == pytest.approx(-0.5) and difference.verdict == "better"
  assert difference.err == pytest.approx(0, abs=1e-12)
  assert found[1].values["fid"] is None


def test_strengths_of_methods_are_not_compared_as_if_they_were_one():
  """Rows of two rules at equal strength have no difference of their own; within each, strengths
  are compared as ever.
  """
  rows = PLAIN + [row("weak", 1.0, 1.5, 7.0, rule="second_network")]
  assert differences.variants(rows, METRICS) == []
  assert [c.row["method"] for c in differences.strengths(PLAIN + OTHER, METRICS)] == [
    "plain",
    "weak",
  ]


def test_methods_of_one_rule_are_compared_at_equal_strength():
  """Two samplers of one rule: a table of differences at the same w in place of that at equal
  scores; with another guide it is another rule.
  """
  rows = PLAIN + [row("ddim", 1.0, 2.5, 9.0, sampler="ddim")]
  ((found),) = differences.variants(rows, METRICS)
  assert (found.baseline, found.row) == (rows[0], rows[2])
  assert found.values["fid"].value == pytest.approx(-0.5)
  text = page.text(content(rows))
  assert "Differences from plain, at the same w:" in text and "Differences from w" not in text
  assert "equal IS" not in text and fronts.to_json(rows, METRICS) == []
  guided = [{**r, "guide/step": step} for r, step in zip(rows, (1, 1, 2))]
  assert differences.variants(guided, METRICS) == []
  assert "equal IS" in page.text(content(guided))


def test_names_leave_out_what_a_method_says_by_itself():
  """T differs, but with the method: lines and files are named after the method alone, and the
  table still has a column for T. Where a method has two T, both are in the names.
  """
  assert list(table.by_variant(PLAIN + OTHER)) == ["plain", "weak"]
  assert [axis.title for axis in table.axes_of(PLAIN + OTHER)] == ["method", "T"]
  several = PLAIN + OTHER + [row("weak", 0.5, 1.0, 6.0, num_steps=96)]
  assert list(table.by_variant(several)) == ["plain, T = 32", "weak, T = 48", "weak, T = 96"]


def test_text_and_json(tmp_path):
  """The tables of methods stand in the sweep's text, and its file has them; of one method there is
  none.
  """
  text = page.text(content(PLAIN + OTHER))
  assert "Differences from plain at equal IS" in text
  line = next(line for line in text.splitlines() if line.split()[:2] == ["weak", "0.5"])
  assert "-0.500" in line and "better" in line
  assert "The lowest FID of each method" in text
  lowest = text[text.index("The lowest FID") :].splitlines()
  assert lowest[2].split()[:3] == ["plain", "0", "64"] and lowest[3].split()[:2] == ["weak", "0.5"]
  kept = json.loads(json.dumps(fronts.to_json(PLAIN + OTHER, METRICS)))
  assert [front["row"] for front in kept] == [2, 3] and kept[0]["at"] == "inception_score"
  assert kept[0]["fid"]["value"] == pytest.approx(-0.5) and kept[1]["fid"] is None
  alone = [{k: v for k, v in r.items() if k != "method"} for r in PLAIN]
  assert fronts.text(content(alone)) == "" and fronts.to_json(alone, METRICS) == []


def test_the_figure_has_a_line_for_each_method(monkeypatch):
  """Each line goes through its method's rows in the order of strength."""
  saved = []
  monkeypatch.setattr(page.curves.drawing, "save", lambda figure, path: saved.append(figure))
  page.write_methods("methods.png", content(PLAIN + OTHER))
  (axes,) = saved[0].axes
  lines = {c.get_label(): c.lines[0].get_xydata() for c in axes.containers}
  assert set(lines) == {"plain", "weak"}
  assert np.allclose(lines["plain"], [(5, 1), (9, 3)])
  # the lowest of the worse line is 1.5, and the highest point 9
  assert axes.get_ylim() == (0, 2.5 * 1.5) and axes.get_title().endswith("up to 3.8")
