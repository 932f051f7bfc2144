"""A small network that learns a mixture: the U-Net on images of one pixel, with label dropout."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from cfg import losses, mixtures, schedules
from cfg.base import config, optim, progress
from cfg.guidance import EpsFn
from cfg.mixtures import Mixture
from cfg.models import unet
from cfg.training import state as train_state
from cfg.training.step import apply_gradients

BATCH = 512
P_UNCOND = 0.2
EMA = 0.995
# what each key derived from the seed is for
INIT, EXAMPLES = range(2)


def make_model(mixture: Mixture) -> unet.UNet:
  """The U-Net of one level for the mixture's classes and numbers."""
  return unet.UNet(
    num_classes=mixture.num_classes,
    out_channels=mixture.dim,
    ch=32,
    emb_ch=64,
    ch_mult=(1,),
    num_res_blocks=1,
    attn_resolutions=(),
    num_heads=1,
    norm_groups=4,
  )


def image_shape(mixture: Mixture) -> tuple[int, int, int]:
  """(1, 1, d): a point as an image."""
  return (1, 1, mixture.dim)


def examples(key: jax.Array, index: jax.Array, *, mixture: Mixture) -> tuple[Any, Any, Any]:
  """(x [B,1,1,d], y [B], keys [B] for the loss) of the stream's places `index`."""
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, index)
  key_x, key_loss = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
  y = (index % mixture.num_classes).astype(jnp.int32)
  noise = jax.vmap(lambda key: jax.random.normal(key, (mixture.dim,)))(key_x)
  x = jnp.float32(mixture.means)[y] + jnp.float32(mixture.stds)[y][:, None] * noise
  return x.reshape(-1, *image_shape(mixture)), y, key_loss


def train(mixture: Mixture, *, num_steps: int, seed: int) -> tuple[unet.UNet, Any]:
  """(model, averaged parameters) after so many updates of P's algorithm 1 (arXiv 2207.12598), each
  on fresh draws of the mixture.
  """
  model = make_model(mixture)
  key = jax.random.key(seed)
  optimizer = optim.make_optimizer(
    learning_rate=3e-3, warmup_steps=min(50, num_steps), grad_clip=1.0, decay_steps=num_steps
  )

  @jax.jit
  def init(key):
    params = unet.init_params(model, key=key, image_shape=image_shape(mixture))
    return train_state.create(params=params, optimizer=optimizer, ema_decays=(EMA,))

  def loss_fn(params, index):
    x, y, keys = examples(jax.random.fold_in(key, EXAMPLES), index, mixture=mixture)
    loss, _ = losses.classifier_free_loss(
      eps_fn=unet.make_eps_fn(model, params),
      keys=keys,
      x=x,
      y=y,
      logsnr_fn=schedules.cosine_logsnr,
      p_uncond=P_UNCOND,
      null_label=mixture.num_classes,
    )
    return jnp.mean(loss)

  @functools.partial(jax.jit, donate_argnums=0)
  def step(state):
    index = jnp.uint32(BATCH) * state.step.astype(jnp.uint32) + jnp.arange(BATCH, dtype=jnp.uint32)
    loss, grads = jax.value_and_grad(loss_fn)(state.params, index)
    return apply_gradients(state, loss, grads, optimizer=optimizer)

  state = init(jax.random.fold_in(key, INIT))
  with progress.Progress("train a network", total=num_steps, unit="steps") as shown:
    for done in range(1, num_steps + 1):
      state, metrics = step(state)
      if done % 50 == 0 or done == num_steps:
        shown.update(done, loss=f"{float(metrics['loss']):.3f}")
  return model, state.ema[config.ema_name(EMA)]


def make_eps_fn(model: unet.UNet, params: Any) -> EpsFn:
  """The network as an eps_fn."""
  return unet.make_eps_fn(model, params)


def error(
  model: unet.UNet, params: Any, *, mixture: Mixture, seed: int, count: int = 4096
) -> float:
  """E|eps_hat - eps*|^2 / d against the exact noise eps* of both branches, at training's levels.

  It is what the loss has beyond the best that there is.
  """
  exact, own = mixtures.make_eps_fn(mixture), make_eps_fn(model, params)

  @jax.jit
  def of(key):
    index = jnp.arange(count, dtype=jnp.uint32)
    x, y, keys = examples(key, index, mixture=mixture)
    logsnr = schedules.cosine_logsnr((jnp.arange(count) + 0.5) / count)
    eps = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(keys)
    from_level = jnp.sqrt(jax.nn.sigmoid(logsnr))[:, None, None, None]
    z = from_level * x + jnp.sqrt(1 - from_level**2) * eps
    null = jnp.full_like(y, mixture.num_classes)
    return jnp.mean(
      jnp.stack([jnp.square(own(z, logsnr, c) - exact(z, logsnr, c)) for c in (y, null)])
    )

  return float(of(jax.random.key(seed)))
