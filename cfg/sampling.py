"""Algorithm 2 and its relatives: one lax.scan over a grid of log-SNRs.

P is Ho & Salimans 2022 (arXiv 2207.12598). A sampler sees a `denoise` function and knows nothing
of guidance or networks. A new one is one function here and its line in SAMPLERS; the names of its
arguments are fields of the config's section `sampler`. `t` is the level at hand, `s` the next,
cleaner one.
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import diffusion
from cfg import particles as particles_lib
from cfg.guidance import Array, EpsFn, Memory, Rule
from cfg.limits import Limit


class Estimate(NamedTuple):
  """What one look at z says.

  Attributes:
    x: [B,H,W,C], the clean image: guided, then limited.
    eps: [B,H,W,C], the noise that the next level is drawn with: the one that belongs to x, unless
      the rule gave another.
    aux: {name: [B]}, of the rule.
  """

  x: Array
  eps: Array
  aux: Mapping[str, Array]


# (z, logsnr scalar, the rule's memory) -> (Estimate, the rule's memory)
Denoise = Callable[[Array, Array, Memory], tuple[Estimate, Memory]]


class Sampler(NamedTuple):
  """How one level becomes the next.

  Attributes:
    init: z_1 -> memory, () for samplers that remember nothing.
    step: (denoise, z, memory, rule_memory, *, logsnr_t, logsnr_s, noise, last) ->
      (z_s, x_hat, memory, rule_memory, aux). `noise` is standard normal, of z's shape. `last` is
      true at the grid's end, where only x_hat is kept: a second call of denoise must be skipped.
    levels: (logsnr_t, logsnr_s, or None at the end) -> the levels at which it calls denoise.
    reads_eps: whether Estimate.eps decides the step, as rules that set it need.
    stochastic: whether `noise` decides it, so that z_1 is forgotten on the way.
    goes_back: whether a step may return to a noisier level first, by plain noise: what was drawn
      from a tilted law is not one of that level then.
  """

  init: Callable[[Array], Memory]
  step: Callable[..., tuple[Array, Array, Memory, Memory, Mapping[str, Array]]]
  levels: Callable[[float, float | None], tuple[float, ...]]
  reads_eps: bool
  stochastic: bool
  goes_back: bool = False


def ancestral(*, var_interp: float) -> Sampler:
  """z_s ~ N( mu~_{s|t}(z_t, x_hat), (sigma~^2_{s|t})^(1-v) (sigma^2_{t|s})^v ).

  P algorithm 2, line 4.

  Args:
    var_interp: the paper's v in [0, 1]: 0.3 at 64x64, 0.2 at 128x128.

  Raises:
    ValueError: v is not.
  """
  if not 0 <= var_interp <= 1:
    raise ValueError(f"var_interp is the paper's v in [0, 1], got {var_interp}")

  def step(denoise, z, memory, rule_memory, *, logsnr_t, logsnr_s, noise, last):
    del last
    estimate, rule_memory = denoise(z, logsnr_t, rule_memory)
    levels = dict(logsnr_t=logsnr_t, logsnr_s=logsnr_s)
    mean = diffusion.posterior_mean(z_t=z, x=estimate.x, **levels)
    logvar = diffusion.posterior_logvar(**levels, var_interp=var_interp)
    z = mean + jnp.exp(0.5 * logvar) * noise
    return z, estimate.x, memory, rule_memory, estimate.aux

  return Sampler(_nothing, step, _one_level, reads_eps=False, stochastic=True)


def ddim(*, eta: float = 0.0) -> Sampler:
  """z_s = alpha_s x_hat + sigma_s (sqrt(1 - eta^2 (1 - r)) eps_hat + eta sqrt(1 - r) noise).

  r = exp(lambda_t - lambda_s). DDIM (Song et al. 2021, arXiv 2010.02502, equations 12 and 16), with
  eta = 0 as arXiv 2202.00512 equation 8 writes it. eps_hat follows x_hat, limited or not.

  Args:
    eta: in [0, 1]: 0 draws no noise, 1 is `ancestral` with v = 0.

  Raises:
    ValueError: it is not.
  """
  _check_eta(eta)

  def step(denoise, z, memory, rule_memory, *, logsnr_t, logsnr_s, noise, last):
    del last
    estimate, rule_memory = denoise(z, logsnr_t, rule_memory)
    if eta == 0:
      z = diffusion.q_sample(x=estimate.x, eps=estimate.eps, logsnr=logsnr_s)
      return z, estimate.x, memory, rule_memory, estimate.aux
    fresh = -jnp.expm1(logsnr_t - logsnr_s)
    eps = jnp.sqrt(1 - eta**2 * fresh) * estimate.eps + eta * jnp.sqrt(fresh) * noise
    z = diffusion.q_sample(x=estimate.x, eps=eps, logsnr=logsnr_s)
    return z, estimate.x, memory, rule_memory, estimate.aux

  return Sampler(_nothing, step, _one_level, reads_eps=True, stochastic=eta > 0)


def heun(
  *,
  churn: float = 0.0,
  churn_noise: float = 1.0,
  churn_logsnr_min: float | None = None,
  churn_logsnr_max: float | None = None,
  num_levels: int = 1,
  lowest: float = -math.inf,
) -> Sampler:
  """z_s = z'_s + alpha_s (s_s - s_t) (eps'_s - eps_t) / 2, z'_s being DDIM's and s = sigma / alpha.

  The trapezoid rule for d(z / alpha) / ds = eps (Karras et al. 2022, arXiv 2206.00364, algorithm
  1), of second order. eps'_s is measured at z'_s, in a second call; of the two calls the first's
  memory of the rule is kept. At the grid's end there is one call.

  With churn (their algorithm 2) a step begins with noise that takes z_t back to the level where s
  is (1 + g) times as large, g = min(churn / num_levels, sqrt(2) - 1), and t is that level.

  Args:
    churn: their S_churn, at least 0; 0 draws no noise.
    churn_noise: their S_noise, by which that noise is multiplied, above 0.
    churn_logsnr_min: it comes from this log-SNR on, -2 log of their S_tmax; None for no end.
    churn_logsnr_max: and up to this one, -2 log of their S_tmin; None for no end.
    num_levels: T.
    lowest: the lowest log-SNR that a network knows, below which none goes back.

  Raises:
    ValueError: churn or churn_noise is not.
  """
  if not churn >= 0 or not churn_noise > 0:
    raise ValueError(
      f"churn must be at least 0 and churn_noise above 0, got {churn} and {churn_noise}"
    )
  back = np.float32(2 * math.log1p(min(churn / num_levels, math.sqrt(2) - 1)))
  low = np.float32(-math.inf if churn_logsnr_min is None else churn_logsnr_min)
  high = np.float32(math.inf if churn_logsnr_max is None else churn_logsnr_max)

  def churned(logsnr, xp=jnp):
    """The level at which a step begins; in f32 on the host, as the device has it."""
    where = (logsnr >= low) & (logsnr <= high)
    return xp.where(where, xp.maximum(logsnr - back, np.float32(lowest)), logsnr)

  def step(denoise, z, memory, rule_memory, *, logsnr_t, logsnr_s, noise, last):
    if churn > 0:
      logsnr, logsnr_t = logsnr_t, churned(logsnr_t)
      noise = churn_noise * noise
      z = diffusion.noised(z_s=z, noise=noise, logsnr_s=logsnr, logsnr_t=logsnr_t)
    estimate, after = denoise(z, logsnr_t, rule_memory)
    euler = diffusion.q_sample(x=estimate.x, eps=estimate.eps, logsnr=logsnr_s)
    # alpha_s (s_s - s_t), without cancellation
    width = -diffusion.sigma(logsnr_s) * jnp.expm1(0.5 * (logsnr_s - logsnr_t))

    def corrected(z):
      second, _ = denoise(z, logsnr_s, rule_memory)
      return z + 0.5 * width * (second.eps - estimate.eps)

    z = jax.lax.cond(last, lambda z: z, corrected, euler)
    return z, estimate.x, memory, after, estimate.aux

  def levels(logsnr_t, logsnr_s):
    first = float(churned(np.float32(logsnr_t), np)) if churn > 0 else logsnr_t
    return (first,) if logsnr_s is None else (first, logsnr_s)

  churns = churn > 0
  return Sampler(_nothing, step, levels, reads_eps=True, stochastic=churns, goes_back=churns)


class _Before(NamedTuple):
  """Memory of the multistep solver: the last step's x_hat, its length in log(alpha / sigma)."""

  x: Array
  h: Array


