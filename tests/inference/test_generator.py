"""The sampler of a network: any mesh, one compilation, no collective, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import guidance
from cfg.base import flops, sharding
from cfg.base.errors import UserError
from cfg.features.extractor import Extractor, Metric
from cfg.inference import checks, program
from cfg.inference.generator import Generator, NotFiniteSamples
from cfg.models import unet
from configs import digits as digits_config


@pytest.fixture(scope="module")
def network():
  """A tiny U-Net with parameters that are nowhere zero."""
  model = unet.UNet(
    num_classes=3,
    out_channels=1,
    ch=8,
    emb_ch=16,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(4,),
    num_heads=2,
    norm_groups=4,
  )
  params = jax.jit(lambda k: unet.init_params(model, key=k, image_shape=(4, 4, 1)))(
    jax.random.key(0)
  )
  leaves, tree = jax.tree.flatten(params)
  keys = jax.random.split(jax.random.key(1), len(leaves))
  noisy = [leaf + 0.1 * jax.random.normal(k, leaf.shape) for leaf, k in zip(leaves, keys)]
  return model, jax.tree.unflatten(tree, noisy)


def generator(network, config, mesh, *, networks=None, **options):
  """A Generator of the tiny network, T = 5, batches of 8."""
  config.sampler.num_steps = 5
  eps_fn = lambda params: unet.make_eps_fn(network[0], params)
  drawn = program.from_config(
    config,
    image_shape=(4, 4, 1),
    null_label=3,
    networks={guidance.MAIN: eps_fn, **(networks or {})},
  )
  return Generator(drawn, mesh=mesh, batch_size=8, **options)


def small_config():
  """The digits' config, whose sampler and guidance are used."""
  return digits_config.get_config()


SAMPLES = dict(index=np.arange(11), labels=np.arange(11) % 3, seed=0)


def draw(made, network, **options):
  """Samples as integers, so that differences can be taken."""
  return made({guidance.MAIN: network[1]}, **{**SAMPLES, **options}).astype(int)


@pytest.fixture(scope="module")
def over8(network, mesh8):
  """The generator over 8 devices, compiled once for the tests of this file."""
  return generator(network, small_config(), mesh8)


def test_any_mesh_makes_the_same_images(network, config, over8, mesh1):
  """1, 2 and 8 devices make the same images, at most one grey level apart, in any batch."""
  images = draw(over8, network, w=1.0)
  assert images.shape == (11, 4, 4, 1) and len(np.unique(images)) > 20
  for mesh in (mesh1, sharding.make_mesh(jax.devices()[:2])):
    assert np.abs(draw(generator(network, config, mesh), network, w=1.0) - images).max() <= 1


def test_one_branch_where_every_w_is_zero(network, over8):
  """At w = 0 the conditional branch draws alone: the same samples for half the rows."""
  assert over8.nfe(1.0) == {"main": 10} and over8.nfe(0.0) == {"main": 5}
  zero = draw(over8, network, w=0.0)
  mixed = draw(over8, network, w=np.float32([0] * 10 + [1]))
  assert np.abs(zero[:10] - mixed[:10]).max() <= 1 and np.abs(zero[10] - mixed[10]).max() > 1


def test_one_strength_for_all_or_one_for_each(network, over8):
  """Samples with a strength each are those of batches of one strength."""
  w = np.float32([0.5, 2.0, 4.0])[np.arange(11) % 3]
  each = draw(over8, network, w=w)
  for strength in np.unique(w):
    same = draw(over8, network, w=float(strength))[w == strength]
    assert np.abs(each[w == strength] - same).max() <= 1


def test_what_a_rule_measures_comes_with_the_images(network, over8):
  """|eps_cond - eps_uncond|^2 of each sample at each of T levels."""
  batches = list(over8.batches({guidance.MAIN: network[1]}, **SAMPLES, w=1.0))
  assert [batch.rows for batch in batches] == [slice(0, 8), slice(8, 11)]
  assert all(batch.aux["gap"].shape == (5, 8) for batch in batches)
  assert np.all(np.asarray(batches[0].aux["gap"]) > 0)


