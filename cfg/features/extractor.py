"""What a feature extractor is: a network, and the metrics that are made of its outputs."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from cfg.metrics.metric import Metric, named_by_role, outputs

__all__ = ["Extractor", "Metric", "Source", "beside", "classifier", "combine"]


@dataclasses.dataclass(frozen=True, eq=False)
class Extractor:
  """A network whose outputs metrics are measured in, and named after.

  Attributes:
    role: what it is used as, and the section of the config that it comes from: "inception".
    name: printed beside every number; includes a hash of the weights.
    apply: (params, uint8 images [N,H,W,C]) -> {output: [N, dims[output]] f32}; pure.
    params: passed to `apply`.
    dims: {output: dimension}.
    metrics: what is measured in its outputs; each carries the extractor's role.
    info: facts for the record, JSON-able: "weights_sha256"; "resize", "note", "complete" and
      "heldout_accuracy" where they apply.
  """

  role: str
  name: str
  apply: Callable
  params: Any
  dims: Mapping[str, int]
  metrics: tuple[Metric, ...]
  info: Mapping[str, Any] = dataclasses.field(default_factory=dict)

  def __post_init__(self):
    own = (m if m.role else m._replace(role=self.role) for m in self.metrics)
    object.__setattr__(self, "metrics", tuple(own))

  def outputs(self, *kinds: str) -> tuple[str, ...]:
    """The outputs that metrics of these kinds are made of."""
    return outputs(self.metrics, *kinds)

  @property
  def judges(self) -> bool:
    """Whether its classes are the data's, so that samples have an accuracy."""
    return bool(self.outputs("accuracy"))


class Source(NamedTuple):
  """Where the extractor of a role comes from: functions of the config.

  Attributes:
    wanted: config -> whether it asks for this extractor.
    remedy: how a config asks for it, as an imperative.
    check: (config, *, dataset) raises UserError if it cannot measure such images.
    outline: (config, *, dataset) -> the Extractor as far as it is known before training: its
      metrics and dims.
    load: (config, *, dataset, workdir) -> the Extractor.
  """

  wanted: Callable[..., bool]
  remedy: str
  check: Callable[..., None]
  outline: Callable[..., Extractor]
  load: Callable[..., Extractor]


def classifier(
  *, role="judge", name, model, params, prepare, feature_dim, num_classes, info
) -> Extractor:
  """The Extractor of a classifier of the data's own classes: its last features and its logits.

  Args:
    role: names the outputs.
    name: of the extractor.
    model: flax module, images -> (features [N,feature_dim], logits [N,num_classes]).
    params: of the model.
    prepare: uint8 images -> what the model takes.
    feature_dim: of the features.
    num_classes: of the data.
    info: of the extractor.
  """
  features = role
  logits = f"{role}_logits"

  def apply(params, pixels):
    values, class_logits = model.apply({"params": params}, prepare(pixels))
    return {features: values, logits: class_logits}

  fid = Metric("fid", "FID", features, "frechet", "lower")
  return Extractor(
    role=role,
    name=name,
    apply=apply,
    params=params,
    dims={features: feature_dim, logits: num_classes},
    metrics=(
      fid,
      fid.heldout(),
      Metric("inception_score", "IS", logits, "score", "higher"),
      Metric("label_accuracy", "label acc.", logits, "accuracy", "higher", "{:.1%}"),
    ),
    info=info,
  )


def beside(extractors: Iterable[Extractor]) -> tuple[Extractor, ...]:
  """The same extractors, with all metrics of different names: the first one's as they are, those of
  the others named by role.

  Raises:
    ValueError: two have one role, or share the name of an output.
  """
  named: list[Extractor] = []
  for extractor in extractors:
    taken = [metric.key for other in named for metric in other.metrics]
    for other in named:
      if other.role == extractor.role or other.dims.keys() & extractor.dims.keys():
        raise ValueError(f"the extractors {other.name} and {extractor.name} share a name")
    if named:
      metrics = named_by_role(extractor.metrics, taken=taken)
      extractor = dataclasses.replace(extractor, metrics=metrics)
    named.append(extractor)
  return tuple(named)


def combine(extractors: Iterable[Extractor]) -> Extractor:
  """One Extractor of several that stand `beside` each other: all outputs, and all metrics."""
  extractors = tuple(extractors)

  def apply(params, pixels):
    values = {}
    for extractor, own in zip(extractors, params, strict=True):
      values |= extractor.apply(own, pixels)
    return values

  return Extractor(
    role=" and ".join(extractor.role for extractor in extractors),
    name=" and ".join(extractor.name for extractor in extractors),
    apply=apply,
    params=tuple(extractor.params for extractor in extractors),
    dims={name: dim for extractor in extractors for name, dim in extractor.dims.items()},
    metrics=tuple(metric for extractor in extractors for metric in extractor.metrics),
  )
