"""How a command ends: one paragraph, and its exit code."""

import errno

import pytest

from cfg.base import errors
from cfg.training.not_finite import NotFinite


def end(error, capsys):
  """(exit code, stderr) of a command that raises."""

  def command():
    raise error

  with pytest.raises(SystemExit) as e:
    errors.run_command(command)
  return e.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
  "error, code, said",
  [
    (errors.UserError("w is 7"), 1, "error: w is 7\n"),
    (NotFinite("the loss"), 70, "error: the loss\n"),
    (errors.Stopped("run it again"), 75, "run it again\n"),
    (KeyboardInterrupt(), 130, ""),
  ],
)
def test_exit_codes(error, code, said, capsys):
  """Those of docs/reliability.md; a stop in order is no error."""
  assert end(error, capsys) == (code, said)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EROFS, errno.EACCES])
def test_a_full_disk(number, capsys):
  """What, where and why, in a line, whatever was being written. Without UNWRITABLE it is a
  traceback.
  """
  code, said = end(OSError(number, "no room", "runs/a/metrics.jsonl"), capsys)
  assert code == 1 and said.startswith("error: 'runs/a/metrics.jsonl' cannot be used (no room).")
  code, said = end(OSError(number, "no room"), capsys)
  assert code == 1 and said.startswith("error: a file cannot be written (no room).")


def test_other_errors_are_bugs():
  """They keep their traceback."""
  for error in (OSError(errno.ENOENT, "no such file", "a"), ValueError("b")):

    def command(error=error):
      raise error

    with pytest.raises(type(error)):
      errors.run_command(command)