@pytest.mark.parametrize("measured", [False, True])
def test_no_collective_and_one_compilation(network, config, mesh8, measured):
  """The program over 8 devices, with an extractor or without, has no collective anywhere, and
  serves every strength with one compilation, and w = 0 with another.
  """
  features = lambda params, pixels: {"x": pixels.reshape(len(pixels), -1) @ params}
  extractor = None
  if measured:
    extractor = Extractor(
      role="linear",
      name="linear",
      apply=features,
      params=np.ones((16, 2), np.float32),
      dims={"x": 2},
      metrics=(Metric("fid", "FID", "x", "frechet"),),
    )
  made = generator(network, config, mesh8, extractor=extractor)
  for w in (0.0, 0.5, 4.0):
    draw(made, network, w=w)
  assert [made.compiled(guided)._cache_size() for guided in (True, False)] == [1, 1]
  rows = {"i": np.arange(8, dtype=np.uint32), "y": np.zeros(8, np.int32)}
  args = sharding.put_rows(mesh8, rows)
  params = extractor.params if measured else None
  lowered = made.compiled(True).lower(
    {guidance.MAIN: network[1]}, params, args["i"], args["y"], jnp.float32(1), jax.random.key(0)
  )
  text = lowered.compile().as_text()
  assert "while" in text
  assert not re.findall(r"all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter", text)


def test_a_guide_of_another_architecture(network, config, mesh1):
  """A second network, wider and of one level, guides: its parameters count, and so do its rows."""
  config.guidance.update(rule="second_network", guide="elsewhere")
  small = unet.UNet(
    num_classes=3,
    out_channels=1,
    ch=16,
    emb_ch=16,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(),
    num_heads=2,
    norm_groups=4,
  )
  init = lambda key: unet.init_params(small, key=key, image_shape=(4, 4, 1))
  params = jax.tree.map(lambda p: p + 0.1, jax.jit(init)(jax.random.key(5)))
  guide = {"guide": lambda params: unet.make_eps_fn(small, params)}
  made = generator(network, config, mesh1, networks=guide)
  run = lambda guide, w: made({guidance.MAIN: network[1], "guide": guide}, **SAMPLES, w=w)
  assert made.nfe(1.0) == {"main": 5, "guide": 5} and made.nfe(0.0) == {"main": 5}
  other = jax.tree.map(lambda p: p - 0.2, params)
  np.testing.assert_array_equal(run(params, 0.0), run(other, 0.0))
  assert np.any(run(params, 1.0) != run(other, 1.0))


def test_separate_networks_of_the_same_weights_are_a_joint_one(network, config, over8, mesh1):
  """A network without classes, the joint one with the null label's row moved into a bias, guides as
  the null label does: the same images.
  """
  config.guidance.update(rule="second_network", guide="elsewhere")
  model, params = network
  alone = model.clone(class_rows=0)
  guide = {"guide": lambda params: unet.make_eps_fn(alone, params)}
  made = generator(network, config, mesh1, networks=guide)
  level = dict(params["cond"])
  table = level.pop("class_emb")
  bias = level["dense1"]["bias"] + table["bias"] + table["kernel"][3]
  level["dense1"] = level["dense1"] | {"bias": bias}
  weights = {guidance.MAIN: params, "guide": params | {"cond": level}}
  separate, joint = made(weights, **SAMPLES, w=2.0).astype(int), draw(over8, network, w=2.0)
  assert np.abs(separate - joint).max() <= 1 and np.mean(separate != joint) < 0.05
  assert np.mean(draw(over8, network, w=0.0) != joint) > 0.5  # that is guided


