"""Label dropout and the guided mix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion, guidance, limits, rules, sampling, schedules
from cfg.base import sharding
from cfg.inference import program

NULL = 2


@pytest.mark.smoke
def test_w_zero_is_the_conditional_model():
  """mix at w = 0 returns eps_cond bit for bit, with w traced."""
  cond, uncond = jax.random.normal(jax.random.key(0), (2, 1000)) * 30
  mixed = jax.jit(lambda w: guidance.mix(eps_cond=cond, eps_uncond=uncond, w=w))(jnp.float32(0))
  np.testing.assert_array_equal(mixed, cond)


def test_mix_is_affine_in_w():
  """Three strengths on a line: mix(1) is the mean of mix(0) and mix(2); the slope is eps_cond -
  eps_uncond.
  """
  cond, uncond = jax.random.normal(jax.random.key(1), (2, 1000))
  at = lambda w: guidance.mix(eps_cond=cond, eps_uncond=uncond, w=w)
  np.testing.assert_allclose(at(1.0), (at(0.0) + at(2.0)) / 2, atol=1e-5)
  np.testing.assert_allclose(at(1.0) - at(0.0), cond - uncond, atol=1e-5)


def dropped(mesh, count, p):
  """Which of `count` labels are dropped, computed over a mesh."""

  @functools.partial(jax.jit, in_shardings=sharding.batch_sharding(mesh))
  def run(index):
    keys = sampling.sample_keys(key=jax.random.key(3), index=index)
    return (
      guidance.drop_labels(
        keys=keys, y=jnp.ones(index.shape, jnp.int32), p_uncond=p, null_label=NULL
      )
      == NULL
    )

  return np.asarray(run(jnp.arange(count, dtype=jnp.uint32)))


def test_dropout_rate(mesh1):
  """Within 3 standard errors of p_uncond over 100,000 labels; never at 0, always at 1."""
  p, count = 0.1, 100_000
  assert abs(dropped(mesh1, count, p).mean() - p) < 3 * np.sqrt(p * (1 - p) / count)
  assert not dropped(mesh1, 1000, 0.0).any()
  assert dropped(mesh1, 1000, 1.0).all()


def test_the_same_rows_are_dropped_on_any_mesh(mesh1, mesh8):
  """1, 2 and 8 devices drop the same labels, some and not all."""
  one = dropped(mesh1, 4096, 0.2)
  assert 0 < one.sum() < one.size
  np.testing.assert_array_equal(dropped(sharding.make_mesh(jax.devices()[:2]), 4096, 0.2), one)
  np.testing.assert_array_equal(dropped(mesh8, 4096, 0.2), one)


def sample_keys(index):
  """What rules draw with, of these samples."""
  return sampling.sample_keys(key=jax.random.key(6), index=jnp.asarray(index, jnp.uint32))


def apply(rule, networks, *, z, logsnr, y, w, memory=None, keys=None):
  """(Guided, memory) of a rule at one level."""
  memory = rule.init(z, y) if memory is None else memory
  if not isinstance(networks, dict):
    networks = {guidance.MAIN: networks}
  keys = sample_keys(range(len(y))) if keys is None else keys
  return rule.apply(networks, w=w, y=y, keys=keys)(z, jnp.float32(logsnr), memory)


def wave_eps(z, logsnr, y):
  """A network that depends on every input."""
  assert z.shape[0] == logsnr.shape[0] == y.shape[0]
  level, label = diffusion.expand(logsnr, z), diffusion.expand(y.astype(jnp.float32), z)
  return jnp.sin(z * 3 + level) + 10.0 * label


Z = jax.random.normal(jax.random.key(4), (3, 2, 2, 1))
Y = jnp.int32([0, 1, 0])
PLAIN = guidance.classifier_free(null_label=NULL)


def two_calls(level):
  """(eps_cond, eps_uncond) of two separate calls."""
  logsnr = jnp.full(3, level)
  return wave_eps(Z, logsnr, Y), wave_eps(Z, logsnr, jnp.full_like(Y, NULL))


@pytest.mark.parametrize("w", [1.7, np.float32([0.0, 1.7, -0.5])])
def test_one_call_is_two_calls(w):
  """The interleaved call mixes two calls, with one w or one for each sample."""
  got, _ = apply(PLAIN, wave_eps, z=Z, logsnr=-1.0, y=Y, w=w)
  cond, uncond = two_calls(-1.0)
  column = np.broadcast_to(w, 3)[:, None, None, None]
  np.testing.assert_allclose(got.eps, (1 + column) * cond - column * uncond, atol=1e-4)
  gap = np.sum(np.square(cond - uncond), axis=(1, 2, 3))
  np.testing.assert_allclose(got.aux["gap"], gap, rtol=1e-5)


MEANS = jnp.array([[-1.0, 0.3], [0.8, -0.5]])
STDS = jnp.array([0.5, 0.9])
PRIOR = jnp.array([0.3, 0.7])


def log_p_given(z, logsnr, c):
  """log p(z_lambda | c) of x | c ~ N(mu_c, s_c^2 I), up to the constant that all classes share."""
  var = diffusion.alpha(logsnr) ** 2 * STDS[c] ** 2 + diffusion.sigma(logsnr) ** 2
  return -0.5 * jnp.sum(
    (z - diffusion.alpha(logsnr) * MEANS[c]) ** 2
  ) / var - 0.5 * z.size * jnp.log(var)


def exact_eps(z, logsnr, y):
  """Closed-form eps = -sigma grad log p, conditional or (null label) of the mixture;
  responsibilities by hand.
  """

  def one(z, logsnr, y):
    z = z.reshape(2)
    a, sig2 = diffusion.alpha(logsnr), diffusion.sigma(logsnr) ** 2
    var = a**2 * STDS**2 + sig2
    scores = -(z[None] - a * MEANS) / var[:, None]
    weight = jax.nn.softmax(jnp.log(PRIOR) + jnp.stack([log_p_given(z, logsnr, c) for c in (0, 1)]))
    score = jnp.where(y == NULL, (weight[:, None] * scores).sum(0), scores[jnp.minimum(y, 1)])
    return -diffusion.sigma(logsnr) * score.reshape(1, 1, 2)

  return jax.vmap(one)(z, logsnr, y)


@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_guided_eps_is_the_tilted_score(w):
  """The guided eps is -sigma grad_z log[ p(z|c) p(c|z)^w ] at each level, by autodiff."""

  def tilted(z, logsnr, c):
    joint = jnp.log(PRIOR) + jnp.stack([log_p_given(z, logsnr, k) for k in (0, 1)])
    return log_p_given(z, logsnr, c) + w * jax.nn.log_softmax(joint)[c]

  z = 1.5 * jax.random.normal(jax.random.key(5), (8, 1, 1, 2))
  y = jnp.arange(8, dtype=jnp.int32) % 2
  for level in (-4.0, -1.0, 0.0, 2.0, 4.0):
    logsnr = jnp.full((8,), level)
    got = apply(PLAIN, exact_eps, z=z, logsnr=level, y=y, w=w)[0].eps
    grad = jax.vmap(jax.grad(tilted))(z.reshape(8, 2), logsnr, y)
    want = -diffusion.sigma(jnp.float32(level)) * grad
    np.testing.assert_allclose(got.reshape(8, 2), want, atol=2e-4, rtol=1e-4)


RULES = {
  "classifier_free": PLAIN,
  "conditional": guidance.conditional(),
  "second_network": rules.second_network(role="guide"),
  "classifier": rules.classifier(role="guide"),
  "classifier_unconditional": rules.classifier_unconditional(role="guide", null_label=NULL),
  "cfg_plus_plus": rules.cfg_plus_plus(null_label=NULL),
  "projected": rules.projected(null_label=NULL, momentum=-0.5, norm_limit=2.0, parallel=0.0),
  "random_label": rules.random_label(num_classes=2),
  "shifted_level": rules.shifted_level(level_shift=0.1, schedule_min=-20.0, schedule_max=20.0),
  "power_law": rules.power_law(null_label=NULL, power=0.3),
  "scaled_score": rules.scaled_score(),
  "temporal_rescaling": rules.temporal_rescaling(data_std=0.5),
  "shrunk_noise": rules.shrunk_noise(),
  "truncation": rules.truncation(),
  "interval": guidance.interval(PLAIN, logsnr_min=-2.0, logsnr_max=3.0),
  "ramp": guidance.ramped(PLAIN, guidance.ramp_cosine, logsnr_min=-20.0, logsnr_max=20.0),
}


def test_every_rule_is_tested_here():
  """The table of rules and the one of this file agree."""
  assert RULES.keys() - {"interval", "ramp"} == rules.RULES.keys()


def quiet_eps(z, logsnr, y):
  """A second network, of another function."""
  return jnp.tanh(z) * diffusion.expand(logsnr, z) + 0.1 * diffusion.expand(
    y.astype(jnp.float32), z
  )


def wave_log_prob(z, logsnr, y):
  """A classifier of another function."""
  level, label = diffusion.expand(logsnr, z), diffusion.expand(y.astype(jnp.float32), z)
  return jnp.sum(jnp.cos(2 * z + 0.3 * level + label), axis=(1, 2, 3))


def networks_of(rule):
  """A network of the kind that each role of the rule asks for."""
  return {guidance.MAIN: wave_eps, "guide": wave_log_prob if rule.classifiers else quiet_eps}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_treats_each_sample_alone(name):
  """A sample's estimate is the same in another batch, whatever the strengths of the others."""
  w, networks = np.float32([0.5, 2.0, 1.0]), networks_of(RULES[name])
  got, _ = apply(RULES[name], networks, z=Z, logsnr=0.5, y=Y, w=w)
  one = dict(z=Z[1:2], y=Y[1:2], w=2.0, keys=sample_keys([1]))
  alone, _ = apply(RULES[name], networks, logsnr=0.5, **one)
  np.testing.assert_allclose(got.eps[1:2], alone.eps, atol=1e-5)


