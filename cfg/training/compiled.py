"""What a compiled program does, read from its text (HLO after scheduling): of one device."""

import collections
import math
import re
from collections.abc import Iterator
from typing import NamedTuple

BYTES = {
  **dict.fromkeys(("pred", "s4", "u4", "s8", "u8", "f8e4m3fn", "f8e5m2"), 1),
  **dict.fromkeys(("bf16", "f16", "s16", "u16"), 2),
  **dict.fromkeys(("f32", "s32", "u32"), 4),
  **dict.fromkeys(("f64", "s64", "u64", "c64"), 8),
}
KINDS = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")
# instructions that move nothing by themselves
FREE = frozenset(
  "parameter get-tuple-element tuple bitcast constant iota while call conditional after-all "
  "partition-id replica-id opt-barrier async-start async-update".split()
)
PARTS = ("slice", "dynamic-slice", "gather")
# custom calls that only name memory
NAMES_MEMORY = ("AllocateBuffer", "ConcatBitcast")
# splash attention's kernels by their names: matrix products of [T,T] and a head's width
PRODUCTS = {"splash_mha_fwd": 2, "splash_mha_dkv": 5}
_ARRAY = re.compile(r"\b([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\](?:\{([^}]*)\})?")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"\s([a-z][a-z0-9\-]*)\(")
_COMMENT = re.compile(r"/\*.*?\*/")
_RUN_INSIDE = re.compile(
  r"(?:body|condition|to_apply|calls|true_computation|false_computation)=%?([\w.\-]+)"
)
# what a part of the network is called in the names of its operations
GROUPS = (
  ("dropout and random bits", r"[Dd]ropout|threefry|random|bernoulli|fold_in"),
  ("attention", r"_attn/(?!norm)|^splash_mha"),
  ("GroupNorm", r"norm"),
  ("conditioning", r"/emb|/cond/"),
  ("convolutions", r"conv|/skip"),
  ("element-wise work of blocks", r"UNet|ResBlock|Classifier|\bdown|\bup\d|\bmid"),
  ("loss", r"jvp|transpose"),
)


class Instruction(NamedTuple):
  """A line: its name, the text of its type, the operation, and the text behind it."""

  name: str
  type: str
  operation: str
  rest: str

  @property
  def source(self) -> str:
    """The name of the operation of the network that it came from, or of the kernel itself."""
    found = re.search(r'op_name="([^"]*)"', self.rest)
    return found[1] if found else self.name


class Kernel(NamedTuple):
  """What is run as one.

  Attributes:
    group: the part of the step.
    bytes: that it reads and writes.
    cycles: XLA's estimate; 0 for none.
    custom: a custom call.
    flops: of a custom call, where its kernel is known; else 0.
  """

  group: str
  bytes: int
  cycles: int
  custom: bool = False
  flops: int = 0


def computations(text: str) -> tuple[dict[str, list[Instruction]], str]:
  """({name: its instructions}, the name of the first to run)."""
  found: dict[str, list[Instruction]] = {}
  name = entry = ""
  for line in text.splitlines():
    if line and not line[0].isspace() and line.rstrip().endswith("{") and "->" in line:
      name = line.split(" (")[0].replace("ENTRY", "").strip().lstrip("%")
      found[name] = []
      if line.startswith("ENTRY"):
        entry = name
    elif name and (match := _INSTRUCTION.match(line)):
      whole = " " + _COMMENT.sub("", match[2])
      if operation := _OPERATION.search(whole):
        kind, rest = operation[1], whole[operation.end() :]
        found[name].append(Instruction(match[1], whole[: operation.start()], kind, rest))
  return found, entry


def collectives(text: str) -> dict[str, tuple[int, int]]:
  """{kind: (how many, bytes of what one device gets of them)}; one in a loop counts once."""
  found: dict[str, tuple[int, int]] = {}
  for instructions in computations(text)[0].values():
    for each in instructions:
      kind = each.operation.removesuffix("-start")
      if kind in KINDS:
        count, size = found.get(kind, (0, 0))
        found[kind] = count + 1, size + _received(each)
  return found


def _received(instruction):
  """Bytes of a collective's results; the started form has its operands before them."""
  arrays = list(_arrays(instruction.type, on_chip=True))
  if instruction.operation.endswith("-start") and instruction.operation != "all-reduce-start":
    counted = len(re.findall(r"%[\w.\-]+", instruction.rest.split(")")[0]))
    arrays = arrays[counted : 2 * counted]
  return sum(arrays)


def kernels(text: str) -> Iterator[Kernel]:
  """What the program runs, one after the other; what is in a loop counts once."""
  found, entry = computations(text)
  runs, todo = [], [entry]
  while todo:
    name = todo.pop()
    if name in runs or name not in found:
      continue
    runs.append(name)
    for each in found[name]:
      if each.operation in ("while", "call", "conditional", "async-start"):
        todo += _RUN_INSIDE.findall(each.rest)
  for name in runs:
    types = {each.name: each.type for each in found[name]}
    for each in found[name]:
      kind = each.operation.removesuffix("-start")
      if each.operation in FREE or each.operation.endswith("-done") or kind in KINDS:
        continue
      if each.operation in ("copy-start", "slice-start"):
        yield Kernel(group(each.source), _copied(each.type), 0)
        continue
      custom = each.operation == "custom-call"
      if custom and any(f'target="{name}"' in each.rest for name in NAMES_MEMORY):
        continue
      cycles = re.search(r'"estimated_cycles":"(\d+)"', each.rest)
      yield Kernel(
        group=group(each.source),
        bytes=sum(_arrays(each.type)) + sum(_read(each, types, found)),
        cycles=int(cycles[1]) if cycles else 0,
        custom=custom,
        flops=_attention_flops(each, types) if custom else 0,
      )


