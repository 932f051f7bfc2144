"""What a computation costs: FLOPs counted in its jaxpr, and the peak rates of chips."""

import math

import jax
import jax.numpy as jnp
import numpy as np

# dense bf16 matrix FLOP/s by a part of jax's device_kind, the longer names first (NVIDIA's and
# Google's data sheets)
PEAKS = {
  "H200": 989e12,
  "H100 NVL": 835e12,
  "H100 PCIe": 756e12,
  "H100": 989e12,
  "A100": 312e12,
  "L40S": 362e12,
  "L4": 121e12,
  "A10": 125e12,
  "V100": 125e12,
  "T4": 65e12,
  "TPU v6": 918e12,
  "TPU v5p": 459e12,
  "TPU v5 lite": 197e12,
  "TPU v5e": 197e12,
  "TPU v5": 459e12,
  "TPU v4": 275e12,
  "TPU v3": 123e12,
}


def peak(device_kind):
  """Dense bf16 matrix FLOP/s of one device, or None where the chip is not known."""
  return next((value for name, value in PEAKS.items() if name in device_kind), None)


def count(jaxpr):
  """FLOPs of the convolutions and matrix products of a jaxpr, two for each multiply-and-add.

  Loops count as often as they run (a while loop once), of branches the dearest. Taps of
  a convolution that fall into its padding do not count, as in XLA's own cost analysis.
  """
  total = 0
  for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
    if eqn.primitive.name == "dot_general":
      (contract, _), _ = eqn.params["dimension_numbers"]
      lhs = eqn.invars[0].aval.shape
      total += 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[axis] for axis in contract)
    elif eqn.primitive.name == "conv_general_dilated":
      total += _convolution(eqn)
    elif eqn.primitive.name == "cond":
      total += max(count(branch) for branch in eqn.params["branches"])
    else:
      times = eqn.params.get("length", 1) if eqn.primitive.name == "scan" else 1
      total += times * sum(
        count(inner) for value in eqn.params.values() for inner in _jaxprs(value)
      )
  return total


def _jaxprs(value):
  """The jaxprs in a parameter of an equation."""
  values = value if isinstance(value, tuple | list) else (value,)
  return [v for v in values if hasattr(v, "eqns") or hasattr(v, "jaxpr")]


def _convolution(eqn):
  numbers, params = eqn.params["dimension_numbers"], eqn.params
  lhs, kernel, out = eqn.invars[0].aval.shape, eqn.invars[1].aval.shape, eqn.outvars[0].aval.shape
  total = 2 * out[numbers.out_spec[0]] * out[numbers.out_spec[1]] * kernel[numbers.rhs_spec[1]]
  for dim in range(len(numbers.lhs_spec) - 2):
    total *= _taps(
      size=lhs[numbers.lhs_spec[2 + dim]],
      window=kernel[numbers.rhs_spec[2 + dim]],
      positions=out[numbers.out_spec[2 + dim]],
      stride=params["window_strides"][dim],
      before=params["padding"][dim][0],
      spread=params["lhs_dilation"][dim],
      dilation=params["rhs_dilation"][dim],
    )
  return total


def _taps(*, size, window, positions, stride, before, spread, dilation):
  """Pairs of an output position and a tap that meet an input, along one dimension: not padding, not
  the zeros of a spread.
  """
  at = np.arange(positions)[:, None] * stride - before + np.arange(window)[None, :] * dilation
  return int(np.sum((at >= 0) & (at <= (size - 1) * spread) & (at % spread == 0)))


def of_network(model, *, image_shape):
  """FLOPs of one image's forward pass, and of its forward and backward pass, without any
  recomputation.

  Args:
    model: a UNet or a Classifier.
    image_shape: (H, W, C).

  Returns:
    (forward, training).
  """
  model = model.clone(remat=False, attention="xla")  # what a kernel does, a jaxpr does not say
  inputs = model.inputs(image_shape)
  params = jax.eval_shape(model.init, jax.random.key(0), *inputs)
  forward = jax.make_jaxpr(model.apply)(params, *inputs)
  loss = lambda params, *inputs: jnp.sum(model.apply(params, *inputs))
  training = jax.make_jaxpr(jax.grad(loss))(params, *inputs)
  return count(forward), count(training)
