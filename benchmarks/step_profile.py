"""What a training step of benchmarks/step_speed.py spends its time on in XLA.

Usage: python benchmarks/step_profile.py [SIZE [DEVICES]]

Profiles two steps and adds up the traced operations by kind. The 3x3 convolutions are split into
forward, input gradient and weight gradient, according to the compiled program. Times are summed
over all threads.
"""

import collections
import gzip
import json
import pathlib
import re
import sys
import tempfile

import step_speed

STEPS = 2


def kind_of(line, name):
  """What an instruction of the compiled program is."""
  shape = re.search(r" = \(?(\w+\[[\d,]*\])", line)
  source = re.search(r'op_name="([^"]*)"', line)
  source = source.group(1) if source else ""
  if re.search(r"\[\d+,3,3,\d+\]", shape.group(1) if shape else "") and name.startswith(
    ("ynn", "conv")
  ):
    return "convolution, gradient of the weights"
  if "conv_general_dilated" in source and name.startswith(("ynn", "conv")):
    return (
      "convolution, gradient of the input" if "transpose(jvp" in source else "convolution, forward"
    )
  if name.startswith(("ynn", "dot")):
    return "sums, GroupNorm's most of them" if "reduce_sum" in source else "matrix products"
  return f"element-wise, {re.sub(r'[.0-9]+', '', name)}"


def main(size="64x64", devices="1"):
  _, _, state, step, rows = step_speed.set_up(size, int(devices))
  import jax

  # of an instruction that both programs have, the gradients' is taken
  text = "\n".join(program.as_text() for _, program in reversed(step.compile(state, rows)))
  lines = {
    m.group(1): m.group(0) for m in re.finditer(r"^\s*(?:ROOT )?%?([\w.-]+) = .*$", text, re.M)
  }
  for _ in range(2):
    state, _ = step(state, step.place(rows))
  jax.block_until_ready(state)
  with tempfile.TemporaryDirectory() as folder:
    with jax.profiler.trace(folder, create_perfetto_trace=True):
      for _ in range(STEPS):
        state, _ = step(state, step.place(rows))
      jax.block_until_ready(state)
    [trace] = pathlib.Path(folder).rglob("perfetto_trace.json.gz")
    events = json.loads(gzip.decompress(trace.read_bytes()))["traceEvents"]
  milliseconds = collections.Counter()
  for event in events:
    name = event.get("args", {}).get("hlo_op") if event.get("ph") == "X" else None
    if name:
      milliseconds[kind_of(lines.get(name, ""), name)] += event["dur"] / 1e3 / STEPS
  total = sum(milliseconds.values())
  print(
    f"{size}, {devices} device(s): {total:.0f} ms a step\n| operation | ms | share |\n| --- | --- "
    f"| --- |"
  )
  for kind, ms in milliseconds.most_common(8):
    print(f"| {kind} | {ms:.0f} | {100 * ms / total:.0f} % |")


if __name__ == "__main__":
  main(*sys.argv[1:])
