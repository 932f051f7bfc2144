"""The one exception a user is meant to read."""

import difflib
import sys
from collections.abc import Callable, Iterable


class UserError(Exception):
  """Bad input. The message is one paragraph: what is wrong, where, and what to do."""


def run_command(main: Callable[[], None]) -> None:
  """Run a command. A UserError is one paragraph on stderr and exit code 1, Ctrl-C exit code 130."""
  try:
    main()
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(1)
  except KeyboardInterrupt:
    sys.exit(130)


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
  """A phrase that names the known words closest to `name`, or all of them if few."""
  known = [str(k) for k in known]
  close = difflib.get_close_matches(str(name), known, n=most, cutoff=0.5)
  if close:
    return "did you mean " + " or ".join(repr(c) for c in close) + "?"
  shown = ", ".join(repr(k) for k in known[:20])
  return f"known: {shown}{', ...' if len(known) > 20 else ''}."
