"""Whether a classifier is right as often as it says."""

import numpy as np


def expected_calibration_error(
  confidence: np.ndarray, correct: np.ndarray, *, num_bins: int = 15
) -> float:
  """ECE = sum_m (|B_m| / n) |acc(B_m) - conf(B_m)| (Guo et al. 2017, arXiv 1706.04599, section 2).

  Args:
    confidence: [n], the probability of the class that was chosen, in [0, 1].
    correct: [n], whether it was the right one.
    num_bins: of equal width, each without its lower end.
  """
  bins = np.clip(np.ceil(np.asarray(confidence) * num_bins).astype(int) - 1, 0, num_bins - 1)
  surplus = np.bincount(bins, weights=np.asarray(correct, float) - confidence, minlength=num_bins)
  return float(np.abs(surplus).sum() / len(confidence))
