"""What a network's branches know of held-out images (metrics.meter): measured once and kept.

Row p of a measurement is image p // L of the split at a level in part p mod L of the log-SNR; its
level and its noise are a function of (seed, image, part) alone.
"""

import functools
import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cfg import diffusion, guidance, rules
from cfg.base import config as config_lib
from cfg.base import files, hosts, images, paths, sharding
from cfg.base.config import ConfigDict
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.data import pipeline
from cfg.data.dataset import Dataset
from cfg.guidance import MAIN
from cfg.inference import checks
from cfg.inference.network import Network
from cfg.inference.program import GUIDE
from cfg.metrics import meter
from cfg.models import unet

log = logging.getLogger(__name__)

# beyond these log-SNRs lies one in a thousand of the levels that networks are trained at, and one
# in a million of z is image, or noise
FURTHEST = 14.0
FOLDER = "meter"  # of a work directory
NUMBERS = ("M1", "M2", "M1_minus_M2", "M2_plus_log_p")


def level_edges(schedule: ConfigDict, num_levels: int) -> np.ndarray:
  """[L+1] edges of L equal parts of a schedule's log-SNRs, as far as they lie within FURTHEST."""
  low, high = max(schedule.logsnr_min, -FURTHEST), min(schedule.logsnr_max, FURTHEST)
  return np.linspace(low, high, num_levels + 1)


def rows_at_levels(params, batch, key, *, measure, edges):
  """`measure` of rows of one image and one part of the log-SNR each, at a level in that part.

  Args:
    params: of the networks.
    batch: of pipeline.epoch_batches of `ImagesAtLevels`; its index is image * L + part.
    key: of the noise.
    measure: (params, *, x, eps, logsnr, y) -> [B,K].
    edges: [L+1] log-SNRs.

  Returns:
    [B,K] f32.
  """
  x = images.to_unit(batch["image"])
  edges = jnp.asarray(edges, jnp.float32)
  parts = len(edges) - 1

  def draw(index):
    image, part = index // parts, index % parts
    key_level, key_eps = jax.random.split(jax.random.fold_in(jax.random.fold_in(key, image), part))
    logsnr = edges[part] + (edges[part + 1] - edges[part]) * jax.random.uniform(key_level)
    return logsnr, jax.random.normal(key_eps, x.shape[1:])

  logsnr, eps = jax.vmap(draw)(batch["index"])
  return measure(params, x=x, eps=eps, logsnr=logsnr, y=batch["label"])


def branch_numbers(params, *, function, null_label, x, eps, logsnr, y):
  """[B,2]: |e_c - e_u|^2 and |e_u - eps|^2 - |e_c - eps|^2, the latter as <e_u - e_c, e_u + e_c -
  2 eps>: the two squares are large and nearly the same.

  Args:
    params: of the network.
    function: parameters -> eps_fn.
    null_label: of the branch without a label.
    x: [B,H,W,C].
    eps: [B,H,W,C].
    logsnr: [B].
    y: [B].
  """
  z = diffusion.q_sample(x=x, eps=eps, logsnr=logsnr)
  cond, uncond = guidance.branches(function(params), z=z, logsnr=logsnr, y=y, other_y=null_label)
  gap = guidance.squared_norm(cond - uncond)
  advantage = _dot(uncond - cond, uncond + cond - 2 * eps)
  return jnp.stack([gap, advantage], axis=-1)


def direction_numbers(params, *, functions, null_label, x, eps, logsnr, y):
  """[B,3]: |sigma grad log p(y|z)| of a classifier, |e_u - e_c|, which is the same of the implicit
  one, and the cosine of the angle between the two.

  Args:
    params: {role: of that network}.
    functions: {MAIN: parameters -> eps_fn, GUIDE: parameters -> log_prob_fn}.
    null_label: of the branch without a label.
    x: [B,H,W,C].
    eps: [B,H,W,C].
    logsnr: [B].
    y: [B].
  """
  z = diffusion.q_sample(x=x, eps=eps, logsnr=logsnr)
  cond, uncond = guidance.branches(
    functions[MAIN](params[MAIN]), z=z, logsnr=logsnr, y=y, other_y=null_label
  )
  implicit = uncond - cond
  log_prob_fn = functions[GUIDE](params[GUIDE])
  explicit = rules.classifier_term(log_prob_fn, z=z, level=logsnr, y=y)
  norms = [jnp.sqrt(guidance.squared_norm(a)) for a in (explicit, implicit)]
  cosine = _dot(explicit, implicit) / jnp.maximum(norms[0] * norms[1], 1e-30)
  return jnp.stack([*norms, cosine], axis=-1)


def _dot(a, b):
  """<a, b> of each sample: [B]."""
  return jnp.sum(a * b, axis=tuple(range(1, a.ndim)))


