"""Weights out and in: bit-identical, self-describing; any network opens with one function on any
devices.
"""

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest
import safetensors.numpy
from adm_reference import Reference, Variant

from cfg.base import checkpoint, optim, sharding, trees
from cfg.base import config as config_lib
from cfg.base.errors import UserError
from cfg.inference import network, pictures, program, weights_file
from cfg.interop import adm, torch_file, weights
from cfg.models import unet
from cfg.sweep import run as sweep
from cfg.training import step

ROOT = paths.ROOT


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  """A work directory whose checkpoint was saved from eight devices, its large arrays split over
  four of them.
  """
  from configs import digits as digits_config

  config = digits_config.get_config()
  config.model.update(ch=64, emb_ch=128, ch_mult=(1,), attn_resolutions=(8,))
  config.train.update(fsdp=4, ema_decays=(0.99, 0.5))
  mesh = sharding.make_mesh(jax.devices()[:8], fsdp=4)
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  optimizer = optim.make_optimizer(**config.optimizer)
  state = step.make_state(
    config, model=model, optimizer=optimizer, image_shape=(8, 8, 1), mesh=mesh
  )
  noisy = jax.jit(
    lambda ema: jax.tree.map(lambda p: p + 0.1 * jax.random.normal(jax.random.key(1), p.shape), ema)
  )
  earlier = state
  state = state.replace(ema={**state.ema, "0.99": noisy(state.ema["0.99"])})
  assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(state.ema))
  path = tmp_path_factory.mktemp("work")
  meta = {
    "step": 3,
    "config": config_lib.to_json(config),
    "data_name": "digits",
    "class_names": list("0123456789"),
    "image_shape": [8, 8, 1],
  }
  with checkpoint.Checkpoints(path) as checkpoints:
    checkpoints.save(2, state=earlier, meta={**meta, "step": 2})
    checkpoints.save(3, state=state, meta=meta)
  return path, trees.tree_hash(state.ema["0.99"])


def test_a_work_directory_knows_its_config(workdir, tmp_path):
  """Without --config the command uses the work directory's own, with its number of virtual devices,
  and exports what was trained.
  """
  path, sha = workdir
  done = subprocess.run(
    [
      sys.executable,
      "-m",
      "cfg.main",
      f"--workdir={path}",
      "--mode=export",
      "--config.train.fsdp=1",
      f"--out={tmp_path / 'w.safetensors'}",
    ],
    cwd=ROOT,
    capture_output=True,
    text=True,
  )
  assert done.returncode == 0, done.stderr
  assert sha[:12] in done.stdout and (tmp_path / "w.safetensors").is_file()


