"""What was not finite in a training step, and where it began."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from cfg.base import sharding, trees
from cfg.base.config import ConfigDict
from cfg.training import step as step_lib

OUTPUT = "__call__"  # what flax calls a module's output among its intermediates


@dataclasses.dataclass(frozen=True)
class Diagnosis:
  """A step whose loss or gradient is not finite.

  Attributes:
    tensor: the first that is not: of the parameters, then of the network's outputs in the order in
      which they are made, then the loss, then the gradients; "" if all are finite.
    rows: examples of the batch whose loss is not finite.
    batch_size: of how many.
    logsnr: the lowest and the highest log-SNR of those examples; of all where there are none.
  """

  tensor: str
  rows: int
  batch_size: int
  logsnr: tuple[float, float]

  def __str__(self) -> str:
    low, high = self.logsnr
    if not self.tensor:
      return f"all numbers are finite, at log-SNR {low:.2f} to {high:.2f}"
    examples = (
      f"the losses of {self.rows} of {self.batch_size} examples are not"
      if self.rows
      else f"all {self.batch_size} losses are"
    )
    return (
      f"the first tensor that is not finite is {self.tensor}; {examples}, "
      f"at log-SNR {low:.2f} to {high:.2f}"
    )


def diagnose(
  config: ConfigDict, *, model: Any, params: Any, batches: Iterable[Mapping], mesh: Mesh
) -> Diagnosis:
  """Look at everything that a step computes, up to its gradients.

  Args:
    config: the run's.
    model: its network.
    params: before the step.
    batches: the micro-batches of the step, placed.
    mesh: of the run.
  """
  settings = step_lib.loss_settings(config, model)
  names: list[str] = []

  def look(params, batch, seed_key):
    """([tensors] whether each is finite, [B] losses, [B] log-SNRs); `names` has the tensors'."""
    watched = Watched(model)
    losses, logsnr = step_lib.losses_of_batch(
      params, batch, seed_key, **{**settings, "model": watched}
    )
    _, grads = step_lib.loss_and_gradients(params, batch, seed_key, **settings)
    tensors = {f"the parameter {name}": a for name, a in trees.flatten(params).items()}
    tensors |= {f"the output of {name}": a for name, a in watched.outputs.items()}
    tensors["the loss"] = losses
    tensors |= {f"the gradient of {name}": a for name, a in trees.flatten(grads).items()}
    names[:] = tensors
    return jnp.stack([jnp.isfinite(a).all() for a in tensors.values()]), losses, logsnr

  whole = sharding.replicated(mesh)
  look = jax.jit(look, out_shardings=whole)
  seed_key = jax.random.key(config.seed)
  found = [jax.device_get(look(params, batch, seed_key)) for batch in batches]
  finite, losses, logsnr = (np.stack(a) for a in zip(*found))
  wrong = np.flatnonzero(~finite.all(axis=0))
  bad = ~np.isfinite(losses)
  shown = logsnr[bad] if bad.any() else logsnr
  return Diagnosis(
    tensor=names[wrong[0]] if len(wrong) else "",
    rows=int(bad.sum()),
    batch_size=losses.size,
    logsnr=(float(shown.min()), float(shown.max())),
  )


class Watched:
  """A model whose `apply` keeps what its modules return in `outputs`, {path: array}, in order."""

  def __init__(self, model: Any) -> None:
    self._model = model
    self.outputs: dict[str, jax.Array] = {}

  def __getattr__(self, name: str) -> Any:
    return getattr(self._model, name)

  def apply(self, *args: Any, **kwargs: Any) -> Any:
    """As the model's."""
    out, kept = self._model.apply(
      *args, **kwargs, capture_intermediates=True, mutable=["intermediates"]
    )
    self._keep(kept["intermediates"], "")
    return out

  def _keep(self, tree, path):
    """A module's parts in the order in which they returned, then itself."""
    for name, value in tree.items():
      if name != OUTPUT:
        self._keep(value, f"{path}/{name}" if path else name)
    for i, array in enumerate(jax.tree.leaves(tree.get(OUTPUT, ()))):
      self.outputs[f"{path or 'the network'}{f' ({i + 1})' if i else ''}"] = array
