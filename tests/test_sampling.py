"""Algorithm 2 with exact Gaussian denoisers, and what a sample may depend on."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate

from cfg import diffusion, guidance, limits, rules, sampling, schedules

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


def recursion(num_steps, v, w, *, x_hat=guided_x_hat, temperature=1.0, **grid):
  """Mean and variance of the ancestral sampler's output on linear denoisers, in float64; with the
  variance of its noise, but z_1's, times `temperature`.
  """
  levels = schedules.sampling_grid(num_steps=num_steps, **grid)
  mean, var = 0.0, 1.0
  for t, s in zip(levels[:-1], levels[1:]):
    a, b = x_hat(t, w)
    r = np.exp(t - s)
    coef_z, coef_x = r * np.sqrt(sig(s) / sig(t)), (1 - r) * np.sqrt(sig(s))
    small, large = (1 - r) * sig(-s), (1 - r) * sig(-t)
    mean = (coef_z + coef_x * a) * mean + coef_x * b
    var = (coef_z + coef_x * a) ** 2 * var + temperature * small ** (1 - v) * large**v
  a, b = x_hat(levels[-1], w)
  return a * mean + b, a**2 * var


PLAIN = guidance.classifier_free(null_label=NULL)


@functools.partial(jax.jit, static_argnames=("num_steps", "sampler", "rule", "grid"))
def draw(w, *, num_steps, sampler, rule=PLAIN, grid=()):
  """COUNT scalar samples as 1x1 images."""
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(COUNT, dtype=jnp.uint32))
  x, _ = sampling.sample(
    networks={guidance.MAIN: gaussian_eps, "guide": linear_log_prob},
    rule=rule,
    sampler=sampler,
    limit=limits.no_limit(),
    keys=keys,
    y=jnp.zeros(COUNT, jnp.int32),
    w=w,
    logsnr=schedules.sampling_grid(num_steps=num_steps, **dict(grid)),
    image_shape=(1, 1, 1),
  )
  return x.reshape(-1)


ANCESTRAL = {v: sampling.ancestral(var_interp=v) for v in (0.0, 0.3, 1.0)}
DDIM = sampling.ddim()


@pytest.mark.parametrize("w", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("v", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("num_steps", [16, 256])
def test_ancestral_follows_the_linear_recursion(num_steps, v, w):
  """Mean and variance are those of the recursion at that T, v and w, within 4 standard errors."""
  x = np.asarray(draw(w, num_steps=num_steps, sampler=ANCESTRAL[v]), np.float64)
  mean, var = recursion(num_steps, v, w)
  assert abs(x.mean() - mean) < 4 * np.sqrt(var / COUNT)
  assert abs(x.var(ddof=1) - var) < 4 * var * np.sqrt(2 / (COUNT - 1))


@pytest.mark.parametrize("w", [0.0, 2.0])
def test_ddim_is_the_deterministic_map(w):
  """Each DDIM sample is the float64 recursion from its own initial noise."""
  x = np.asarray(draw(w, num_steps=16, sampler=DDIM))
  np.testing.assert_allclose(x, ddim_map(16, w), atol=2e-3)


def ddim_map(num_steps, w, *, x_hat=guided_x_hat, **grid):
  """What DDIM makes of each sample's initial noise on linear denoisers, in float64."""
  keys = sampling.sample_keys(key=jax.random.key(0), index=jnp.arange(COUNT, dtype=jnp.uint32))
  z = np.asarray(
    jax.vmap(lambda k: jax.random.normal(jax.random.fold_in(k, 0), ()))(keys), np.float64
  )
  levels = schedules.sampling_grid(num_steps=num_steps, **grid)
  for t, s in zip(levels[:-1], levels[1:]):
    a, b = x_hat(t, w)
    x = a * z + b
    eps = (z - np.sqrt(sig(t)) * x) / np.sqrt(sig(-t))
    z = np.sqrt(sig(s)) * x + np.sqrt(sig(-s)) * eps
  a, b = x_hat(levels[-1], w)
  return a * z + b


LINEAR = rules.classifier(role="guide")
SLOPE = 0.7
# f32 divides by alpha, which is 0.05 at its start
NEAR = dict(logsnr_min=-6.0, logsnr_max=6.0)


def linear_log_prob(z, logsnr, y):
  """A classifier with log p(y | z) = SLOPE alpha z + const."""
  del y
  return SLOPE * jnp.sum(diffusion.expand(diffusion.alpha(logsnr), z) * z, axis=(1, 2, 3)) - 3.0


def classifier_guided_x_hat(logsnr, w):
  """x_hat = a z + b of eps - w sigma SLOPE alpha, as float64 numbers (a, b)."""
  a, b = guided_x_hat(logsnr, 0.0)
  return a, b + w * sig(-logsnr) * SLOPE


