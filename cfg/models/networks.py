"""The networks that are trained here, by what they are trained for (config.train.objective)."""

from cfg.models import classifier, unet

MAKERS = {"denoise": unet.from_config, "classify": classifier.from_config}


def from_config(config, *, objective, num_classes, image_shape):
  """The UNet or Classifier of config.model.

  Args:
    config: the section model.
    objective: one of MAKERS.
    num_classes: classes of the data.
    image_shape: (H, W, C).

  Raises:
    UserError: fields that do not fit each other or the images.
  """
  return MAKERS[objective](config, num_classes=num_classes, image_shape=image_shape)
