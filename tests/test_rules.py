"""Rules beside the paper's: weak branches, strengths that vary, low temperatures."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
import test_guidance as plain
import test_sampling as gaussian

from cfg import diffusion, guidance, rules, schedules
from cfg.base.errors import UserError
from cfg.inference import checks, program
from configs import digits

ENDS = dict(schedule_min=-20.0, schedule_max=20.0)


def estimate(rule, *, w, logsnr=0.5, network=plain.wave_eps, keys=None):
  """eps of a rule on the network that depends on every input."""
  arguments = dict(z=plain.Z, y=plain.Y, logsnr=logsnr, w=w, keys=keys)
  return plain.apply(rule, network, **arguments)[0].eps


@pytest.mark.parametrize("name", ["scaled_score", "temporal_rescaling"])
def test_a_temperature_of_one_changes_nothing(name):
  """At w = 0 the estimate is the conditional model's, bit for bit."""
  got = estimate(plain.RULES[name], w=jnp.float32(0))
  np.testing.assert_array_equal(got, estimate(guidance.conditional(), w=0.0))


def test_power_zero_is_the_papers_rule():
  """Bit for bit; another power multiplies w by that power of the difference of the scores."""
  rule = rules.power_law(null_label=plain.NULL, power=0.0)
  np.testing.assert_array_equal(estimate(rule, w=1.7), estimate(plain.PLAIN, w=1.7))
  rule = rules.power_law(null_label=plain.NULL, power=0.3)
  cond, uncond = plain.two_calls(0.5)
  norms = np.linalg.norm((cond - uncond).reshape(3, -1), axis=1) / diffusion.sigma(0.5)
  want = cond + 1.7 * norms[:, None, None, None] ** 0.3 * (cond - uncond)
  np.testing.assert_allclose(estimate(rule, w=1.7), want, rtol=1e-5)


def test_a_random_label_is_any_class_at_each_step():
  """The weak branch is the network's answer to labels drawn evenly, anew for each key."""
  rule = rules.random_label(num_classes=4)
  count = 4000
  seen = lambda z, logsnr, y: diffusion.expand(y.astype(jnp.float32), z) * jnp.ones_like(z)
  eps, _ = plain.apply(
    rule,
    seen,
    z=jnp.zeros((count, 1, 1, 1)),
    logsnr=0.0,
    y=jnp.full(count, 2, jnp.int32),
    w=1.0,
    keys=jax.random.split(jax.random.key(8), count),
  )
  drawn = 4 - np.asarray(eps.eps).reshape(-1)  # 2 * 2 - drawn
  shares = [np.mean(drawn == label) for label in range(4)]
  assert sum(shares) == 1 and np.all(np.abs(np.array(shares) - 0.25) < 4 * np.sqrt(0.19 / count))


def test_a_shifted_level_is_noisier_by_its_part_of_u():
  """The weak branch is the network's own at lambda(u + shift), at most pure noise; without a shift
  there is no guidance.
  """
  for logsnr in (-19.9, -4.0, 0.5, 20.0):
    u = float(schedules.cosine_u(jnp.float32(logsnr)))
    noisier = schedules.cosine_logsnr(np.minimum(u + 0.1, 1.0), xp=np)
    cond, weak = (
      plain.wave_eps(plain.Z, jnp.full(3, level), plain.Y) for level in (logsnr, noisier)
    )
    got = estimate(rules.shifted_level(level_shift=0.1, **ENDS), w=2.0, logsnr=logsnr)
    np.testing.assert_allclose(got, 3 * cond - 2 * weak, atol=1e-3)
    got = estimate(rules.shifted_level(level_shift=0.0, **ENDS), w=2.0, logsnr=logsnr)
    np.testing.assert_allclose(got, cond, atol=1e-3)


def test_time_is_the_inverse_of_log_snr():
  """cosine_u undoes cosine_logsnr, at other ends too."""
  u = jnp.linspace(0, 1, 101)
  for ends in ({}, dict(logsnr_min=-8.0, logsnr_max=12.0)):
    back = schedules.cosine_u(schedules.cosine_logsnr(u, **ends), **ends)
    np.testing.assert_allclose(back, u, atol=2e-6)


@pytest.mark.parametrize("name", guidance.RAMPS)
def test_a_ramp_keeps_the_mean_of_w(name):
  """Its mean over u is 1; at each level the rule is the plain one of w times the ramp there."""
  ramp = guidance.RAMPS[name]
  p = jnp.linspace(0, 1, 1001)
  np.testing.assert_allclose(np.trapezoid(ramp(p), p), 1, atol=1e-5)
  rule = guidance.ramped(plain.PLAIN, ramp, logsnr_min=-20.0, logsnr_max=20.0)
  for u in (0.0, 0.3, 1.0):
    level = float(schedules.cosine_logsnr(np.float64(u), xp=np))
    want = estimate(plain.PLAIN, w=2.0 * float(ramp(jnp.float32(1 - u))), logsnr=level)
    np.testing.assert_allclose(estimate(rule, w=2.0, logsnr=level), want, atol=2e-4)
  if name == "constant":
    assert rule is plain.PLAIN
  else:
    assert ramp(jnp.float32(0)) == 0 and ramp(jnp.float32(1)) == 2


@pytest.mark.parametrize("k", [0.5, 1.5, 4.0])
def test_temporal_rescaling_is_exact_for_gaussians(k):
  """The rescaled estimate of N(m, s^2) is the exact one of N(m, s^2 / k)."""
  mean, std = gaussian.MU_C, gaussian.S_C
  rule = rules.temporal_rescaling(data_std=std)
  z = jnp.linspace(-2, 2, 9).reshape(9, 1, 1, 1)
  for logsnr in (-8.0, -1.0, 0.5, 3.0, 10.0):
    y = jnp.zeros(9, jnp.int32)
    got, _ = plain.apply(rule, gaussian.gaussian_eps, z=z, logsnr=logsnr, y=y, w=k - 1, keys=y)
    alpha, sigma = np.sqrt(gaussian.sig(logsnr)), np.sqrt(gaussian.sig(-logsnr))
    want = sigma * (z - alpha * mean) / (alpha**2 * std**2 / k + sigma**2)
    np.testing.assert_allclose(got.eps, want, rtol=2e-5, atol=1e-5)


