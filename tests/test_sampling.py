"""Algorithm 2 with exact Gaussian denoisers, and what a sample may depend on."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion, guidance, sampling, schedules
from cfg.base import sharding
from cfg.base.errors import UserError
from cfg.features.extractor import Extractor, Metric
from cfg.inference import generator as generate
from cfg.models import unet

NULL = 1
MU_C, S_C, MU_U, S_U = 0.6, 0.5, -0.2, 0.9
COUNT = 20_000


def sig(x):
  return 1 / (1 + np.exp(-x))


def gaussian_eps(z, logsnr, y):
  """Exact eps of N(MU_C, S_C^2), or with the null label of N(MU_U, S_U^2)."""
  alpha, sigma = (
    diffusion.expand(diffusion.alpha(logsnr), z),
    diffusion.expand(diffusion.sigma(logsnr), z),
  )
  null = diffusion.expand(y == NULL, z)
  mean, std = jnp.where(null, MU_U, MU_C), jnp.where(null, S_U, S_C)
  return sigma * (z - alpha * mean) / (alpha**2 * std**2 + sigma**2)


def guided_x_hat(logsnr, w):
  """x_hat = a z + b of the guided exact denoisers, as float64 numbers (a, b)."""
  alpha, sigma = np.sqrt(sig(logsnr)), np.sqrt(sig(-logsnr))
  slope, offset = 0.0, 0.0  # of eps_guided
  for weight, mean, std in ((1 + w, MU_C, S_C), (-w, MU_U, S_U)):
    gain = sigma / (alpha**2 * std**2 + sigma**2)
    slope, offset = slope + weight * gain, offset - weight * gain * alpha * mean
  return (1 - sigma * slope) / alpha, -sigma * offset / alpha


def recursion(num_steps, v, w):
  """Mean and variance of the ancestral sampler's output on linear denoisers, in float64."""
  levels = schedules.sampling_grid(num_steps=num_steps)
  mean, var = 0.0, 1.0
  for t, s in zip(levels[:-1], levels[1:]):
    a, b = guided_x_hat(t, w)
    r = np.exp(t - s)
    coef_z, coef_x = r * np.sqrt(sig(s) / sig(t)), (1 - r) * np.sqrt(sig(s))
    small, large = (1 - r) * sig(-s), (1 - r) * sig(-t)
    mean = (coef_z + coef_x * a) * mean + coef_x * b
    var = (coef_z + coef_x * a) ** 2 * var + small ** (1 - v) * large**v
  a, b = guided_x_hat(levels[-1], w)
  return a * mean + b, a**2 * var


@functools.partial(jax.jit, static_argnames=("num_steps", "sampler"))
def draw(v, w, *, num_steps, sampler="ancestral"):
  """COUNT scalar samples as 1x1 images."""
  step = {
    "ancestral": functools.partial(sampling.ancestral_step, var_interp=v),
    "ddim": sampling.ddim_step,
  }[sampler]
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(COUNT, dtype=jnp.uint32))
  return sampling.sample(
    eps_fn=guidance.classifier_free(gaussian_eps, w=w, null_label=NULL),
    step_fn=step,
    keys=keys,
    y=jnp.zeros(COUNT, jnp.int32),
    logsnr=schedules.sampling_grid(num_steps=num_steps),
    image_shape=(1, 1, 1),
    clip_x=False,
  ).reshape(-1)


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [16, 256])
def test_ancestral_follows_the_linear_recursion(num_steps, v, w):
  """Mean and variance are those of the recursion at that T, v and w, within 4 standard errors."""
  x = np.asarray(draw(v, w, num_steps=num_steps), np.float64)
  mean, var = recursion(num_steps, v, w)
  assert abs(x.mean() - mean) < 4 * np.sqrt(var / COUNT)
  assert abs(x.var(ddof=1) - var) < 4 * var * np.sqrt(2 / (COUNT - 1))


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_ddim_is_the_deterministic_map(w):
  """Each DDIM sample is the float64 recursion from its own initial noise."""
  x = np.asarray(draw(0.0, w, num_steps=16, sampler="ddim"))
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(COUNT, dtype=jnp.uint32))
  z = np.asarray(
    jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), ()))(keys), np.float64
  )
  levels = schedules.sampling_grid(num_steps=16)
  for t, s in zip(levels[:-1], levels[1:]):
    a, b = guided_x_hat(t, w)
    x_hat = a * z + b
    eps = (z - np.sqrt(sig(t)) * x_hat) / np.sqrt(sig(-t))
    z = np.sqrt(sig(s)) * x_hat + np.sqrt(sig(-s)) * eps
  a, b = guided_x_hat(levels[-1], w)
  np.testing.assert_allclose(x, a * z + b, atol=2e-3)


