"""The networks that are trained here, by what they are trained for (config.train.objective)."""

import logging

from cfg.models import classifier, unet

log = logging.getLogger(__name__)

MAKERS = {"denoise": unet.from_config, "classify": classifier.from_config}


def from_config(config, *, objective, num_classes, image_shape, mesh=None):
  """The UNet or Classifier of config.model.

  Args:
    config: the section model.
    objective: one of MAKERS.
    num_classes: classes of the data.
    image_shape: (H, W, C).
    mesh: that its rows will be split over; None for jax's default device.

  Raises:
    UserError: fields that do not fit each other or the images.
  """
  model = MAKERS[objective](config, num_classes=num_classes, image_shape=image_shape, mesh=mesh)
  kinds = model.attention_choices(image_shape)
  if kernels := [f"{kind} ({count} layers)" for kind, count in kinds.items() if kind != "xla"]:
    log.info(
      "attention is computed by %s: compiled for such chips, but not yet run on one by this "
      "project; --config.model.attention=xla does without",
      ", ".join(kernels),
    )
  return model
