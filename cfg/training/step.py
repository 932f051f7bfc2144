"""An objective's step (algorithm 1), sharded: pure functions, and the programs of them."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cfg import schedules
from cfg.base import images, sharding
from cfg.models import layers, unet
from cfg.training import objective
from cfg.training import state as train_state

# what each key derived from the run's seed is for
INIT, EXAMPLES, DROPOUT = range(3)


def losses_of_batch(params, batch, seed_key, *, example_losses, model, flip, **settings):
  """The losses of P's algorithm 1 (arXiv 2207.12598) or of another objective.

  Args:
    params: of `model`.
    batch: {"image": uint8 [B,H,W,C], "label": int32 [B], "index": uint32 [B]}; `index` is the
      position in the stream, and flip, log-SNR, eps, label drop and dropout of a row come from it
      alone.
    seed_key: jax.random.key(config.seed).
    example_losses: the `loss` of an objective.Objective.
    model: a UNet or a Classifier.
    flip: mirror images at random.
    settings: logsnr_fn and p_uncond of that loss.

  Returns:
    (loss [B], the log-SNR of each row [B]).
  """
  examples_key = jax.random.fold_in(seed_key, EXAMPLES)
  keys = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(examples_key, batch["index"])
  key_flip, key_loss = jax.vmap(lambda key: tuple(jax.random.split(key)))(keys)
  x = images.to_unit(batch["image"])
  if flip:
    x = images.random_flip(keys=key_flip, x=x)
  masks = layers.Masks(jax.random.fold_in(seed_key, DROPOUT), batch["index"])
  return example_losses(
    params,
    model=model,
    keys=key_loss,
    x=x,
    y=batch["label"],
    dropout=masks if model.dropout else None,
    **settings,
  )


def loss_and_gradients(params, batch, seed_key, **settings):
  """The mean of `losses_of_batch`, and its gradient by the parameters `as_used`: (loss,
  gradients).
  """
  model = settings["model"]

  def mean(params):
    params = gather(params, model=model)
    return jnp.mean(losses_of_batch(params, batch, seed_key, **settings)[0])

  return jax.value_and_grad(mean)(as_used(params, model=model))


def as_used(params, *, model):
  """The parameters with kernels in the type that the network multiplies them in. A kernel's
  gradient is computed in that type; it is summed over devices and written down in it too, at half
  the bytes of float32.
  """

  def used(path, leaf):
    cast = path[-1].key == "kernel" and path[0].key not in model.IN_F32
    return leaf.astype(model.dtype) if cast else leaf

  return jax.tree.map_with_path(used, params)


def gather(params, *, model):
  """Parameters that are split over the model's mesh, whole; their gradients are summed and split.
  XLA, left to itself, gathers activations too.
  """
  if model.mesh is None or model.mesh.shape["fsdp"] == 1:
    return params
  whole = lambda leaf, split: leaf if split.is_fully_replicated else sharding.gather(leaf, split)
  return jax.tree.map(whole, params, sharding.by_shape(model.mesh, params))


def apply_gradients(state, loss, grads, *, optimizer):
  """One update of parameters and averages, or none where the loss or a gradient is not finite.

  Returns:
    (TrainState, {"loss", "grad_norm", "skipped"}): the norm before clipping, and whether there was
    no update; the state is then the old one.
  """
  norm = optax.tree.norm(grads)
  finite = jnp.isfinite(loss) & jnp.isfinite(norm)
  updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
  params = optax.apply_updates(state.params, updates)
  step = state.step + 1
  ema = train_state.update_ema(state.ema, params=params, step=step)
  updated = train_state.TrainState(step=step, params=params, ema=ema, opt_state=opt_state)
  state = jax.tree.map(lambda new, old: jnp.where(finite, new, old), updated, state)
  return state, {"loss": loss, "grad_norm": norm, "skipped": ~finite}


def apply_total(state, total, *, optimizer, parts, local):
  """`apply_gradients` of the mean over `parts` equal micro-batches, in float32; `local`, and over
  devices, each of which has its own total in the first axis.
  """
  mean = lambda t: (jnp.mean(t, axis=0) if local else t.astype(jnp.float32)) / parts
  loss, grads = jax.tree.map(mean, total)
  return apply_gradients(state, loss, grads, optimizer=optimizer)


def make_state(config, *, model, optimizer, image_shape, mesh):
  """The initial TrainState, made on the devices."""
  init = state_init(config, model=model, optimizer=optimizer, image_shape=image_shape)
  key = jax.random.fold_in(jax.random.key(config.seed), INIT)
  return jax.jit(init, out_shardings=sharding.by_shape(mesh, jax.eval_shape(init, key)))(key)


def state_init(config, *, model, optimizer, image_shape):
  """key -> TrainState; under eval_shape it costs nothing."""

  def init(key):
    params = unet.init_params(model, key=key, image_shape=image_shape)
    return train_state.create(
      params=params, optimizer=optimizer, ema_decays=config.train.ema_decays
    )

  return init


def loss_settings(config, model):
  """What `losses_of_batch` needs besides parameters, batch and key."""
  return dict(
    example_losses=objective.of_config(config).loss,
    model=model,
    logsnr_fn=functools.partial(schedules.cosine_logsnr, **config.schedule),
    p_uncond=config.train.p_uncond,
    flip=config.train.flip,
  )


class TrainStep:
  """(state, a placed batch) -> (state, metrics): an update of algorithm 1 over the mesh, the state
  donated.

  `place` puts this host's batch on the devices; it may run ahead, in another thread.

  Gradients and update are programs of their own. In one, XLA for GPUs updates convolutions in the
  layout of their gradients, in several passes with copies between: 21 GB a step of the paper's
  64x64 model, where 11 GB do.

  With config.train.accumulate > 1 the batch goes through the network in so many micro-batches,
  whose gradients are summed in float32 before one update: the same update in less memory. Each
  device sums its own, and they are summed over devices once; if parameters are split (train.fsdp >
  1), that would take a whole gradient a device, and each micro-batch's is summed and split at once.
  The loop is Python's, not lax.scan's, in which XLA's CPU backend is many times slower; a dispatch
  costs nothing beside a micro-batch.
  """

  def __init__(self, config, *, model, optimizer, mesh, state):
    self._mesh = mesh
    self._parts = config.train.accumulate
    self._seed_key = jax.random.key(config.seed)
    settings = loss_settings(config, model)
    whole = sharding.replicated(mesh)
    rows = sharding.batch_sharding(mesh)
    states = sharding.by_shape(mesh, state)
    local = self._parts > 1 and 1 < mesh.size and mesh.shape["fsdp"] == 1
    totals = rows if local else (whole, states.params)
    ahead = (mesh.size,) if local else ()
    gradients = functools.partial(loss_and_gradients, **settings)
    self._gradients = jax.jit(
      gradients, in_shardings=(states.params, rows, whole), out_shardings=(whole, states.params)
    )
    self._zeros = jax.jit(
      lambda: jax.tree.map(
        lambda p: jnp.zeros(ahead + p.shape, p.dtype), (jnp.zeros(()), state.params)
      ),
      out_shardings=totals,
    )

    def add(total, params, batch, seed_key):
      new = gradients(params, batch, seed_key)
      return jax.tree.map(lambda t, g: t + (g[None] if local else g), total, new)

    if local:
      add = sharding.on_each_device(mesh, add, rows=(True, False, True, False))
    self._add = jax.jit(
      add, in_shardings=(totals, states.params, rows, whole), out_shardings=totals, donate_argnums=0
    )
    # the total is not donated: no output of its own could take its place
    self._apply = jax.jit(
      functools.partial(apply_total, optimizer=optimizer, parts=self._parts, local=local),
      in_shardings=(states, totals),
      out_shardings=(states, whole),
      donate_argnums=0,
    )

  def place(self, batch):
    """This host's batch on the devices: a list of its micro-batches."""
    return place(batch, self._parts, mesh=self._mesh)

  def __call__(self, state, placed):
    if self._parts == 1:
      total = self._gradients(state.params, *placed, self._seed_key)
    else:
      total = self._zeros()
      for part in placed:
        total = self._add(total, state.params, part, self._seed_key)
    state, metrics = self._apply(state, total)
    if self.compilations() > 1:
      warnings.warn(
        "the training step was compiled again: its inputs changed shape, type or sharding",
        RuntimeWarning,
        stacklevel=1,
      )
    return state, metrics

  def compilations(self):
    """How often the program compiled most was compiled; 1 is right."""
    return max(program._cache_size() for program in (self._gradients, self._add, self._apply))

  def compile(self, state, batch):
    """[(name, compiled program)] for trees of ShapeDtypeStructs: the state, and one micro-batch of
    all hosts.
    """
    seed_key = jax.eval_shape(lambda: self._seed_key)  # the key itself is on devices that are here
    if self._parts == 1:
      total = jax.eval_shape(self._gradients, state.params, batch, seed_key)
      gradients = self._gradients.lower(state.params, batch, seed_key)
    else:
      total = jax.eval_shape(self._zeros)
      gradients = self._add.lower(total, state.params, batch, seed_key)
    return [
      ("micro-batch", gradients.compile()),
      ("update", self._apply.lower(state, total).compile()),
    ]


def place(batch, parts, *, mesh):
  """This host's batch on the devices: a list of `parts` micro-batches."""
  return [sharding.put_local_rows(mesh, part) for part in split(batch, parts)]


def split(batch, parts):
  """A batch (a tree of numpy arrays) in `parts` equal ones, row after row."""
  size = len(batch["index"]) // parts
  return [
    {name: np.asarray(a)[first : first + size] for name, a in batch.items()}
    for first in range(0, size * parts, size)
  ]
