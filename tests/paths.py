"""Where things are."""

import pathlib

TESTS = pathlib.Path(__file__).parent
ROOT = TESTS.parent
DATA = TESTS / "data"
SHARED = ROOT.parent / "shared"
