"""The one exception a user is meant to read."""

import difflib
from collections.abc import Iterable


class UserError(Exception):
  """Bad input. The message is one paragraph: what is wrong, where, and what to do."""


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
  """A phrase that names the known words closest to `name`, or all of them if few."""
  known = [str(k) for k in known]
  close = difflib.get_close_matches(str(name), known, n=most, cutoff=0.5)
  if close:
    return "did you mean " + " or ".join(repr(c) for c in close) + "?"
  shown = ", ".join(repr(k) for k in known[:20])
  return f"known: {shown}{', ...' if len(known) > 20 else ''}."
