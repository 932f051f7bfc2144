"""What guidance draws of three Gaussians, held against the law that it is meant to draw.

P is Ho & Salimans 2022 (arXiv 2207.12598), whose figure 2 shows that law: p(x|c) p(c|x)^w.
"""

import functools
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import cfg
from cfg import guidance, limits, mixtures, rules, sampling, schedules
from cfg.base import files, progress
from cfg.base.errors import UserError, nearest
from cfg.guidance import MAIN, EpsFn, Rule
from cfg.laboratory import learnt
from cfg.metrics import gauge, sliced
from cfg.metrics.scores import jackknife_error
from cfg.mixtures import Mixture
from cfg.report import plane
from cfg.sampling import Sampler

BLOCKS = 8
LAW_DRAWS = 2**15  # of a class, of which the exact law's quantiles are made
# of the levels, uniform in log-SNR: on the paper's grid with few levels the errors of the first and
# the last step, 14 units long, hide what guidance does
LOGSNR_MIN, LOGSNR_MAX = -8.0, 10.0
# guided at these log-SNRs alone
INTERVAL = (-3.0, 3.0)
EXACT, LEARNT = "exact", "trained"  # whose noise
PLAIN, DETERMINISTIC = "classifier_free", "classifier_free, ddim"
WEIGHTED, PARTICLES = "weighted", "particles"
DRAWS = "draws of the law"
# further rules whose strength is the paper's w: `methods` makes them
OTHERS = ("interval", "ramp", "projected", "random_label")


class Settings(NamedTuple):
  """What a study goes through.

  Attributes:
    w: the strengths, at least 0.
    num_samples: of a class.
    num_steps: T, several.
    particles: of a group, several.
    rules: of OTHERS.
    train_steps: of the network; 0 for none.
    seed: of everything.
  """

  w: tuple[float, ...] = (0.0, 1.0, 2.0, 4.0)
  num_samples: int = 2048
  num_steps: tuple[int, ...] = (64, 256)
  particles: tuple[int, ...] = (16, 256)
  rules: tuple[str, ...] = OTHERS
  train_steps: int = 1500
  seed: int = 0


class Cell(NamedTuple):
  """A way to draw: whose noise, by which rule, on how many levels, in groups of how many."""

  network: str
  method: str
  num_steps: int
  particles: int = 1


def check(settings: Settings) -> None:
  """Raise UserError for what no study can be made of."""
  largest = max(settings.particles, default=1)
  for name, values in (("w", settings.w), ("num_steps", settings.num_steps)):
    if not values or len(set(values)) != len(values):
      raise UserError(f"--{name} is {values}: give one value or more, none of them twice.")
  if not all(math.isfinite(w) and 0 <= w <= 20 for w in settings.w):
    raise UserError(
      f"--w is {settings.w}: strengths lie between 0 and 20 (w = 0 is unguided, scale = 1 + w); "
      "below 0 there may be no law to draw."
    )
  if min(settings.num_steps) < 2:
    raise UserError(f"--num_steps is {settings.num_steps}: a grid has at least 2 levels.")
  if len(set(settings.particles)) != len(settings.particles) or any(
    count < 2 for count in settings.particles
  ):
    raise UserError(
      f"--particles is {settings.particles}: give numbers of at least 2, none of them twice."
    )
  unit = BLOCKS * math.lcm(*settings.particles)
  if settings.num_samples < 1 or settings.num_samples % unit:
    raise UserError(
      f"--num_samples is {settings.num_samples}: errors come from {BLOCKS} equal blocks of whole "
      f"groups, so give a multiple of {unit} for groups of up to {largest} (--particles)."
    )
  for name in settings.rules:
    if name not in OTHERS:
      raise UserError(f"--rules has {name!r}: {nearest(name, OTHERS)}")
  if settings.train_steps < 0:
    raise UserError(f"--train_steps is {settings.train_steps}: give 0, for no network, or more.")
  if not 0 <= settings.seed < 2**32:
    raise UserError(f"--seed is {settings.seed}: it must lie between 0 and 2^32 - 1.")


def methods(mixture: Mixture, others: Sequence[str] = OTHERS) -> dict[str, tuple[Rule, Sampler]]:
  """{name: (rule, sampler)}: the paper's rule with and without noise, and those `others`."""
  null = mixture.num_classes
  plain = guidance.classifier_free(null_label=null)
  ancestral = sampling.ancestral(var_interp=1.0)
  levels = dict(logsnr_min=LOGSNR_MIN, logsnr_max=LOGSNR_MAX)
  low, high = INTERVAL
  made = {
    "interval": guidance.interval(plain, logsnr_min=low, logsnr_max=high),
    "ramp": guidance.ramped(plain, guidance.ramp_linear, **levels),
    "projected": rules.projected(null_label=null, parallel=0.0),
    "random_label": rules.random_label(num_classes=null),
  }
  assert made.keys() == set(OTHERS)
  return {
    PLAIN: (plain, ancestral),
    DETERMINISTIC: (plain, sampling.ddim()),
    **{name: (made[name], ancestral) for name in others},
  }