@pytest.mark.parametrize("rule", ["classifier_free", "classifier"])
def test_flops_are_those_of_the_whole_program(network, config, mesh1, rule):
  """Calls times the cost of one are what the jaxpr of the whole sampler counts: of an unguided
  sample half of the paper's rule, and of a classifier its backward pass too.
  """
  config.guidance.rule = rule
  weights = 0.1 * jax.random.normal(jax.random.key(3), (16, 3))
  pick = lambda logits, y: jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], 1)[:, 0]
  classify = lambda params: lambda z, logsnr, y: pick(z.reshape(len(z), -1) @ params, y)
  guides = {"guide": classify} if rule == "classifier" else {}
  drawing = generator(network, config, mesh1, networks=guides).program
  params = {guidance.MAIN: network[1], "guide": weights}
  one = program.flops_of_calls(drawing, params)
  if guides:
    assert one["guide"] == 2 * 2 * 16 * 3  # there and back
  rows = jnp.arange(2)
  arguments = (params, rows.astype(jnp.uint32), rows, jnp.float32(1), jax.random.key(0))
  whole = {}
  for w in (0.0, 1.0):
    drawn = functools.partial(program.generate, program=drawing.at(w))
    whole[w] = flops.count(jax.make_jaxpr(drawn)(*arguments))
    calls = program.nfe(drawing.at(w))
    assert whole[w] == 2 * sum(calls[role] * one[role] for role in calls)
  assert (whole[1.0] == 2 * whole[0.0]) == (rule == "classifier_free")


@pytest.mark.parametrize("mesh", ["mesh1", "mesh8"])
def test_samples_that_are_not_finite_are_refused(network, mesh, request):
  """They would be rounded to 0, and measured: the error counts and names them; those of batches
  without any are as ever. It fails where `checked` takes all for finite.
  """
  spoilt = lambda params: lambda z, logsnr, y: jnp.where((y == 2)[:, None, None, None], jnp.nan, z)
  made = generator(
    network, small_config(), request.getfixturevalue(mesh), networks={guidance.MAIN: spoilt}
  )
  labels = np.array([0, 1] * 4 + [1, 2, 2])
  batches = made.batches(
    {guidance.MAIN: network[1]}, index=np.arange(100, 111), labels=labels, w=0.0, seed=0
  )
  assert next(batches).rows == slice(0, 8)
  with pytest.raises(
    NotFiniteSamples, match="2 of 3 samples, the first of them number 109, are not"
  ):
    next(batches)


def compiled_flops(drawing, params):
  """XLA's count for the compiled program of 8 samples on one device. It has the body of the scan
  once: one step, whatever T is.
  """
  one_device = sharding.make_mesh(jax.devices()[:1])
  run = Generator(drawing, mesh=one_device, batch_size=8).compiled(True)
  index, y = jnp.arange(8, dtype=jnp.uint32), jnp.zeros(8, jnp.int32)
  lowered = run.lower({guidance.MAIN: params}, None, index, y, jnp.float32(1), jax.random.key(0))
  return lowered.compile().cost_analysis()["flops"]


def unmeasured(rule):
  """The same rule without what it measures on the way."""

  def apply(networks, **given):
    guided = rule.apply(networks, **given)

    def bare(z, logsnr, memory):
      guess, memory = guided(z, logsnr, memory)
      return guess._replace(aux={}), memory

    return bare

  return rule._replace(apply=apply)


def test_a_guided_step_is_compiled_to_two_evaluations_and_little_else():
  """Of the digits' network: what the rule measures is at most 1% of the FLOPs, and all at most 2.02
  times those of an unguided step.
  """
  config = digits_config.get_config()
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  init = lambda key: unet.init_params(model, key=key, image_shape=(8, 8, 1))
  params = jax.eval_shape(init, jax.random.key(0))
  networks = {guidance.MAIN: lambda params: unet.make_eps_fn(model, params)}
  guided = program.from_config(config, image_shape=(8, 8, 1), null_label=10, networks=networks)
  count = compiled_flops(guided, params)
  evaluation = program.flops_of_calls(guided, {guidance.MAIN: params})[guidance.MAIN]
  assert count > 8 * 2 * evaluation  # the network is seen by XLA's count
  bare = compiled_flops(guided._replace(rule=unmeasured(guided.rule)), params)
  assert bare < count <= 1.01 * bare
  assert count <= 2.02 * compiled_flops(guided.at(0.0), params)


