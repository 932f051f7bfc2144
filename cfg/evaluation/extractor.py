"""What a feature extractor is: a name, features [N,D] and class probabilities [N,K]."""

import dataclasses
from collections.abc import Callable


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A network whose feature space metrics are measured in, and named after.

  Attributes:
    name: printed beside every number; includes a hash of the weights.
    feature_dim: D.
    num_classes: K.
    apply: (params, uint8 images [N,H,W,C]) -> (features [N,D] f32, probabilities [N,K] f32); pure.
    params: passed to `apply`.
    info: facts for the record, JSON-able (held-out accuracy, weights' hash).
  """

  name: str
  feature_dim: int
  num_classes: int
  apply: Callable
  params: object
  info: dict