@pytest.mark.parametrize("w", [0.5, 2.0])
def test_a_linear_classifier_moves_samples_as_the_recursion_says(w):
  """Unclipped on Gaussian data: each DDIM sample is the float64 recursion to 1e-5; the ancestral
  mean and variance are the recursion's, within 4 standard errors.
  """
  draw_guided = functools.partial(draw, w, num_steps=16, rule=LINEAR, grid=tuple(NEAR.items()))
  exact = dict(x_hat=classifier_guided_x_hat, **NEAR)
  x = np.asarray(draw_guided(sampler=DDIM))
  np.testing.assert_allclose(x, ddim_map(16, w, **exact), atol=1e-5)
  x = np.asarray(draw_guided(sampler=ANCESTRAL[0.3]), np.float64)
  mean, var = recursion(16, 0.3, w, **exact)
  assert abs(x.mean() - mean) < 4 * np.sqrt(var / COUNT)
  assert abs(x.var(ddof=1) - var) < 4 * var * np.sqrt(2 / (COUNT - 1))
  assert abs(mean - recursion(16, 0.3, 0.0, **exact)[0]) > 20 * np.sqrt(var / COUNT)


def test_w_zero_reaches_the_data():
  """Unguided with many steps, the variance approaches the data's (at finite T it is below or
  above).
  """
  x = np.asarray(draw(0.0, num_steps=256, sampler=ANCESTRAL[0.3]), np.float64)
  assert abs(x.mean() - MU_C) < 0.02 and abs(x.std() - S_C) < 0.02


def run_small(eps_fn, index, *, sampler=None, rule=None, limit=None, w=0.0, num_steps=8, **grid):
  """2x2 samples, with what the rule measured."""
  keys = sampling.sample_keys(key=jax.random.key(1), index=jnp.asarray(index, jnp.uint32))
  return sampling.sample(
    networks={guidance.MAIN: eps_fn},
    rule=rule or guidance.conditional(),
    sampler=sampler or ANCESTRAL[0.3],
    limit=limit or limits.no_limit(),
    keys=keys,
    y=jnp.zeros(len(index), jnp.int32),
    w=w,
    logsnr=schedules.sampling_grid(num_steps=num_steps, **grid),
    image_shape=(2, 2, 1),
  )


def test_samples_do_not_depend_on_their_batch():
  """Sample i is the same alone, in another order, and among others."""
  all_of_them = run_small(gaussian_eps, np.arange(6))[0]
  some = run_small(gaussian_eps, [4, 1])[0]
  np.testing.assert_allclose(some, all_of_them[np.array([4, 1])], atol=1e-5)
  assert len(np.unique(np.asarray(all_of_them))) == all_of_them.size


@pytest.mark.parametrize("name", [*sampling.SAMPLERS, "churn"])
def test_networks_are_called_at_the_levels_that_the_sampler_says(name):
  """A host callback sees the levels of Sampler.levels: the paper's T, the last lambda_max."""
  seen = []

  def eps_fn(z, logsnr, y):
    jax.debug.callback(lambda level: seen.append(float(level)), logsnr[0], ordered=True)
    return gaussian_eps(z, logsnr, y)

  sampler = {**SECOND_ORDER, "ancestral": ANCESTRAL[0.3], "ddim": DDIM, "churn": CHURN}[name]
  run_small(eps_fn, [0], sampler=sampler)
  jax.effects_barrier()
  grid = np.float32(schedules.sampling_grid(num_steps=8))
  pairs = zip(grid, [*grid[1:], None])
  np.testing.assert_array_equal(seen, [level for t, s in pairs for level in sampler.levels(t, s)])
  assert seen[-1] == 20 and len(seen) == (15 if name in ("heun", "churn") else 8)


def fixed_x(x_cond, x_uncond):
  """A network whose x_hat is one number, or with the null label another."""

  def eps_fn(z, logsnr, y):
    x = jnp.where(diffusion.expand(y == NULL, z), x_uncond, x_cond) * jnp.ones_like(z)
    return diffusion.eps_from_x(z=z, x=x, logsnr=logsnr)

  return eps_fn


def test_the_limit_comes_after_the_mix():
  """3 x_c - 2 x_u is limited, once: 0.3 of 0.9 and 1.2, where branches clipped first give 0.7."""
  rule, clip = guidance.classifier_free(null_label=NULL), limits.clip()
  run = lambda network, limit: run_small(network, [0], rule=rule, w=2.0, limit=limit)[0]
  np.testing.assert_allclose(run(fixed_x(0.9, 1.2), clip), 0.3, atol=1e-3)
  # and what leaves [-1, 1] after the mix is clipped: 3 * 1.2 - 2 * 0.9 is 1.8
  np.testing.assert_allclose(run(fixed_x(1.2, 0.9), clip), 1.0, atol=1e-6)
  assert np.all(np.asarray(run(fixed_x(1.2, 0.9), limits.no_limit())) > 1.5)


