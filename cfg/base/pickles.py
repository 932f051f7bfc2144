"""Reads a pickle without running it: an interpreter for an allow-list of opcodes and globals.

`pickle.load` calls whatever the file names. Here a file can only build dicts,
lists, tuples, numbers and strings, and call the functions that the caller
allows by name. The opcodes are decoded by the standard library's pickletools,
which executes nothing.
"""

import collections
import pickletools

from cfg.base import untrusted
from cfg.base.errors import UserError

MAX_OPCODES = 5_000_000
MAX_NAME = 4096  # of an array, its dicts' keys joined
MAX_NAMES = 2**26  # characters of all names together, also of those that are entered again
MAX_COPIED = 2**28  # bytes that functions may make of what is there already, about

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
NUMBERS_AND_TEXT = {
  "INT",
  "BININT",
  "BININT1",
  "BININT2",
  "LONG",
  "LONG1",
  "LONG4",
  "FLOAT",
  "BINFLOAT",
  "STRING",
  "BINSTRING",
  "SHORT_BINSTRING",
  "UNICODE",
  "BINUNICODE",
  "SHORT_BINUNICODE",
  "BINUNICODE8",
  "BINBYTES",
  "SHORT_BINBYTES",
  "BINBYTES8",
}
EMPTY = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}

# every file may build these; `load` takes more
COMMON_GLOBALS = {("collections", "OrderedDict"): lambda *args: dict(*args)}


class Refused(UserError):
  """A pickle that is broken, or that asks for what is not allowed."""


class _Global:
  """An allowed function, on the stack; not callable, so that nothing can call it but REDUCE."""

  def __init__(self, function, name):
    self.function, self.name = function, name


class _Machine:
  """The stack machine of the pickle protocols, without instructions for classes or extensions."""

  def __init__(self, *, globals_, persistent_load):
    self._globals = {**COMMON_GLOBALS, **globals_}
    self._persistent_load = persistent_load
    self._stack, self._marks, self._memo = [], [], {}
    self._left = MAX_COPIED

  def step(self, name, arg):
    """Execute one opcode."""
    stack = self._stack
    if name in CONSTANTS:
      stack.append(CONSTANTS[name])
    elif name in NUMBERS_AND_TEXT:
      stack.append(arg)
    elif name in EMPTY:
      stack.append(EMPTY[name]())
    elif name in TUPLES:
      count = TUPLES[name]
      items = tuple(self._pop() for _ in range(count))[::-1]
      stack.append(items)
    elif name in ("PROTO", "FRAME"):
      pass
    else:
      method = getattr(self, f"_op_{name.lower()}", None)
      if method is None:
        raise Refused(
          f"the instruction {name} is not on the list of those that weights and data need"
        )
      method(arg)

  def result(self):
    """The object left when the pickle stops."""
    if len(self._stack) != 1 or self._marks:
      raise Refused("the pickle ends with its stack in disorder")
    return self._stack[0]

  def _pop(self):
    if len(self._stack) <= (self._marks[-1] if self._marks else 0):
      raise Refused("the pickle takes more from its stack than it put there")
    return self._stack.pop()

  def _pop_mark(self):
    if not self._marks:
      raise Refused("the pickle closes a list that it never opened")
    start = self._marks.pop()
    items = self._stack[start:]
    del self._stack[start:]
    return items

  def _top(self, kind):
    if not self._stack or not isinstance(self._stack[-1], kind):
      raise Refused(f"the pickle fills something that is not a {kind.__name__}")
    return self._stack[-1]

  def _op_mark(self, _):
    self._marks.append(len(self._stack))

  def _op_tuple(self, _):
    self._stack.append(tuple(self._pop_mark()))

  def _op_list(self, _):
    self._stack.append(self._pop_mark())

  def _op_dict(self, _):
    items = self._pop_mark()
    self._stack.append({})
    self._set_items(items)

  def _op_append(self, _):
    item = self._pop()
    self._top(list).append(item)

  def _op_appends(self, _):
    items = self._pop_mark()
    self._top(list).extend(items)

  def _op_setitem(self, _):
    value, key = self._pop(), self._pop()
    self._set_items([key, value])

  def _op_setitems(self, _):
    self._set_items(self._pop_mark())

  def _set_items(self, items):
    target = self._top(dict)
    if len(items) % 2 or not all(
      isinstance(k, str | bytes | int | float | bool) for k in items[::2]
    ):
      raise Refused("the pickle has a dict whose keys are not text or numbers")
    target.update(zip(items[::2], items[1::2]))

  def _op_memoize(self, _):
    self._memo[len(self._memo)] = self._top(object)

  def _op_put(self, arg):
    self._memo[arg] = self._top(object)

  _op_binput = _op_long_binput = _op_put

  def _op_get(self, arg):
    if arg not in self._memo:
      raise Refused("the pickle recalls something that it never stored")
    self._stack.append(self._memo[arg])

  _op_binget = _op_long_binget = _op_get

  def _op_global(self, arg):
    module, _, name = arg.partition(" ")
    self._push_global(module, name)

  def _op_stack_global(self, _):
    name, module = self._pop(), self._pop()
    self._push_global(module, name)

  def _push_global(self, module, name):
    if (
      not (isinstance(module, str) and isinstance(name, str)) or (module, name) not in self._globals
    ):
      raise Refused(
        f"it asks for {shown(module)}.{shown(name)}, which is not on the list of those that "
        f"weights and data need"
      )
    self._stack.append(_Global(self._globals[module, name], f"{module}.{name}"))

  def _op_reduce(self, _):
    args, target = self._pop(), self._pop()
    if not isinstance(target, _Global) or not isinstance(args, tuple):
      raise Refused("the pickle calls something that is not a function")
    for given in args:  # a function may copy it, and be called with it over and over
      if isinstance(given, str | bytes):
        self._left -= len(given)
      elif isinstance(given, list | tuple | dict):
        self._left -= 64 * len(given)
    if self._left < 0:
      raise Refused("it makes far more than it holds")
    try:
      self._stack.append(target.function(*args))
    except Refused:
      raise
    except Exception as e:
      raise Refused(f"{target.name} was given what it cannot use ({type(e).__name__}: {e})") from e

  def _op_build(self, _):
    state = self._pop()
    target = self._top(object)
    if isinstance(target, dict):  # attributes of an OrderedDict, as torch's _metadata: not needed
      return
    if not hasattr(target, "set_state"):
      raise Refused("the pickle sets the attributes of something that has none")
    target.set_state(state)

  def _op_binpersid(self, _):
    if self._persistent_load is None:
      raise Refused("it refers to data outside itself")
    self._stack.append(self._persistent_load(self._pop()))