def run(rule, networks, *, w, sampler=None, num_steps=12, y=Y, limit=None, **grid):
  """2x2 samples of 3 keys through a whole grid, and what was measured."""
  keys = sampling.sample_keys(key=jax.random.key(2), index=jnp.arange(len(y), dtype=jnp.uint32))
  return sampling.sample(
    networks=networks if isinstance(networks, dict) else {guidance.MAIN: networks},
    rule=rule,
    sampler=sampler or sampling.ddim(),
    limit=limit or limits.no_limit(),
    keys=keys,
    y=y,
    w=w,
    logsnr=schedules.sampling_grid(num_steps=num_steps, **grid),
    image_shape=(1, 1, 2),
  )


def counting(networks, counts):
  """The networks, with a host callback that adds up the rows that each is called with."""

  def count(role, eps_fn):
    def counted(z, logsnr, y):
      add = lambda rows: counts.__setitem__(role, counts.get(role, 0) + int(rows))
      jax.debug.callback(add, jnp.float32(z.shape[0]))
      return eps_fn(z, logsnr, y)

    return counted

  return {role: count(role, eps_fn) for role, eps_fn in networks.items()}


@pytest.mark.parametrize("sampler", [sampling.ddim(), sampling.heun()], ids=["ddim", "heun"])
@pytest.mark.parametrize("name", RULES)
def test_calls_are_what_a_callback_counts(name, sampler):
  """nfe, from the rule's calls at the sampler's levels, is what the host sees, skips included."""
  counts, num_steps = {}, 9
  networks = counting(networks_of(RULES[name]), counts)
  run(RULES[name], networks, w=1.5, sampler=sampler, num_steps=num_steps)
  jax.effects_barrier()
  grid = np.float32(schedules.sampling_grid(num_steps=num_steps))
  drawn = program.Program(RULES[name], sampler, grid, limits.no_limit(), (1, 1, 2), {})
  assert {role: rows / len(Y) for role, rows in counts.items()} == program.nfe(drawn)