def test_dynamic_threshold():
  """Samples within [-1, 1] stay; others are cut at their own percentile and divided by it."""
  x = (
    jnp.linspace(-1.0, 1.0, 101).reshape(1, 101, 1, 1)
    * jnp.float32([0.9, 4.0])[:, None, None, None]
  )
  limited = limits.dynamic_threshold(limit_percentile=0.9)(x)
  np.testing.assert_array_equal(limited[0], x[0])
  q = np.quantile(np.abs(x[1]), 0.9)
  np.testing.assert_allclose(limited[1], np.clip(x[1], -q, q) / q, rtol=1e-6)
  capped = limits.dynamic_threshold(limit_percentile=0.9, limit_max=1.0)(x)
  np.testing.assert_array_equal(capped, limits.clip()(x))
  for wrong in (dict(limit_percentile=0.0), dict(limit_percentile=0.9, limit_max=0.5)):
    with pytest.raises(ValueError, match="limit_"):
      limits.dynamic_threshold(**wrong)


@pytest.mark.parametrize("v", [-0.1, 1.5])
def test_v_outside_its_range_is_refused(v):
  """v lies in [0, 1]."""
  with pytest.raises(ValueError, match="var_interp"):
    sampling.ancestral(var_interp=v)


# the exact solution of the probability-flow ODE, for the order of samplers

MEANS, STDS, WEIGHTS = (
  np.array([-1.0, 0.3, 1.2]),
  np.array([0.4, 0.25, 0.5]),
  np.array([0.3, 0.3, 0.4]),
)
SECOND_ORDER = {"heun": sampling.heun(), "dpm_solver_pp_2m": sampling.dpm_solver_pp_2m()}
CHURN = sampling.heun(churn=4.0, num_levels=8, churn_logsnr_min=-9.0, churn_logsnr_max=9.0)
LOW, HIGH = -10.0, 12.0


def mixture_eps(z, logsnr, y, xp=jnp):
  """Exact eps = -sigma grad log p of three Gaussians, of z of any shape at one level."""
  del y
  level = xp.asarray(logsnr).reshape(-1)[0]
  alpha, sigma = xp.sqrt(1 / (1 + xp.exp(-level))), xp.sqrt(1 / (1 + xp.exp(level)))
  classes = lambda values: xp.asarray(values, z.dtype).reshape(-1, *(1,) * z.ndim)
  offset = z[None] - alpha * classes(MEANS)
  var = alpha**2 * classes(STDS**2) + sigma**2
  log_p = classes(np.log(WEIGHTS)) - 0.5 * offset**2 / var - 0.5 * xp.log(var)
  weight = xp.exp(log_p - log_p.max(axis=0, keepdims=True))
  return sigma * (weight * offset / var).sum(axis=0) / weight.sum(axis=0)


@pytest.fixture(scope="module")
def flow():
  """(z at LOW, z at HIGH): points of exact trajectories, by SciPy at 1e-10."""
  start = np.linspace(-2.5, 2.5, 64)

  def velocity(logsnr, z):
    """dz/dlogsnr = sigma^2 z / 2 - sigma eps / 2, from d(z / alpha) / d(sigma / alpha) = eps."""
    eps = mixture_eps(z, logsnr, None, np)
    return 0.5 * sig(-logsnr) * z - 0.5 * np.sqrt(sig(-logsnr)) * eps

  solution = scipy.integrate.solve_ivp(velocity, (LOW, HIGH), start, rtol=1e-10, atol=1e-12)
  return start, solution.y[:, -1]


@pytest.mark.parametrize("name, order", [("ddim", 0.9), ("heun", 1.8), ("dpm_solver_pp_2m", 1.8)])
def test_order_of_convergence(flow, name, order):
  """The error in z on the exact mixture falls as T^-order, on a grid uniform in log-SNR."""
  sampler = {**SECOND_ORDER, "ddim": DDIM}[name]
  start, exact = flow
  errors = []
  for num_steps in (65, 129):
    grid = schedules.sampling_grid(
      num_steps=num_steps, logsnr_min=LOW, logsnr_max=HIGH, spacing="logsnr"
    )
    errors.append(np.abs(integrate(sampler, start, jnp.float32(grid)) - exact).max())
  assert np.log2(errors[0] / errors[1]) > order, errors


