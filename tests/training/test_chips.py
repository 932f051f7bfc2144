"""What can be compiled for without being there, and what the compiled programs are said to do."""

import importlib.util
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg.base import sharding
from cfg.base.errors import UserError
from cfg.training import chips, compiled, dry_run, estimates, kept

ROOT = pathlib.Path(__file__).parents[2]
# one device's program as a TPU's compiler writes it: a loop, an array in the chip's own memory
# (S(1)), a started collective, a custom call
TEXT = """
HloModule jit_train_step, is_scheduled=true

%fused (p: bf16[8,128]) -> bf16[8,128] {
  %p = bf16[8,128]{1,0} parameter(0)
  ROOT %n = bf16[8,128]{1,0} negate(%p)
}

%body (t: (bf16[8,128])) -> (bf16[8,128]) {
  %t = (bf16[8,128]{1,0}) parameter(0)
  %g = bf16[8,128]{1,0:T(8,128)(2,1)} get-tuple-element(%t), index=0
  %l = bf16[8,128]{1,0:T(8,128)(2,1)} fusion(%g), calls=%fused, ATTENTION, C_700
  ROOT %r = (bf16[8,128]{1,0}) tuple(%l)
}

%condition (t: (bf16[8,128])) -> pred[] {
  %t = (bf16[8,128]{1,0}) parameter(0)
  ROOT %c = pred[] constant(false)
}

ENTRY %main (a: f32[16,128], b: bf16[8,128]) -> bf16[8,128] {
  %a = f32[16,128]{1,0} parameter(0)
  %b = bf16[8,128]{1,0} parameter(1)
  %s = ((bf16[8,128]{1,0}), bf16[64,128]{1,0}) all-gather-start(%b), channel_id=1, dimensions={0}
  %d = bf16[64,128]{1,0} all-gather-done(%s)
  %p = (f32[16,128]{1,0:T(8,128)S(1)}, f32[16,128]{1,0:T(8,128)}, u32[]{:S(2)}) copy-start(%a)
  %q = f32[16,128]{1,0:T(8,128)S(1)} copy-done(%p)
  %y = ((f32[16,128]{1,0}), f32[4,128]{1,0:S(1)}, s32[]{:S(2)}) slice-start(%a), slice={[0:4]}
  %e = (bf16[32]{0:T(256)(128)(2,1)S(1)}, f32[4,8]{1,0}) all-reduce(%b, %a), channel_id=2
  %x = bf16[64,128]{1,0:T(8,128)S(1)} fusion(%a, /*index=1*/%d), calls=%fused, CONVOLUTION, C_300
  %k = bf16[8,128]{1,0} custom-call(%b), custom_call_target="tpu_custom_call", KERNEL
  %u = (bf16[8,128]{1,0}) tuple(%k)
  %w = (bf16[8,128]{1,0}) while(%u), condition=%condition, body=%body
  ROOT %o = bf16[8,128]{1,0} get-tuple-element(%w), index=0
}
"""
for word, whole in {
  "ATTENTION": 'metadata={op_name="jit(train_step)/jvp(UNet)/down0_0_attn/softmax"}',
  "CONVOLUTION": 'metadata={op_name="jit(train_step)/UNet/down0_0_res/conv1/conv"}',
  "KERNEL": 'metadata={op_name="jit(train_step)/UNet/mid_attn/kernel"}',
  "C_700": 'backend_config={"estimated_cycles":"700"}',
  "C_300": 'backend_config={"estimated_cycles":"300"}',
}.items():
  TEXT = TEXT.replace(word, whole)


