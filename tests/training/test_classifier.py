"""A classifier of noised images: trained by the loop of the diffusion models, and guiding one."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import paths
import pytest

from cfg import losses, sampling, schedules
from cfg.base import checkpoint, flops, trees
from cfg.base import config as config_lib
from cfg.base.errors import UserError
from cfg.data import sources
from cfg.inference import checks, network, pictures, weights_file
from cfg.interop import adm, torch_file, weights
from cfg.metrics import calibration
from cfg.models import networks, unet
from cfg.sweep import run as sweep
from cfg.training import loop, objective
from configs import digits as digits_config
from configs import imagenet64_classifier

CLASSES = 3
NAMES = [str(i) for i in range(CLASSES)]
SHAPE = (8, 8, 3)
STEPS = 24


def base_config():
  """Made-up images, and networks of one level."""
  config = digits_config.get_config()
  config.data.update(name="synthetic", num_images=120, num_classes=CLASSES, heldout_fraction=0.4)
  config.model.update(ch=8, emb_ch=16, norm_groups=4, ch_mult=(1,), attn_resolutions=())
  config.train.update(batch_size=16)
  config.heldout.update(num_images=16, batch_size=16, num_bins=4)
  config.meter.num_levels = 0
  config.preview.every_steps = 0
  return config


def classifier_config(**fields):
  """Of a classifier."""
  config = base_config()
  config.optimizer.update(learning_rate=1e-2, warmup_steps=0)
  config.train.update(
    objective="classify", num_steps=STEPS, log_every_steps=1, checkpoint_every_steps=0
  )
  config.heldout.every_steps = STEPS
  config.train.update(fields)
  return config


@pytest.fixture(scope="module")
def data():
  return sources.load(base_config().data)


@pytest.fixture(scope="module")
def trained(data, mesh1, tmp_path_factory):
  """The work directory of a trained classifier."""
  workdir = tmp_path_factory.mktemp("classifier")
  loop.train(classifier_config(), dataset=data, mesh=mesh1, workdir=workdir)
  return workdir


def records(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def test_it_learns(trained):
  """The loss falls below that of the class frequencies, log 3; held out, what little noise leaves
  is told better than what much noise does; every number is there in every bin.
  """
  loss = [record["loss"] for record in records(trained) if "loss" in record]
  assert len(loss) == STEPS and np.mean(loss[-6:]) < 0.9 * np.log(CLASSES) < loss[0]
  (held,) = (record for record in records(trained) if "heldout/accuracy" in record)
  for name in ("cross_entropy", "accuracy", "calibration_error"):
    bins = [value for key, value in held.items() if key.startswith(f"heldout/{name}/")]
    assert len(bins) == 4 and held[f"heldout/{name}"] == pytest.approx(np.mean(bins))
  by_level = [held[key] for key in held if key.startswith("heldout/cross_entropy/")]
  assert by_level[-1] < 0.7 < 0.9 < by_level[0]  # ordered from noise to clean


def test_it_resumes_bit_for_bit(trained, data, mesh1, tmp_path):
  """Stopped half-way and started again: the parameters, averages and losses of one run."""
  for num_steps in (STEPS // 2, STEPS):
    config = classifier_config(num_steps=num_steps)
    loop.train(config, dataset=data, mesh=mesh1, workdir=tmp_path)
  hashes = []
  for workdir in (trained, tmp_path):
    with checkpoint.Checkpoints(workdir) as checkpoints:
      step, state, _ = checkpoints.restore()
    hashes.append((step, trees.tree_hash(state)))
  assert hashes[0] == hashes[1] and hashes[0][0] == STEPS
  losses = [[r["loss"] for r in records(w) if "loss" in r] for w in (trained, tmp_path)]
  assert losses[0] == losses[1]


@pytest.fixture
def main(tmp_path):
  """make(**model fields): (config, work directory) of a diffusion model of other weights than 0."""

  def make(p_uncond=0.2, **fields):
    config = base_config()
    config.train.p_uncond = p_uncond
    config.model.update(fields)
    config.sampler.update(num_steps=3, name="ddim")
    names = ["unconditional"] if fields.get("class_rows") == 0 else NAMES
    model = unet.from_config(config.model, num_classes=len(names), image_shape=SHAPE)
    params = jax.jit(lambda key: unet.init_params(model, key=key, image_shape=SHAPE))(
      jax.random.key(5)
    )
    params["conv_out"]["kernel"] += 0.1
    about = dict(class_names=names, image_shape=SHAPE, data_name="synthetic", step=0, ema="0.99")
    meta = {"config": config_lib.to_json(config), **about}
    weights.write(tmp_path / weights.NAME, params=jax.device_get(params), meta=meta)
    return config, tmp_path

  return make


def guide_by(config, path, rule="classifier"):
  config.guidance.update(rule=rule, guide=str(path))
  return config


def drawn(config, workdir, mesh, out, w):
  """(pixels, facts) of two samples of one class."""
  folder = pictures.sample(
    config, mesh=mesh, workdir=workdir, labels=["1"], num=2, w=w, seed=0, out=out
  )
  about = json.loads((folder / "samples.json").read_text())["about"]
  return [path.read_bytes() for path in sorted(folder.glob("class*.png"))], about


def test_samples_are_guided_by_a_work_directory(trained, main, mesh1, tmp_path):
  """Other pictures than without it, of as many calls as are said, with the classifier's hash;
  at w = 0 too, on the unconditional model.
  """
  config, workdir = main()
  plain, _ = drawn(config, workdir, mesh1, tmp_path / "plain", 0.0)
  guide_by(config, trained, "classifier_unconditional")
  guided, about = drawn(config, workdir, mesh1, tmp_path / "guided", 5.0)
  assert guided != plain and about["nfe/main"] == about["nfe/guide"] == 3
  loaded = network.load_network(trained)
  assert about["guide/weights_sha256"] == loaded.weights_sha256 and loaded.is_classifier
  unguided, about = drawn(config, workdir, mesh1, tmp_path / "unguided", 0.0)
  assert unguided not in (plain, guided) and about["nfe/guide"] == 3


def test_a_sweep_is_guided_by_a_file(trained, data, main, mesh1, tmp_path):
  """An exported classifier guides a sweep; its row names it."""
  file = tmp_path / "guide.safetensors"
  exported = weights_file.export(trained, file)
  config, workdir = main()
  guide_by(config, file).sweep.update(w=(1.0,), num_samples=60, num_blocks=2, batch_size=16)
  config.judge.update(num_steps=3, ch=4, feature_dim=4, min_accuracy=0.0)
  config.meter.update(num_levels=5, num_images=6)
  content = sweep.sweep(config, dataset=data, mesh=mesh1, workdir=workdir)
  (row,), (meter,), (found,) = (content[name] for name in ("rows", "meters", "implicit_classifier"))
  # and its gradient is compared with the implicit classifier's
  assert found["about"]["guide/weights_sha256"] == exported.weights_sha256
  assert found["evaluations"] == {"main": 60, "guide": 30} and meter["evaluations"] == {"main": 60}
  assert np.all(np.array(found["classifier_norm"]) > 0) and len(found["angle"]) == 5
  assert (workdir / "implicit_classifier.png").exists()
  assert row["nfe"] == 6 and row["guidance.rule"] == "classifier"
  assert row["guide/weights_sha256"] == exported.weights_sha256


def test_a_model_without_classes_is_guided_to_those_of_the_classifier(trained, main, mesh1):
  """Labels and names are the classifier's; the conditional form is refused."""
  config, workdir = main(class_rows=0)
  guide_by(config, trained, "classifier_unconditional")
  loaded = network.load_networks(config, workdir=workdir, mesh=mesh1)
  assert network.class_names(loaded) == loaded["guide"].class_names
  checks.check(config, [0.0, 1.0])
  with pytest.raises(UserError, match="this network is unconditional: use .*unconditional"):
    checks.check(guide_by(config, trained), [1.0])