def test_w_zero_reaches_the_data():
  """Unguided with many steps, the variance approaches the data's (at finite T it is below or
  above).
  """
  x = np.asarray(draw(0.3, 0.0, num_steps=256), np.float64)
  assert abs(x.mean() - MU_C) < 0.02 and abs(x.std() - S_C) < 0.02


def run_small(eps_fn, index, *, clip_x, num_steps=8, sampler="ancestral"):
  keys = sampling.sample_keys(key=jax.random.key(1), index=jnp.asarray(index, jnp.uint32))
  step = sampling.make_step(sampler=sampler, var_interp=0.3)
  return sampling.sample(
    eps_fn=eps_fn,
    step_fn=step,
    keys=keys,
    y=jnp.zeros(len(index), jnp.int32),
    logsnr=schedules.sampling_grid(num_steps=num_steps),
    image_shape=(2, 2, 1),
    clip_x=clip_x,
  )


def test_samples_do_not_depend_on_their_batch():
  """Sample i is the same alone, in another order, and among others."""
  all_of_them = run_small(gaussian_eps, np.arange(6), clip_x=False)
  some = run_small(gaussian_eps, [4, 1], clip_x=False)
  np.testing.assert_allclose(some, all_of_them[np.array([4, 1])], atol=1e-5)
  assert len(np.unique(np.asarray(all_of_them))) == all_of_them.size


def test_network_is_called_on_the_literal_grid():
  """T calls, at the T levels of the paper's grid, the last at lambda_max itself."""
  levels = []

  def eps_fn(z, logsnr, y):
    jax.debug.callback(lambda level: levels.append(float(level)), logsnr[0], ordered=True)
    return gaussian_eps(z, logsnr, y)

  run_small(eps_fn, [0], clip_x=False)
  jax.effects_barrier()
  np.testing.assert_allclose(levels, schedules.sampling_grid(num_steps=8), rtol=1e-6)


def test_clipping_comes_after_the_mix():
  """clip_x clips the mixed x_hat, once: 3 x_c - 2 x_u with x_c = 0.9, x_u = 1.2 is 0.3; branches
  clipped first give 0.7.
  """

  def eps_fn(z, logsnr, y):
    x = jnp.where(diffusion.expand(y == NULL, z), 1.2, 0.9) * jnp.ones_like(z)
    return diffusion.eps_from_x(z=z, x=x, logsnr=logsnr)

  out = run_small(guidance.classifier_free(eps_fn, w=2.0, null_label=NULL), [0], clip_x=True)
  np.testing.assert_allclose(out, 0.3, atol=1e-3)
  # and what leaves [-1, 1] after the mix is clipped: 3 * 0.9 - 2 * 1.2 with the branches exchanged
  # is 1.8
  swapped = lambda z, logsnr, y: eps_fn(z, logsnr, 1 - y)
  out = run_small(guidance.classifier_free(swapped, w=2.0, null_label=NULL), [0], clip_x=True)
  np.testing.assert_allclose(out, 1.0, atol=1e-6)
  assert np.all(
    np.asarray(
      run_small(guidance.classifier_free(swapped, w=2.0, null_label=NULL), [0], clip_x=False)
    )
    > 1.5
  )


@pytest.mark.parametrize(
  "arguments", [dict(sampler="euler", var_interp=0.3), dict(sampler="ancestral", var_interp=1.5)]
)
def test_unknown_settings_are_refused(arguments):
  """An unknown sampler or a v outside [0, 1] is an error."""
  with pytest.raises(ValueError):
    sampling.make_step(**arguments)


