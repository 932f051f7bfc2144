"""What a network is trained for: its loss, and what is measured of it on held-out images."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfg import diffusion, losses
from cfg.metrics import calibration
from cfg.models import classifier, unet


class Objective(NamedTuple):
  """What a network is trained for.

  Attributes:
    loss: (params, *, model, keys, x, y, logsnr_fn, p_uncond, dropout) -> (loss [B], the
      log-SNR [B] that it was taken at).
    measure: (params, *, model, x, eps, logsnr, y) -> [B,K], of rows at their log-SNR.
    numbers: [N,K] that were measured at similar log-SNRs, on the host -> {name: number}.
  """

  loss: Callable[..., tuple[jax.Array, jax.Array]]
  measure: Callable[..., jax.Array]
  numbers: Callable[[np.ndarray], Mapping[str, float]]


def denoising_loss(params, *, model, keys, x, y, logsnr_fn, p_uncond, dropout):
  """Algorithm 1's (arXiv 2207.12598)."""
  return losses.classifier_free_loss(
    eps_fn=unet.make_eps_fn(model, params, dropout=dropout),
    keys=keys,
    x=x,
    y=y,
    logsnr_fn=logsnr_fn,
    p_uncond=p_uncond,
    null_label=model.num_classes,
  )


def eps_errors(params, *, model, x, eps, logsnr, y):
  """Errors with true and with null labels."""
  eps_fn = unet.make_eps_fn(model, params)
  error = lambda y: losses.eps_error(eps_fn=eps_fn, x=x, eps=eps, logsnr=logsnr, y=y)
  return jnp.stack([error(y), error(jnp.full_like(y, model.num_classes))], axis=-1)


def mean_errors(errors):
  """The means of `eps_errors`."""
  cond, null = errors.mean(axis=0)
  return {"loss_cond": float(cond), "loss_null": float(null)}


def cross_entropy_loss(params, *, model, keys, x, y, logsnr_fn, p_uncond, dropout):
  """losses.classifier_loss; no label is dropped."""
  del p_uncond
  return losses.classifier_loss(
    log_prob_fn=classifier.make_log_prob_fn(model, params, dropout=dropout),
    keys=keys,
    x=x,
    y=y,
    logsnr_fn=logsnr_fn,
  )


def predictions(params, *, model, x, eps, logsnr, y):
  """Cross-entropy, whether the most probable class is the right one, and its probability."""
  z = diffusion.q_sample(x=x, eps=eps, logsnr=logsnr)
  log_p = classifier.make_log_probs_fn(model, params)(z, logsnr)
  correct = (jnp.argmax(log_p, axis=1) == y).astype(jnp.float32)
  confidence = jnp.exp(jnp.max(log_p, axis=1))
  return jnp.stack([-classifier.of_label(log_p, y), correct, confidence], axis=-1)


def scores(rows):
  """Means and calibration of `predictions`."""
  cross_entropy, correct, confidence = rows.T
  return {
    "cross_entropy": float(cross_entropy.mean()),
    "accuracy": float(correct.mean()),
    "calibration_error": calibration.expected_calibration_error(confidence, correct),
  }


OBJECTIVES: dict[str, Objective] = {
  "denoise": Objective(denoising_loss, eps_errors, mean_errors),
  "classify": Objective(cross_entropy_loss, predictions, scores),
}


def of_config(config: Any) -> Objective:
  """The Objective of a whole config."""
  return OBJECTIVES[config.train.objective]
