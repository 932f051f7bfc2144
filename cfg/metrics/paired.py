"""The difference of two rows' numbers, and whether it is resolved."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import special

from cfg.metrics.metric import Metric
from cfg.metrics.scores import jackknife_error

CONFIDENCE = 0.95
UNRESOLVED = "not resolved"
# what the larger of two numbers is, and the smaller
WORDS = {"higher": ("better", "worse"), "lower": ("worse", "better"), "": ("higher", "lower")}


class Difference(NamedTuple):
  """How much larger a number is in a second row than in a first.

  Attributes:
    value: the difference; None where a row lacks the number.
    err: its standard error; None, as all that follows, where a row lacks values without each block.
    low, high: the ends of its interval, at CONFIDENCE.
    ratio: err over the error of independent samples; None where the rows are not paired, or neither
      has an error.
    verdict: what the second row is: "better" or "worse", "higher" or "lower" where neither is
      better, UNRESOLVED where zero lies in the interval.
  """

  value: float | None
  err: float | None = None
  low: float | None = None
  high: float | None = None
  ratio: float | None = None
  verdict: str | None = None


def difference(
  *,
  first: float,
  second: float,
  first_without: Sequence[float],
  second_without: Sequence[float],
  paired: bool,
  better: str = "",
) -> Difference:
  """d = b - a, and the interval d -+ t s of Student's t, s^2 = (k - 1) / k sum_i (d_i - mean)^2.

  d_i is without block i of both: the jackknife (Efron & Stein 1981) of the difference, which holds
  however much block i of one row has to do with block i of the other, and has k - 1 degrees of
  freedom. Of rows that are not paired the squares of both errors are added, and the degrees of
  freedom are those of the fewer blocks, which errs on the wide side.

  Args:
    first, second: the numbers a and b.
    first_without, second_without: what they are without each of k >= 2 blocks.
    paired: whether blocks of one place belong together.
    better: "higher", "lower", or "".

  Raises:
    ValueError: paired rows of different numbers of blocks, or fewer than 2.
  """
  counts = (len(first_without), len(second_without))
  if min(counts) < 2 or paired and counts[0] != counts[1]:
    raise ValueError(f"{counts[0]} and {counts[1]} blocks: pairs need as many, at least 2")
  value = float(second - first)
  independent = float(np.hypot(jackknife_error(first_without), jackknife_error(second_without)))
  err, ratio = independent, None
  if paired:
    err = jackknife_error(np.subtract(second_without, first_without))
    ratio = err / independent if independent > 0 else None
  reach = float(special.stdtrit(min(counts) - 1, (1 + CONFIDENCE) / 2)) * err
  larger, smaller = WORDS[better]
  verdict = UNRESOLVED
  if abs(value) > reach:
    verdict = larger if value > 0 else smaller
  return Difference(value, err, value - reach, value + reach, ratio, verdict)


def of_rows(first: Mapping, second: Mapping, metric: Metric, *, paired: bool) -> Difference:
  """The Difference of a metric in two rows of metrics.summary; without an error where a row keeps
  no values without each block.

  KID is a mean over random subsets, and drawing them has an error that the jackknife does not see.
  The difference is therefore that of the kernel distances of all samples: the mean of those without
  each block, which estimate the same, unbiased, at any number of samples.
  """
  a, b = first.get(metric.key), second.get(metric.key)
  if a is None or b is None:
    return Difference(None)
  first_without, second_without = first.get(metric.without), second.get(metric.without)
  if first_without is None or second_without is None:
    return Difference(b - a)
  if metric.kind == "kid":
    a, b = float(np.mean(first_without)), float(np.mean(second_without))
  return difference(
    first=a,
    second=b,
    first_without=first_without,
    second_without=second_without,
    paired=paired,
    better=metric.better,
  )


def at_equal(
  curve: Sequence[Mapping], row: Mapping, *, x: Metric, y: Metric, paired: bool
) -> Difference | None:
  """How much larger y is in `row` than on the curve y(x) of the rows `curve`, at the row's own x.

  Strengths of two rules do not mean the same: their curves are compared at equal x, the Inception
  Score for one. Between its rows a curve is linear; it ends before the first row, in their order,
  whose x is not above the last's. Each block is left out of the row and of the whole curve.

  Args:
    curve: rows of metrics.summary, x rising.
    row: one such row.
    x: the metric at which they are compared.
    y: the metric that is compared.
    paired: whether blocks of one place belong together.

  Returns:
    None where x lies beyond the curve, or a number or values without each block are not there.
  """
  rising = rising_in(curve, x)
  rows = [*rising, row]
  if any(r.get(name) is None for r in rows for m in (x, y) for name in (m.key, m.without)):
    return None
  across, up = ([r[m.key] for r in rising] for m in (x, y))
  if not across[0] <= row[x.key] <= across[-1]:
    return None
  without = []
  for i, own in enumerate(row[x.without]):
    order = np.argsort([r[x.without][i] for r in rising])
    points = [(rising[j][x.without][i], rising[j][y.without][i]) for j in order]
    without.append(float(np.interp(own, *np.transpose(points))))
  return difference(
    first=float(np.interp(row[x.key], across, up)),
    second=row[y.key],
    first_without=without,
    second_without=row[y.without],
    paired=paired,
    better=y.better,
  )


def rising_in(curve: Sequence[Mapping], x: Metric) -> list[Mapping]:
  """The first rows of a curve, as far as x rises."""
  rising: list[Mapping] = []
  for row in curve:
    if row.get(x.key) is None or rising and row[x.key] <= rising[-1][x.key]:
      break
    rising.append(row)
  return rising