@pytest.fixture(scope="module")
def network():
  """A tiny U-Net with parameters that are nowhere zero."""
  model = unet.UNet(
    num_classes=3,
    out_channels=1,
    ch=8,
    emb_ch=16,
    ch_mult=(1, 2),
    num_res_blocks=1,
    attn_resolutions=(2,),
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


def generator(network, config, mesh, **options):
  config.sampler.num_steps = 5
  return generate.Generator(
    model=network[0], config=config, image_shape=(4, 4, 1), mesh=mesh, batch_size=8, **options
  )


def test_any_mesh_makes_the_same_images(network, config, mesh1, mesh8):
  """1, 2 and 8 devices make the same images, at most one grey level apart, in any batch."""
  index, labels = np.arange(11), np.arange(11) % 3
  run = lambda mesh: generator(network, config, mesh)(
    network[1], index=index, labels=labels, w=1.0, seed=0
  ).astype(int)
  one = run(mesh1)
  assert one.shape == (11, 4, 4, 1) and one.std() > 0
  for mesh in (sharding.make_mesh(jax.devices()[:2]), mesh8):
    assert np.abs(run(mesh) - one).max() <= 1


def test_one_branch_at_w_zero(network, config, mesh1):
  """The conditional branch alone gives the two-branch samples at w = 0, for half the network calls."""
  settings = dict(index=np.arange(8), labels=np.arange(8) % 3, w=0.0, seed=0)
  two, one = generator(network, config, mesh1), generator(network, config, mesh1, guided=False)
  assert (two.nfe, one.nfe) == (10, 5)
  assert (
    np.abs(two(network[1], **settings).astype(int) - one(network[1], **settings).astype(int)).max()
    <= 1
  )
  eps_fn = unet.make_eps_fn(*network)
  both = run_small_network(guidance.classifier_free(eps_fn, w=0.0, null_label=3))
  np.testing.assert_allclose(both, run_small_network(eps_fn), atol=1e-5)


def run_small_network(eps_fn):
  """Two 4x4 samples of the tiny network, before rounding."""
  keys = sampling.sample_keys(key=jax.random.key(1), index=jnp.arange(2, dtype=jnp.uint32))
  return sampling.sample(
    eps_fn=eps_fn,
    step_fn=sampling.make_step(sampler="ancestral", var_interp=0.3),
    keys=keys,
    y=jnp.int32([0, 2]),
    logsnr=schedules.sampling_grid(num_steps=5),
    image_shape=(4, 4, 1),
    clip_x=True,
  )


@pytest.mark.parametrize("measured", [False, True])
def test_no_collective_and_one_compilation(network, config, mesh8, measured):
  """The program over 8 devices, with an extractor or without, has no collective anywhere, and
  serves every strength with one compilation.
  """
  features = lambda params, pixels: {"x": pixels.reshape(len(pixels), -1) @ params}
  extractor = (
    Extractor(
      role="linear",
      name="linear",
      apply=features,
      params=np.ones((16, 2), np.float32),
      dims={"x": 2},
      metrics=(Metric("fid", "FID", "x", "frechet"),),
    )
    if measured
    else None
  )
  sampler = generator(network, config, mesh8, extractor=extractor)
  for w in (0.0, 0.5, 4.0):
    sampler(network[1], index=np.arange(8), labels=np.arange(8) % 3, w=w, seed=0)
  assert sampler.program._cache_size() == 1
  args = sharding.put_batch(mesh8, {"i": np.arange(8, dtype=np.uint32), "y": np.zeros(8, np.int32)})
  params = extractor.params if measured else None
  text = (
    sampler.program.lower(
      network[1], params, args["i"], args["y"], jnp.float32(1), jax.random.key(0)
    )
    .compile()
    .as_text()
  )
  assert "while" in text
  assert not re.findall(r"all-reduce|all-gather|collective-permute|all-to-all|reduce-scatter", text)


def test_generator_refuses_bad_settings(network, config, mesh1):
  """A sampler that does not exist, or one step, is an error for people."""
  for field, value in (("name", "heun"), ("num_steps", 1)):
    other = config.copy_and_resolve_references()
    other.sampler[field] = value
    with pytest.raises(UserError, match="sampler"):
      generate.Generator(
        model=network[0], config=other, image_shape=(4, 4, 1), mesh=mesh1, batch_size=8
      )
