"""The gauge of a sweep as text."""

from cfg.report import tilt


def row(w, log_z, **facts):
  information = {"information": 2.0, "information_err": 0.1, "information_by_class": [1.0, 3.0]}
  tilted = {"log_z": log_z, "log_z_err": 0.01, "tilt_kl": 0.125, "tilt_kl_err": 0.01}
  sizes = {"tilt_ess": 40.0, "num_samples": 80}
  return {"w": w, "strength": "w", **information, **tilted, **sizes, **facts}


def lines(*rows):
  """{strength: words} of the table, and the notes after it."""
  text = tilt.text({"rows": list(rows)}).splitlines()[2:]
  return {line.split()[0]: line.split() for line in text[: len(rows)]}, text[len(rows) :]


def test_numbers_stand_in_their_columns():
  """Information, log Z and KL with their errors, the effective share of the samples."""
  table, notes = lines(row(0.5, 1.0))
  assert table["0.5"] == ["0.5", "2.00", "0.10", "1.000", "0.010", "0.125", "0.010", "50%"]
  assert "log 2 = 0.69" in notes[0] and len(notes) == 2


def test_a_log_z_that_cannot_be_is_not_resolved():
  """log Z / w that falls as w grows: neither log Z nor KL is shown, and the reason is said once;
  other variants do not count.
  """
  rows = [row(0.5, 1.0), row(1.0, 1.5), row(2.0, 4.0), row(3.0, 4.0)]
  table, notes = lines(*rows)
  assert table["1"][3:] == table["3"][3:] == ["?", "?"]
  assert table["0.5"][3] == "1.000" and table["2"][3] == "4.000"
  assert notes[-1].startswith("log Z and KL are not resolved at w = 1, 3: log Z / w lies below")
  assert rows[1]["log_z"] == 1.5
  table, notes = lines(row(0.5, 1.0, method="a"), row(1.0, 1.5, method="b"))
  assert "?" not in table["1"] and len(notes) == 2
  # strengths that guide less than none, or not at all, say nothing of the others
  table, notes = lines(row(-0.5, -0.1), row(0.0, 0.5), row(0.5, 1.0))
  assert not any("?" in words for words in table.values()) and len(notes) == 2


def test_a_reason_that_was_found_while_drawing_stays():
  """Rows without log Z keep theirs; without any information there is no text."""
  bare = {k: v for k, v in row(1.0, 0.0).items() if not k.startswith(("log_z", "tilt"))}
  table, notes = lines(row(0.5, 1.0), {**bare, "tilt_unresolved": "it was clipped"})
  assert table["1"][3:] == ["?", "?"]
  assert notes[-1] == "log Z and KL are not resolved at w = 1: it was clipped."
  assert tilt.text({"rows": [{"w": 1.0}]}) == ""
