"""From parameters to images and their features: one program over the mesh."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cfg.base import sharding
from cfg.base.errors import UserError
from cfg.features.extractor import Extractor
from cfg.inference import program as program_lib
from cfg.inference.program import Program


class NotFiniteSamples(UserError):
  """Samples are not finite numbers: no image shows them."""


class Batch(NamedTuple):
  """What one call of the program gave, all on the devices.

  Attributes:
    rows: the slice of the samples asked for; what lies beyond its length is padding.
    images: uint8 [batch_size,H,W,C].
    outputs: {output: [batch_size,dim]} of the extractor; empty without one.
    aux: {name: [T,batch_size]} that the rule measured on the way.
  """

  rows: slice
  images: jax.Array
  outputs: Mapping[str, jax.Array]
  aux: Mapping[str, jax.Array]


def generate_and_extract(params, extractor_params, index, y, w, key, *, program, extract):
  """What `program.generate` gives, and an extractor's outputs of its images, which stay on the
  devices.
  """
  pictures, finite, aux = program_lib.generate(params, index, y, w, key, program=program)
  return finite, pictures, {} if extract is None else extract(extractor_params, pictures), aux


class Generator:
  """Draws any number of samples in sharded batches of one shape, compiled once for all w != 0.

  Args:
    program: what draws.
    mesh: from sharding.make_mesh.
    batch_size: images a call of the program; a multiple of the mesh's size, and of that times the
      program's particles.
    extractor: whose outputs `batches` gives with the images, or None.

  Raises:
    UserError: a batch does not hold whole groups of particles on each device.
  """

  def __init__(
    self, program: Program, *, mesh: Mesh, batch_size: int, extractor: Extractor | None = None
  ):
    unit = mesh.size * program.particles
    if program.particles > 1 and batch_size % unit:
      raise UserError(
        f"a batch of {batch_size} samples does not hold whole groups of {program.particles} on "
        f"each of {mesh.size} devices (sampler.particles): take a multiple of {unit}."
      )
    self.program = program
    self.mesh = mesh
    self.batch_size = batch_size
    self._extract = None if extractor is None else extractor.apply
    self._extractor_params = None
    if extractor is not None:
      self._extractor_params = jax.device_put(extractor.params, sharding.replicated(mesh))
    # the unguided program is another one, and may never be asked for
    self.compiled = functools.cache(self._jit)

  def _jit(self, guided: bool) -> Any:
    """The jitted program: (params, extractor's, index, y, w, key) -> (finite, images, outputs,
    aux).
    """
    whole, rows = sharding.replicated(self.mesh), sharding.batch_sharding(self.mesh)
    columns = NamedSharding(self.mesh, PartitionSpec(None, *rows.spec))
    function = functools.partial(
      generate_and_extract,
      program=self.program if guided else self.program.at(0.0),
      extract=self._extract,
    )
    return jax.jit(
      function,
      in_shardings=(whole, whole, rows, rows, None, whole),
      out_shardings=(rows, rows, rows, columns),
    )

  def nfe(self, w: float | np.ndarray) -> dict[str, int]:
    """{role: rows of that network for one sample} at these strengths."""
    return program_lib.nfe(self.program.at(w))

  def batches(
    self,
    params: Mapping[str, Any],
    *,
    index: np.ndarray,
    labels: np.ndarray,
    w: float | np.ndarray,
    seed: int,
  ) -> Iterator[Batch]:
    """Yield every Batch of the samples `index` [N], labels [N], at strength w, a number or [N].

    The last batch repeats its last sample; its slice covers only the real ones. Where every w is 0
    the rule's unguided form draws.

    Raises:
      NotFiniteSamples: samples of the batch are not finite.
      UserError: with particles, if the samples are not whole groups of one label and one w.
    """
    run = self.compiled(bool(np.any(w)) or self.program.rule.unguided is None)
    key = jax.random.key(seed)
    index, labels = np.asarray(index, np.uint32), np.asarray(labels, np.int32)
    strengths = np.asarray(w, np.float32)
    if self.program.particles > 1:
      check_groups(index, labels, strengths, particles=self.program.particles)
    pending = None
    for first in range(0, len(index), self.batch_size):
      rows = np.minimum(np.arange(first, first + self.batch_size), len(index) - 1)
      placed = sharding.put_rows(self.mesh, {"index": index[rows], "labels": labels[rows]})
      assert placed["index"].shape == (self.batch_size,), placed["index"].shape
      each = strengths.ndim > 0
      strength = sharding.put_rows(self.mesh, strengths[rows]) if each else jnp.float32(w)
      out = run(params, self._extractor_params, placed["index"], placed["labels"], strength, key)
      finite, *rest = out
      # one batch ahead: the devices work while the host reads
      if pending is not None:
        yield checked(*pending, index)
      pending = Batch(slice(first, min(first + self.batch_size, len(index))), *rest), finite
    if pending is not None:
      yield checked(*pending, index)

  def __call__(self, params: Mapping[str, Any], **samples) -> np.ndarray:
    """All the images at once on the host: uint8 [N,H,W,C]; arguments as of `batches`."""
    return np.concatenate(
      [
        sharding.to_host(batch.images)[: batch.rows.stop - batch.rows.start]
        for batch in self.batches(params, **samples)
      ]
    )


def checked(batch: Batch, finite: jax.Array, index: np.ndarray) -> Batch:
  """The batch of the samples `index`. Raise NotFiniteSamples unless all of it is `finite`."""
  wrong = np.flatnonzero(~sharding.to_host(finite)[: batch.rows.stop - batch.rows.start])
  if len(wrong):
    raise NotFiniteSamples(
      f"{len(wrong)} of {batch.rows.stop - batch.rows.start} samples, the first of them number "
      f"{index[batch.rows][wrong[0]]}, are not finite: the network's parameters have diverged or "
      f"are damaged, or guidance is too strong for this sampler. Nothing was kept of them. Use an "
      f"earlier checkpoint, a lower w, or sampler.limit='clip'."
    )
  return batch


def check_groups(
  index: np.ndarray, labels: np.ndarray, strengths: np.ndarray, *, particles: int
) -> None:
  """Raise UserError unless samples are whole groups: `particles` numbers in a row, the first a
  multiple of it, of one label and one strength.
  """
  rows = np.arange(len(index)) // particles * particles
  first = index[np.minimum(rows, len(index) - 1)].astype(int)
  whole = len(index) % particles == 0 and np.all(first % particles == 0)
  in_order = np.all(index.astype(int) - first == np.arange(len(index)) - rows)
  alike = [a for a in (labels, strengths) if a.ndim > 0]
  if not (whole and in_order and all(np.all(a == a[rows]) for a in alike)):
    raise UserError(
      f"sampler.particles is {particles}: samples come in whole groups of that many, of one class "
      f"and one strength, numbered from a multiple of it. Ask for a multiple of {particles} of "
      "each class, or set sampler.particles=1."
    )
