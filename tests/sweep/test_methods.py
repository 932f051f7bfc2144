"""A sweep of several methods: what each is, at how many evaluations, and what is refused."""

import numpy as np
import pytest

from cfg.base import config as config_lib
from cfg.base import fields
from cfg.base.errors import UserError
from cfg.inference import checks, program
from cfg.sweep import run, variant
from configs import digits as digits_config
from configs import digits_methods


def config_with(**methods):
  config = digits_config.get_config()
  config.methods = methods
  config.sweep.methods = tuple(methods)
  return config


def test_a_method_sets_its_fields_and_leaves_the_others():
  """Each is the config with its own fields, in their order; without methods it is the config."""
  config = config_with(
    plain={},
    interval=dict(guidance=dict(logsnr_max=1.0), sweep=dict(w=(0.5, 2.0))),
    ddim=dict(sampler=dict(name="ddim", num_steps=8)),
  )
  drawn = dict(variant.combinations(config))
  assert list(drawn) == ["plain", "interval", "ddim"]
  assert drawn["plain"].sampler == config.sampler and drawn["plain"].guidance == config.guidance
  assert drawn["interval"].guidance.logsnr_max == 1.0 and drawn["interval"].sweep.w == (0.5, 2.0)
  assert drawn["interval"].sampler == config.sampler
  assert (drawn["ddim"].sampler.name, drawn["ddim"].sampler.num_steps) == ("ddim", 8)
  assert drawn["ddim"].sweep.w == config.sweep.w and config.sampler.name == "ancestral"
  assert [name for name, _ in variant.combinations(digits_config.get_config())] == [""]


def test_checkpoints_of_one_guide_are_two_methods():
  """They differ in the guide's step alone, which is no fact of the sampler."""
  weak = lambda step: dict(guidance=dict(rule="second_network", guide="runs/a", guide_step=step))
  drawn = list(variant.combinations(config_with(early=weak(1), late=weak(2))))
  assert [name for name, _ in drawn] == ["early", "late"]
  with pytest.raises(UserError, match="'late' and 'same', which draw the same"):
    list(variant.combinations(config_with(early=weak(1), late=weak(2), same=weak(2))))


@pytest.mark.parametrize("method", digits_methods.get_config().methods)
def test_every_method_has_its_evaluations(method):
  """As many steps as a guided sample of 64 evaluations has, and not one more: the plain rule 32, a
  rule of one branch 64, an interval something between.
  """
  config = dict(variant.combinations(digits_methods.get_config()))[method]
  config = checks.with_some_interval(config)  # the whole range, where the meter is to give one
  fitting = variant.within_budget(config)

  def evaluations(config):
    drawing = program.from_config(config, image_shape=(1, 1, 1), null_label=0, networks={})
    return sum(program.nfe(drawing).values())

  assert 62 <= evaluations(fitting) <= 64
  fitting.sampler.num_steps += 1
  assert evaluations(fitting) > 64
  expected = {"classifier_free": 32, "low_temperature": 64, "truncation_ddim": 64}
  assert fitting.sampler.num_steps - 1 == expected.get(method, fitting.sampler.num_steps - 1)


def test_a_budget_of_flops():
  """A gradient that costs three evaluations leaves half the steps of one that costs as much; the
  tighter of two limits holds; a limit that no two steps keep is named.
  """
  config = dict(variant.combinations(digits_methods.get_config()))["classifier"]
  steps = lambda flops: variant.within_budget(config, flops).sampler.num_steps
  config.sweep.update(evaluations=None, gflops=64e-9)
  assert steps({"main": 1, "guide": 1}) == 32 and steps({"main": 1, "guide": 3}) == 16
  assert steps({"main": 2, "guide": 2}) == 16 and steps(None) == config.sampler.num_steps
  config.sweep.evaluations = 20
  assert steps({"main": 1, "guide": 1}) == 10 and steps({"main": 1, "guide": 9}) == 6
  with pytest.raises(UserError, match="sweep.gflops is 6.4e-08: two steps"):
    steps({"main": 1, "guide": 32})
  with pytest.raises(UserError, match="sweep.gflops is"):
    steps({"main": 100, "guide": 100})


def test_the_methods_of_the_digits_can_be_swept(digits, mesh1):
  """Every one passes the checks that come before any work."""
  settings = run.check(digits_methods.get_config(), dataset=digits, mesh=mesh1)
  assert settings.num_samples == 1500 and len(settings.methods) == 8


@pytest.mark.parametrize(
  "method, word",
  [
    (dict(train=dict(num_steps=1)), r"methods.other sets 'train.num_steps'"),
    (dict(sampler=dict(nmae="ddim")), "did you mean 'sampler.name'"),
    (dict(sweep=dict(seed=1)), "sets 'sweep.seed'"),
    (3, "sets no field"),
    (dict(sampler=dict(num_steps=1)), "methods.other.sampler.num_steps is 1"),
    (dict(sweep=dict(w=())), r"methods.other.sweep.w is \(\)"),
  ],
)
def test_what_no_method_is_is_refused(method, word):
  """By name, with what would do."""
  with pytest.raises(UserError, match=word):
    config_lib.check_values(config_with(plain={}, other=method))


def test_names_of_methods_are_words():
  """The command line could not set a field of any other; and a name must be there."""
  config = digits_config.get_config()
  config.methods = {"two words": dict(sampler=dict(name="ddim"))}
  with pytest.raises(UserError, match="'two words'"):
    config_lib.check_values(config)
  config = config_with(plain=dict(sampler=dict(name="ddim")))
  config.sweep.methods = ("plian",)
  with pytest.raises(UserError, match="'plian'.* did you mean 'plain'"):
    config_lib.check_values(config)


def test_paths_of_methods_are_those_that_are_meant(monkeypatch):
  """A guide of a method may begin with ~, as that of the section."""
  monkeypatch.setenv("HOME", "/home/someone")
  config = config_with(weak=dict(guidance=dict(guide="~/runs/weak")))
  fields.expand_paths(config)
  assert config.methods.weak.guidance.guide == "/home/someone/runs/weak"


def test_steps_given_twice_are_refused(digits, mesh1):
  """Evaluations and an axis of steps; and evaluations of which none are enough."""
  config = digits_config.get_config()
  config.sweep.update(evaluations=64, num_steps=(8, 16))
  with pytest.raises(UserError, match="both say how many steps"):
    run.check(config, dataset=digits, mesh=mesh1)
  config.sweep.update(evaluations=3, num_steps=())
  with pytest.raises(UserError, match="sweep.evaluations is 3"):
    run.check(config, dataset=digits, mesh=mesh1)


def test_strengths_of_a_method_are_checked_as_those_of_a_sweep(digits, mesh1):
  """Of each method, by its name."""
  config = config_with(plain={}, cut=dict(guidance=dict(rule="truncation")))
  with pytest.raises(UserError, match="truncation"):
    run.check(config, dataset=digits, mesh=mesh1)
  config = config_with(low=dict(sweep=dict(w=(1.0, np.float64(1.0)))))
  with pytest.raises(UserError, match="methods.low.sweep.w is .* distinct"):
    run.check(config, dataset=digits, mesh=mesh1)
