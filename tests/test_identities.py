"""What holds for every rule, with every sampler: neutral strengths, lines in w, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import test_guidance as plain
from test_guidance import NULL, RULES, Y, Z, networks_of
from test_rules import settings

from cfg import guidance, limits, rules, sampling
from cfg.base.errors import UserError
from cfg.inference import checks
from cfg.sampling import Estimate

CHURN = dict(churn=2.0, num_levels=4)
SAMPLERS = {
  "ancestral": (sampling.ancestral(var_interp=0.3), dict(var_interp=0.3)),
  "ddim": (sampling.ddim(), {}),
  "ddim, eta": (sampling.ddim(eta=0.5), dict(eta=0.5)),
  "heun": (sampling.heun(), {}),
  "heun, churn": (sampling.heun(**CHURN), dict(churn=2.0)),
  "dpm_solver_pp_2m": (sampling.dpm_solver_pp_2m(), {}),
  "dpm_solver_pp_2m, eta": (sampling.dpm_solver_pp_2m(eta=1.0), dict(eta=1.0)),
}
# the strength at which a rule without an unguided form is the unconditional model
UNCONDITIONAL = {"cfg_plus_plus": 0.0, "classifier_unconditional": -1.0}
LEVELS = (-19.0, -2.0, 3.0)
WALK = np.float32([-3.0, 0.0, 4.0, 5.0])
NOISES = jax.random.normal(jax.random.key(11), (3, *Z.shape))
KEYS = [plain.sample_keys(range(i, i + 3)) for i in (0, 3, 6)]
CONDITIONAL = guidance.conditional()


@pytest.fixture(autouse=True)
def keys_unchecked():
  """Nothing here uses up a key; to look for reuse takes half the time, op by op."""
  with jax.debug_key_reuse(False):
    yield


def eps_of(rule, *, w, logsnr=0.5, y=Y, memory=None):
  """The estimate of a rule on networks that depend on every input."""
  arguments = dict(z=Z, y=y, logsnr=logsnr, w=w, memory=memory)
  with jax.disable_jit():  # op by op, so that a compiler rounds nothing in its own way
    return np.asarray(plain.apply(rule, networks_of(rule), **arguments)[0].eps)


def acts_on_the_estimate(rule):
  """Whether the estimate is the conditional model's at strength 0, and another one at 1.5."""
  still = eps_of(CONDITIONAL, w=0.0)
  return np.array_equal(eps_of(rule, w=0.0), still) and np.any(eps_of(rule, w=1.5) != still)


def test_the_samplers_are_those_of_the_table():
  """None is left out here."""
  assert {name.split(",")[0] for name in SAMPLERS} == sampling.SAMPLERS.keys()


@pytest.mark.parametrize("name", RULES)
def test_a_neutral_strength_changes_nothing_at_any_level(name):
  """At w = 0 the conditional model's estimate and noise, bit for bit, with one w or one for each
  sample; a rule that has no such strength is the unconditional model at another.
  """
  rule, y = RULES[name], Y
  if name in UNCONDITIONAL:
    assert rule.unguided is None and not acts_on_the_estimate(rule)
    y = jnp.full_like(Y, NULL)
  else:
    assert rule is RULES["conditional"] or sum(rule.unguided.calls(0.5).values()) == 1
  for logsnr in LEVELS:
    want = eps_of(CONDITIONAL, w=0.0, logsnr=logsnr, y=y)
    for w in (UNCONDITIONAL.get(name, 0.0) * factor for factor in (1.0, np.ones(3, np.float32))):
      np.testing.assert_array_equal(eps_of(rule, w=w, logsnr=logsnr), want)
  for change in (rule.start, rule.noise):
    if change is not None:
      np.testing.assert_array_equal(change(Z, jnp.float32(0)), Z)
      assert np.all(np.asarray(change(Z, jnp.float32(1.5))) != Z)


@pytest.mark.parametrize("name", RULES)
def test_the_least_strength_means_something(name):
  """Finite at every level; of the paper's rule and CFG++ the unconditional model, bit for bit, and
  of a second network its own estimate: below it lies what no branch says.
  """
  rule = RULES[name]
  for logsnr in (-20.0, 0.5, 20.0):
    got = eps_of(rule, w=np.float32(rule.least), logsnr=logsnr)
    assert np.isfinite(got).all()
    if name in ("classifier_free", *UNCONDITIONAL):
      null = jnp.full_like(Y, NULL)
      np.testing.assert_array_equal(got, eps_of(CONDITIONAL, w=0.0, logsnr=logsnr, y=null))
    if name == "second_network":
      np.testing.assert_array_equal(got, plain.quiet_eps(Z, jnp.full(3, logsnr), Y))