def cells(settings: Settings, names: Sequence[str]) -> Iterator[Cell]:
  """Every way to draw.

  With exact noise the paper's rule at each T, alone and with particles of each size, and the other
  rules at the most levels; with the network's noise, at the fewest, the paper's rule alone and with
  the largest groups.
  """
  for num_steps in settings.num_steps:
    for name in names:
      if name in (PLAIN, DETERMINISTIC) or num_steps == max(settings.num_steps):
        yield Cell(EXACT, name, num_steps)
    for particles in settings.particles:
      yield Cell(EXACT, PLAIN, num_steps, particles)
  if settings.train_steps:
    yield Cell(LEARNT, PLAIN, min(settings.num_steps))
    if settings.particles:
      yield Cell(LEARNT, PLAIN, min(settings.num_steps), max(settings.particles))


def grid(num_steps: int) -> np.ndarray:
  """The levels [T]."""
  return schedules.sampling_grid(
    num_steps=num_steps, logsnr_min=LOGSNR_MIN, logsnr_max=LOGSNR_MAX, spacing="logsnr"
  )


def make_draw(cell: Cell, eps_fn: EpsFn, *, mixture: Mixture, settings: Settings) -> Any:
  """w -> (x [K N,d], {name: [T,K N]}) of a cell, jitted; class after class, with the same noise."""
  rule, sampler = methods(mixture)[cell.method]
  logsnr = grid(cell.num_steps)
  index = np.tile(np.arange(settings.num_samples, dtype=np.uint32), mixture.num_classes)
  y = np.repeat(np.arange(mixture.num_classes, dtype=np.int32), settings.num_samples)

  @jax.jit
  def draw(w):
    x, aux = sampling.sample(
      networks={MAIN: eps_fn},
      rule=rule,
      sampler=sampler,
      limit=limits.no_limit(),
      keys=sampling.sample_keys(key=jax.random.key(settings.seed), index=jnp.asarray(index)),
      y=jnp.asarray(y),
      w=w,
      logsnr=logsnr,
      image_shape=learnt.image_shape(mixture),
      particles=cell.particles,
    )
    return x.reshape(len(y), -1), aux

  return draw


class Exact(NamedTuple):
  """The tilted laws of all classes at one w: on grids, as quantiles, and draws of each."""

  laws: list[mixtures.Tilted]
  targets: list[sliced.Law]
  draws: np.ndarray  # [K,N,d]

  @property
  def log_z(self) -> float:
    """The mean over the classes."""
    return float(np.mean([law.log_z for law in self.laws]))


def exact(mixture: Mixture, w: float, *, num_samples: int, rng: np.random.Generator) -> Exact:
  """What is known of the tilted laws at w."""
  draw = functools.partial(mixtures.draw_tilted, mixture=mixture, w=w, rng=rng)
  labels = range(mixture.num_classes)
  return Exact(
    [mixtures.tilted_on_grid(mixture=mixture, label=c, w=w, points=201) for c in labels],
    [sliced.law(draw(label=c, count=LAW_DRAWS)) for c in labels],
    np.stack([draw(label=c, count=num_samples) for c in labels]),
  )


def distance(x: np.ndarray, known: Exact, log_weight: np.ndarray | None = None) -> dict[str, float]:
  """{"distance", "distance_err"} of x [K,N,d] from the laws: the mean over the classes, and the
  jackknife's error over blocks of samples.
  """

  def of(rows):
    weights = [None] * len(x) if log_weight is None else log_weight[:, rows]
    return np.mean(
      [
        sliced.distance(own[rows], law, log_weight=weight)
        for own, law, weight in zip(x, known.targets, weights)
      ]
    )

  block_of = np.arange(x.shape[1]) // (x.shape[1] // BLOCKS)
  without = [of(block_of != block) for block in range(BLOCKS)]
  return {"distance": float(of(block_of >= 0)), "distance_err": jackknife_error(without)}


