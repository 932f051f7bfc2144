"""Groups of particles: they draw the tilted law, whatever the devices and the batch."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import guidance, limits, mixtures, particles, sampling, schedules
from cfg.base import sharding
from cfg.base.errors import UserError
from cfg.inference import checks, pictures, program
from cfg.inference.generator import Generator
from cfg.mixtures import Mixture

LINE = Mixture(np.array([[-1.0], [0.3], [1.2]]), np.array([0.4, 0.25, 0.5]))
RULE = guidance.classifier_free(null_label=3)
ANCESTRAL = sampling.ancestral(var_interp=1.0)
EPS_FN = mixtures.make_eps_fn(LINE)
STEPS, COUNT, GROUP, CLASS = 96, 4096, 64, 2


@functools.partial(jax.jit, static_argnames=("sampler", "group", "num_steps", "count"))
def draw(w, *, sampler=ANCESTRAL, group=GROUP, num_steps=STEPS, count=COUNT):
  """(x [count], log_z [count/group]) of one class of the line."""
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(count, dtype=jnp.uint32))
  x, aux = sampling.sample(
    networks={guidance.MAIN: EPS_FN},
    rule=RULE,
    sampler=sampler,
    limit=limits.no_limit(),
    keys=keys,
    y=jnp.full(count, CLASS),
    w=w,
    logsnr=schedules.sampling_grid(num_steps=num_steps),
    image_shape=(1, 1, 1),
    particles=group,
  )
  return x.reshape(-1), jnp.sum(aux.get("log_z", aux["gap"]), axis=0)[::group]


def moments(x):
  """(mean, second moment) of the samples, and the errors of both from the spread of the groups."""
  both = np.stack([x, x**2]).astype(np.float64).reshape(2, -1, GROUP).mean(axis=2)
  return both.mean(axis=1), both.std(axis=1, ddof=1) / np.sqrt(both.shape[1])


@pytest.mark.parametrize(
  "sampler", [ANCESTRAL, sampling.dpm_solver_pp_2m(eta=1.0)], ids=["ancestral", "sde"]
)
def test_particles_draw_the_tilted_law(sampler):
  """At w = 1 mean and second moment are the exact ones within 3 standard errors, plain ancestral
  guidance's are not; and the groups' estimates of Z have the right mean.
  """
  law = mixtures.tilted_on_grid(mixture=LINE, label=CLASS, w=1.0, points=4001)
  exact = np.array([law.mean[0], law.cov[0, 0] + law.mean[0] ** 2])
  x, log_z = draw(jnp.float32(1.0), sampler=sampler)
  got, err = moments(np.asarray(x))
  slack = 0.004  # of the steps
  assert np.all(np.abs(got - exact) < 3 * err + slack), (got, exact, err)
  estimates = np.exp(np.asarray(log_z, np.float64) - law.log_z)
  assert abs(estimates.mean() - 1) < 3 * estimates.std() / np.sqrt(len(estimates)) + slack
  if sampler is ANCESTRAL:
    plain, err = moments(np.asarray(draw(jnp.float32(1.0), group=1)[0]))
    assert np.all(np.abs(plain - exact) > 10 * err), (plain, exact, err)


def test_without_weights_a_group_is_plain_samples():
  """At w = 0 and w = -1 all weights are equal: samples are those without particles, to rounding."""
  for w in (0.0, -1.0):
    both = [draw(jnp.float32(w), group=group, num_steps=16, count=64)[0] for group in (1, 16)]
    np.testing.assert_allclose(*both, atol=2e-5)
  one, other = (draw(jnp.float32(2.0), group=group, num_steps=16, count=64)[0] for group in (1, 16))
  assert np.any(one != other)


def test_systematic_resampling():
  """Each particle is taken floor or ceil of its share times P, on average just that; equal weights
  leave all in their place, and one that has all the weight takes every place.
  """
  log_weight = jnp.log(jnp.float32([0.1, 0.45, 0.05, 0.3, 0.1]))
  draw = jax.jit(lambda key, log_weight: particles.systematic(key=key, log_weight=log_weight))
  keys = jax.random.split(jax.random.key(1), 4000)
  ancestors = np.asarray(jax.jit(jax.vmap(draw, in_axes=(0, None)))(keys, log_weight))
  counts = np.stack([(ancestors == i).sum(axis=1) for i in range(5)], axis=1)
  share = 5 * np.exp(np.asarray(log_weight))
  assert np.all(counts >= np.floor(share - 1e-6)) and np.all(counts <= np.ceil(share + 1e-6))
  np.testing.assert_allclose(counts.mean(axis=0), share, atol=0.035)
  equal = draw(jax.random.key(2), jnp.zeros(64))
  np.testing.assert_array_equal(equal, np.arange(64))
  alone = jnp.where(jnp.arange(64) == 63, 0.0, -200.0)
  assert np.all(np.asarray(draw(jax.random.key(3), alone)) == 63)


def test_groups_are_resampled_when_few_count():
  """Below an effective size of half, or always; the whole carry of a group goes along, its weights
  become equal, and no other group is touched.
  """
  log_weight = jnp.log(jnp.float32([1, 1, 1, 0.9, 1, 1e-9, 1e-9, 1e-9]))
  x = jnp.arange(8.0)
  carry = (x, {"more": jnp.stack([x, -x], axis=1)}, jnp.float32(7))
  run = jax.jit(
    lambda always: particles.resample(
      keys=jax.random.split(jax.random.key(0), 2),
      log_weight=log_weight,
      carry=carry,
      particles=4,
      always=always,
    )
  )
  (a, more, scalar), weight, log_z = run(False)
  np.testing.assert_array_equal(a, [0, 1, 2, 3, 4, 4, 4, 4])
  np.testing.assert_array_equal(more["more"], np.stack([a, -a], axis=1))
  assert scalar == 7
  np.testing.assert_allclose(weight, [*log_weight[:4], 0, 0, 0, 0])
  np.testing.assert_allclose(log_z, [0, 0, 0, 0, *np.full(4, np.log(0.25))], rtol=1e-5)
  _, weight, log_z = run(True)
  assert np.all(np.asarray(weight) == 0)
  np.testing.assert_allclose(np.asarray(log_z)[:4], np.log(3.9 / 4), rtol=1e-5)


def test_the_widths_are_the_trapezoid_rules():
  """The sum over levels is numpy's integral."""
  logsnr = schedules.sampling_grid(num_steps=9)
  gap = np.linspace(0, 1, 9) ** 2
  np.testing.assert_allclose(
    np.sum(gap * particles.widths(logsnr)), np.trapezoid(gap, logsnr), rtol=1e-6
  )


