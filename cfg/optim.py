"""The optimizer: clip by global norm, Adam, linear warm-up to a constant rate."""

import optax


def make_optimizer(*, learning_rate, warmup_steps, grad_clip, beta1=0.9, beta2=0.999, weight_decay=0.0):
  """Adam as the paper's sibling code sets it (google-research/ddpm_w_distillation, configs i64_unet3, i128_unet3).

  The norm that is clipped is the global batch's. The learning rate of update
  n = 1, 2, ... is learning_rate * min(1, n / warmup_steps).

  Args:
    learning_rate: after warm-up.
    warmup_steps: 0 for none.
    grad_clip: largest global norm of the gradient, or None.
    beta1: decay of the first moment.
    beta2: decay of the second moment.
    weight_decay: decoupled (AdamW).
  """
  # optax counts from 0: the first update has a positive rate
  rate = lambda count: learning_rate * ((count + 1) / warmup_steps).clip(max=1.0)
  clip = optax.identity() if grad_clip is None else optax.clip_by_global_norm(grad_clip)
  adam = optax.adamw(rate if warmup_steps else learning_rate, b1=beta1, b2=beta2, weight_decay=weight_decay)
  return optax.chain(clip, adam)
