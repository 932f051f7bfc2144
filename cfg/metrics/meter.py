"""What the branches of a network know of the label, on held-out images noised at all levels.

e_c and e_u are the estimates of the noise eps with the label and without it. Of each image and each
part of the log-SNR there are gap = |e_c - e_u|^2 and advantage = |e_u - eps|^2 - |e_c - eps|^2, at
one level that is uniform in that part: half their width times value is then an unbiased estimate of
half the integral over the part, however few parts there are. A grid and the trapezoid rule would
not be. The bounds that the advantage comes from are Kingma et al. 2021 (arXiv 2107.00630).
"""

import math
from typing import Any

import numpy as np


def running_integrals(*, values: np.ndarray, edges: np.ndarray) -> np.ndarray:
  """1/2 int values dlambda of each image, from the first edge to each: half the sums of width times
  value, in nats.

  Args:
    values: [N,L], each at a level that is uniform in its part.
    edges: [L+1] log-SNRs of the parts, increasing.

  Returns:
    [N,L+1] f64, the first column 0.
  """
  parts = 0.5 * np.asarray(values, np.float64) * np.diff(np.asarray(edges, np.float64))
  return np.concatenate([np.zeros((len(parts), 1)), np.cumsum(parts, axis=1)], axis=1)


def mean_and_error(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
  """The mean over the images, the first axis, and its standard error sqrt(var / N): the jackknife's
  without each image in turn.

  With a single image there is no error: not a number.
  """
  rows = np.asarray(rows, np.float64)
  if len(rows) < 2:
    return rows.mean(axis=0), np.full(rows.shape[1:], math.nan)
  return rows.mean(axis=0), rows.std(axis=0, ddof=1) / math.sqrt(len(rows))


def end_level(*, running: np.ndarray, err: np.ndarray, edges: np.ndarray) -> float | None:
  """The first edge at which the running mean is within one standard error of its largest value.

  The largest, not the last: a network that has seen its training images too often knows held-out
  ones worse with the label than without it where there is little noise, and its sum falls again.
  The error is that of the largest value. With more images it shrinks, and the level rises.

  Args:
    running: [L+1] means.
    err: [L+1] their standard errors.
    edges: [L+1] log-SNRs.

  Returns:
    None where the largest value is not above its error: there is nothing to reach.
  """
  last = int(np.argmax(running))
  least = running[last] - err[last]
  if not least > 0:
    return None
  return float(edges[np.argmax(running >= least)])


def summarise(
  *, gap: np.ndarray, advantage: np.ndarray, edges: np.ndarray, y: np.ndarray
) -> dict[str, Any]:
  """{name: number} of M1 = 1/2 int E gap dlambda and M2 = 1/2 int E advantage dlambda, in nats.

  M2 is the mean of log p(x|c) - log p(x) as the two branches bound them. M1 - M2 is
  int E<e_c - e_u, e_c - E[eps | z, c]> dlambda: 0 where the class branch is exact, whatever the
  other is. If both are exact M1 = M2 is the mutual information of image and label. Since
  sum_c p(c) p(x|c) >= p(c) p(x|c), M2 + E log p(c) is a lower bound on by how much the mixture of
  the class branches explains an image better than the branch without a label does; p(c) are the
  shares of the labels at hand.

  Args:
    gap: [N,L], |e_c - e_u|^2.
    advantage: [N,L], |e_u - eps|^2 - |e_c - eps|^2.
    edges: [L+1] log-SNRs of the parts.
    y: [N] labels.

  Returns:
    "M1", "M2", "M1_minus_M2", "M2_plus_log_p", each with its standard error over the images
    ("M1_err"); "label_entropy"; "end_level", of `end_level` of M2; "logsnr" and
    "M1_by_level", "M1_by_level_err", the running sums, of M2 too; "classes" and "M1_by_class",
    "M1_by_class_err", of M2 too.
  """
  y = np.asarray(y)
  labels, place, counts = np.unique(y, return_inverse=True, return_counts=True)
  log_p = np.log(counts / len(y))[place]
  running = {
    "M1": running_integrals(values=gap, edges=edges),
    "M2": running_integrals(values=advantage, edges=edges),
  }
  m1, m2 = (sums[:, -1] for sums in running.values())
  whole = {"M1": m1, "M2": m2, "M1_minus_M2": m1 - m2, "M2_plus_log_p": m2 + log_p}
  summary: dict[str, Any] = {}
  for name, rows in whole.items():
    summary |= _described(name, mean_and_error(rows))
  summary["label_entropy"] = float(-log_p.mean())
  ends = mean_and_error(running["M2"])
  summary["end_level"] = end_level(running=ends[0], err=ends[1], edges=edges)
  summary["logsnr"] = np.asarray(edges, np.float64).tolist()
  for name, sums in running.items():
    summary |= _described(f"{name}_by_level", mean_and_error(sums))
  summary["classes"] = labels.tolist()
  for name, sums in running.items():
    of_class = [mean_and_error(sums[y == label, -1]) for label in labels]
    summary |= _described(f"{name}_by_class", np.transpose(of_class))
  return summary


def directions(*, numbers: np.ndarray, edges: np.ndarray) -> dict[str, Any]:
  """{name: [L]}: means over the images, in each part of the log-SNR, of what two gradients of one
  log-probability are: their norms, the cosine of the angle between them, the angle in degrees.

  Args:
    numbers: [N,L,3], the norm of the classifier's, of the implicit one's, and the cosine.
    edges: [L+1] log-SNRs of the parts.

  Returns:
    "classifier_norm", "implicit_norm", "cosine" and "angle", each with its standard error
    ("cosine_err"); "logsnr", the edges.
  """
  numbers = np.asarray(numbers, np.float64)
  angle = np.degrees(np.arccos(np.clip(numbers[..., 2], -1, 1)))
  summary: dict[str, Any] = {"logsnr": np.asarray(edges, np.float64).tolist()}
  columns = [*np.moveaxis(numbers, -1, 0), angle]
  for name, values in zip(("classifier_norm", "implicit_norm", "cosine", "angle"), columns):
    summary |= _described(name, mean_and_error(values))
  return summary


def _described(name, values):
  """{name, name_err} of a mean and its error, as JSON values."""
  mean, err = values
  return {name: _json(mean), f"{name}_err": _json(err)}


def _json(a):
  """Numbers, or None where there is none."""
  a = np.asarray(a)
  if a.ndim:
    return [_json(value) for value in a]
  return float(a) if np.isfinite(a) else None
