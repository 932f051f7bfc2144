"""The meter against mixtures whose information is known by quadrature."""

import numpy as np
import pytest

from cfg.metrics import meter

MEANS, STDS, SHARES = (
  np.array([-1.0, 0.3, 1.2]),
  np.array([0.4, 0.25, 0.5]),
  np.array([0.5, 0.3, 0.2]),
)
EDGES = np.linspace(-14, 14, 57)
COUNT = 4000
GRID = np.linspace(-8, 8, 20_001)


def normal(x, mean, std):
  """The density of a Gaussian."""
  return np.exp(-0.5 * ((x - mean) / std) ** 2) / (np.sqrt(2 * np.pi) * std)


def class_densities():
  """[3, len(GRID)]: p(x|c)."""
  return normal(GRID, MEANS[:, None], STDS[:, None])


def divergence(p, q):
  """KL(p || q) in nats, by quadrature."""
  terms = np.where(p > 1e-300, p * np.log(np.maximum(p, 1e-300) / np.maximum(q, 1e-300)), 0)
  return np.trapezoid(terms, GRID)


def eps_of(z, logsnr, means, stds, shares):
  """-sigma grad log p(z) of the mixture; arrays of components come last."""
  alpha2, sigma2 = (1 / (1 + np.exp(-sign * logsnr))[..., None] for sign in (1, -1))
  offset = z[..., None] - np.sqrt(alpha2) * means
  var = alpha2 * stds**2 + sigma2
  log_p = np.log(shares) - 0.5 * (offset**2 / var + np.log(var))
  weight = np.exp(log_p - log_p.max(axis=-1, keepdims=True))
  weight /= weight.sum(axis=-1, keepdims=True)
  return np.sqrt(sigma2[..., 0]) * (weight * offset / var).sum(axis=-1)


@pytest.fixture(scope="module")
def drawn():
  """(x, y, logsnr, eps, z): images of one number, and a level in each part."""
  rng = np.random.default_rng(0)
  y = np.repeat(np.arange(3), np.round(SHARES * COUNT).astype(int))
  x = MEANS[y] + STDS[y] * rng.normal(size=COUNT)
  logsnr = EDGES[:-1] + np.diff(EDGES) * rng.uniform(size=(COUNT, len(EDGES) - 1))
  eps = rng.normal(size=logsnr.shape)
  alpha, sigma = (np.sqrt(1 / (1 + np.exp(-sign * logsnr))) for sign in (1, -1))
  return y, logsnr, eps, alpha * x[:, None] + sigma * eps


def measured(drawn, *, cond=None, uncond=None):
  """The summary with the exact branches, or those given as functions of what was drawn."""
  y, logsnr, eps, z = drawn
  one = lambda a: a[y][:, None, None]
  e_c = eps_of(z, logsnr, one(MEANS), one(STDS), 1.0)
  e_u = eps_of(z, logsnr, MEANS, STDS, SHARES)
  if cond is not None:
    e_c = cond(e_c, drawn)
  if uncond is not None:
    e_u = uncond(e_u, drawn)
  advantage = (e_u - eps) ** 2 - (e_c - eps) ** 2
  return meter.summarise(gap=(e_c - e_u) ** 2, advantage=advantage, edges=EDGES, y=y)


def close(summary, name, exact, slack=0.01):
  """Whether a number is within 3 standard errors of the exact one, and these are small."""
  assert 0 < summary[f"{name}_err"] < 0.06
  return abs(summary[name] - exact) < 3 * summary[f"{name}_err"] + slack


def test_exact_branches_measure_the_information(drawn):
  """M1 = M2 = the mutual information, by class the divergence of each; M2 + log p(c) is minus what
  an image leaves open of its label; the sums rise to their ends.
  """
  summary = measured(drawn)
  mixture = SHARES @ class_densities()
  by_class = [divergence(p, mixture) for p in class_densities()]
  information = SHARES @ by_class
  entropy = -SHARES @ np.log(SHARES)
  assert close(summary, "M1", information) and close(summary, "M2", information)
  assert close(summary, "M1_minus_M2", 0.0)
  assert close(summary, "M2_plus_log_p", information - entropy)
  assert summary["label_entropy"] == pytest.approx(entropy)
  for name in ("M1", "M2"):
    off = np.abs(np.subtract(summary[f"{name}_by_class"], by_class))
    assert np.all(off < 3 * np.array(summary[f"{name}_by_class_err"]) + 0.01)
    assert summary[f"{name}_by_level"][0] == 0
    assert summary[f"{name}_by_level"][-1] == pytest.approx(summary[name])
    assert summary[f"{name}_by_level_err"][-1] == pytest.approx(summary[f"{name}_err"])
  assert np.all(np.diff(summary["M1_by_level"]) >= 0)
  assert 0 < summary["end_level"] < 8


