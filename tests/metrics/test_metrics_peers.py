"""FID, the Inception Score, KID, precision and recall are torch-fidelity's, by its frozen numbers
and by itself where it is installed.
"""

import importlib

import jax
import metrics_golden as golden
import numpy as np
import paths
import pytest
from torch_files import write_torch

from cfg.base import files
from cfg.interop import inception as interop
from cfg.models import inception

BENCHMARKS = paths.ROOT / "benchmarks"
METRICS = ("fid", "inception_score", "inception_score_10_splits", "kid", "precision", "recall")


def frozen(part):
  """{metric: torch-fidelity's number}."""
  found = files.read_npz(golden.PATH)
  return {name: float(found[f"{part}/{name}"]) for name in METRICS}


def assert_close(found, wanted, *, tolerance):
  """Every metric to a relative tolerance."""
  assert found.keys() == wanted.keys()
  errors = {name: abs(found[name] - wanted[name]) / abs(wanted[name]) for name in found}
  assert max(errors.values()) < tolerance, errors


@pytest.mark.smoke
def test_metrics_of_features_are_torch_fidelitys():
  """Of the same 120 and 150 vectors of 24 features and 120 rows of logits, every metric to 1e-6;
  precision and recall are float32 there.
  """
  assert_close(golden.cfg_metrics(**golden.small()), frozen("small"), tolerance=1e-6)


def test_the_frozen_numbers_are_torch_fidelitys_now(monkeypatch):
  """The torch-fidelity that is installed gives the small sets' frozen numbers, to 1e-6."""
  pytest.importorskip("torch_fidelity")
  monkeypatch.syspath_prepend(BENCHMARKS)
  peer = importlib.import_module("metrics")
  assert_close(peer.torch_fidelity_metrics(**golden.small()), frozen("small"), tolerance=1e-6)


def test_the_numbers_tell_metrics_apart():
  """None of the frozen numbers is an end of its range, scores are between 3 and 8, and precision is
  not recall.
  """
  for part in ("small", "whole"):
    found = frozen(part)
    assert (
      3 < found["inception_score"] < 8
      and found["inception_score_10_splits"] < 0.9 * found["inception_score"]
    )
    assert (
      found["fid"] > 1
      and found["kid"] > 0.01
      and all(0.1 < found[name] < 0.99 for name in ("precision", "recall"))
    )
    assert abs(found["precision"] - found["recall"]) > 0.1


@pytest.mark.slow
def test_metrics_of_images_are_torch_fidelitys(tmp_path):
  """From uint8 images on, with the same weights by way of a file of the port, every metric is what
  torch-fidelity's own network led to, to 1e-3.
  """
  write_torch(tmp_path / "random.pth", golden.state_dict())
  params, _ = interop.read(tmp_path / "random.pth")
  forward = jax.jit(
    lambda params, pixels: inception.apply(params, pixels, outputs=("pool_3", "logits_no_bias"))
  )
  found = {
    part: [forward(params, pixels[first : first + 8]) for first in range(0, golden.WHOLE, 8)]
    for part, pixels in golden.image_sets(golden.WHOLE).items()
  }
  together = lambda part, name: np.concatenate([some[name] for some in found[part]])
  metrics = golden.cfg_metrics(
    together("samples", "pool_3"),
    together("reference", "pool_3"),
    together("samples", "logits_no_bias"),
  )
  assert_close(metrics, frozen("whole"), tolerance=1e-3)