# the sharded program

SHAPE = (1, 1, 1)
LABELS = np.repeat([0, 2], 16)
SAMPLES = dict(index=np.tile(np.arange(16), 2), labels=LABELS, seed=0, w=2.0)


def generator(mesh, *, group=4, batch_size=32):
  """Of the line's exact branches, T = 24."""
  drawn = program.Program(
    RULE,
    ANCESTRAL,
    np.float32(schedules.sampling_grid(num_steps=24)),
    limits.no_limit(),
    SHAPE,
    {guidance.MAIN: lambda params: EPS_FN},
    group,
  )
  return Generator(drawn, mesh=mesh, batch_size=batch_size)


def test_any_mesh_and_any_batch_of_whole_groups(mesh1, mesh8):
  """1, 2 and 8 devices draw the same, in one batch or several, a class alone or with another; and
  nothing passes between 8 devices.
  """
  params = {guidance.MAIN: {}}
  run = lambda made, **more: made(params, **{**SAMPLES, **more}).astype(int)
  eight = generator(mesh8)
  images = run(eight)
  assert np.abs(run(generator(mesh1)) - images).max() <= 1
  two = generator(sharding.make_mesh(jax.devices()[:2]), batch_size=24)
  assert np.abs(run(two) - images).max() <= 1
  second = run(two, index=np.arange(8, 16), labels=np.full(8, 2))
  assert np.abs(second - images[24:]).max() <= 1
  rows = {"i": np.arange(32, dtype=np.uint32), "y": LABELS.astype(np.int32)}
  args = sharding.put_rows(mesh8, rows)
  lowered = eight.compiled(True).lower(
    params, None, args["i"], args["y"], jnp.float32(1), jax.random.key(0)
  )
  text = lowered.compile().as_text()
  assert "while" in text
  assert not re.findall(r"all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter", text)


@pytest.mark.parametrize(
  "more",
  [
    dict(index=np.arange(30), labels=np.zeros(30)),
    dict(index=np.arange(32) + 2),
    dict(index=np.arange(32)[::-1]),
    dict(labels=np.arange(32) % 3),
    dict(w=np.linspace(0, 1, 32)),
  ],
  ids=["part of a group", "not from a multiple", "backwards", "classes", "strengths"],
)
def test_what_is_no_whole_group_is_refused(mesh1, more):
  """Groups are whole, of one class and one strength."""
  with pytest.raises(UserError, match="whole groups"):
    generator(mesh1)({guidance.MAIN: {}}, **{**SAMPLES, **more})


def test_a_batch_holds_whole_groups(mesh8):
  """On each device."""
  with pytest.raises(UserError, match="a multiple of 32"):
    generator(mesh8, batch_size=40)


@pytest.mark.parametrize(
  "section, values, words",
  [
    ("sampler", dict(limit="clip"), "sampler.limit is 'clip'"),
    ("sampler", dict(name="ddim"), "draws no noise"),
    ("sampler", dict(name="heun", churn=4.0), "off the law"),
    ("guidance", dict(rule="projected"), "no weights are known"),
    ("guidance", dict(logsnr_max=2.0), "no weights are known"),
    ("guidance", dict(ramp="linear"), "no weights are known"),
  ],
)
def test_samplers_and_rules_without_weights_are_refused(config, section, values, words):
  """Before any work, with the reason; without particles they are fine."""
  config.sampler.update(particles=8, limit="none")
  checks.check(config, [1.0])
  config[section].update(values)
  with pytest.raises(UserError, match=words):
    checks.check(config, [1.0])
  config.sampler.particles = 1
  checks.check(config, [1.0])


def test_pictures_of_whole_groups(config, mesh1, tmp_path):
  """--num that is no multiple of the particles is refused before any network is looked for."""
  config.sampler.update(particles=4, limit="none")
  ask = functools.partial(
    pictures.sample, config, mesh=mesh1, workdir=tmp_path, labels="3", w=1.0, seed=0
  )
  with pytest.raises(UserError, match="give a multiple of 4"):
    ask(num=6)
  with pytest.raises(UserError, match="there is no checkpoint"):
    ask(num=8)


def test_a_sweep_takes_no_particles(config):
  """Its samples take each class in turn."""
  checks.check_no_particles(config, "a sweep")
  config.sampler.particles = 2
  with pytest.raises(UserError, match="a sweep draws the classes in turn"):
    checks.check_no_particles(config, "a sweep")