def test_an_interval_guides_inside_alone():
  """Plain guidance where low <= logsnr < high, the conditional model elsewhere; no ends, plain."""
  rule = RULES["interval"]
  for level, inside in ((-2.1, False), (-2.0, True), (2.9, True), (3.0, False)):
    got, _ = apply(rule, wave_eps, z=Z, logsnr=level, y=Y, w=2.0)
    want, _ = apply(PLAIN if inside else rule.unguided, wave_eps, z=Z, logsnr=level, y=Y, w=2.0)
    np.testing.assert_allclose(got.eps, want.eps, atol=1e-5)
    assert np.all(np.asarray(got.aux["gap"]) > 0) == inside
    assert rule.calls(level) == {guidance.MAIN: 2 if inside else 1}
  everywhere = guidance.interval(PLAIN, logsnr_min=None, logsnr_max=None)
  plain, _ = run(PLAIN, exact_eps, w=1.0)
  np.testing.assert_allclose(run(everywhere, exact_eps, w=1.0)[0], plain, atol=1e-5)
  assert everywhere.calls(20.0) == {guidance.MAIN: 2}
  for wrong in (guidance.conditional(), RULES["cfg_plus_plus"]):
    with pytest.raises(ValueError, match="no unguided form"):
      guidance.interval(wrong, logsnr_min=0.0, logsnr_max=None)
  with pytest.raises(ValueError, match="empty"):
    guidance.interval(PLAIN, logsnr_min=1.0, logsnr_max=1.0)


