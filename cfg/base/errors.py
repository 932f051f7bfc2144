"""The exceptions a user is meant to read, and what a command exits with.

0: done; 1: bad input; 69: what the run needs is gone, and may come again; 70: training stopped for
numbers that are not finite; 75: asked to stop, and the same command goes on; 130: Ctrl-C where
nothing is to be saved.
"""

import difflib
import errno
import sys
from collections.abc import Callable, Iterable

# of a disk that is full, over its quota, or not for this user to write to
UNWRITABLE = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)

# makers of what reads and writes object stores
STORES = ("aiohttp", "gcsfs", "google", "requests", "urllib3")


class UserError(Exception):
  """Bad input. The message is one paragraph: what is wrong, where, and what to do."""

  exit_code = 1


class Unavailable(UserError):
  """Something that the run needs does not answer, and may again: another process, a bucket."""

  exit_code = 69  # EX_UNAVAILABLE of sysexits.h: start it again


class Stopped(Exception):
  """The run was asked to stop, and did so in order: the message says how it goes on."""

  exit_code = 75  # EX_TEMPFAIL of sysexits.h: try again


def run_command(main: Callable[[], None]) -> None:
  """Run a command. What it raises for a user to read is one paragraph on stderr, and exits with its
  own code.
  """
  try:
    main()
  except UserError as e:
    print(f"error: {e}", file=sys.stderr)
    sys.exit(e.exit_code)
  except Stopped as e:
    print(e, file=sys.stderr)
    sys.exit(e.exit_code)
  except KeyboardInterrupt:
    sys.exit(130)
  except Exception as e:
    if is_of_store(e):  # some of them are OSErrors
      said = " ".join(str(e).split()) or type(e).__name__
      print(
        f"error: the object store does not answer as it should ({said[:300]}). What was finished "
        "before is as it was: run the same command again.",
        file=sys.stderr,
      )
      sys.exit(Unavailable.exit_code)
    if not isinstance(e, OSError) or e.errno not in UNWRITABLE:
      raise
    where = f"{str(e.filename)!r} cannot be used" if e.filename else "a file cannot be written"
    print(
      f"error: {where} ({e.strerror}). What was finished before is as it was: make room or set its "
      "permissions, and run the same command again.",
      file=sys.stderr,
    )
    sys.exit(UserError.exit_code)


def is_of_store(error: BaseException) -> bool:
  """Whether an object store, or the way to it, failed."""
  return type(error).__module__.partition(".")[0] in STORES


def nearest(name: str, known: Iterable[str], *, most: int = 3) -> str:
  """A phrase that names the known words closest to `name`, or all of them if few."""
  known = [str(k) for k in known]
  close = difflib.get_close_matches(str(name), known, n=most, cutoff=0.5)
  if close:
    return "did you mean " + " or ".join(repr(c) for c in close) + "?"
  shown = ", ".join(repr(k) for k in known[:20])
  return f"known: {shown}{', ...' if len(known) > 20 else ''}."