def test_a_checkpoint_of_eight_devices_opens_on_one(workdir):
  """In another process that has one CPU device, with one function, knowing neither config, tree nor
  mesh.
  """
  path, expected = workdir
  code = f"""
import jax
jax.config.update("jax_num_cpu_devices", 1)
from cfg.inference.network import load_network
t = load_network({str(path)!r})
assert jax.device_count() == 1
print(t.weights_sha256, t.step, t.ema_decay, t.image_shape, len(t.class_names))
"""
  env = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
  out = subprocess.run(
    [sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True
  ).stdout
  assert out.split("\n")[0] == f"{expected} 3 0.99 (8, 8, 1) 10"


def test_an_earlier_checkpoint_guides_a_later_one(workdir, mesh1):
  """guide_step chooses among a work directory's checkpoints, the network's own too; by content."""
  path, newest = workdir
  config = network.load_network(path).config
  config.guidance.update(rule="second_network", guide=str(path), guide_step=2)
  networks = network.load_networks(config, workdir=path, mesh=mesh1)
  assert {role: loaded.step for role, loaded in networks.items()} == {"main": 3, "guide": 2}
  assert networks["main"].weights_sha256 == newest != networks["guide"].weights_sha256
  assert "guidance.guide_step" not in program.facts(config)  # the content's hash says it
  config.guidance.guide_step = 1
  with pytest.raises(UserError, match=r"no checkpoint of step 1.*\[2, 3\]"):
    network.load_networks(config, workdir=path, mesh=mesh1)


def test_weights_round_trip(workdir, tmp_path):
  """Out and in, every bit of the parameters, and all that is needed to sample; the other average by
  name.
  """
  path, expected = workdir
  out = tmp_path / "net.safetensors"
  weights_file.export(path, out)
  original, again = network.load_network(path), network.load_network(out)
  assert again.weights_sha256 == original.weights_sha256 == expected
  jax.tree.map(np.testing.assert_array_equal, again.params, original.params)
  assert again.meta == original.meta and again.class_names == original.class_names
  assert again.config.to_dict() == original.config.to_dict() and again.model == original.model
  other = weights_file.export(path, tmp_path / "other.safetensors", ema=0.5)
  assert other.ema_decay == 0.5 and other.weights_sha256 != expected
  with pytest.raises(UserError, match="holds the EMA of decay 0.5 alone"):
    network.load_network(tmp_path / "other.safetensors", ema=0.99)
  with pytest.raises(UserError, match="of step 3 alone, not 2"):
    network.load_network(tmp_path / "other.safetensors", step=2)
  with pytest.raises(UserError, match="ends in .safetensors"):
    weights_file.export(path, tmp_path / "net.npz")
  assert sorted(p.name for p in tmp_path.iterdir()) == ["net.safetensors", "other.safetensors"]


def test_weights_in_half_the_space(workdir, tmp_path):
  """In float16 every parameter is the nearest that it has, in half the space; what is read is
  float32, and the hash that of what is read. Parameters beyond float16 are refused.
  """
  path, expected = workdir
  whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
  original = weights_file.export(path, whole)
  exported = weights_file.export(path, half, half=True)
  again = network.load_network(half)
  assert exported.weights_sha256 == again.weights_sha256 != expected
  assert half.stat().st_size < 0.6 * whole.stat().st_size
  for a, b in zip(jax.tree.leaves(original.params), jax.tree.leaves(again.params), strict=True):
    assert b.dtype == np.float32
    np.testing.assert_array_equal(np.asarray(a).astype(np.float16).astype(np.float32), b)
  params, meta = weights.read(whole)
  weights.write(whole, params=jax.tree.map(lambda a: np.full_like(a, 1e8), params), meta=meta)
  with pytest.raises(UserError, match="more than float16"):
    weights_file.export(whole, half, half=True)


def test_damaged_and_foreign_weights(workdir, tmp_path):
  """A cut file, another project's file, a missing field and wrong shapes are refused in one
  paragraph.
  """
  path, _ = workdir
  good, bad = tmp_path / "good.safetensors", tmp_path / "bad.safetensors"
  weights_file.export(path, good)
  bad.write_bytes(good.read_bytes()[:1000])
  with pytest.raises(UserError, match="missing or damaged"):
    network.load_network(bad)
  safetensors.numpy.save_file({"a": np.zeros(1)}, bad)
  with pytest.raises(UserError, match="something else"):
    network.load_network(bad)
  params, meta = weights.read(good)
  with pytest.raises(ValueError, match="lacks"):
    weights.write(bad, params=params, meta={"config": {}})
  safetensors.numpy.save_file(
    {"a": np.zeros(1)}, bad, metadata={"format": weights.FORMAT, "meta": json.dumps({"step": 1})}
  )
  with pytest.raises(UserError, match="does not tell its config"):
    network.load_network(bad)
  weights.write(
    bad,
    params={
      **params,
      "conv_in": {"kernel": np.zeros((3, 3, 1, 7), np.float32), "bias": params["conv_in"]["bias"]},
    },
    meta=meta,
  )
  with pytest.raises(UserError, match="1 differ, conv_in/kernel first"):
    network.load_network(bad)
  with pytest.raises(UserError, match="no checkpoint"):
    network.load_network(tmp_path / "absent")


@pytest.fixture
def imported(tmp_path, monkeypatch):
  """(work directory of an imported conditional network, the reference it was drawn from)."""
  reference = Reference(Variant(image_size=16, num_classes=3))
  reference.forward(np.zeros((1, 3, 16, 16)), np.zeros(1), np.zeros(1, int))
  monkeypatch.setattr(torch_file, "read", lambda path: reference.state)
  file = tmp_path / "model.pt"
  file.write_bytes(b"stands for the checkpoint")
  options = [
    str(file),
    str(tmp_path / "work"),
    "--image_size=16",
    "--head_dim=16",
    "--attention_order=new",
    "--schedule=linear",
  ]
  adm.main(options)
  return tmp_path / "work", reference


def test_an_imported_network_is_sampled_from(imported, mesh8):
  """Its grid ends where its own schedule does; w = 0 works; any other w is refused with the
  remedies; no second import on top.
  """
  work, reference = imported
  loaded = network.load_network(work)
  config = loaded.config
  assert (round(config.schedule.logsnr_max, 2), round(config.schedule.logsnr_min, 2)) == (
    9.21,
    -10.12,
  )
  x = np.random.default_rng(0).normal(size=(1, 3, 16, 16))
  expected = reference.forward(x, np.array([0.0]), np.array([2]))[:, :3]
  eps_fn = jax.jit(unet.make_eps_fn(loaded.model, loaded.params))
  out = eps_fn(
    jnp.asarray(np.moveaxis(x, 1, -1), jnp.float32),
    jnp.float32([config.schedule.logsnr_max]),
    jnp.int32([2]),
  )
  np.testing.assert_allclose(np.moveaxis(out, -1, 1), expected, atol=1e-4)
  config.sampler.num_steps = 3
  folder = pictures.sample(config, mesh=mesh8, workdir=work, labels=["2"], num=2, w=0.0, seed=0)
  about = json.loads((folder / "samples.json").read_text())["about"]
  assert about["nfe"] == 3 and (folder / "grid.png").exists()
  # its own answer to a random label guides it
  config.guidance.rule = "random_label"
  folder = pictures.sample(config, mesh=mesh8, workdir=work, labels=["2"], num=2, w=0.5, seed=0)
  about = json.loads((folder / "samples.json").read_text())["about"]
  assert (about["nfe"], about["guidance.rule"]) == (6, "random_label")
  config.guidance.rule = "classifier_free"
  for remedy in ("separate unconditional checkpoint", "classifier guidance", "autoguidance"):
    with pytest.raises(UserError, match=remedy):
      pictures.sample(config, mesh=mesh8, workdir=work, labels=[], num=1, w=0.5, seed=0)
  config.sweep.w = (0.0, 1.0)
  with pytest.raises(UserError, match="no null label"):
    config.sweep.update(num_samples=1500, batch_size=8)
    config.judge.feature_dim = 8
    sweep.sweep(config, dataset=type("D", (), {"num_classes": 3})(), mesh=mesh8, workdir=work)
  with pytest.raises(UserError, match="already holds a network"):
    adm.import_checkpoint(work / "weights.safetensors", work)


def test_an_imported_network_is_swept_at_w_0(imported, mesh8, tmp_path):
  """Every mode that needs no training works on it: here the sweep, on images of the user's own."""
  from cfg.data import sources

  work, _ = imported
  config = network.load_network(work).config
  config.data.update(name="synthetic", num_images=240, heldout_fraction=0.5)
  config.sampler.num_steps = 2
  config.sweep.update(num_samples=60, num_blocks=2, batch_size=16)
  config.judge.update(ch=4, levels=2, feature_dim=4, num_steps=3, batch_size=16, warmup_steps=1)
  content = sweep.sweep(config, dataset=sources.load(config.data), mesh=mesh8, workdir=work)
  assert [row["w"] for row in content["rows"]] == [0.0] and content["rows"][0]["nfe"] == 2


def test_the_command_line_finds_the_config_itself(imported):
  """--workdir alone is enough to sample, and any field can still be overridden; training on top is
  refused.
  """
  work, _ = imported
  command = [sys.executable, "-m", "cfg.main", f"--workdir={work}"]
  run = lambda *args: subprocess.run([*command, *args], capture_output=True, text=True, cwd=ROOT)
  done = run(
    "--mode=sample",
    "--w=0",
    "--num=1",
    "--label=1",
    "--config.sampler.num_steps=2",
    "--config.sampler.name=ddim",
  )
  assert done.returncode == 0, done.stderr
  about = json.loads((work / "samples" / "w0_seed0" / "samples.json").read_text())["about"]
  assert about["sampler.name"] == "ddim" and about["sampler.num_steps"] == 2
  for mode in ("train", "dry_run"):
    refused = run(f"--mode={mode}", "--config.data.name=synthetic", "--config.data.num_images=8")
    assert refused.returncode == 1 and "imported weights" in refused.stderr