def dpm_solver_pp_2m(*, eta: float = 0.0) -> Sampler:
  """z_s = (sigma_s / sigma_t) e^(-eta h) z_t + alpha_s (1 - e^(-(1 + eta) h)) D
  + sigma_s sqrt(1 - e^(-2 eta h)) noise, D = (1 + c) x_t - c x_before, c = h / (2 h_before).

  DPM-Solver++(2M) where eta is 0, of second order, and its SDE form where eta is 1 (Lu et al. 2022,
  arXiv 2211.01095, algorithm 2), with one call a step. h is the step in log(alpha / sigma), half of
  that in log-SNR. The first step has c = 0: with eta = 1 it is that of `ancestral` with v = 0. In
  short steps the noise's variance is eta times as large as there, and DDIM's eta^2 times.

  Args:
    eta: in [0, 1].

  Raises:
    ValueError: it is not.
  """
  _check_eta(eta)

  def init(z):
    return _Before(x=jnp.zeros_like(z), h=jnp.float32(np.inf))

  def step(denoise, z, before, rule_memory, *, logsnr_t, logsnr_s, noise, last):
    del last
    estimate, rule_memory = denoise(z, logsnr_t, rule_memory)
    h = 0.5 * (logsnr_s - logsnr_t)
    weight = h / (2 * before.h)
    x = (1 + weight) * estimate.x - weight * before.x
    log_ratio = 0.5 * (jax.nn.log_sigmoid(-logsnr_s) - jax.nn.log_sigmoid(-logsnr_t))
    z = jnp.exp(log_ratio - eta * h) * z - diffusion.alpha(logsnr_s) * jnp.expm1(-(1 + eta) * h) * x
    if eta > 0:
      z += diffusion.sigma(logsnr_s) * jnp.sqrt(-jnp.expm1(-2 * eta * h)) * noise
    return z, estimate.x, _Before(estimate.x, h), rule_memory, estimate.aux

  return Sampler(init, step, _one_level, reads_eps=False, stochastic=eta > 0)