@functools.partial(jax.jit, static_argnums=0)
def integrate(sampler, start, grid):
  """z at the grid's end, from z at its start, through the sampler's own steps."""
  z = jnp.asarray(start, jnp.float32).reshape(-1, 1, 1, 1)
  guided = guidance.conditional().apply({guidance.MAIN: mixture_eps}, w=0.0, y=z, keys=None)
  denoise = sampling.make_denoise(guided, limit=limits.no_limit())

  def body(carry, levels):
    z, memory = carry
    z, _, memory, _, _ = sampler.step(
      denoise, z, memory, (), logsnr_t=levels[0], logsnr_s=levels[1], noise=None, last=False
    )
    return (z, memory), None

  (z, _), _ = jax.lax.scan(body, (z, sampler.init(z)), jnp.stack([grid[:-1], grid[1:]], axis=1))
  return z.reshape(-1)


def one_step(sampler, z, *, noise, logsnr_t=-1.0, logsnr_s=0.5):
  """z_s of a first step on the exact Gaussian denoisers."""
  guided = guidance.conditional().apply(
    {guidance.MAIN: gaussian_eps}, w=0.0, y=jnp.zeros(len(z), jnp.int32), keys=None
  )
  denoise = sampling.make_denoise(guided, limit=limits.no_limit())
  levels = dict(logsnr_t=jnp.float32(logsnr_t), logsnr_s=jnp.float32(logsnr_s))
  return sampler.step(denoise, z, sampler.init(z), (), **levels, noise=noise, last=False)[0]


def test_full_noise_is_ancestral():
  """DDIM with eta = 1, and the SDE solver's first step, are the ancestral step with v = 0; with
  eta = 0 the solver's first step is DDIM's, and Heun's churn leaves the law of z_t's level alone.
  """
  z, noise = jax.random.normal(jax.random.key(4), (2, 64, 1, 1, 1))
  step = functools.partial(one_step, z=z, noise=noise)
  want = step(ANCESTRAL[0.0])
  np.testing.assert_allclose(step(sampling.ddim(eta=1.0)), want, atol=1e-5)
  np.testing.assert_allclose(step(sampling.dpm_solver_pp_2m(eta=1.0)), want, atol=1e-5)
  np.testing.assert_allclose(step(sampling.dpm_solver_pp_2m()), step(DDIM), atol=1e-5)
  for sampler, stochastic in ((DDIM, False), (sampling.ddim(eta=0.3), True), (CHURN, True)):
    assert sampler.stochastic == stochastic
    assert np.any(one_step(sampler, z, noise=noise) != one_step(sampler, z, noise=0 * noise)) == (
      stochastic
    )


def test_churn_goes_back_by_its_share():
  """Inside its levels a step begins where sigma / alpha is 1 + churn / T times as large, at most
  sqrt(2), and never below the lowest level.
  """
  first = lambda logsnr, **more: sampling.heun(num_levels=8, **more).levels(logsnr, None)[0]
  assert first(1.0, churn=0.0) == 1.0
  np.testing.assert_allclose(first(1.0, churn=0.8), 1 - 2 * np.log(1.1), rtol=1e-6)
  np.testing.assert_allclose(first(1.0, churn=80.0), 1 - np.log(2), rtol=1e-6)
  assert first(1.0, churn=80.0, lowest=0.5) == 0.5
  assert [CHURN.levels(level, None)[0] < level for level in (-9.5, -9.0, 9.0, 9.5)] == [
    *(False, True, True, False)
  ]


@pytest.mark.parametrize(
  "make, wrong",
  [
    (sampling.ddim, dict(eta=1.5)),
    (sampling.dpm_solver_pp_2m, dict(eta=-0.1)),
    (sampling.heun, dict(churn=-1.0)),
    (sampling.heun, dict(churn=1.0, churn_noise=0.0)),
  ],
)
def test_noise_outside_its_range_is_refused(make, wrong):
  """eta lies in [0, 1], churn and its noise are not negative."""
  with pytest.raises(ValueError, match="eta|churn"):
    make(**wrong)


def test_spacings():
  """Each grid has its ends and T increasing levels; EDM's at rho = 7 are its own sigmas."""
  for spacing in schedules.SPACINGS:
    grid = schedules.sampling_grid(num_steps=9, logsnr_min=-8.0, logsnr_max=12.0, spacing=spacing)
    np.testing.assert_allclose(grid[[0, -1]], [-8, 12], atol=1e-9)
    assert len(grid) == 9 and np.all(np.diff(grid) > 0)
  low, high = -2 * np.log(80.0), -2 * np.log(0.002)
  edm = schedules.sampling_grid(num_steps=18, logsnr_min=low, logsnr_max=high, spacing="edm")
  i = np.arange(18) / 17
  sigma = (80 ** (1 / 7) + i * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
  np.testing.assert_allclose(np.exp(-edm / 2), sigma, rtol=1e-9)
  for wrong in (dict(spacing="v"), dict(num_steps=1), dict(rho=0.0), dict(logsnr_min=30.0)):
    with pytest.raises(ValueError):
      schedules.sampling_grid(**{"num_steps": 4, **wrong})
