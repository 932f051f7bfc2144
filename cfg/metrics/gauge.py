"""What guidance did to a set of samples, from numbers that the sampler has on the way.

J is arXiv 2607.19725 (theorem 4.2), F arXiv 2503.02819, whose weights along a path are the same for
stochastic samplers. `gap` is |eps_cond - eps_uncond|^2 of each sample at each level.
"""

from typing import Any

import numpy as np

from cfg.metrics.scores import jackknife_error

# effective samples of each class, their share of its samples, and the two sums' relative difference
LEAST_SAMPLES, LEAST_SHARE, MOST_DIFFERENCE = 100, 0.1, 0.1
# standard errors by which log Z / w may fall as w grows
MOST_FALL = 2.0


def information(*, gap: np.ndarray, logsnr: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """I = 1/2 int gap dlambda along each sample's own path, in nats: by the trapezoid rule, by left
  sums.

  Of exact branches and without guidance its mean is KL(p(x|c) || p(x)), which over the classes is
  the mutual information of image and label, at most the log of their number.

  Args:
    gap: [N,T].
    logsnr: [T], increasing.

  Returns:
    ([N], [N]) f64.
  """
  gap, widths = np.asarray(gap, np.float64), np.diff(np.asarray(logsnr, np.float64))
  left = 0.5 * gap[:, :-1] @ widths
  right = 0.5 * gap[:, 1:] @ widths
  return 0.5 * (left + right), left


def by_level(*, gap: np.ndarray, logsnr: np.ndarray) -> np.ndarray:
  """[T]: the mean over the samples of I up to each level, by the trapezoid rule."""
  mean = np.asarray(gap, np.float64).mean(axis=0)
  steps = 0.25 * (mean[:-1] + mean[1:]) * np.diff(np.asarray(logsnr, np.float64))
  return np.concatenate([[0.0], np.cumsum(steps)])


def log_weights(*, information: np.ndarray, w: float) -> np.ndarray:
  """log W = w (1 + w) I: by how much p(x|c) p(c|x)^w has more of a sample than the guided sampler,
  up to Z (J; F).
  """
  return w * (1 + w) * information


def tilt(*, log_weight: np.ndarray, y: np.ndarray) -> dict[str, Any]:
  """log Z = log E[W], KL = log Z - E[log W], and the effective sample size (sum W)^2 / sum W^2.

  KL is from the law of the guided samples to p(x|c) p(c|x)^w / Z, in nats: for a deterministic
  sampler that of the samples, up to its steps' errors; for a stochastic one that of the paths, an
  upper bound. Each is of a class; then log Z and KL are averaged, and the sample sizes added.

  Args:
    log_weight: [N], from `log_weights`.
    y: [N] labels.

  Returns:
    {"log_z", "tilt_kl", "tilt_ess", "tilt_ess_by_class"}, the last a list.
  """
  parts = []
  for label in np.unique(y):
    of_class = log_weight[y == label]
    largest = of_class.max()
    weight = np.exp(of_class - largest)
    log_z = np.log(weight.mean()) + largest
    size = weight.sum() ** 2 / np.square(weight).sum()
    parts.append((log_z, log_z - of_class.mean(), size))
  log_z, kl, size = np.transpose(parts)
  return {
    "log_z": float(log_z.mean()),
    "tilt_kl": float(kl.mean()),
    "tilt_ess": float(size.sum()),
    "tilt_ess_by_class": size.tolist(),
  }


def falls(*, w: np.ndarray, log_z: np.ndarray, err: np.ndarray) -> np.ndarray:
  """[R]: whether log Z / w lies below that of a smaller w, or below 0, by more than MOST_FALL
  standard errors.

  log Z(w) = log E[(p(x|c) / p(x))^w] over p(x|c) is convex and 0 at w = 0, with the slope
  KL(p(x|c) || p(x)) there: of exact networks log Z / w does not fall. Where it does, samples that
  weigh most were not drawn, which neither the error nor the effective sample size of those that
  were can tell.

  Args:
    w: [R] above 0, of one variant.
    log_z: [R].
    err: [R] its standard errors.
  """
  w, slope, error = np.asarray(w), np.divide(log_z, w), np.divide(err, w)
  below = slope[None] - slope[:, None] > MOST_FALL * np.hypot(error[None], error[:, None])
  return np.any(below & (w[None] < w[:, None]), axis=1) | (slope < -MOST_FALL * error)


def summarise(
  *,
  gap: np.ndarray,
  logsnr: np.ndarray,
  y: np.ndarray,
  block_of: np.ndarray,
  w: float,
  refused: str,
) -> dict[str, Any]:
  """{key: number} of a row: I with its error, by level and by class; the tilt, or why it is not
  resolved.

  Errors are the jackknife's, without each block in turn. With few samples log Z of a class and the
  effective sample size are biased low; rows of several strengths can show it (`falls`).

  Args:
    gap: [N,T].
    logsnr: [T].
    y: [N] labels.
    block_of: [N], the block of each sample.
    w: the strength.
    refused: why there is no tilt to speak of; "" where the weights mean something.
  """
  if not np.isfinite(gap).all():
    return {"tilt_unresolved": "the branches' difference is not a finite number"}
  whole, left = information(gap=gap, logsnr=logsnr)
  blocks = np.unique(block_of)
  without = lambda function: jackknife_error([function(block_of != block) for block in blocks])
  row: dict[str, Any] = {
    "information": float(whole.mean()),
    "information_err": without(lambda rows: whole[rows].mean()),
    "information_left": float(left.mean()),
    "information_by_level": by_level(gap=gap, logsnr=logsnr).tolist(),
    "information_logsnr": np.asarray(logsnr, np.float64).tolist(),
    "information_by_class": [float(whole[y == label].mean()) for label in np.unique(y)],
  }
  log_weight = log_weights(information=whole, w=w)
  values = tilt(log_weight=log_weight, y=y)
  reason = refused or _unresolved(row, values, counts=np.unique(y, return_counts=True)[1])
  if reason:
    return {**row, "tilt_unresolved": reason}
  for key in ("log_z", "tilt_kl"):
    values[f"{key}_err"] = without(
      lambda rows, key=key: tilt(log_weight=log_weight[rows], y=y[rows])[key]
    )
  return {**row, **values}


def _unresolved(row, values, *, counts):
  """Why the weights cannot be trusted, or "": a mean over classes is as good as its worst one."""
  sizes = np.array(values["tilt_ess_by_class"])
  worst = int(np.argmin(sizes / counts))
  if sizes[worst] < max(LEAST_SAMPLES, LEAST_SHARE * counts[worst]):
    return f"a class has an effective sample size of {sizes[worst]:.0f} in {counts[worst]}"
  whole, left = row["information"], row["information_left"]
  if abs(left - whole) > MOST_DIFFERENCE * whole:
    return f"the grid is too coarse: left sums give I = {left:.3g}, trapezoids {whole:.3g}"
  return ""
