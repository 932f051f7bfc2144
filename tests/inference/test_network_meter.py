"""The meter of networks: exact ones, on any devices, and what is kept of it."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfg import diffusion
from cfg.base import sharding
from cfg.base.errors import UserError
from cfg.data import sources
from cfg.guidance import MAIN
from cfg.inference import checks, meter, network, program
from cfg.inference.program import GUIDE
from cfg.metrics import meter as meter_numbers
from cfg.models import unet
from cfg.training import loop

# two classes of two images each, of two pixels, one image in common: the label is worth half a bit
PICTURES = np.array([[[0, 0], [255, 128]], [[255, 128], [0, 255]]], np.uint8)
NULL, PARTS = 2, 24


class Exact:
  """The networks of data that are those four images, each as often as the others of its class."""

  x = jnp.float32(PICTURES / 127.5 - 1)

  def log_p(self, z, logsnr):
    """[B,2,2]: log p(z | image) up to what all have in common."""
    alpha, var = diffusion.alpha(logsnr), diffusion.sigma(logsnr) ** 2
    offset = z.reshape(-1, 1, 1, 2) - alpha[:, None, None, None] * self.x[None]
    return -0.5 * jnp.sum(offset**2, axis=3) / var[:, None, None]

  def eps_fn(self, params, z, logsnr, y):
    """E[eps | z, y]; without a label if it is NULL. `params` is a factor."""
    log_p = self.log_p(z, logsnr)
    own = (jnp.arange(2)[None] == y[:, None]) | (y[:, None] == NULL)
    log_p = jnp.where(own[:, :, None], log_p, -jnp.inf)
    weight = jax.nn.softmax(log_p.reshape(-1, 4), axis=1)
    x = (weight @ self.x.reshape(4, 2)).reshape(z.shape)
    return params * diffusion.eps_from_x(z=z, x=x, logsnr=logsnr)

  def log_prob_fn(self, params, z, logsnr, y):
    """log p(y | z), times `params`."""
    log_p = jax.nn.logsumexp(self.log_p(z, logsnr), axis=2)
    chosen = jnp.take_along_axis(jax.nn.log_softmax(log_p, axis=1), y[:, None], axis=1)
    return params * chosen[:, 0]


EXACT = Exact()
EPS = lambda params: functools.partial(EXACT.eps_fn, params)
LOG_PROB = lambda params: functools.partial(EXACT.log_prob_fn, params)


@pytest.fixture(scope="module")
def pictures(digits):
  """A data set whose held-out images are those, 60 of each."""
  y = np.repeat([0, 1], 120)
  images = PICTURES.reshape(4, 2)[np.repeat(np.arange(4), 60)].reshape(-1, 1, 2, 1)
  return dataclasses.replace(digits, heldout=sources.ArraySource(images, y.astype(np.int32)))


def measurement(measure, dataset, mesh, config, **settings):
  config.meter.update(num_images=0, num_levels=PARTS, **settings)
  edges = meter.level_edges(config.schedule, PARTS)
  return meter.Measurement(measure, edges=edges, settings=config.meter, dataset=dataset, mesh=mesh)


BRANCHES = functools.partial(meter.branch_numbers, function=EPS, null_label=NULL)


def test_exact_networks_measure_the_information(pictures, mesh1, config):
  """M1 = M2 = log(2) / 2 within 3 standard errors, which are small: the whole range is covered."""
  numbers, y = measurement(BRANCHES, pictures, mesh1, config)(jnp.float32(1))
  assert numbers.shape == (240, PARTS, 2)
  np.testing.assert_array_equal(y, np.repeat([0, 1], 120))
  edges = meter.level_edges(config.schedule, PARTS)
  assert (edges[0], edges[-1]) == (-14, 14)
  summary = meter_numbers.summarise(
    gap=numbers[..., 0], advantage=numbers[..., 1], edges=edges, y=y
  )
  for name in ("M1", "M2"):
    assert summary[f"{name}_err"] < 0.06
    assert abs(summary[name] - np.log(2) / 2) < 3 * summary[f"{name}_err"]
  assert summary["M1_by_level"][2] < 0.01  # nothing is seen in noise


def test_the_same_on_any_devices_and_in_any_batch(pictures, mesh1, mesh8, config):
  """Every number, of every image and part; another seed draws others."""
  mesh2 = sharding.make_mesh(jax.devices()[:2])
  few = dataclasses.replace(
    pictures, heldout=sources.ArraySource(PICTURES.reshape(4, 1, 2, 1), np.int32([0, 0, 1, 1]))
  )
  of = lambda mesh, **settings: measurement(BRANCHES, few, mesh, config, **settings)(
    jnp.float32(1)
  )[0]
  first = of(mesh1, batch_size=512)
  for mesh, batch_size in ((mesh2, 30), (mesh8, 16), (mesh1, 1000)):
    np.testing.assert_allclose(of(mesh, batch_size=batch_size), first, rtol=2e-4, atol=2e-5)
  assert np.abs(of(mesh1, seed=1) - first).max() > 0.1
  # all draws differ
  assert len(np.unique(first[..., 0].round(7))) > 0.5 * first[..., 0].size


def test_levels_and_noises_are_those_of_their_part(pictures, mesh1, config):
  """The level lies in its part, uniformly; noises are standard normal, of their own."""
  echo = lambda params, *, x, eps, logsnr, y: jnp.concatenate(
    [logsnr[:, None], eps.reshape(len(x), -1)], axis=1
  )
  numbers, _ = measurement(echo, pictures, mesh1, config)(jnp.float32(1))
  edges = meter.level_edges(config.schedule, PARTS)
  share = (numbers[..., 0] - edges[:-1]) / np.diff(edges)
  assert share.min() >= -1e-5 and share.max() <= 1 + 1e-5
  assert abs(share.mean() - 0.5) < 0.02 and abs(share.std() - np.sqrt(1 / 12)) < 0.01
  eps = numbers[..., 1:]
  assert abs(eps.mean()) < 0.04 and abs(eps.std() - 1) < 0.03
  assert len(np.unique(eps.round(6))) > 0.95 * eps.size


@pytest.mark.parametrize(
  "factor, ratio, angle", [(1.0, 1.0, 0.0), (2.5, 2.5, 0.0), (-1.0, 1.0, 180.0)]
)
def test_an_exact_classifier_is_the_implicit_one(pictures, mesh1, config, factor, ratio, angle):
  """Equal norms and no angle; times a factor its norm is that many times as large."""
  measure = functools.partial(
    meter.direction_numbers, functions={MAIN: EPS, GUIDE: LOG_PROB}, null_label=NULL
  )
  run = measurement(measure, pictures, mesh1, config)
  numbers, _ = run({MAIN: jnp.float32(1), GUIDE: jnp.float32(factor)})
  found = meter_numbers.directions(numbers=numbers, edges=run.edges)
  seen = np.array(found["implicit_norm"]) > 1e-3  # above rounding
  assert seen.sum() > 8
  norms = [np.array(found[f"{name}_norm"])[seen] for name in ("classifier", "implicit")]
  np.testing.assert_allclose(norms[0], ratio * norms[1], rtol=0.02)
  middle = slice(PARTS // 2 - 4, PARTS // 2 + 1)  # where every row has a direction
  np.testing.assert_allclose(found["angle"][middle], angle, atol=1.0)
  np.testing.assert_allclose(found["cosine"][middle], np.cos(np.radians(angle)), atol=1e-3)


@pytest.fixture(scope="module")
def model():
  """A network of other weights than 0, whose null label is a label of its own."""
  from configs import digits as digits_config

  config = digits_config.get_config()
  config.model.update(ch=8, emb_ch=16, norm_groups=4, ch_mult=(1,), attn_resolutions=())
  config.meter.update(num_levels=3, num_images=8)
  model = unet.from_config(config.model, num_classes=10, image_shape=(8, 8, 1))
  shapes = jax.eval_shape(
    lambda key: unet.init_params(model, key=key, image_shape=(8, 8, 1)), jax.random.key(0)
  )
  rng = np.random.default_rng(0)
  params = jax.tree.map(lambda leaf: jnp.float32(0.2 * rng.normal(size=leaf.shape)), shapes)
  return network.Network(
    step=1,
    model=model,
    params=params,
    ema_decay=0.99,
    class_names=tuple("0123456789"),
    image_shape=(8, 8, 1),
    data_name="digits",
    weights_sha256="ab" * 32,
    config=config,
  )


def test_it_is_made_once_and_kept(model, digits, mesh1, tmp_path, monkeypatch):
  """Asked again it is read, with its data and without; other weights, settings or a damaged file
  are measured.
  """
  given = dict(dataset=digits, mesh=mesh1, workdir=tmp_path)
  config = model.config.copy_and_resolve_references()
  assert meter.kept(model, config, workdir=tmp_path) is None
  first = meter.of_network(model, config=config, **given)
  assert first["num_images"] == 8 and first["evaluations"] == {MAIN: 2 * 8 * 3}
  assert first["M1"] > 0 and first["M1_err"] > 0 and len(first["logsnr"]) == 4
  (path,) = (tmp_path / "meter").iterdir()
  assert json.loads(path.read_text()) == first
  original, calls = meter.Measurement.__call__, []
  monkeypatch.setattr(
    meter.Measurement, "__call__", lambda self, params: calls.append(1) or original(self, params)
  )
  several = meter.of_networks([model, model], config=config, **given)
  assert several == {model.weights_sha256: first}
  assert meter.kept(model, config, workdir=tmp_path) == first and not calls
  # what is kept of a classifier beside it is not taken for it
  beside = {"about": {**first["about"], "guide/weights_sha256": "ef" * 32}}
  path.with_name("0.json").write_text(json.dumps(beside))
  assert meter.kept(model, config, workdir=tmp_path) == first
  path.write_text("{")
  assert meter.of_network(model, config=config, **given) == first and len(calls) == 1
  config.meter.seed = 1
  assert meter.kept(model, config, workdir=tmp_path) is None
  other = dataclasses.replace(model, weights_sha256="cd" * 32)
  assert meter.kept(other, model.config, workdir=tmp_path) is None
  assert meter.of_network(model, config=config, **given)["M1"] != first["M1"]
  # nothing to measure
  config.meter.num_levels = 0
  assert meter.of_network(model, config=config, **given) is None
  alone = dataclasses.replace(model, config=model.config.copy_and_resolve_references())
  alone.config.train.p_uncond = 0.0
  assert meter.of_network(alone, config=model.config, **given) is None


def test_its_level_becomes_the_interval(config):
  """guidance.logsnr_max is where M2 ends, the config itself stays; no meter, or one that sees
  nothing, is refused; without "meter" nothing changes.
  """
  assert meter.resolved(config, None) is config
  config.guidance.interval = "meter"
  own = meter.resolved(config, {"end_level": 3.5})
  assert own.guidance.logsnr_max == 3.5 and own.guidance.logsnr_min is None
  assert config.guidance.logsnr_max is None
  with pytest.raises(UserError, match="sweep them first"):
    meter.resolved(config, None)
  with pytest.raises(UserError, match="0.1 nats.*cannot be told from 0"):
    meter.resolved(config, {"end_level": None, "M2": 0.1})


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"guidance.logsnr_max": 3.0}, "guidance.logsnr_max is 3"),
    ({"guidance.logsnr_min": -3.0}, "guidance.logsnr_min is -3"),
    ({"meter.num_levels": 0}, "meter.num_levels is 0"),
    ({"train.p_uncond": 0.0}, "never learnt"),
    ({"guidance.rule": "cfg_plus_plus", "sampler.name": "ddim"}, "no unguided form"),
  ],
)
def test_what_its_interval_cannot_be(config, changes, words):
  """Refused before any work, with the field; alone it passes."""
  config.guidance.interval = "meter"
  checks.check(config, [1.0])
  for name, value in changes.items():
    section, field = name.split(".")
    config[section][field] = value
  with pytest.raises(UserError, match=words):
    checks.check(config, [1.0])


def test_estimates_that_are_not_finite(pictures, mesh1, config):
  """A network that diverged has no meter, and this says so."""
  with pytest.raises(UserError, match="not finite"):
    measurement(BRANCHES, pictures, mesh1, config)(jnp.float32(np.nan))


def test_an_interval_that_was_not_measured(config):
  """No program is made of it."""
  config.guidance.interval = "meter"
  with pytest.raises(UserError, match="which is of a trained network"):
    program.from_config(config, image_shape=(1, 1, 1), null_label=0, networks={})


@pytest.mark.parametrize(
  "changes, words",
  [
    ({"meter.every_steps": 2, "train.p_uncond": 0.0}, "nothing to measure"),
    ({"meter.every_steps": 2, "meter.num_levels": 0}, "nothing to measure"),
    ({"guidance.interval": "meter"}, "preview.every_steps draws while it trains"),
    ({"meter.every_steps": 2, "train.objective": "classify", "preview.every_steps": 0}, "classif"),
  ],
)
def test_what_cannot_be_measured_while_training(config, mesh1, changes, words):
  """Refused before the first step."""
  for name, value in changes.items():
    section, field = name.split(".")
    config[section][field] = value
  with pytest.raises(UserError, match=words):
    loop.check_trainable(config, mesh=mesh1)
