"""Differences of the rows of a sweep: against what, of which pairs, how they are shown and kept."""

import json

import numpy as np
import pytest

from cfg.metrics import paired
from cfg.metrics.metric import Metric
from cfg.report import differences, table

FID = Metric("fid", "FID", "pool_3", "frechet", "lower", role="inception")
RECALL = Metric("recall", "recall", "pool_3", "recall", role="inception")
ACCURACY = Metric(
  "label_accuracy", "label acc.", "logits", "accuracy", "higher", "{:.1%}", role="judge"
)
METRICS = (FID, RECALL, ACCURACY)
ABOUT = {"sweep.seed": 0, "num_samples": 50, "num_blocks": 5, "main/data": "digits"}
SPREAD = np.array([-0.25, -0.125, 0.0, 0.125, 0.25])


def row(w, fid, *, twist=0.0, **facts):
  """A row whose blocks differ as SPREAD says, turned over to a share `twist`."""
  without = fid + SPREAD + twist * SPREAD[[2, 0, 4, 1, 3]]
  values = {}
  for metric in METRICS:
    values[metric.key] = fid
    values[metric.without] = without.tolist()
  return {"w": w, "scale": 1 + w, "nfe": 8, **values, **ABOUT, "sampler.name": "ddim", **facts}


def content(*rows):
  about = {**ABOUT, "sweep.allow_few": False, "guidance.rule": "classifier_free"}
  return {"metrics": table.to_json(METRICS), "rows": list(rows), "references": [], "about": about}


def test_strengths_are_held_against_w_0():
  """Each row against w = 0 of its own variant, wherever that stands, or else against the first; and
  each further variant against the first at equal strength, where the first has it.
  """
  names = ("ancestral", "ddim")
  rows = [row(w, 1 + w, **{"sampler.name": name}) for name in names for w in (0.5, 0.0, 1.0)]
  rows.append(row(2.0, 3.0))
  places = lambda found: [(rows.index(c.row), rows.index(c.baseline)) for c in found]
  assert places(differences.strengths(rows, METRICS)) == [(0, 1), (2, 1), (3, 4), (5, 4), (6, 4)]
  assert places(differences.variants(rows, METRICS)) == [(3, 0), (4, 1), (5, 2)]
  without_zero = [rows[2], rows[0]]
  ((found),) = differences.strengths(without_zero, METRICS)
  assert (found.baseline["w"], found.row["w"]) == (1.0, 0.5)
  assert differences.variants(without_zero, METRICS) == []


def test_differences_as_text():
  """A table for each network: sign, error, verdict in each metric's words; "?" where it is not
  resolved. Further variants have a table of their own.
  """
  rows = [row(0.0, 2.0), row(1.0, 1.5), row(3.0, 2.0625, twist=1.0)]
  lines = differences.text(content(*rows)).splitlines()
  assert lines[0] == "Differences from w = 0:"
  assert lines[1].split() == ["w", "FID", "±", "recall", "±"]
  better, unsure = lines[2].split(), lines[3].split()
  assert better == ["1", "-0.500", "0.000", "better", "-0.500", "0.000", "lower"]
  err = f"{paired.jackknife_error(SPREAD):.3f}"
  assert unsure == ["3", "+0.062", err, "?", "+0.062", err, "?"]
  assert lines[5].split() == ["1", "-50.0%", "0.0%", "worse"]
  assert "5 blocks" in lines[7] and "95%" in lines[8] and len(lines) == 9
  other = [row(w, 1 + w, **{"sampler.name": "heun"}) for w in (0.0, 1.0)]
  lines = differences.text(content(*rows, *other)).splitlines()
  start = lines.index("Differences from ddim, at the same w:")
  assert lines[start + 1].split()[:3] == ["w", "sampler", "FID"]
  assert [line.split()[:3] for line in lines[start + 2 : start + 4]] == [
    ["0", "heun", "-1.000"],
    ["1", "heun", "+0.500"],
  ]


def test_one_row_has_no_differences():
  """Of a single row there is the table alone."""
  alone = content(row(1.0, 2.0))
  assert differences.text(alone) == "" and differences.to_json(alone["rows"], METRICS) == []


def test_rows_of_an_earlier_version():
  """Without values of all blocks but one there is a difference and no error, which is said; a
  missing number has neither.
  """
  old = {name: value for name, value in row(1.0, 1.5).items() if not name.endswith("_without")}
  text = differences.text(content(row(0.0, 2.0), old))
  assert "-0.500" in text and "earlier version" in text and "blocks in turn" not in text
  assert "better" not in text and "?" not in text
  missing = {**row(1.0, 1.5), **{name: None for name in row(1.0, 1.5) if name.startswith("fid")}}
  text = differences.text(content(row(0.0, 2.0), missing))
  assert "earlier" not in text and text.splitlines()[2].split()[:3] == ["1", "-", "-"]


@pytest.mark.parametrize(
  "facts, reason",
  [
    ({"sweep.seed": 1}, "the seed is 0 and 1"),
    ({"num_samples": 100}, "num_samples is 50 and 100"),
    ({"num_blocks": 10}, "num_blocks is 5 and 10"),
    ({"main/data": "cifar10"}, "main/data is 'digits' and 'cifar10'"),
    ({"image_shape": [8, 8, 1]}, "image_shape is None and [8, 8, 1]"),
    ({"sampler.name": "heun", "sampler.num_steps": 9, "guidance.rule": "cfg_plus_plus"}, ""),
    ({"main/weights_sha256": "other", "main/ema_decay": 0.9, "w": 4.0}, ""),
  ],
)
def test_what_makes_pairs(facts, reason):
  """Seed, numbers, classes and shape decide; strength, rule, sampler, T and weights do not. Without
  pairs the error is that of independent samples, and the reason is there.
  """
  first, second = row(0.0, 2.0), {**row(1.0, 1.5), **facts}
  found = differences.between(first, second, [FID])
  assert found.unshared == reason
  alone = paired.jackknife_error(first["fid_without"])
  assert found.values["fid"].err == pytest.approx(2**0.5 * alone if reason else 0, abs=1e-12)
  notes = "\n".join(differences.notes([found], [FID]))
  assert (f"Not paired ({reason})" in notes) == bool(reason)


def test_what_sweep_json_keeps():
  """Every difference with the places of its rows, as JSON."""
  rows = [row(1.0, 1.5), row(0.0, 2.0), row(0.0, 3.0, **{"sampler.name": "heun"})]
  kept = differences.to_json(rows, METRICS)
  assert json.loads(json.dumps(kept)) == kept
  assert [(d["row"], d["baseline"], d["paired"]) for d in kept] == [(0, 1, True), (2, 1, True)]
  assert kept[0]["fid"]["value"] == -0.5 and kept[0]["fid"]["verdict"] == "better"
  assert kept[0]["recall"]["verdict"] == "lower"