def shown(value):
  """A value in a message: text and numbers in short, of others the type, as what holds others may
  be nested without end.
  """
  if isinstance(value, str):
    return value if len(value) <= 60 else f"{value[:60]}..."
  if isinstance(value, bytes | float | bool | None):
    return repr(value)[:60]
  if isinstance(value, int):
    return str(value) if value.bit_length() < 128 else "a huge number"
  if isinstance(value, tuple) and len(value) <= 16 and all(type(n) is int for n in value):
    return f"({', '.join(map(shown, value))})"
  return f"a {type(value).__name__}"


def load(file, *, globals_=None, persistent_load=None):
  """The object in a pickle, without executing it.

  Args:
    file: binary, at the start of the pickle; left right after it. Its whole content bounds what
      any instruction may read (an mmap or BytesIO).
    globals_: {(module, name): function} that the pickle may call, beside COMMON_GLOBALS. What they
      return may have a method set_state(state).
    persistent_load: for references to data outside the pickle, or None to refuse them.

  Raises:
    Refused: a broken pickle, or one that asks for anything else.
  """
  machine = _Machine(globals_=globals_ or {}, persistent_load=persistent_load)
  try:
    with untrusted.reading():
      for count, (opcode, arg, _) in enumerate(pickletools.genops(file)):
        if opcode.name == "STOP":
          return machine.result()
        if count >= MAX_OPCODES:
          raise Refused(f"it has more than {MAX_OPCODES:,} instructions")
        machine.step(opcode.name, arg)
  except ValueError as e:  # pickletools' own, for bytes that are no pickle
    raise Refused(f"it is not a whole pickle ({e})") from e
  raise Refused("it is not a whole pickle")


def find_arrays(tree, kind, *, prefix="", separator="."):
  """{"model.conv.weight": leaf} for the leaves of type `kind` in nested dicts; others are left out.

  A dict that is there more than once, or inside itself, is entered once.

  Raises:
    Refused: a name of more than MAX_NAME characters, or names of more than MAX_NAMES together.
  """
  found, pending, seen = {}, collections.deque([(prefix, tree)]), set()
  left = MAX_NAMES
  while pending:
    name, node = pending.popleft()
    if len(name) > MAX_NAME:
      raise Refused(f"it names something with more than {MAX_NAME:,} characters, {name[:40]}...")
    if isinstance(node, dict):
      if id(node) in seen:
        continue
      seen.add(id(node))
      for key, value in node.items():
        if isinstance(value, dict | kind):
          inside = f"{name}{separator}{key}" if name else str(key)
          pending.append((inside, value))
          left -= len(inside)
          if left < 0:
            raise Refused("its names together are far longer than names of arrays are")
    elif isinstance(node, kind):
      found[name] = node
  return found