def test_the_compiled_program_skips_outside_of_an_interval(network, config, mesh8):
  """Over 8 devices too, a host callback in the network counts the rows of `nfe`, and no more."""
  config.guidance.update(logsnr_min=-2.0, logsnr_max=12.0)
  rows = []

  def counted(params):
    eps_fn = unet.make_eps_fn(network[0], params)

    def call(z, logsnr, y):
      jax.debug.callback(lambda level: rows.append((z.shape[0], float(level))), logsnr[0])
      return eps_fn(z, logsnr, y)

    return call

  made = generator(network, config, mesh8, networks={guidance.MAIN: counted})
  draw(made, network, w=1.0, index=np.arange(8), labels=np.arange(8) % 3)
  jax.effects_barrier()
  assert sum(n for n, _ in rows) == 8 * made.nfe(1.0)["main"] and 5 < made.nfe(1.0)["main"] < 10


@pytest.mark.parametrize(
  "section, values, words",
  [
    ("sampler", dict(name="hoin"), "did you mean 'heun'"),
    ("sampler", dict(num_steps=1), "num_steps must be at least 2"),
    ("sampler", dict(var_interp=1.5), r"v in \[0, 1\]"),
    ("sampler", dict(limit="clipp"), "did you mean 'clip'"),
    ("sampler", dict(limit="dynamic", limit_percentile=2.0), "limit_percentile"),
    ("sampler", dict(spacing="x"), "known: 'u', 'logsnr', 'edm'"),
    ("sampler", dict(logsnr_max=30.0), "beyond the schedule's"),
    ("sampler", dict(logsnr_min=5.0, logsnr_max=4.0), "logsnr_min must be below"),
    ("guidance", dict(rule="cfg"), "classifier_free"),
    ("guidance", dict(rule="cfg_plus_plus"), "choose one of ddim, "),
    ("guidance", dict(rule="second_network"), "needs a second network"),
    ("guidance", dict(guide="runs/x"), r"no use for a second network.*\(second_network"),
    ("guidance", dict(rule="conditional"), "does not guide"),
    ("guidance", dict(rule="conditional", logsnr_min=0.0), "no unguided form"),
    ("guidance", dict(logsnr_min=2.0, logsnr_max=1.0), "empty"),
  ],
)
def test_what_cannot_be_combined_is_refused(config, section, values, words):
  """Before any work: settings that no sampler has, and those that do not go with each other."""
  config[section].update(values)
  with pytest.raises(UserError, match=words):
    checks.check(config, [0.0, 1.0])


def test_a_rule_that_always_takes_both_branches_needs_both(config):
  """A rule without an unguided form is refused at any strength, 0 too, where one was not learnt."""
  config.sampler.name = "ddim"
  config.train.p_uncond = 0.0
  checks.check(config, [0.0])
  config.guidance.rule = "cfg_plus_plus"
  with pytest.raises(UserError, match="never learnt the unconditional model"):
    checks.check(config, [0.0])


def test_facts_are_whole_sections_less_what_is_not_in_use(config):
  """A field that nobody thought of is among them; v where the sampler is DDIM is not, nor paths."""
  config.sampler.unlock()
  config.sampler.tomorrow = 3
  facts = program.facts(config)
  assert facts["sampler.tomorrow"] == 3 and facts["sampler.var_interp"] == config.sampler.var_interp
  assert (
    not {"sampler.rho", "guidance.momentum", "guidance.guide", "sampler.limit_max"} & facts.keys()
  )
  config.sampler.update(name="ddim", limit="dynamic", spacing="edm")
  config.guidance.rule = "projected"
  facts = program.facts(config)
  assert "sampler.var_interp" not in facts
  assert {"sampler.rho", "guidance.momentum", "sampler.limit_max"} <= facts.keys()