@pytest.mark.parametrize("strength", [0.0, 0.3, 0.8])
def test_cfg_plus_plus_is_ddim_of_another_strength_at_each_step(strength):
  """A DDIM step with lambda is one of w = lambda / (1 - e^(-(l'-l)/2)) - 1, unclipped."""
  grid = np.float32(schedules.sampling_grid(num_steps=9, logsnr_min=-6.0, logsnr_max=6.0))
  z = jax.random.normal(jax.random.key(7), (3, 1, 1, 2))
  for t, s in zip(grid[:-1], grid[1:]):
    plain = ddim_step(PLAIN, strength / -np.expm1(-(s - t) / 2) - 1, z, t, s)
    z = ddim_step(RULES["cfg_plus_plus"], strength, z, t, s)
    np.testing.assert_allclose(z, plain, atol=2e-5)
  assert RULES["cfg_plus_plus"].strength == "lambda"


def ddim_step(rule, w, z, t, s):
  """One DDIM step of a rule on the exact mixture, unclipped."""
  guided = rule.apply({guidance.MAIN: exact_eps}, w=w, y=Y, keys=None)
  denoise = sampling.make_denoise(guided, limit=limits.no_limit())
  levels = dict(logsnr_t=jnp.float32(t), logsnr_s=jnp.float32(s), noise=None, last=False)
  return sampling.ddim().step(denoise, z, (), (), **levels)[0]


def test_a_second_network_takes_the_place_of_the_null_label():
  """Guided by the unconditional model as a network of its own, samples are the null label's."""
  unconditional = lambda z, logsnr, y: exact_eps(z, logsnr, jnp.full_like(y, NULL))
  two, _ = run(RULES["second_network"], {guidance.MAIN: exact_eps, "guide": unconditional}, w=1.5)
  np.testing.assert_allclose(two, run(PLAIN, exact_eps, w=1.5)[0], atol=1e-4)


@jax.vmap
def exact_log_prob(z, logsnr, y):
  """log p(y | z_lambda) of the mixture, in closed form."""
  joint = [log_p_given(z.reshape(2), logsnr, c) for c in (0, 1)]
  return jax.nn.log_softmax(jnp.log(PRIOR) + jnp.stack(joint))[y]


EXACT = {guidance.MAIN: exact_eps, "guide": exact_log_prob}


@pytest.mark.parametrize("name", ["classifier", "classifier_unconditional"])
@pytest.mark.parametrize("w", [0.0, 0.5, 3.0])
def test_an_exact_classifier_guides_as_the_null_label_does(name, w):
  """With p(y|z) of the mixture, on the conditional or the unconditional model: the estimate and the
  gap of classifier-free guidance, to rounding, at each level.
  """
  z = 1.5 * jax.random.normal(jax.random.key(5), (8, 1, 1, 2))
  y = jnp.arange(8, dtype=jnp.int32) % 2
  for level in (-4.0, -1.0, 0.0, 2.0, 4.0):
    want, _ = apply(PLAIN, exact_eps, z=z, logsnr=level, y=y, w=w)
    got, _ = apply(RULES[name], EXACT, z=z, logsnr=level, y=y, w=w)
    np.testing.assert_allclose(got.eps, want.eps, atol=2e-5)
    np.testing.assert_allclose(got.aux["gap"], want.aux["gap"], atol=1e-5, rtol=1e-4)