def test_what_cannot_guide_is_refused(trained, data, main, mesh1, tmp_path):
  """A U-Net as classifier, a classifier as second network, a judge, other classes, another size,
  a network without the estimate that is to be guided: each said with what to do.
  """
  config, workdir = main()
  load = lambda config: network.load_networks(config, workdir=workdir, mesh=mesh1)
  with pytest.raises(UserError, match="a diffusion model, which .*'classifier' cannot use"):
    load(guide_by(config, workdir))
  with pytest.raises(UserError, match="a classifier, which .*'second_network' cannot use"):
    load(guide_by(config, trained, "second_network"))
  judge = tmp_path / "judge.npz"
  np.savez(judge, a=np.zeros(1))
  with pytest.raises(UserError, match="neither a work directory.*judge .*seen no noise"):
    load(guide_by(config, judge))
  guide = network.load_network(trained)
  given = dict(class_names=guide.class_names, image_shape=SHAPE)
  network.check_guide(guide, "it is", **given)
  with pytest.raises(UserError, match="8x8x3 images, but the one it guides makes 4x4x3"):
    network.check_guide(guide, "it is", **{**given, "image_shape": (4, 4, 3)})
  with pytest.raises(UserError, match="other classes"):
    network.check_guide(guide, "it is", **{**given, "class_names": ("a", "b")})
  with pytest.raises(UserError, match="needs a second network"):
    checks.check(guide_by(config, ""), [1.0])
  with pytest.raises(UserError, match="unconditional"):
    checks.check(guide_by(main(p_uncond=1.0)[0], trained), [0.0])
  for fields in (dict(p_uncond=0.0), dict(class_rows=CLASSES)):
    without = guide_by(main(**fields)[0], trained, "classifier_unconditional")
    with pytest.raises(UserError, match="Guide the conditional model"):
      checks.check(without, [1.0])
    checks.check(guide_by(without, trained), [1.0])


