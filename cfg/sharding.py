"""The mesh, and who holds what: the batch is split over "data", parameters are replicated."""

import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from cfg.errors import UserError


def make_mesh(devices=None):
  """A mesh of all devices (or those given) along one axis, "data"."""
  devices = jax.devices() if devices is None else devices
  # the default axis type is Explicit, in which linen's Embed, Dropout and convolutions fail
  return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def batch_sharding(mesh):
  """First axis split over the devices."""
  return NamedSharding(mesh, PartitionSpec("data"))


def replicated(mesh):
  """A whole copy on each device."""
  return NamedSharding(mesh, PartitionSpec())


def check_batch_size(mesh, name, batch_size):
  """Raise UserError unless `batch_size`, the config's field `name`, divides over the mesh."""
  if batch_size < 1 or batch_size % mesh.size:
    raise UserError(f"{name} is {batch_size}: it must be a positive multiple of the {mesh.size} devices.")


def round_up(mesh, batch_size):
  """The least multiple of the mesh's size that is not below `batch_size`."""
  return -(-batch_size // mesh.size) * mesh.size


def put_batch(mesh, batch):
  """This host's rows of a batch (a tree of numpy arrays) to global arrays, split over the devices."""
  sharding = batch_sharding(mesh)
  return jax.tree.map(lambda a: jax.make_array_from_process_local_data(sharding, np.asarray(a)), batch)