def measure(cell: Cell, w: float, x, aux, *, known: Exact) -> tuple[list[dict[str, Any]], Any]:
  """The rows of a cell at w, and log W [K,N] of its samples, None if they have none: of the samples
  as they are, and where their weights are known of the weighted ones too.
  """
  labels, count = known.draws.shape[:2]
  x = np.asarray(x, np.float64).reshape(labels, count, -1)
  about = {**cell._asdict(), "w": w, "log_z_exact": known.log_z}
  rows = [{**about, **distance(x, known)}]
  if cell.particles > 1:
    rows[0]["method"] = PARTICLES
    log_z = np.asarray(aux["log_z"], np.float64).sum(axis=0).reshape(labels, count)
    groups = log_z[:, :: cell.particles]
    rows[0]["log_z"] = float(np.mean(np.log(np.mean(np.exp(groups), axis=1))))
    return rows, None
  if cell.method not in (PLAIN, DETERMINISTIC) or w == 0:
    return rows, None
  gap = np.asarray(aux["gap"]).T
  whole, _ = gauge.information(gap=gap, logsnr=grid(cell.num_steps))
  log_weight = gauge.log_weights(information=whole, w=w)
  tilt = gauge.tilt(log_weight=log_weight, y=np.repeat(np.arange(labels), count))
  log_weight = log_weight.reshape(labels, count)
  method = WEIGHTED if cell.method == PLAIN else f"{WEIGHTED}, ddim"
  numbers = {
    "log_z": tilt["log_z"],
    "kl": tilt["tilt_kl"],
    "ess": tilt["tilt_ess"] / (labels * count),
  }
  rows.append({**about, "method": method, **distance(x, known, log_weight), **numbers})
  return rows, log_weight


def run(out, settings: Settings) -> dict[str, Any]:
  """Write figure2.png and toy.json to the folder `out`; returns what toy.json holds.

  Raises:
    UserError: settings that no study can be made of.
  """
  check(settings)
  out = pathlib.Path(out)
  out.mkdir(parents=True, exist_ok=True)
  mixture = mixtures.figure_2()
  networks, facts = {EXACT: mixtures.make_eps_fn(mixture)}, {}
  if settings.train_steps:
    model, params = learnt.train(mixture, num_steps=settings.train_steps, seed=settings.seed)
    networks[LEARNT] = learnt.make_eps_fn(model, params)
    facts["network_error"] = learnt.error(model, params, mixture=mixture, seed=settings.seed + 1)
  rng = np.random.default_rng(settings.seed)
  known = {w: exact(mixture, w, num_samples=settings.num_samples, rng=rng) for w in settings.w}
  rows: list[dict[str, Any]] = [
    {
      **Cell(EXACT, DRAWS, 0)._asdict(),
      "w": w,
      "log_z_exact": known[w].log_z,
      **distance(known[w].draws, known[w]),
    }
    for w in settings.w
  ]
  panels: dict[Cell, dict[float, tuple[np.ndarray, Any]]] = {}
  every = list(cells(settings, list(methods(mixture, settings.rules))))
  with progress.Progress("draw", total=len(every) * len(settings.w), unit="cells") as shown:
    for i, cell in enumerate(every):
      draw = make_draw(cell, networks[cell.network], mixture=mixture, settings=settings)
      for j, w in enumerate(settings.w):
        # without guidance all rules, and groups, are plain samples
        if w > 0 or cell.method in (PLAIN, DETERMINISTIC) and cell.particles == 1:
          x, aux = draw(jnp.float32(w))
          found, log_weight = measure(cell, w, x, aux, known=known[w])
          rows += found
          shape = (mixture.num_classes, settings.num_samples, mixture.dim)
          panels.setdefault(cell, {})[w] = (np.asarray(x).reshape(shape), log_weight)
        shown.update(i * len(settings.w) + j + 1)
  content = {
    "settings": settings._asdict(),
    "means": mixture.means.tolist(),
    "stds": mixture.stds.tolist(),
    **facts,
    "cfg_version": cfg.__version__,
    "rows": rows,
  }
  files.write_json(out / "toy.json", content)
  write_figure(out / "figure2.png", panels=panels, known=known, settings=settings)
  return content


def write_figure(path, *, panels, known: dict[float, Exact], settings: Settings) -> None:
  """The paper's figure 2, and below it what is drawn."""
  steps, least = max(settings.num_steps), min(settings.num_steps)
  most = max(settings.particles, default=1)
  plain, group = Cell(EXACT, PLAIN, steps), Cell(EXACT, PLAIN, steps, most)
  network = Cell(LEARNT, PLAIN, least)
  titles = {f"exact scores, guided\n(T = {steps})": (plain, False)}
  if network in panels:
    titles[f"trained network, guided\n(T = {least})"] = (network, False)
  titles["exact scores, weighted\n(area is the weight)"] = (plain, True)
  if group in panels:
    titles[f"exact scores, groups of\n{most} particles"] = (group, False)
  rows: dict[str, dict[float, list[plane.Points]]] = {}
  for title, (cell, weighted) in titles.items():
    rows[title] = {}
    for w in settings.w:
      x, log_weight = panels[cell].get(w) or panels[plain][w]
      weights: Any = [None] * len(x)
      if weighted and log_weight is not None:
        weights = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
        weights = weights / weights.mean(axis=1, keepdims=True)
      rows[title][w] = [plane.Points(*pair) for pair in zip(x, weights)]
  plane.write_plane(
    path,
    strengths=settings.w,
    laws={w: [plane.Density(law.axes, law.density) for law in known[w].laws] for w in settings.w},
    rows=rows,
    title="Contours: half and 95% of the exact law p(x|c) p(c|x)^w / Z of each class",
  )