def test_a_classifier_is_not_sampled_from(trained, data, mesh1, tmp_path, main):
  """Samples, sweeps, previews and metrics of samples are refused before any work; the error says
  what a classifier is for.
  """
  config = classifier_config()
  use = "--config.guidance.rule=classifier"
  with pytest.raises(UserError, match=use):
    drawn(config, trained, mesh1, tmp_path, 0.0)
  with pytest.raises(UserError, match=use):
    sweep.check(config, dataset=data, mesh=mesh1)
  file = tmp_path / "as_main.safetensors"
  weights_file.export(trained, file)
  with pytest.raises(UserError, match=f"holds a classifier.*{use}"):
    network.load_networks(base_config(), workdir=file, mesh=mesh1)
  for section in ("preview", "watch"):
    wrong = classifier_config()
    wrong[section].every_steps = 5
    with pytest.raises(UserError, match=f"{section}.every_steps is 5, but .*classifier"):
      loop.train(wrong, dataset=data, mesh=mesh1, workdir=tmp_path / "never")
  with pytest.raises(UserError, match="another config: .*train.objective is 'denoise'"):
    loop.train(classifier_config(objective="denoise"), dataset=data, mesh=mesh1, workdir=trained)


def test_an_imported_classifier_guides_an_imported_network(mesh1, tmp_path, monkeypatch):
  """ADM's golden classifier through the command line: the gradient of its own log p(y | z), at the
  steps of its schedule, is what the rule takes.
  """
  with np.load(paths.DATA / "adm_classifier.npz", allow_pickle=False) as file:
    arrays = {name: file[name] for name in file.files}
  about = json.loads(str(arrays["config"]))
  state = {k.removeprefix("state/"): a for k, a in arrays.items() if k.startswith("state/")}
  monkeypatch.setattr(torch_file, "read", lambda path: state)
  (tmp_path / "classifier.pt").write_bytes(b"stands for the checkpoint")
  options = [str(tmp_path / "classifier.pt"), str(tmp_path / "work"), "--schedule=cosine"]
  options += [f"--attention_order={'new' if about['use_new_attention_order'] else 'legacy'}"]
  heads = "num_heads" if about.get("num_heads") else "num_head_channels"
  options += [f"--{heads.replace('num_head_channels', 'head_dim')}={about[heads]}"]
  with pytest.raises(UserError, match="give --image_size"):
    adm.main(options)
  adm.main([*options, f"--image_size={about['image_size']}"])
  guide = network.load_network(tmp_path / "work")
  assert guide.is_classifier and len(guide.class_names) == 10
  z = jnp.asarray(np.moveaxis(arrays["input/x"], 1, -1))
  table = schedules.discrete_logsnr("cosine")
  logsnr = np.interp(arrays["input/timesteps"], np.arange(1000), table).astype(np.float32)
  log_p = jax.nn.log_softmax(jnp.asarray(arrays["output"]))
  for label in (0, 7):
    y = jnp.full(len(z), label, jnp.int32)
    got = jax.jit(guide.function(guide.params))(z, logsnr, y)
    np.testing.assert_allclose(got, log_p[:, label], atol=1e-4)
  # of 10 classes by number, it guides a network of 10 classes by name
  names = [f"class {i}" for i in range(10)]
  network.check_guide(guide, "it is", class_names=names, image_shape=guide.image_shape)