@pytest.mark.parametrize("name", rules.RULES)
def test_an_interval_and_a_ramp_go_round_every_rule_that_acts_on_the_estimate(name):
  """Bit for bit: the rule itself inside of an interval and in one without ends, the conditional
  model outside; under a ramp the rule of that level's strength, and the conditional model at 0.
  Others are refused, by name and in a config.
  """
  rule = RULES[name]
  ends = dict(logsnr_min=-20.0, logsnr_max=20.0)
  for changes in (dict(guidance__ramp="linear"), dict(guidance__logsnr_min=0.0)):
    config = settings(guidance__rule=name, sampler__name="ddim", **changes)
    config.guidance.guide = "elsewhere" if "guide" in rule.calls(0.5) else ""
    config.sampler.eta = 0.0 if rule.start else 0.5  # what the rule alone needs
    if acts_on_the_estimate(rule):
      checks.check(config, [0.5, -0.5])
      if config.guidance.ramp == "linear":
        with pytest.raises(UserError, match=">= -0.5"):
          checks.check(config, [-0.6])
    else:
      with pytest.raises(UserError, match=f"{name}'"):
        checks.check(config, [0.0])
  if not acts_on_the_estimate(rule):
    for ramp in (guidance.ramp_linear, guidance.ramp_cosine):
      with pytest.raises(ValueError):
        guidance.ramped(rule, ramp, **ends)
    with pytest.raises(ValueError):
      guidance.interval(rule, logsnr_min=0.0, logsnr_max=None)
    return
  inside = guidance.interval(rule, logsnr_min=-2.0, logsnr_max=3.0)
  everywhere = guidance.interval(rule, logsnr_min=None, logsnr_max=None)
  w = np.float32([0.7, -0.4, 2.0])
  for logsnr in LEVELS:
    at = dict(logsnr=logsnr, w=w)
    guided = eps_of(rule, **at)
    np.testing.assert_array_equal(eps_of(everywhere, **at), guided)
    want = guided if -2 <= logsnr < 3 else eps_of(CONDITIONAL, **at)
    np.testing.assert_array_equal(eps_of(inside, **at), want)
  for ramp in (guidance.ramp_linear, guidance.ramp_cosine):
    wrapped = guidance.ramped(rule, ramp, **ends)
    assert wrapped.least == rule.least / 2  # their end is at twice the strength
    np.testing.assert_array_equal(eps_of(wrapped, w=0.0), eps_of(CONDITIONAL, w=0.0))
    # at u = 1/2 the log-SNR is 0, and both ramps are 1
    np.testing.assert_allclose(
      eps_of(wrapped, w=w, logsnr=0.0), eps_of(rule, w=w, logsnr=0.0), atol=1e-4
    )
    # in pure noise they are 0, to the rounding of u
    np.testing.assert_allclose(
      eps_of(wrapped, w=w, logsnr=-20.0), eps_of(CONDITIONAL, w=w, logsnr=-20.0), atol=2e-3
    )


@pytest.mark.parametrize("name", RULES)
def test_what_is_affine_in_w(name):
  """A line through the estimates at w = 0 and 1 holds those at other strengths, lambda of CFG++
  too; temporal rescaling is no line, nor are temperatures of the noise.
  """
  rule = RULES[name]
  memory = jax.tree.map(lambda a: a + 0.3, rule.init(Z, Y))
  at = lambda w: eps_of(rule, w=w, memory=memory).astype(np.float64)
  start, slope = at(0.0), at(1.0) - at(0.0)
  far = max(np.abs(at(w) - start - w * slope).max() for w in (-0.7, 0.25, 2.0, 3.5))
  # rounding in f32 of 3.5 times a slope that was itself a difference
  rounding = 2e-6 * max(np.abs(at(3.5)).max(), 3.5 * np.abs(slope).max(), np.abs(start).max())
  assert (far < rounding) == (name != "temporal_rescaling"), (far, rounding)
  for change in (rule.start, rule.noise):
    if change is not None:
      zero, one, two = (np.asarray(change(Z, jnp.float32(w))) for w in (0.0, 1.0, 2.0))
      assert np.abs(zero - 2 * one + two).max() > 0.05


def step_of(sampler, *, eps=0.1, noise=0.5):
  """z_s of a step, given what the denoiser says the noise is and what is drawn."""
  denoise = lambda z, logsnr, memory: (Estimate(0.3 * z, eps * z, {}), memory)
  levels = dict(logsnr_t=jnp.float32(-1), logsnr_s=jnp.float32(1), last=True)
  return sampler.step(denoise, Z, sampler.init(Z), (), noise=noise * jnp.ones_like(Z), **levels)[0]