class ImagesAtLevels:
  """Random access to each image of a source L times in a row. One is read once only: reading may be
  decoding.
  """

  def __init__(self, source, num_levels):
    self._source, self._num_levels = source, num_levels
    self._read = functools.lru_cache(maxsize=1)(source.__getitem__)

  def __len__(self):
    return len(self._source) * self._num_levels

  def __getitem__(self, row):
    return self._read(row // self._num_levels)


class Measurement:
  """Numbers of held-out images at each part of the log-SNR; compiled once.

  Args:
    measure: of `rows_at_levels`.
    edges: the same.
    settings: the config's section meter.
    dataset: data.dataset.Dataset, whose held-out images are taken.
    mesh: from sharding.make_mesh.
  """

  def __init__(
    self,
    measure: Callable[..., jax.Array],
    *,
    edges: np.ndarray,
    settings: ConfigDict,
    dataset: Dataset,
    mesh: Mesh,
  ) -> None:
    self.edges = edges
    self._settings, self._mesh = settings, mesh
    self._source = pipeline.every_nth(dataset.heldout, most=settings.num_images)
    whole, rows = sharding.replicated(mesh), sharding.batch_sharding(mesh)
    self._rows = jax.jit(
      functools.partial(rows_at_levels, measure=measure, edges=edges),
      in_shardings=(whole, rows, whole),
      out_shardings=rows,
    )

  def __call__(self, params: Any) -> tuple[np.ndarray, np.ndarray]:
    """([N,L,K] f64, the same in any batch and on any devices; [N], the images' labels).

    Raises:
      UserError: a number that is not finite.
    """
    every = ImagesAtLevels(self._source, len(self.edges) - 1)
    key = jax.random.key(self._settings.seed)
    batch_size = sharding.round_up(self._mesh, min(self._settings.batch_size, len(every)))
    measured, labels = [], []
    with Progress("meter", total=len(every), unit="noised images", passing=True) as progress:
      for batch, valid in pipeline.epoch_batches(every, batch_size=batch_size):
        rows = self._rows(params, sharding.put_rows(self._mesh, batch), key)
        measured.append(sharding.to_host(rows).astype(np.float64)[:valid])
        labels.append(batch["label"][:valid])
        progress.update(sum(map(len, labels)))
    numbers = np.concatenate(measured)
    if not np.isfinite(numbers).all():
      raise UserError(
        "the network's estimates for noised held-out images are not finite numbers: it has "
        "diverged. Train it again, with a smaller optimizer.learning_rate for example."
      )
    parts = len(self.edges) - 1
    return numbers.reshape(len(self._source), parts, -1), np.concatenate(labels)[::parts]


class Meter:
  """The meter of a network, which may be in training.

  Args:
    config: the whole config; `meter` and `schedule` are used.
    model: a UNet with a null label.
    dataset: data.dataset.Dataset.
    mesh: from sharding.make_mesh.
  """

  def __init__(self, config: ConfigDict, *, model: unet.UNet, dataset: Dataset, mesh: Mesh) -> None:
    measure = functools.partial(
      branch_numbers,
      function=functools.partial(unet.make_eps_fn, model),
      null_label=model.num_classes,
    )
    edges = level_edges(config.schedule, config.meter.num_levels)
    self._measurement = Measurement(
      measure, edges=edges, settings=config.meter, dataset=dataset, mesh=mesh
    )

  def __call__(self, params: Any) -> dict[str, Any]:
    """What metrics.meter.summarise says, and how many images and evaluations it took."""
    numbers, y = self._measurement(params)
    summary = meter.summarise(
      gap=numbers[..., 0], advantage=numbers[..., 1], edges=self._measurement.edges, y=y
    )
    evaluations = {MAIN: 2 * numbers[..., 0].size}
    return {"num_images": len(numbers), "evaluations": evaluations, **summary}

  def scalars(self, params: Any) -> dict[str, float]:
    """{"meter/M1", "meter/M1_err", ...}: the numbers for a log of training."""
    summary = self(params)
    names = [f"{name}{end}" for name in NUMBERS for end in ("", "_err")]
    return {f"meter/{name}": summary[name] for name in names if summary[name] is not None}


def of_networks(networks: Iterable[Network], **given) -> dict[str, dict[str, Any]]:
  """{weights_sha256: `of_network`} of those that have one; the same weights are measured once."""
  found = {network.weights_sha256: of_network(network, **given) for network in networks}
  return {name: content for name, content in found.items() if content is not None}


def of_network(
  network: Network, *, config: ConfigDict, dataset: Dataset, mesh: Mesh, workdir
) -> dict[str, Any] | None:
  """The meter of a network, kept in `workdir`; None where config.meter.num_levels is 0, or where
  the network has one branch alone.
  """
  if not config.meter.num_levels or not checks.has_branches(network.config):
    return None
  own = network.config.copy_and_resolve_references()
  own.meter = config.meter

  def measure():
    made = Meter(own, model=network.model, dataset=dataset, mesh=mesh)
    return made(network.params)

  return _kept_or_made(
    workdir, identity(network, config, dataset=dataset), measure, what="what the branches know"
  )


def of_classifiers(several: Iterable[Mapping[str, Network]], **given) -> list[dict[str, Any]]:
  """`of_classifier` of each pair of networks that has one, once."""
  found: dict[str, dict[str, Any]] = {}
  for networks in several:
    content = of_classifier(networks, **given)
    if content is not None:
      found.setdefault(json.dumps(content["about"], sort_keys=True), content)
  return list(found.values())


def of_classifier(
  networks: Mapping[str, Network], *, config: ConfigDict, dataset: Dataset, mesh: Mesh, workdir
) -> dict[str, Any] | None:
  """How the gradient of a classifier that guides compares with that of the implicit classifier, by
  level, kept in `workdir`; None where there are not both.
  """
  main, guide = networks[MAIN], networks.get(GUIDE)
  if guide is None or not guide.is_classifier:
    return None
  if not config.meter.num_levels or not checks.has_branches(main.config):
    return None

  def measure():
    functions = {role: network.function for role, network in networks.items()}
    null_label = main.model.num_classes
    low, high = guide.config.schedule.logsnr_min, guide.config.schedule.logsnr_max
    edges = np.clip(level_edges(main.config.schedule, config.meter.num_levels), low, high)
    measurement = Measurement(
      functools.partial(direction_numbers, functions=functions, null_label=null_label),
      edges=np.unique(edges),
      settings=config.meter,
      dataset=dataset,
      mesh=mesh,
    )
    numbers, _ = measurement({role: network.params for role, network in networks.items()})
    count = numbers[..., 0].size
    evaluations = {MAIN: 2 * count, GUIDE: count}
    summary = meter.directions(numbers=numbers, edges=measurement.edges)
    return {"num_images": len(numbers), "evaluations": evaluations, **summary}

  about = identity(main, config, dataset=dataset)
  about["guide/weights_sha256"] = guide.weights_sha256
  return _kept_or_made(workdir, about, measure, what="the implicit classifier")


def resolved(config: ConfigDict, content: Mapping[str, Any] | None) -> ConfigDict:
  """The config, guidance.logsnr_max the level at which M2 reaches its end if guidance.interval is
  "meter".

  Args:
    config: of one sampler.
    content: the meter of the network that is sampled from, or None.

  Raises:
    UserError: no meter, or one that sees nothing.
  """
  if config.guidance.interval != "meter":
    return config
  if content is None:
    raise UserError(
      "guidance.interval is 'meter', but these weights have not been measured: sweep them first "
      "(--mode=sweep), or give the interval, guidance.interval='none' with guidance.logsnr_max."
    )
  if content["end_level"] is None:
    raise UserError(
      f"guidance.interval is 'meter', but M2 of these weights is {content['M2']:.2g} nats, which "
      "cannot be told from 0: there is no level at which it ends. Train for longer, use more "
      "images (meter.num_images), or give the interval, guidance.logsnr_max."
    )
  own = config.copy_and_resolve_references()
  own.guidance.logsnr_max = content["end_level"]
  return own


def identity(network: Network, config: ConfigDict, *, dataset: Dataset | None) -> dict[str, Any]:
  """What decides the meter of a network, as JSON values; without its data if there are none."""
  settings = {f"meter.{name}": config.meter[name] for name in ("num_levels", "num_images", "seed")}
  about = {
    **{f"main/{name}": value for name, value in network.facts.items()},
    "schedule": [network.config.schedule.logsnr_min, network.config.schedule.logsnr_max],
    "furthest": FURTHEST,
    **settings,
  }
  if dataset is not None:
    about["data"] = config_lib.data_identity(config, dataset)
  return about


def kept(network: Network, config: ConfigDict, *, workdir) -> dict[str, Any] | None:
  """The meter of a network that an earlier run left in `workdir`, or None."""
  about = identity(network, config, dataset=None)
  for path in sorted((paths.as_path(workdir) / FOLDER).glob("*.json")):
    content = _read(path)
    if content is None or "guide/weights_sha256" in content["about"]:
      continue
    if all(content["about"].get(name) == value for name, value in about.items()):
      return content
  return None


def _kept_or_made(workdir, about, measure, *, what):
  """What an earlier run kept, or what `measure` gives, which is then kept."""
  name = hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()[:12]
  path = paths.as_path(workdir) / FOLDER / f"{name}.json"
  content = hosts.found(functools.partial(_read, path))
  if content is not None:
    return content
  log.info("measuring %s, once: it is kept in %s", what, path)
  content = hosts.agreed({"about": about, **measure()})
  path.parent.mkdir(exist_ok=True)
  files.write_json(path, content)
  return content


def _read(path):
  """The content of a file that was kept; None if it is not there, or damaged."""
  try:
    content = files.read_json(path)
  except (OSError, ValueError):
    return None
  return content if isinstance(content, dict) and "about" in content else None