def _check_eta(eta: float) -> None:
  """Raise ValueError unless eta lies in [0, 1]."""
  if not 0 <= eta <= 1:
    raise ValueError(f"eta lies in [0, 1], from no noise to all of it, got {eta}")


def _nothing(z: Array) -> Memory:
  """The memory of a sampler that remembers nothing."""
  del z
  return ()


def _one_level(logsnr_t: float, logsnr_s: float | None) -> tuple[float, ...]:
  """One call of denoise, at the level at hand."""
  del logsnr_s
  return (logsnr_t,)


SAMPLERS: dict[str, Callable[..., Sampler]] = {
  "ancestral": ancestral,
  "ddim": ddim,
  "heun": heun,
  "dpm_solver_pp_2m": dpm_solver_pp_2m,
}


# of each sample's key, what rules draw; noise has 0, 1, ..., T, and cfg.particles one more
RULE_STREAM = 2**32 - 1


def sample_keys(*, key: Array, index: Array) -> Array:
  """[B] keys, one a sample: fold_in(key, i). Sample i is the same in any batch, on any device."""
  return jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)


def sample(
  *,
  networks: Mapping[str, EpsFn],
  rule: Rule,
  sampler: Sampler,
  limit: Limit,
  keys: Array,
  y: Array,
  w: Array | float,
  logsnr: Array,
  image_shape: tuple[int, ...],
  particles: int = 1,
) -> tuple[Array, Mapping[str, Array]]:
  """P's algorithm 2: z_1 ~ N(0, I), a step from each level to the next, x_hat at the last.

  With particles, groups of so many rows are weighed and resampled on the way, and at the end, so
  that x are unweighted draws of the tilted law, of one group not independent (cfg.particles).

  Args:
    networks: {role: eps_fn}, those of the rule.
    rule: what the networks say together, one of rules.RULES.
    sampler: how a level becomes the next, one of SAMPLERS.
    limit: what becomes of x_hat after the mix, one of limits.LIMITS.
    keys: [B] typed PRNG keys; all noise of sample i comes from keys[i].
    y: [B] int32 labels.
    w: the strength, a scalar or [B].
    logsnr: [T] increasing, from schedules.sampling_grid.
    image_shape: (H, W, C).
    particles: of a group, which divides B and has one y and one w; 1 for none. What a group draws
      comes from the key of its first row. The rule has to be one that `tilts`.

  Returns:
    x [B,H,W,C] f32, and {name: [T,B]} of what the rule measured on the way; with particles also
    "log_z", which summed over the levels is the log of an estimate of Z without bias.
  """
  num_steps = logsnr.shape[0]
  rule_keys = jax.vmap(lambda key: jax.random.fold_in(key, RULE_STREAM))(keys)
  group_keys = jax.vmap(lambda key: jax.random.fold_in(key, particles_lib.GROUP_STREAM))(
    keys[::particles]
  )

  def noise(i):
    draw = lambda key: jax.random.normal(jax.random.fold_in(key, i), image_shape)
    return jax.vmap(draw)(keys)

  def body(carry, inputs):
    (z, _, memory, rule_memory), log_weight = carry
    i, logsnr_t, logsnr_s, width, last = inputs
    step_keys = jax.vmap(lambda key: jax.random.fold_in(key, i))(rule_keys)
    denoise = make_denoise(rule.apply(networks, w=w, y=y, keys=step_keys), limit=limit)
    *carry, aux = sampler.step(
      denoise,
      z,
      memory,
      rule_memory,
      logsnr_t=logsnr_t,
      logsnr_s=logsnr_s,
      noise=noise(i) if rule.noise is None else rule.noise(noise(i), w),
      last=last,
    )
    if particles == 1:
      return (tuple(carry), log_weight), aux
    carry, log_weight, log_z = particles_lib.resample(
      keys=jax.vmap(lambda key: jax.random.fold_in(key, i))(group_keys),
      log_weight=log_weight + particles_lib.increment(gap=aux["gap"], width=width, w=w),
      carry=tuple(carry),
      particles=particles,
      always=last,
    )
    return (carry, log_weight), {**aux, "log_z": log_z}

  logsnr = jnp.asarray(logsnr, jnp.float32)
  # The scan's last transition has no target: it steps anywhere, and only x_hat is kept.
  # That keeps all calls of the networks in one loop, compiled once.
  logsnr_s = jnp.append(logsnr[1:], logsnr[-1] + 1.0)
  steps = jnp.arange(1, num_steps + 1)
  z = noise(0) if rule.start is None else rule.start(noise(0), w)
  start = (z, z, sampler.init(z), rule.init(z, y))
  log_weight = () if particles == 1 else jnp.zeros(y.shape)
  inputs = (steps, logsnr, logsnr_s, particles_lib.widths(logsnr), steps == num_steps)
  ((_, x_hat, _, _), _), aux = jax.lax.scan(body, (start, log_weight), inputs)
  return x_hat, aux


def make_denoise(guided, *, limit: Limit) -> Denoise:
  """The Denoise of an applied rule: x_hat = limit((z - sigma eps) / alpha), and its noise."""

  def denoise(z, logsnr, rule_memory):
    guess, rule_memory = guided(z, logsnr, rule_memory)
    x = limit(diffusion.x_from_eps(z=z, eps=guess.eps, logsnr=logsnr))
    own = guess.renoise is None
    eps = diffusion.eps_from_x(z=z, x=x, logsnr=logsnr) if own else guess.renoise
    return Estimate(x, eps, guess.aux), rule_memory

  return denoise