def test_the_loss_is_minus_log_p_of_the_label_at_levels_of_the_schedule():
  """A function whose log p is known gets it, at each row's own level, whatever the batch."""

  def log_prob_fn(z, logsnr, y):
    return -jnp.mean(jnp.abs(z), axis=(1, 2, 3)) - 0.1 * y.astype(jnp.float32) + 0.01 * logsnr

  def run(index):
    index = jnp.asarray(index, jnp.uint32)
    keys = sampling.sample_keys(key=jax.random.key(2), index=index)
    x = jnp.zeros((len(index), 8, 8, 1)) + 0.5
    y = (index % 3).astype(jnp.int32)
    fn = schedules.cosine_logsnr
    return losses.classifier_loss(log_prob_fn=log_prob_fn, keys=keys, x=x, y=y, logsnr_fn=fn)

  loss, logsnr = run(np.arange(2000))
  some, some_logsnr = run([5, 0, 11])
  np.testing.assert_allclose(some, loss[np.array([5, 0, 11])], rtol=1e-6)
  np.testing.assert_array_equal(some_logsnr, logsnr[np.array([5, 0, 11])])
  for u in (0.25, 0.5, 0.75):
    level = float(schedules.cosine_logsnr(np.float64(u), xp=np))
    assert abs(np.mean(np.asarray(logsnr) > level) - u) < 4 * np.sqrt(u * (1 - u) / 2000)
  clean = np.asarray(logsnr) > 6
  want = 0.5 + 0.1 * (np.arange(2000) % 3) - 0.01 * np.asarray(logsnr)
  np.testing.assert_allclose(np.asarray(loss)[clean], want[clean], atol=0.05)
  noise = np.asarray(logsnr) < -6
  np.testing.assert_allclose(
    (np.asarray(loss) - want)[noise].mean(), np.sqrt(2 / np.pi) - 0.5, atol=0.02
  )
  with pytest.raises(ValueError, match="log_prob_fn returned"):
    losses.classifier_loss(
      log_prob_fn=lambda z, logsnr, y: z,
      keys=jax.random.split(jax.random.key(0), 2),
      x=jnp.zeros((2, 4, 4, 1)),
      y=jnp.zeros(2, jnp.int32),
      logsnr_fn=schedules.cosine_logsnr,
    )


def test_calibration_error():
  """0 where each confidence is as often right as it says; the gap where all are off by one; gaps of
  either sign in two bins do not cancel.
  """
  confidence = np.repeat([0.25, 0.5, 0.9], 20)
  right = np.concatenate([np.arange(20) < count for count in (5, 10, 18)])
  ece = functools.partial(calibration.expected_calibration_error, num_bins=15)
  assert ece(confidence, right) == pytest.approx(0.0, abs=1e-12)
  assert ece(confidence, np.ones(60)) == pytest.approx(1 - confidence.mean())
  over_and_under = np.concatenate([np.arange(20) < count for count in (7, 8, 18)])
  assert ece(confidence, over_and_under) == pytest.approx((0.1 + 0.1) / 3)
  assert ece(np.array([0.0, 1.0]), np.array([0, 1])) == 0.0


def test_published_sizes():
  """ADM's table 12: 65 and 43 million parameters; backward costs twice the forward pass."""
  config = imagenet64_classifier.get_config()
  for resolution, blocks, ch_mult, count in (
    (64, 4, (1, 2, 3, 4), 65e6),
    (128, 2, (1, 1, 2, 3, 4), 43e6),
  ):
    config.model.update(num_res_blocks=blocks, ch_mult=ch_mult)
    shape = (resolution, resolution, 3)
    model = networks.from_config(
      config.model, objective="classify", num_classes=1000, image_shape=shape
    )
    shapes = jax.eval_shape(
      functools.partial(unet.init_params, model, image_shape=shape), key=jax.random.key(0)
    )
    assert abs(unet.num_params(shapes) - count) < 0.5e6
  forward, training = flops.of_network(model, image_shape=shape)
  assert training == pytest.approx(3 * forward, rel=0.01)


def test_objectives_are_known_by_name():
  """Both that there are, and no other."""
  for name in objective.OBJECTIVES:
    config_lib.check_values(classifier_config(objective=name))
  with pytest.raises(UserError, match="train.objective is 'judge'"):
    config_lib.check_values(classifier_config(objective="judge"))
