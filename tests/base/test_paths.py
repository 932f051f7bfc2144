"""Paths as users write them."""

import pathlib

import pytest

from cfg.base import paths
from cfg.base.errors import UserError


def test_home_is_expanded(monkeypatch):
  """~ is the home folder; other paths stay as they are."""
  monkeypatch.setenv("HOME", "/home/someone")
  assert paths.user_path("~/runs", name="--workdir") == pathlib.Path("/home/someone/runs")
  for text in ("runs/a", "/runs/a~", "./gs:/a", "C:/a", ""):
    assert paths.user_path(text, name="--workdir") == pathlib.Path(text)


@pytest.mark.parametrize(
  "text", ["gs://b/r", "s3://b", "HTTPS://host/a", "file:///a", "~nobody_/a"]
)
def test_what_is_no_path_is_refused(text):
  """An address, or the home of nobody: one line with the option's name."""
  with pytest.raises(UserError, match="--workdir is"):
    paths.user_path(text, name="--workdir")