def test_truncation_cuts_the_first_noise():
  """z_1 has the law of a normal number within the threshold, keeps its order and its sign, and is
  untouched where the strength is 0.
  """
  z = jax.random.normal(jax.random.key(9), (40_000, 1, 1, 1))
  start = rules.truncation().start
  for strength in (0.5, 1.0, 4.0):
    got = np.asarray(start(z, jnp.float32(strength)), np.float64).reshape(-1)
    law = scipy.stats.truncnorm(-1 / strength, 1 / strength)
    assert np.abs(got).max() <= 1 / strength
    assert scipy.stats.kstest(got, law.cdf).pvalue > 1e-3
    assert np.all(np.diff(got[np.argsort(np.asarray(z).reshape(-1))]) >= 0)
  np.testing.assert_array_equal(start(z, jnp.float32(0)), z)
  np.testing.assert_allclose(start(z, jnp.float32(0.1)), z, atol=1e-4)
  each = start(z[:2], jnp.float32([0.0, 1.0]))
  assert each[0] == z[0] and np.abs(each[1]) <= 1


def through_the_grid(rule, w, sampler):
  """20,000 scalar samples of the exact conditional Gaussian, T = 16."""
  return gaussian.draw(w, num_steps=16, sampler=sampler, rule=rule)


def test_shrunk_noise_follows_the_linear_recursion():
  """Each step's noise, and not z_1, has 1 / (1 + w) of its variance."""
  w, v = 1.5, 0.3
  x = through_the_grid(rules.shrunk_noise(), w, gaussian.ANCESTRAL[v])
  mean, var = gaussian.recursion(16, v, 0.0, temperature=1 / (1 + w))
  x = np.asarray(x, np.float64)
  assert abs(x.mean() - mean) < 4 * np.sqrt(var / len(x))
  assert abs(x.var(ddof=1) - var) < 4 * var * np.sqrt(2 / (len(x) - 1))


def test_truncation_reaches_the_samples():
  """DDIM is linear on Gaussian data: the samples' spread shrinks as z_1's does."""
  whole, cut = (through_the_grid(rules.truncation(), w, gaussian.DDIM) for w in (0.0, 1.0))
  ratio = np.std(cut) / np.std(whole)
  np.testing.assert_allclose(ratio, scipy.stats.truncnorm(-1, 1).std(), rtol=0.02)


def settings(**changes):
  """The digits' config with some fields changed."""
  config = digits.get_config()
  for name, value in changes.items():
    section, field = name.split("__")
    config[section][field] = value
  return config


@pytest.mark.parametrize(
  "changes, w, said",
  [
    (dict(guidance__rule="truncation"), 1.0, "forgets"),
    (dict(guidance__rule="truncation", sampler__name="ddim"), -0.5, "1/threshold >= 0"),
    (dict(guidance__rule="truncation", sampler__name="ddim", sampler__eta=0.5), 1.0, "forgets"),
    (dict(guidance__rule="shrunk_noise", sampler__name="ddim"), 1.0, "draws none"),
    (dict(guidance__rule="shrunk_noise", sampler__name="heun"), 1.0, "draws none"),
    (dict(guidance__rule="shrunk_noise", guidance__ramp="linear"), 1.0, "a ramp"),
    (dict(guidance__rule="shrunk_noise", guidance__logsnr_max=2.0), 1.0, "an interval"),
    (
      dict(guidance__rule="cfg_plus_plus", sampler__name="ddim", guidance__ramp="cosine"),
      1.0,
      "vary",
    ),
    (dict(guidance__rule="conditional"), 1.0, "does not guide"),
    (dict(guidance__ramp="quadratic"), 1.0, "linear"),
    (dict(guidance__rule="shifted_level", guidance__level_shift=2.0), 1.0, "level_shift"),
    (dict(sampler__name="ddim", sampler__eta=1.5), 1.0, "eta"),
  ],
)
def test_what_cannot_be_combined_is_refused(changes, w, said):
  """Before any work, in a sentence that names it."""
  with pytest.raises(UserError, match=said):
    checks.check(settings(**changes), [w])


@pytest.mark.parametrize("rule", ["random_label", "shifted_level", "temporal_rescaling"])
def test_rules_for_networks_without_a_null_label(rule):
  """They guide a conditional network, which the paper's rule cannot, and the refusal names them."""
  config = settings()
  config.model.class_rows = 10
  with pytest.raises(UserError, match="random_label.*shifted_level"):
    checks.check(config, [1.0])
  config.guidance.rule = rule
  checks.check(config, [1.0])
  config.model.class_rows = 0
  if rule == "random_label":
    with pytest.raises(UserError, match="unconditional"):
      checks.check(config, [1.0])


def test_only_the_chosen_rules_settings_count():
  """The power of a rule that is not in use changes no row; of the one in use it does."""
  facts = lambda **changes: program.facts(settings(**changes))
  assert facts(guidance__power=0.5) == facts()
  assert facts(guidance__rule="power_law", guidance__power=0.5) != facts(guidance__rule="power_law")
  assert facts(sampler__eta=0.5) == facts()
  assert facts(sampler__name="ddim", sampler__eta=0.5) != facts(sampler__name="ddim")
  assert facts(sampler__num_steps=8) != facts()