def _attention_flops(instruction, types):
  """Of a kernel of splash attention, whose first operand of four sides is q [B,N,T,D]; else 0."""
  products = next((n for name, n in PRODUCTS.items() if instruction.name.startswith(name)), 0)
  shapes = [_ARRAY.search(types.get(operand, "")) for operand in _operands(instruction)]
  q = next((shape[2].split(",") for shape in shapes if shape and shape[2].count(",") == 3), None)
  return 2 * products * math.prod(map(int, q)) * int(q[2]) if q else 0


def _read(instruction, types, found):
  """Bytes that it reads of each operand: of one that its computation only takes parts of, the
  parts.
  """
  called = re.search(r"calls=%?([\w.\-]+)", instruction.rest)
  inside = found.get(called[1], []) if called else []
  parameters = {e.rest.split(")")[0]: e.name for e in inside if e.operation == "parameter"}
  for i, operand in enumerate(_operands(instruction)):
    if types.get(operand, "(").strip().startswith("("):
      continue
    whole = sum(_arrays(types[operand]))
    parts = [e for e in inside if parameters.get(str(i)) in _operands(e)]
    if whole and parts and all(e.operation in PARTS for e in parts):
      whole = min(whole, sum(sum(_arrays(e.type, on_chip=True)) for e in parts))
    yield whole


def _operands(instruction):
  """Names of its operands."""
  return re.findall(r"%([\w.\-]+)", instruction.rest.split(")")[0])


def _copied(type_):
  """Bytes of a copy that goes on in the background: its type has where it goes, and where from."""
  ends = [match[0] for match in list(_ARRAY.finditer(type_))[:2]]
  size = min(sum(_arrays(end, on_chip=True)) for end in ends)
  return size * sum(1 for end in ends if sum(_arrays(end)))


def group(source: str) -> str:
  """Which part of a training step the operation of that name belongs to."""
  return next((name for name, pattern in GROUPS if re.search(pattern, source)), "update and rest")


def _arrays(type_, *, on_chip=False):
  """Bytes of each array of a type; of those in the chip's own memory (S(1) and so on) if asked."""
  for dtype, shape, layout in _ARRAY.findall(type_):
    if dtype in BYTES and (on_chip or not re.search(r"S\([1-9]\)", layout)):
      size = BYTES[dtype]
      for side in filter(None, shape.split(",")):
        size *= int(side)
      yield size


class Summary(NamedTuple):
  """A program in numbers.

  Attributes:
    bytes: that its kernels read and write.
    cycles: that XLA estimates for its kernels, without custom calls; 0 where it estimates none.
    custom: [(bytes, FLOPs, how many)] of custom calls; the bytes are among `bytes`.
    collectives: {kind: (how many, bytes)}.
    groups: {part of the step: (cycles, bytes)}, the most expensive first.
  """

  bytes: int
  cycles: int
  custom: list[tuple[int, int, int]]
  collectives: dict[str, tuple[int, int]]
  groups: dict[str, tuple[int, int]]


def summary(text: str) -> Summary:
  """The Summary of a program's text."""
  groups: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
  custom: collections.Counter[tuple[int, int]] = collections.Counter()
  for kernel in kernels(text):
    cycles, size = groups[kernel.group]
    groups[kernel.group] = cycles + kernel.cycles, size + kernel.bytes
    custom[kernel.bytes, kernel.flops] += kernel.custom
  return Summary(
    bytes=sum(size for _, size in groups.values()),
    cycles=sum(cycles for cycles, _ in groups.values()),
    custom=[(*each, count) for each, count in custom.items() if count],
    collectives=collectives(text),
    groups=dict(sorted(groups.items(), key=lambda item: item[1], reverse=True)),
  )


def added(summaries: list[tuple[int, Summary]]) -> Summary:
  """Several programs, each run so many times, as one."""
  groups: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
  moved: dict[str, tuple[int, int]] = collections.defaultdict(lambda: (0, 0))
  for times, each in summaries:
    for total, part in ((groups, each.groups), (moved, each.collectives)):
      for name, (a, b) in part.items():
        total[name] = total[name][0] + times * a, total[name][1] + times * b
  return Summary(
    bytes=sum(times * each.bytes for times, each in summaries),
    cycles=sum(times * each.cycles for times, each in summaries),
    custom=[(*call, times * count) for times, each in summaries for *call, count in each.custom],
    collectives=dict(moved),
    groups=dict(sorted(groups.items(), key=lambda item: item[1], reverse=True)),
  )
