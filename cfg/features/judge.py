"""Trains the judge of a small data set and makes a feature extractor of it."""

import functools

import jax
import jax.numpy as jnp
import optax

from cfg.base import images
from cfg.features.extractor import Extractor, classifier
from cfg.models import judge as judge_lib


def make_extractor(*, model, params, dataset_name, info) -> Extractor:
  """Wrap a trained judge: `<data>-judge-<hash of the weights>`, its last hidden layer and its
  logits.
  """
  return classifier(
    name=f"{dataset_name}-judge-{info['weights_sha256'][:8]}",
    model=model,
    params=params,
    prepare=images.to_unit,
    feature_dim=model.feature_dim,
    num_classes=model.num_classes,
    info=info,
  )


def fit(*, model, optimizer, seed, num_steps, image_shape, stream, on_step=None):
  """Train the judge on the real training images by cross-entropy; returns its parameters.

  Args:
    model: a judge_lib.Judge.
    optimizer: an optax transformation.
    seed: of initialisation and dropout.
    num_steps: updates.
    image_shape: (H, W, C).
    stream: iterator over {"image", "label", "index"}.
    on_step: called with the number of completed updates.
  """
  key = jax.random.key(seed)
  init = jax.jit(functools.partial(judge_lib.init_params, model, image_shape=image_shape))
  params = init(key=jax.random.fold_in(key, 0))
  opt_state = jax.jit(optimizer.init)(params)

  @functools.partial(jax.jit, donate_argnums=(0, 1))
  def step(params, opt_state, batch, n):
    key_dropout = jax.random.fold_in(key, n + 1)
    x = images.to_unit(batch["image"])

    def loss_fn(p):
      _, logits = model.apply({"params": p}, x, deterministic=False, rngs={"dropout": key_dropout})
      return optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()

    updates, opt_state_ = optimizer.update(jax.grad(loss_fn)(params), opt_state, params)
    return optax.apply_updates(params, updates), opt_state_

  for n, batch in zip(range(num_steps), stream):
    params, opt_state = step(params, opt_state, batch, jnp.int32(n))
    if on_step:
      on_step(n + 1)
  return jax.device_get(params)
