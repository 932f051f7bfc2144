"""The constants and attributes of a frozen TensorFlow graph (a GraphDef in a .pb file), read
without TensorFlow.

Only the fields that are needed are declared, with the numbers of TensorFlow's
graph.proto, node_def.proto, attr_value.proto, tensor.proto and
tensor_shape.proto; protobuf passes over the others. Nothing is executed.
"""

import functools
import math

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message, message_factory

from cfg.base.errors import UserError

PACKAGE = "cfg.graph_def"
# message: {field: (number, type, repeated)}; a map is a repeated message of key and value
MESSAGES = {
  "GraphDef": {"node": (1, "NodeDef", True)},
  "NodeDef": {"name": (1, "string", False), "op": (2, "string", False), "attr": (5, "Attr", True)},
  "Attr": {"key": (1, "string", False), "value": (2, "AttrValue", False)},
  "AttrValue": {
    "f": (4, "float", False),
    "b": (5, "bool", False),
    "tensor": (8, "TensorProto", False),
  },
  "TensorProto": {
    "dtype": (1, "int32", False),
    "tensor_shape": (2, "Shape", False),
    "tensor_content": (4, "bytes", False),
    "float_val": (5, "float", True),
  },
  "Shape": {"dim": (2, "Dim", True)},
  "Dim": {"size": (1, "int64", False)},
}
DT_FLOAT = 1


@functools.cache
def message_class(name):
  """The protobuf class of one of MESSAGES."""
  kinds = descriptor_pb2.FieldDescriptorProto
  file = descriptor_pb2.FileDescriptorProto(
    name="cfg/graph_def.proto", package=PACKAGE, syntax="proto3"
  )
  for message_name, fields in MESSAGES.items():
    declared = file.message_type.add(name=message_name)
    for field, (number, kind, repeated) in fields.items():
      label = kinds.LABEL_REPEATED if repeated else kinds.LABEL_OPTIONAL
      if kind in MESSAGES:
        what = dict(type=kinds.TYPE_MESSAGE, type_name=f".{PACKAGE}.{kind}")
      else:
        what = dict(type=getattr(kinds, f"TYPE_{kind.upper()}"))
      declared.field.add(name=field, number=number, label=label, **what)
  pool = descriptor_pool.DescriptorPool()
  pool.AddSerializedFile(file.SerializeToString())
  return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


def parse(content):
  """{node: (op, {attribute: AttrValue})} of the bytes of a GraphDef.

  Raises:
    UserError: they are not one, or cut short.
  """
  graph = message_class("GraphDef")()
  try:
    graph.ParseFromString(content)
  except (message.DecodeError, ValueError) as e:
    raise UserError(f"it is no frozen TensorFlow graph, or is damaged ({e}).") from e
  if not graph.node:
    raise UserError("it has no node of a TensorFlow graph.")
  return {node.name: (node.op, {a.key: a.value for a in node.attr}) for node in graph.node}


def constant(nodes, name, *, shape):
  """The float32 array of a constant.

  Raises:
    UserError: there is no such constant, or it is not float32 numbers of this shape.
  """
  op, attributes = nodes.get(name, (None, {}))
  if op != "Const" or "value" not in attributes:
    raise UserError(f"it has no constant {name}.")
  tensor = attributes["value"].tensor
  found = tuple(dim.size for dim in tensor.tensor_shape.dim)
  if tensor.dtype != DT_FLOAT or found != shape:
    raise UserError(
      f"its constant {name} is not float32 of shape {shape} (but type {tensor.dtype}, shape "
      f"{found[:8]})."
    )
  if tensor.tensor_content:
    values = np.frombuffer(tensor.tensor_content[: len(tensor.tensor_content) // 4 * 4], "<f4")
  else:
    values = np.asarray(tensor.float_val, np.float32)
    if values.size == 1:  # how TensorFlow stores an array of equal values
      values = np.broadcast_to(values, math.prod(shape))
  if values.size != math.prod(shape):
    raise UserError(f"its constant {name} of shape {shape} has {values.size} values.")
  return values.reshape(shape)