def test_a_classifier_at_w_zero_is_the_conditional_model():
  """Bit for bit, with w traced, whatever the classifier says; the unconditional form at w = -1 is
  the null label's.
  """
  networks = networks_of(RULES["classifier"])
  at = jax.jit(
    lambda w, name, y: apply(RULES[name], networks, z=Z, logsnr=0.5, y=y, w=w)[0].eps,
    static_argnames="name",
  )
  plain = jax.jit(lambda y: apply(RULES["conditional"], networks, z=Z, logsnr=0.5, y=y, w=0)[0].eps)
  np.testing.assert_array_equal(at(jnp.float32(0), "classifier", Y), plain(Y))
  null = plain(jnp.full_like(Y, NULL))
  np.testing.assert_array_equal(at(jnp.float32(-1), "classifier_unconditional", Y), null)


def test_projection_leaves_out_the_parallel_part_and_keeps_momentum():
  """The update of x_hat is orthogonal to x_cond, at most w times the limit, and remembers."""
  rule = rules.projected(null_label=NULL, momentum=-0.5, norm_limit=0.3, parallel=0.0)
  x_of = lambda eps: diffusion.x_from_eps(z=Z, eps=eps, logsnr=0.5)
  cond, uncond = two_calls(0.5)
  got, memory = apply(rule, wave_eps, z=Z, logsnr=0.5, y=Y, w=2.0)
  update = np.asarray(x_of(got.eps) - x_of(cond)).reshape(3, -1)
  across = np.sum(update * np.asarray(x_of(cond)).reshape(3, -1), axis=1)
  np.testing.assert_allclose(across, 0, atol=1e-4)
  norms = np.linalg.norm(update, axis=1)
  assert np.all(norms <= 2 * 0.3 + 1e-4) and norms.max() > 0.01
  # the whole of it, where it is longer than the limit, is as long as the limit
  short = rules.projected(null_label=NULL, norm_limit=0.3)
  whole = x_of(apply(short, wave_eps, z=Z, logsnr=0.5, y=Y, w=2.0)[0].eps) - x_of(cond)
  np.testing.assert_allclose(np.linalg.norm(np.reshape(whole, (3, -1)), axis=1), 0.6, rtol=1e-4)
  gap = x_of(cond) - x_of(uncond)
  np.testing.assert_allclose(memory, gap, rtol=1e-4, atol=1e-5)
  _, memory = apply(rule, wave_eps, z=Z, logsnr=0.5, y=Y, w=2.0, memory=memory)
  np.testing.assert_allclose(memory, 0.5 * gap, rtol=1e-4, atol=1e-5)


def test_of_heuns_two_calls_the_first_keeps_the_rules_memory():
  """A rule that counts its calls counts one a step, and both calls of a step see the same count."""
  levels = []

  def apply_count(networks, *, w, y, keys):
    def guided(z, logsnr, memory):
      jax.debug.callback(lambda n, level: levels.append((int(n), float(level))), memory, logsnr)
      eps = networks[guidance.MAIN](z, jnp.full(z.shape[:1], logsnr), y)
      return guidance.Guided(eps, aux={"calls": jnp.full(z.shape[:1], memory)}), memory + 1

    return guided

  rule = guidance.Rule(lambda z, y: jnp.int32(0), apply_count, lambda logsnr: {guidance.MAIN: 1})
  _, aux = run(rule, exact_eps, w=0.0, sampler=sampling.heun(), num_steps=4)
  jax.effects_barrier()
  np.testing.assert_array_equal(aux["calls"], np.arange(4)[:, None] * np.ones((1, 3)))
  assert sorted(n for n, _ in levels) == [0, 0, 1, 1, 2, 2, 3]


def test_rules_that_draw_have_keys_of_the_sample_and_the_step():
  """What a rule draws differs from step to step and sample to sample, not with the batch."""

  def apply_draw(networks, *, w, y, keys):
    def guided(z, logsnr, memory):
      drawn = jax.vmap(jax.random.uniform)(keys)
      return guidance.Guided(jnp.zeros_like(z), aux={"drawn": drawn}), memory

    return guided

  rule = guidance.Rule(lambda z, y: (), apply_draw, lambda logsnr: {})
  _, aux = run(rule, {}, w=0.0, num_steps=5)
  drawn = np.asarray(aux["drawn"])
  assert drawn.shape == (5, 3) and len(np.unique(drawn)) == 15
  _, aux = run(rule, {}, w=0.0, num_steps=5, y=Y[:2])
  np.testing.assert_array_equal(aux["drawn"], drawn[:, :2])