def test_a_program_in_numbers():
  """Bytes of arrays in the card's memory, cycles, collectives by what a device gets, groups."""
  found = compiled.summary(TEXT)
  small, large, f32 = 8 * 128 * 2, 64 * 128 * 2, 16 * 128 * 4
  assert found.collectives == {"all-gather": (1, large), "all-reduce": (1, 32 * 2 + 4 * 8 * 4)}
  assert found.cycles == 1000
  # the loop's fusion reads and writes; the other reads, and writes to the chip; the custom call; a
  # copy and a slice are read, and written to the chip
  assert found.bytes == 2 * small + (f32 + large) + 2 * small + (f32 + f32 // 4)
  assert found.custom == [(2 * small, 0, 1)]
  assert found.groups == {
    "attention": (700, 4 * small),
    "convolutions": (300, f32 + large),
    "update and rest": (0, f32 + f32 // 4),
  }


def text_of(function, *args, **shardings):
  """The text of a compiled program."""
  return jax.jit(function, **shardings).lower(*args).compile().as_text()


def test_real_programs(mesh8):
  """What XLA writes for a CPU: each collective's bytes on one device, and a kernel's."""
  rows, whole = sharding.batch_sharding(mesh8), sharding.replicated(mesh8)
  a = jax.ShapeDtypeStruct((64, 32), jnp.float32)
  gathered = text_of(lambda a: a, a, in_shardings=rows, out_shardings=whole)
  assert sum(size for _, size in compiled.collectives(gathered).values()) == 64 * 32 * 4
  summed = text_of(lambda a: a.sum(0), a, in_shardings=rows, out_shardings=whole)
  assert compiled.collectives(summed) == {"all-reduce": (1, 32 * 4)}
  b = jax.ShapeDtypeStruct((1000,), jnp.float32)
  (kernel,) = compiled.kernels(text_of(lambda a, b: jnp.sin(a) + b, b, b))
  assert kernel.bytes == 3 * 4000 and kernel.cycles == 0 and not kernel.custom


def test_parts_of_an_operand_count_as_parts():
  """A fusion that only takes slices of an array reads the slices; one that needs it all, all."""
  text = """
%part (p: f32[100,64], q: f32[2,64]) -> f32[2,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %q = f32[2,64]{1,0} parameter(1)
  %s = f32[2,64]{1,0} slice(%p), slice={[3:5], [0:64]}
  ROOT %a = f32[2,64]{1,0} add(%s, %q)
}

%both (p: f32[100,64]) -> f32[2,64] {
  %p = f32[100,64]{1,0} parameter(0)
  %s = f32[2,64]{1,0} slice(%p), slice={[3:5], [0:64]}
  %r = f32[2,64]{1,0} reduce(%p), dimensions={0}, to_apply=%add
  ROOT %a = f32[2,64]{1,0} add(%s, %r)
}

ENTRY %main (a: f32[100,64], b: f32[2,64]) -> f32[2,64] {
  %a = f32[100,64]{1,0} parameter(0)
  %b = f32[2,64]{1,0} parameter(1)
  %f = f32[2,64]{1,0} fusion(%a, %b), kind=kLoop, calls=%part
  ROOT %g = f32[2,64]{1,0} fusion(%a), kind=kLoop, calls=%both
}
"""
  row = 64 * 4
  assert [kernel.bytes for kernel in compiled.kernels(text)] == [6 * row, 102 * row]


# a layer of splash attention, forward and back, with memory that is only named
SPLASH = """
ENTRY %main (q: bf16[16,2,1024,64]) -> bf16[16,2,1024,64] {
  %m = s8[1,2,1]{2,1,0} parameter(0)
  %q = bf16[16,2,1024,64]{3,2,1,0} parameter(1)
  %k = bf16[16,2,512,64]{3,2,1,0} parameter(2)
  %a = bf16[16,2,1024,64]{3,2,1,0} custom-call(), custom_call_target="AllocateBuffer"
  %f = bf16[16,2,1024,64]{3,2,1,0} custom-call(%k), custom_call_target="tpu_custom_call"
  %splash_mha_fwd_residuals.3 = (f32[8]{0:S(1)}, bf16[16,2,1024,64]{3,2,1,0}) custom-call(%m, %q)
  ROOT %splash_mha_dkv_no_residuals.1 = bf16[16,2,1024,64]{3,2,1,0:S(1)} custom-call(%m, %q, %a)
}
"""


def test_kernels_of_splash_attention_are_charged_their_products():
  """4 B N T^2 D FLOPs forward and 10 back, to softmax attention's own: two products of two FLOPs,
  and five (the weights computed anew); on a slow memory their bytes count instead.
  """
  array = 16 * 2 * 1024 * 64
  products = array * 1024
  found = compiled.summary(SPLASH)
  assert sorted(found.custom) == [
    (2 * array + array, 0, 1),
    (2 * 2 * array + 2, 4 * products, 1),
    (2 * 2 * array + 2, 10 * products, 1),
  ]
  assert found.groups.keys() == {"attention", "update and rest"}
  v5e = chips.find("v5e-8")
  told = estimates.update_on(v5e, [("update", SPLASH)], parts=1)
  seconds = 14 * products / (v5e.chip.peak / 2) + 3 * array / v5e.chip.bandwidth
  assert told["custom_seconds"] == told["seconds"] == pytest.approx(seconds)
  slow = v5e._replace(chip=v5e.chip._replace(bandwidth=1e9))
  told = estimates.update_on(slow, [("update", SPLASH)], parts=1)
  assert told["custom_seconds"] == pytest.approx((11 * array + 4) / 1e9)


def test_several_programs():
  """Micro-batches count as often as they run, the update once."""
  once = compiled.summary(TEXT)
  total = compiled.added([(4, once), (1, once)])
  assert total.bytes == 5 * once.bytes and total.cycles == 5 * once.cycles
  assert sum(count * size for size, _, count in total.custom) == 5 * once.custom[0][0]
  assert total.collectives["all-gather"] == (5, 5 * once.collectives["all-gather"][1])
  assert total.groups == {name: (5 * a, 5 * b) for name, (a, b) in once.groups.items()}


def test_an_update_on_a_topology():
  """A TPU's time is its cycles and what custom calls are charged; a GPU's floor is its bytes."""
  programs = [("micro-batch", TEXT), ("update", TEXT)]
  once = compiled.summary(TEXT)
  tpu = estimates.update_on(chips.find("v4-32"), programs, parts=3)
  charged = 4 * once.custom[0][0] / 1.228e12
  assert tpu["custom_seconds"] == pytest.approx(charged)
  assert tpu["seconds"] == pytest.approx(4 * 1000 / 1.05e9 + charged)
  charge = charged * 1.05e9
  assert tpu["groups"] == pytest.approx(
    {
      "attention": 2800 / (4000 + charge),
      "convolutions": 1200 / (4000 + charge),
      "custom calls": charge / (4000 + charge),
      "update and rest": 0,
    }
  )
  gpu = estimates.update_on(chips.find("h100"), programs, parts=3)
  assert gpu["seconds"] == pytest.approx(4 * once.bytes / 3.352e12)
  products = 10 * gpu["seconds"] * chips.find("h100").chip.peak
  more = estimates.update_on(chips.find("h100"), programs, parts=3, products=products)
  assert more["seconds"] == pytest.approx(10 * gpu["seconds"])
  assert gpu["custom_seconds"] == 0 and gpu["bytes_moved"] == 4 * once.bytes
  assert sum(gpu["groups"].values()) == pytest.approx(1)


@pytest.mark.parametrize("name", chips.names())
def test_names(name):
  """Each has as many chips as it says, and its chip a peak rate; two cores are a v4's chip."""
  topology = chips.find(name)
  if topology.platform == "cuda":
    shape, count = topology.options["topology"], int(name.partition("x")[2] or 1)
  else:
    shape, count = topology.shape.partition(":")[2], int(name.partition("-")[2])
    count //= 2 if name.startswith(("v4", "v5p")) else 1
  assert math.prod(map(int, shape.split("x"))) == count
  assert 1e14 < topology.chip.peak < 1e15 and 8e11 < topology.chip.bandwidth < 5e12


def test_clocks():
  """Peak rates are the clock times whole matrix units of 128 squared, two FLOPs a product."""
  for kind, chip in chips.CHIPS.items():
    if chip.clock:
      units = chip.peak / (2 * chip.clock * 128**2)
      assert units == pytest.approx(round(units), rel=0.01), kind


def test_what_cannot_be(monkeypatch):
  """A name that is none, and a compiler that is not installed: what to do."""
  with pytest.raises(UserError, match="'h10', which is none.*'h100'"):
    chips.find("h10")
  monkeypatch.setattr(chips.importlib.util, "find_spec", lambda name: None)
  for name, extra in (("v5e-8", "tpu"), ("h100x8", "cuda")):
    with pytest.raises(UserError, match=rf"pip install -e '\.\[{extra}\]'"):
      chips.devices(chips.find(name))


def test_dry_run_of_a_topology(config, mesh8, monkeypatch):
  """With eight CPU devices in the place of eight H100s: it reports what the programs do, compares
  with the H100's memory less a tenth, and says so in its table; on TPUs nothing is searched.
  """
  config.model.update(ch_mult=(1,), attn_resolutions=())
  config.train.update(batch_size=32, accumulate=2)
  topology = chips.find("h100x8")
  report = dry_run.dry_run(config, mesh=mesh8, topology=topology)
  assert report["memory_bytes"] == int(0.9 * topology.chip.memory)
  assert report["micro_batch"] == 2 and report["largest_micro_batch"] > 1000
  params = report["parameters"] * 4
  count, size = report["collectives"]["all-reduce"]
  # the gradients once, however many micro-batches, and little else
  assert count >= 1 and params <= size < 1.1 * params
  assert 0 < report["utilisation"] <= 1 and 0 < report["sampler"]["utilisation"] <= 1
  assert np.isfinite(report["seconds"])
  sampler = report["sampler"]
  assert sampler["batch"] * 8 == config.sweep.batch_size
  assert sampler["levels"] == config.sampler.num_steps and sampler["peak"] > params
  # each row of each level goes through the network: twice a level but for w = 0
  assert sampler["nfe"] >= 2 * config.sampler.num_steps
  assert sampler["images_s"] == pytest.approx(
    8 * sampler["batch"] / sampler["levels"] / sampler["seconds_level"]
  )
  text = dry_run.table(report)
  for word in (
    "collectives",
    "all-reduce",
    "dearest",
    "of the peak rate",
    "in 76.4 GB a device",
    "images/s",
  ):
    assert word in text, text
  names = ("bytes_moved", "collectives", "groups", "seconds")
  found = {**{name: report[name] for name in names}, "cycles": 10**6, "custom_seconds": 0.002}
  for module in (dry_run, estimates):
    monkeypatch.setattr(module, "update_on", lambda *_, **__: found)
  tpu = dry_run.dry_run(config, mesh=mesh8, topology=chips.find("v5e-8"))
  assert "XLA's estimate of 1.000 Mcycles, 2 ms charged" in dry_run.table(tpu)
  assert "without that charge" in dry_run.table(tpu)
  assert tpu["largest_micro_batch"] is None and "fits  in 15.2 GB a device" in dry_run.table(tpu)


def test_what_rose_over_the_ledger():
  """benchmarks/compiled.py check: 5 % more memory, bytes, cycles or collectives fail, and so does a
  collective that was not there too; less is none. The ledger has a line of each small case.
  """
  spec = importlib.util.spec_from_file_location("compiled_ledger", ROOT / "benchmarks/compiled.py")
  benchmark = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(benchmark)
  known = dict(peak=1000, bytes_moved=1000, cycles=0, collectives={"all-gather": [10, 1000]})
  assert benchmark.rises(known, known) == []
  more = {**known, "peak": 1049, "bytes_moved": 10, "collectives": {"all-gather": [5, 1049]}}
  assert benchmark.rises(more, known) == []
  for name, value in (("peak", 1051), ("bytes_moved", 1051), ("cycles", 1)):
    assert benchmark.rises({**known, name: value}, known) == [
      f"{name} {value:,}, was {known[name]:,}"
    ]
  for moved in ({"all-gather": [11, 1000]}, {"all-gather": [10, 1051]}, {"all-to-all": [1, 1]}):
    assert benchmark.rises({**known, "collectives": moved}, known)
  small = {case for case in benchmark.CASES if case.startswith("small")}
  assert small <= {line["case"] for line in benchmark.ledger()}


def test_results_are_kept(tmp_path, monkeypatch):
  """The same question is computed once; another one, other code or a damaged file is computed."""
  monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
  answers = iter(range(100))
  ask = lambda **question: kept.result(question, lambda: {"n": next(answers)})["n"]
  assert ask(topology="v5e-8", w=1) == ask(w=1, topology="v5e-8") == 0
  assert ask(topology="v5e-8", w=2) == 1
  [first, second] = sorted(
    (tmp_path / "cfg/dry_run").iterdir(), key=lambda file: file.stat().st_mtime
  )
  first.write_text("{")
  assert ask(topology="v5e-8", w=1) == 2 and ask(topology="v5e-8", w=2) == 1
  (tmp_path / "package").mkdir()
  (tmp_path / "package/new.py").write_text("")
  monkeypatch.setattr(kept, "PACKAGE", tmp_path / "package")
  assert ask(topology="v5e-8", w=1) == 3
  (tmp_path / "package/new.py").write_text("x = 1")
  assert ask(topology="v5e-8", w=1) == 4
  monkeypatch.setattr(kept.importlib.metadata, "version", lambda name: "0.0")
  assert ask(topology="v5e-8", w=1) == 5
