"""What a config costs, told before it is paid: FLOPs, exact state, memory, the largest micro-batch;
and while it runs.
"""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest

from cfg.base import config as config_lib
from cfg.base import flops, optim, sharding
from cfg.base.errors import UserError
from cfg.models import unet
from cfg.training import dry_run
from cfg.training import step as train_step
from configs import cifar10, imagenet64, imagenet64_12gb, imagenet128

ROOT = paths.ROOT


def hand_count():
  """FLOPs of one forward pass of the paper's 64x64 model, layer by layer, two a multiply-and-add.

  A 3x3 convolution on n x n pixels has (3n - 2)^2 pairs of a pixel and a tap inside the image.
  """
  conv = lambda n, cin, cout: 2 * cin * cout * (3 * n - 2) ** 2
  res = lambda n, cin, cout: (
    conv(n, cin, cout)
    + conv(n, cout, cout)
    + 2 * 768 * 2 * cout
    + (2 * cin * cout * n * n if cin != cout else 0)
  )
  attention = lambda n, c: 4 * 2 * c * c * n * n + 2 * 2 * c * n**4 if n <= 32 else 0
  sides, widths = (64, 32, 16, 8), (192, 384, 576, 768)
  total = 2 * (192 * 768 + 768 * 768 + 1001 * 768) + conv(64, 3, 192) + conv(64, 192, 3)
  c, skips = 192, [192]
  for level, (n, width) in enumerate(zip(sides, widths)):
    for _ in range(3):
      total += res(n, c, width) + attention(n, width)
      c = width
      skips.append(c)
    if level < 3:
      total += res(n // 2, c, c)
      skips.append(c)
  total += 2 * res(8, 768, 768) + attention(8, 768)
  for level, (n, width) in reversed(list(enumerate(zip(sides, widths)))):
    for _ in range(4):
      total += res(n, c + skips.pop(), width) + attention(n, width)
      c = width
    if level > 0:
      total += res(2 * n, c, c)
  return total


def test_flops_of_the_paper_s_model():
  """The count of the jaxpr is the hand count, 210.1 GFLOP, and within 2 % of the 210.8 that others
  counted; backward adds twice that.
  """
  config = imagenet64.get_config()
  model = unet.from_config(config.model, num_classes=1000, image_shape=(64, 64, 3))
  forward, training = flops.of_network(model, image_shape=(64, 64, 3))
  assert forward == pytest.approx(hand_count(), rel=1e-3)
  assert forward == pytest.approx(210.8e9, rel=0.02)
  assert training == pytest.approx(3 * forward, rel=0.01)


def test_flops_are_counted_without_recomputation(config):
  """A network that recomputes its blocks has the count of one that does not."""
  config.model.update(ch_mult=(1,))
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  count = lambda model: flops.of_network(model, image_shape=(8, 8, 1))
  assert count(model.clone(remat=True)) == count(model)


def test_count_by_kind():
  """Products, batched ones, strided, dilated, grouped and transposed convolutions, loops and
  branches, against their definitions.
  """
  count = lambda f, *shapes: flops.count(jax.make_jaxpr(f)(*(jnp.zeros(s) for s in shapes)))
  assert count(lambda a, b: a @ b, (3, 4), (4, 5)) == 2 * 3 * 4 * 5
  assert (
    count(lambda a, b: jnp.einsum("bij,bjk->bik", a, b), (7, 3, 4), (7, 4, 5)) == 7 * 2 * 3 * 4 * 5
  )
  conv = lambda **kw: (
    lambda x, k: jax.lax.conv_general_dilated(
      x, k, dimension_numbers=("NHWC", "HWIO", "NHWC"), **kw
    )
  )
  assert (
    count(conv(window_strides=(1, 1), padding="VALID"), (2, 8, 8, 4), (3, 3, 4, 6))
    == 2 * 2 * 36 * 9 * 4 * 6
  )
  assert count(conv(window_strides=(1, 1), padding="SAME"), (1, 8, 8, 1), (3, 3, 1, 1)) == 2 * 22**2
  assert (
    count(conv(window_strides=(2, 2), padding="VALID"), (1, 9, 9, 1), (3, 3, 1, 1)) == 2 * 16 * 9
  )
  assert (
    count(
      conv(window_strides=(1, 1), padding="VALID", feature_group_count=4),
      (1, 5, 5, 4),
      (3, 3, 1, 4),
    )
    == 2 * 9 * 9 * 4
  )
  assert (
    count(
      conv(window_strides=(1, 1), padding="VALID", rhs_dilation=(2, 2)), (1, 9, 9, 1), (3, 3, 1, 1)
    )
    == 2 * 25 * 9
  )
  assert (
    count(
      conv(window_strides=(1, 1), padding=((1, 1), (1, 1)), lhs_dilation=(2, 2)),
      (1, 4, 4, 1),
      (3, 3, 1, 1),
    )
    == 2 * 10**2
  )
  loop = lambda a, b: jax.lax.scan(lambda c, _: (c @ b, None), a, None, length=6)[0]
  assert count(loop, (3, 4), (4, 4)) == 6 * 2 * 3 * 4 * 4
  branch = lambda a, b: jax.lax.cond(a[0, 0] > 0, lambda: a @ b, lambda: (a @ b) @ b)
  assert count(branch, (3, 4), (4, 4)) == 2 * 2 * 3 * 4 * 4
  assert (
    count(jax.jit(jax.checkpoint(lambda a, b: jnp.sin(a @ b))), (3, 4), (4, 5)) == 2 * 3 * 4 * 5
  )


@pytest.mark.usefixtures("plain_start")
@pytest.mark.parametrize("fsdp, accumulate", [(1, 1), (4, 2)])
def test_state_bytes_are_exact(config, monkeypatch, fsdp, accumulate):
  """What is told for each part is what its arrays take on one device, split or not."""
  monkeypatch.setattr(sharding, "SMALLEST_SPLIT", 1024)
  config.model.update(ch=32, emb_ch=64, norm_groups=8, ch_mult=(1,))
  config.train.update(fsdp=fsdp, accumulate=accumulate, ema_decays=(0.9, 0.99))
  mesh = sharding.make_mesh(jax.devices()[:8], fsdp=fsdp)
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  optimizer = optim.make_optimizer(**config.optimizer)
  state = train_step.make_state(
    config, model=model, optimizer=optimizer, image_shape=(8, 8, 1), mesh=mesh
  )
  told = dry_run.Costs(config, model=model, image_shape=(8, 8, 1), mesh=mesh).state_bytes()
  held = lambda tree: sum(leaf.addressable_shards[3].data.nbytes for leaf in jax.tree.leaves(tree))
  assert {name: told[name] for name in ("parameters", "optimizer", "ema", "step")} == {
    "parameters": held(state.params),
    "optimizer": held(state.opt_state),
    "ema": held(state.ema),
    "step": held(state.step),
  }
  step = train_step.TrainStep(config, model=model, optimizer=optimizer, mesh=mesh, state=state)
  total = held(step._zeros())
  assert told["accumulator"] == (total if accumulate > 1 else 0)
  assert told["gradients"] == total - 4  # the total's loss
  whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state.params))
  assert whole / fsdp <= told["parameters"] <= (whole if fsdp == 1 else 0.4 * whole)