def test_a_weaker_null_branch_is_seen(drawn):
  """A null branch that is exact for one Gaussian in place of the mixture: M1 and M2 still agree,
  as the class branch is exact, and are larger by KL(p || Gaussian): so is M2 + log p(c), its bound.
  """
  std = 3.0
  gaussian = lambda e_u, d: eps_of(d[3], d[1], np.zeros(1), np.full(1, std), 1.0)
  summary, exact = measured(drawn, uncond=gaussian), measured(drawn)
  mixture = SHARES @ class_densities()
  worse = divergence(mixture, normal(GRID, 0, std))
  information = SHARES @ [divergence(p, mixture) for p in class_densities()]
  assert worse > 0.5
  assert close(summary, "M1", information + worse) and close(summary, "M2", information + worse)
  assert close(summary, "M1_minus_M2", 0.0)
  bound = summary["M2_plus_log_p"]
  assert exact["M2_plus_log_p"] < 0 < bound < worse


def test_an_error_of_the_class_branch_parts_the_two(drawn):
  """Noise of its own on the class branch, of variance v: M1 grows by half v times the range, M2
  falls by it; on the null branch both grow.
  """
  extra = 0.2 * np.random.default_rng(1).normal(size=drawn[1].shape)
  half = 0.5 * 0.04 * 28
  exact = measured(drawn)
  cond = measured(drawn, cond=lambda e_c, d: e_c + extra)
  uncond = measured(drawn, uncond=lambda e_u, d: e_u + extra)
  slack = 0.03
  assert abs(cond["M1"] - exact["M1"] - half) < slack
  assert abs(cond["M2"] - exact["M2"] + half) < slack
  assert abs(cond["M1_minus_M2"] - exact["M1_minus_M2"] - 2 * half) < 2 * slack
  assert abs(uncond["M1"] - exact["M1"] - half) < slack
  assert abs(uncond["M2"] - exact["M2"] - half) < slack


def test_few_parts_are_as_good():
  """Of a steep integrand the mean over many images is its integral with 3 parts: the levels are
  uniform in theirs.
  """
  rng = np.random.default_rng(2)
  edges = np.array([-2.0, 0.0, 1.0, 4.0])
  level = edges[:-1] + np.diff(edges) * rng.uniform(size=(40_000, 3))
  sums = meter.running_integrals(values=np.exp(level), edges=edges)
  mean, err = meter.mean_and_error(sums)
  exact = 0.5 * (np.exp(edges) - np.exp(edges[0]))
  assert np.all(np.abs(mean - exact) <= 3.5 * err) and mean[0] == err[0] == 0


def test_the_error_is_that_of_the_images():
  """sqrt(var / N), which is the jackknife's without each image."""
  values = np.random.default_rng(3).normal(size=50)
  without = np.array([np.delete(values, i).mean() for i in range(50)])
  jackknife = np.sqrt(49 / 50 * ((without - without.mean()) ** 2).sum())
  assert meter.mean_and_error(values)[1] == pytest.approx(jackknife)
  summary = meter.summarise(
    gap=np.ones((1, 2)), advantage=np.ones((1, 2)), edges=np.arange(3.0), y=np.zeros(1, int)
  )
  assert summary["M2"] == 1 and summary["M2_err"] is None and summary["end_level"] is None


@pytest.mark.parametrize(
  "running, err, level",
  [
    ([0, 1, 2, 2.9, 3, 3], 0.2, 3.0),
    ([0, 1, 2, 2.9, 3, 3], 0.01, 4.0),
    ([0, 1, 3, 2, 1, 1], 0.2, 2.0),  # it falls again: where it was largest
    ([0, 0.1, 0.1, 0.1, 0.1, 0.1], 0.2, None),  # nothing that could be told from zero
    ([0, -1, -2, -2, -2, -2], 0.2, None),
  ],
)
def test_where_a_sum_ends(running, err, level):
  """The first edge within one error of the largest value."""
  edges, err = np.arange(6.0), np.array([0, *[err] * 5])
  assert meter.end_level(running=np.array(running), err=err, edges=edges) == level
