"""What a reader of other people's files needs: one kind of error for damage, and bounds on what a
small file may become in memory.
"""

import contextlib
import json
import zlib
from collections.abc import Iterator
from typing import Any, BinaryIO

from cfg.base.errors import UserError

MOST_SAID = 300  # characters of what a library says
# what a compressed file may unfold to: so many bytes, or so many times its own
UNFOLDED, TIMES = 2**28, 64


@contextlib.contextmanager
def reading() -> Iterator[None]:
  """Within it, whatever a library raises of bytes that it cannot read is a ValueError; OSError and
  UserError pass.
  """
  try:
    yield
  except (UserError, OSError):
    raise
  except Exception as e:  # libraries raise whatever they like of damaged files
    said = str(e) if isinstance(e, ValueError) else f"{type(e).__name__}: {e}"
    raise ValueError(said if len(said) <= MOST_SAID else f"{said[:MOST_SAID]}...") from e


def parse_json(text: str | bytes) -> Any:
  """The value of a JSON text; ValueError for any other, also one that is nested too deeply."""
  with reading():
    return json.loads(text)


def most_unfolded(size: int) -> int:
  """The bytes that a compressed file of `size` bytes may unfold to."""
  return max(UNFOLDED, TIMES * size)


def inflate(data: bytes, *, size: int) -> bytes:
  """The `size` bytes of a raw deflate stream; ValueError if it holds others, or too many."""
  if size > most_unfolded(len(data)):
    raise ValueError(f"{len(data):,} bytes would unfold to {size:,}")
  try:
    stream = zlib.decompressobj(wbits=-15)
    content = stream.decompress(data, size + 1)
  except zlib.error as e:
    raise ValueError(str(e)) from e
  if len(content) != size or not stream.eof:
    raise ValueError("its bytes in the archive are damaged")
  return content


class Limited:
  """A binary file of which at most `limit` bytes can be read; ValueError beyond them.

  What a caller asks for is never allocated before it is there.
  """

  def __init__(self, file: BinaryIO, limit: int) -> None:
    self._file, self._left = file, limit

  def read(self, count: int = -1) -> bytes:
    """At most `count` bytes; all for -1."""
    parts = []
    while count:
      part = self._file.read(2**20 if count < 0 else min(count, 2**20))
      if not part:
        break
      self._left -= len(part)
      if self._left < 0:
        raise ValueError("it unfolds to more than is accepted")
      parts.append(part)
      count -= len(part) if count > 0 else 0
    return b"".join(parts)
