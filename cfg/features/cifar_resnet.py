"""Makes a feature extractor of a published CIFAR-10 classifier."""

import jax.numpy as jnp

from cfg.features.extractor import Extractor, classifier
from cfg.models import cifar_resnet

# of the images in [0, 1] that akamaster/pytorch_resnet_cifar10 (trainer.py) trained on: ImageNet's
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)


def make_extractor(*, model, params, info) -> Extractor:
  """Wrap a cifar_resnet.CifarResNet: `cifar-resnet<depth>-<hash of the weights>`, its pooled last
  level and its logits.
  """
  return classifier(
    name=f"cifar-resnet{model.depth}-{info['weights_sha256'][:8]}",
    model=model,
    params=params,
    prepare=normalise,
    feature_dim=cifar_resnet.WIDTHS[-1],
    num_classes=cifar_resnet.NUM_CLASSES,
    info=info,
  )


def normalise(pixels):
  """(pixels / 255 - MEAN) / STD of uint8 [B,H,W,3], channel by channel."""
  row = lambda values: jnp.array(values, jnp.float32)[None, None, None]
  return (pixels.astype(jnp.float32) / 255 - row(MEAN)) / row(STD)
