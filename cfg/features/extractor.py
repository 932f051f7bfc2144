"""What a feature extractor is: a network, the names of its outputs, and which numbers are made of
each.
"""

import dataclasses
from collections.abc import Callable

# the end of a judge's metrics' names where it stands beside another network
JUDGE = "_judge"


@dataclasses.dataclass(frozen=True)
class Extractor:
  """A network whose outputs metrics are measured in, and named after.

  Attributes:
    name: printed beside every number; includes a hash of the weights.
    apply: (params, uint8 images [N,H,W,C]) -> {output: [N, dims[output]] f32}; pure.
    params: passed to `apply`.
    dims: {output: dimension}.
    frechet: {output: name of the Fréchet distance in it}.
    scores: {output: name of the Inception Score of its softmax}; these outputs are logits.
    classes: the output whose largest entry is the label that the network gives; None if its classes
      are not the data's.
    pairwise: the output in which precision, recall and KID are, or None.
    pairwise_suffix: of their names.
    leading: the outputs, one of each network, in which the distance to held-out images is given
      too.
    info: facts for the record, JSON-able: "weights_sha256"; of a judge "heldout_accuracy".
  """

  name: str
  apply: Callable
  params: object
  dims: dict
  frechet: dict
  scores: dict
  classes: str | None = None
  pairwise: str | None = None
  pairwise_suffix: str = ""
  leading: tuple = ()
  info: dict = dataclasses.field(default_factory=dict)

  def renamed(self, suffix):
    """The same with a suffix to every metric's name, for a second network beside a first."""
    names = lambda metrics: {output: f"{metric}{suffix}" for output, metric in metrics.items()}
    return dataclasses.replace(self, frechet=names(self.frechet), scores=names(self.scores))


def classifier(*, name, model, params, prepare, feature_dim, num_classes, info):
  """The Extractor of a classifier of the data's own classes: its last features and its logits.

  Args:
    model: flax module, images -> (features [N,feature_dim], logits [N,num_classes]).
    prepare: uint8 images -> what the model takes.
  """

  def apply(params, pixels):
    features, logits = model.apply({"params": params}, prepare(pixels))
    return {"judge": features, "judge_logits": logits}

  return Extractor(
    name=name,
    apply=apply,
    params=params,
    dims={"judge": feature_dim, "judge_logits": num_classes},
    frechet={"judge": "fid"},
    scores={"judge_logits": "inception_score"},
    classes="judge_logits",
    leading=("judge",),
    info=info,
  )


def together(extractors):
  """One Extractor of several, whose outputs have different names; of `classes` and `pairwise` the
  first's that has them.
  """
  union = lambda field: {
    name: value for e in extractors for name, value in getattr(e, field).items()
  }
  paired = next((e for e in extractors if e.pairwise is not None), extractors[0])

  def apply(params, pixels):
    return {
      name: a
      for e, p in zip(extractors, params, strict=True)
      for name, a in e.apply(p, pixels).items()
    }

  return Extractor(
    name=" and ".join(e.name for e in extractors),
    apply=apply,
    params=tuple(e.params for e in extractors),
    dims=union("dims"),
    frechet=union("frechet"),
    scores=union("scores"),
    classes=next((e.classes for e in extractors if e.classes is not None), None),
    pairwise=paired.pairwise,
    pairwise_suffix=paired.pairwise_suffix,
    leading=tuple(output for e in extractors for output in e.leading),
  )