def test_memory_falls_with_micro_batches_and_splitting(config):
  """A smaller micro-batch and split parameters each lower the compiled peak of a step."""
  config.model.update(ch=64, emb_ch=64, norm_groups=8, ch_mult=(1,), attn_resolutions=())
  config.train.batch_size = 32

  def peak(mesh, **train):
    config.train.update(train)
    model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
    costs = dry_run.Costs(config, model=model, image_shape=(8, 8, 1), mesh=mesh)
    return costs.measure(config.train.batch_size // (mesh.size * config.train.accumulate))["peak"]

  mesh = lambda fsdp: sharding.make_mesh(jax.devices()[:2], fsdp=fsdp)
  plain = peak(mesh(1))
  assert peak(mesh(1), accumulate=4) < 0.7 * plain
  assert peak(mesh(2), accumulate=1) < 0.9 * plain


def test_largest_micro_batch(monkeypatch):
  """The answer fits and the next size of its kind does not; 0 where nothing fits; with costs that
  are no line too.
  """
  for curve in (
    lambda n: 100 + 10 * n,
    lambda n: 100 + 10 * n + (30 if n > 16 else 0),
    lambda n: 100 + 10 * n * (1 + 0.01 * n),
  ):
    costs = object.__new__(dry_run.Costs)
    monkeypatch.setattr(dry_run.Costs, "measure", lambda self, n, curve=curve: {"peak": curve(n)})
    for memory in (90, 111, 135, 400, 1000, 5000):
      sizes = sorted(n * 2**k for n in (1, 3) for k in range(12))
      expected = max((n for n in sizes if curve(n) <= memory), default=0)
      found = costs.largest(memory, known={8: curve(8)})
      assert found <= expected and curve(max(found, 1)) <= max(memory, curve(1))
      assert found >= expected / 2


@functools.cache
def num_parameters(model, side):
  """Of a network of square images, from shapes alone."""
  init = lambda key: unet.init_params(model, key=key, image_shape=(side, side, 3))
  return unet.num_params(jax.eval_shape(init, jax.random.key(0)))


@pytest.mark.parametrize(
  "module, count, batch",
  [
    (imagenet64, 295_900_803, 2048),
    (imagenet128, 421_524_739, 256),
    (imagenet64_12gb, 295_900_803, 2048),
    (cifar10, None, 128),
  ],
)
def test_configs_are_the_paper_s(module, count, batch):
  """Sizes, batch, EMA, clip, v and T of each config, as the paper and its authors' code
  (google-research/ddpm_w_distillation, i64_unet3 and i128_unet3) have them; each can be trained as
  it stands.
  """
  config = module.get_config()
  config_lib.check_values(config)
  data = config.data
  model = unet.from_config(
    config.model, num_classes=data.num_classes, image_shape=(data.resolution, data.resolution, 3)
  )
  if count is not None:  # recomputation has no parameters
    assert num_parameters(model.clone(remat=False), data.resolution) == count
  train, rate = config.train, config.optimizer
  assert (train.batch_size, train.ema_decays, train.flip, rate.grad_clip, rate.weight_decay) == (
    batch,
    (0.9999,),
    True,
    1.0,
    0.0,
  )
  assert (config.schedule.logsnr_min, config.schedule.logsnr_max, config.sampler.num_steps) == (
    -20,
    20,
    256,
  )
  if module is cifar10:
    return
  at_128 = module is imagenet128
  assert (rate.learning_rate, rate.warmup_steps, train.num_steps) == (
    (1e-4, 1000, 2_700_000) if at_128 else (3e-4, 10_000, 400_000)
  )
  assert (config.sampler.var_interp, config.model.dropout) == ((0.2, 0.0) if at_128 else (0.3, 0.1))
  assert config.sweep.w == tuple(i / 10 for i in range(41)) and config.sweep.num_samples == 50_000
  assert train.p_uncond == 0.1 and module.get_config("p_uncond=0.5").train.p_uncond == 0.5
  with pytest.raises(ValueError, match="p_uncond=P"):
    module.get_config("w=3")


def run(*args):
  """`python -m cfg.main` with these options."""
  return subprocess.run(
    [sys.executable, "-m", "cfg.main", *args], capture_output=True, text=True, cwd=ROOT
  )


# one level at 8x8: what is tested does not depend on the network
NARROW = (
  "--config.cpu_devices=2",
  "--config.data.resolution=8",
  "--config.model.ch=16",
  "--config.model.emb_ch=16",
  "--config.model.ch_mult=(1,)",
  "--config.model.num_res_blocks=1",
  "--config.model.attn_resolutions=(8,)",
  "--config.model.norm_groups=4",
  "--config.model.head_dim=8",
  "--config.train.accumulate=2",
)


def test_the_command_prints_a_table(tmp_path):
  """--mode=dry_run on a narrow sibling: counts, FLOPs, state, what was compiled and for what;
  nothing is written.
  """
  done = run(
    "--config=configs/imagenet64.py:p_uncond=0.2",
    "--mode=dry_run",
    "--memory_gb=0.05",
    *NARROW,
    "--config.train.batch_size=32",
    "--config.train.fsdp=2",
    f"--workdir={tmp_path / 'none'}",
  )
  assert done.returncode == 0, done.stderr
  for text in (
    "2 of cpu (cpu), parameters split over 2",
    "32 = 2 devices x 2 micro-batches x 8 images",
    "FLOP forward",
    "estimates for other chips",
  ):
    assert text in done.stdout
  assert not (tmp_path / "none").exists()


@pytest.mark.parametrize("name", ["imagenet64", "cifar10"])
def test_a_config_starts_on_synthetic_images(name, tmp_path):
  """Each config, narrowed, trains two steps on made-up images: nothing to download."""
  done = run(
    f"--config=configs/{name}.py",
    "--mode=train",
    f"--workdir={tmp_path}",
    "--config.data.name=synthetic",
    "--config.data.num_images=64",
    *NARROW,
    "--config.model.dtype=float32",
    "--config.train.batch_size=4",
    "--config.train.num_steps=2",
    "--config.train.log_every_steps=1",
    "--config.heldout.num_images=4",
    "--config.heldout.batch_size=4",
    "--config.heldout.num_bins=2",
    "--config.preview.num_classes=2",
    "--config.preview.num_per_class=1",
    "--config.preview.w=(0.0,)",
    "--config.sampler.num_steps=2",
  )
  assert done.returncode == 0, done.stderr
  records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
  trained = [r for r in records if "loss" in r]
  assert {"images_per_second_per_device", "data_wait", "compilations"} <= set(trained[-1])
  assert "RuntimeWarning" not in done.stderr


@pytest.mark.slow
def test_memory_told_is_memory_taken():
  """benchmarks/step_memory.py: above 2 GB the predicted peak is within 10 % of the rise of peak RSS
  after compilation.
  """
  done = subprocess.run(
    [sys.executable, "benchmarks/step_memory.py"],
    capture_output=True,
    text=True,
    cwd=ROOT,
    check=True,
  )
  found = json.loads(done.stdout)
  assert found["predicted_peak_gb"] > 2
  assert found["ratio"] == pytest.approx(1, abs=0.1)


def test_peaks_of_chips():
  """The longest name that fits wins; a CPU has no stated peak."""
  assert flops.peak("NVIDIA H200") == 989e12 and flops.peak("NVIDIA H100 PCIe") == 756e12
  assert (
    flops.peak("TPU v5 lite") == 197e12
    and flops.peak("TPU v5p") == 459e12
    and flops.peak("cpu") is None
  )


def test_si_units():
  """Numbers as people read them."""
  assert [dry_run.si(n) for n in (0, 999, 1500, 210_057_239_040, 2.5e15)] == [
    "0 ",
    "999 ",
    "1.500 k",
    "210.1 G",
    "2500.0 T",
  ]


def test_impossible_shares_are_refused(config, mesh8):
  """A batch that devices and micro-batches cannot share, and an fsdp that does not divide the
  devices.
  """
  config.train.accumulate = 3
  with pytest.raises(UserError, match="8 devices times the 3 micro-batches"):
    dry_run.dry_run(config, mesh=mesh8)
  with pytest.raises(UserError, match="must divide the number of devices, 8"):
    sharding.make_mesh(jax.devices()[:8], fsdp=3)


def test_split_keeps_every_row():
  """Micro-batches are the batch's rows, in order, each once."""
  batch = {"index": np.arange(12), "label": np.arange(12) * 2}
  parts = train_step.split(batch, 3)
  assert [len(p["index"]) for p in parts] == [4, 4, 4]
  np.testing.assert_array_equal(np.concatenate([p["label"] for p in parts]), batch["label"])
