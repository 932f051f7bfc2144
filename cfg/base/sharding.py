"""The mesh, and who holds what: the batch is split over all devices; parameters are replicated, or
split by shape.

The axes are "data" and "fsdp". A state is split over "fsdp" (fully sharded data
parallelism): each device keeps a part of the large arrays, and XLA gathers them
where they are used. With fsdp = 1 every device has a whole copy.
"""

import functools
import math

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cfg.base.errors import UserError

AXES = ("data", "fsdp")
# arrays of fewer numbers are replicated: splitting them saves nothing
SMALLEST_SPLIT = 2**14


def make_mesh(devices=None, *, fsdp=1):
  """A mesh of all devices (or those given): ("data", "fsdp") of sizes (n / fsdp, fsdp).

  Raises:
    UserError: fsdp does not divide the number of devices.
  """
  devices = jax.devices() if devices is None else devices
  if fsdp < 1 or len(devices) % fsdp:
    raise UserError(f"train.fsdp is {fsdp}: it must divide the number of devices, {len(devices)}.")
  # the default axis type is Explicit, in which linen's Embed, Dropout and convolutions fail
  return jax.make_mesh(
    (len(devices) // fsdp, fsdp), AXES, axis_types=(AxisType.Auto,) * 2, devices=devices
  )


def batch_sharding(mesh):
  """First axis split over all devices."""
  return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh):
  """A whole copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def by_shape(mesh, tree):
  """A tree of shardings like `tree`: each array's last dimension that "fsdp" divides is split over
  it: a kernel's outputs, so that parts of it by inputs are split as the whole is.

  Small arrays, and those that do not divide, are replicated. Equal shapes are split
  alike, so parameters, gradients, averages and moments are.
  """
  parts = mesh.shape["fsdp"]

  def sharding(leaf):
    fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0]
    if parts == 1 or math.prod(leaf.shape) < SMALLEST_SPLIT or not fitting:
      return replicated(mesh)
    axis = max(fitting)
    return NamedSharding(
      mesh, PartitionSpec(*(AXES[1] if i == axis else None for i in range(len(leaf.shape))))
    )

  return jax.tree.map(sharding, tree)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1,))
def gather(array, split):
  """`array`, which is split by the NamedSharding `split`, whole at every device; its gradient is
  split again.
  """
  constrain = jax.lax.with_sharding_constraint
  return constrain(constrain(array, split), replicated(split.mesh))


def _gather_forward(array, split):
  return gather(array, split), None


def _gather_backward(split, _, gradient):
  return (jax.lax.with_sharding_constraint(gradient, split),)


gather.defvjp(_gather_forward, _gather_backward)


def on_each_device(mesh, function, *, rows):
  """`function`, run by each device on its own rows alone; what it returns are rows.

  Args:
    mesh: from `make_mesh`.
    function: of arrays, trees of them, and keys.
    rows: for each argument, whether it is split over devices by its first axis, or whole at each.
  """
  specs = tuple(PartitionSpec(AXES) if split else PartitionSpec() for split in rows)
  return jax.shard_map(
    function, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(AXES), check_vma=False
  )


def is_local(mesh):
  """Whether what is being traced is one device's: the mesh has no other, or it is under
  `on_each_device`.
  """
  one = mesh is None or mesh.size == 1
  return one or bool(jax.sharding.get_abstract_mesh().manual_axes)


def is_split(mesh, array):
  """Whether XLA can split the rows of `array`, which is being traced, over `mesh`."""
  return not is_local(mesh) and len(array) % mesh.size == 0


def split_rows(mesh, array):
  """`array` with its rows split over `mesh`, as XLA would not always guess: where parameters are
  split too, it may split channels instead, and move them between devices.
  """
  if not is_split(mesh, array):
    return array
  return jax.lax.with_sharding_constraint(array, batch_sharding(mesh))


def check_batch_size(mesh, name, batch_size, *, parts=1):
  """Raise UserError unless `batch_size`, the config's field `name`, divides over the mesh, `parts`
  times.
  """
  unit = mesh.size * parts
  if batch_size < 1 or batch_size % unit:
    micro = f" times the {parts} micro-batches of train.accumulate" if parts > 1 else ""
    raise UserError(
      f"{name} is {batch_size}: it must be a positive multiple of the {mesh.size} devices{micro}."
    )


def round_up(mesh, batch_size, *, parts=1):
  """The least multiple of the mesh's size, times `parts`, that is not below `batch_size`."""
  unit = mesh.size * parts
  return -(-batch_size // unit) * unit


def put_local_rows(mesh, batch):
  """This process's rows of a batch (a tree of numpy arrays), its own share of equal ones, as global
  arrays split over devices.
  """
  sharding = batch_sharding(mesh)
  return jax.tree.map(
    lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch
  )


def put_rows(mesh, batch):
  """A whole batch (a tree of numpy arrays), which every process has, as global arrays split over
  devices.
  """
  sharding = batch_sharding(mesh)

  def put(rows):
    rows = np.asarray(rows)
    return jax.make_array_from_callback(rows.shape, sharding, lambda index: rows[index])

  return jax.tree.map(put, batch)


def to_host(tree):
  """A tree of arrays as numpy arrays, whole at every process, wherever their parts are.

  All processes call it, at the same place.
  """

  def fetch(a):
    if not isinstance(a, jax.Array) or a.is_fully_addressable or a.is_fully_replicated:
      return np.asarray(a)
    return multihost_utils.process_allgather(a, tiled=True)

  return jax.tree.map(fetch, tree)


def bytes_per_device(tree, shardings):
  """Bytes that one device holds of a tree of arrays or shapes under these shardings."""
  sizes = jax.tree.map(
    lambda a, s: math.prod(s.shard_shape(a.shape)) * a.dtype.itemsize, tree, shardings
  )
  return sum(jax.tree.leaves(sizes))