def walk(rule, sampler, networks, *, w, y=Y, z=Z):
  """x_hat at the last of three levels, the second inside of RULES["interval"]."""
  z = z if rule.start is None else rule.start(z, w)
  memory, rule_memory = sampler.init(z), rule.init(z, y)
  for i in range(3):
    guided = rule.apply(networks, w=w, y=y, keys=KEYS[i])
    denoise = sampling.make_denoise(guided, limit=limits.no_limit())
    noise = NOISES[i].reshape(-1)[: z.size].reshape(z.shape)
    z, x_hat, memory, rule_memory, _ = sampler.step(
      denoise,
      z,
      memory,
      rule_memory,
      logsnr_t=WALK[i],
      logsnr_s=WALK[i + 1],
      noise=noise if rule.noise is None else rule.noise(noise, w),
      last=i == 2,
    )
  return np.asarray(x_hat)


@pytest.mark.parametrize("which", SAMPLERS)
def test_every_rule_goes_with_every_sampler_that_it_can(which):
  """It is refused exactly where the sampler would ignore what the rule decides. Elsewhere samples
  of the neutral strength are the conditional model's (or the unconditional one's), bit for bit,
  beside others that are guided.
  """
  sampler, fields = SAMPLERS[which]
  reads_eps = np.any(step_of(sampler) != step_of(sampler, eps=0.7))
  draws = np.any(step_of(sampler) != step_of(sampler, noise=-0.5))
  assert (sampler.reads_eps, sampler.stochastic) == (reads_eps, draws)
  w = np.float32([0, 0, 1])
  ran = 0
  with jax.disable_jit():
    still = walk(CONDITIONAL, sampler, {guidance.MAIN: plain.wave_eps}, w=w)
    null = jnp.full_like(Y, NULL)
    unconditional = walk(CONDITIONAL, sampler, {guidance.MAIN: plain.wave_eps}, w=w, y=null)
    for name, rule in RULES.items():
      sets_eps = plain.apply(rule, networks_of(rule), z=Z, logsnr=0.5, y=Y, w=1.0)[0].renoise
      able = (reads_eps or sets_eps is None) and not (rule.start and draws)
      able = able and not (rule.noise and not draws)
      if name in rules.RULES:
        config = settings(guidance__rule=name, sampler__name=which.split(",")[0])
        config.sampler.update(fields)
        config.guidance.guide = "elsewhere" if "guide" in rule.calls(0.5) else ""
        try:
          checks.check(config, [0.0 if name == "conditional" else 0.5])
        except UserError as e:
          assert not able, (name, e)
          assert f"{name!r}" in str(e) and repr(config.sampler.name) in str(e)
          continue
        assert able, name
      strength = w - 1 if name == "classifier_unconditional" else w
      x = walk(rule, sampler, networks_of(rule), w=strength)
      want = unconditional if name in UNCONDITIONAL else still
      # a rule that gives the noise spares the rounding of taking it from x_hat
      rtol = 1e-5 if rule.sets_renoise else 0
      np.testing.assert_allclose(x[:2], want[:2], rtol=rtol, err_msg=name)
      assert np.isfinite(x).all()
      assert np.any(x[2] != want[2]) == (name != "conditional"), name
      ran += 1
  assert ran == len(RULES) - (not reads_eps) - 1  # one of truncation and shrunk_noise never can


def test_other_ways_to_write_the_papers_rule():
  """Bit for bit: an unconditional model as a network of its own, a projection that leaves nothing
  out and keeps no momentum, and a power of 0.
  """
  unconditional = lambda z, logsnr, y: plain.wave_eps(z, logsnr, jnp.full_like(y, NULL))
  networks = {guidance.MAIN: plain.wave_eps, "guide": unconditional}
  neutral = (
    RULES["second_network"],
    rules.projected(null_label=NULL),
    rules.power_law(null_label=NULL, power=0.0),
  )
  with jax.disable_jit():
    for logsnr in LEVELS:
      at = dict(z=Z, y=Y, logsnr=logsnr, w=np.float32([1.7, -0.4, 6.0]))
      want, _ = plain.apply(plain.PLAIN, networks, **at)
      for rule in neutral:
        got, _ = plain.apply(rule, networks, **at)
        np.testing.assert_array_equal(got.eps, want.eps)
        np.testing.assert_array_equal(got.aux["gap"], want.aux["gap"])


def test_churn_outside_of_its_levels_is_plain_heun():
  """Bit for bit, whatever is drawn."""
  for ends in (dict(churn_logsnr_min=0.0), dict(churn_logsnr_max=-2.0)):
    churned = sampling.heun(**CHURN, **ends)
    np.testing.assert_array_equal(step_of(churned, noise=3.0), step_of(sampling.heun()))
