"""A metric as a row: the name of its number, what it is made of, and how it is shown.

Every name that follows from a metric's key, or from an extractor's role, is made here.
"""

from collections.abc import Iterable
from typing import NamedTuple

TRAIN = "train"
HELDOUT = "heldout"


class Metric(NamedTuple):
  """One number that is measured in one output of a feature extractor.

  Attributes:
    key: its name in rows: "fid".
    title: its name for readers: "FID".
    output: the extractor's output it is computed from: features, or logits.
    kind: "frechet", "score", "accuracy", "precision", "recall" or "kid"; see metrics.summary.
    better: "lower", "higher", or "" where neither is.
    format: a format string for its value.
    against: the real images it is measured against: "train" or "heldout".
    role: of the extractor that it belongs to; filled in by the extractor.
  """

  key: str
  title: str
  output: str
  kind: str
  better: str = ""
  format: str = "{:.3f}"
  against: str = TRAIN
  role: str = ""

  @property
  def err(self) -> str:
    """The name of its standard error."""
    return f"{self.key}_err"

  @property
  def block_mean(self) -> str:
    """The name of its mean over the blocks."""
    return f"{self.key}_block_mean"

  @property
  def without(self) -> str:
    """The name of its values without each block in turn."""
    return f"{self.key}_without"

  @property
  def infinity(self) -> str:
    """The name of its value at infinitely many samples."""
    return f"{self.key}_infinity"

  @property
  def subset(self) -> str:
    """The name of the size of its random subsets."""
    return f"{self.key}_subset"

  def heldout(self) -> "Metric":
    """The same against held-out images."""
    return self._replace(key=f"{self.key}_heldout", title=f"{self.title} held-out", against=HELDOUT)


def named_by_role(metrics: Iterable[Metric], *, taken: Iterable[str] = ()) -> tuple[Metric, ...]:
  """Metrics of an extractor that stands beside others, with its role in their names: "fid_judge",
  "judge FID", "fid_judge_heldout".

  An accuracy says by itself whose labels it is about, and keeps its name if it is not `taken`.
  """
  renamed: dict[tuple, Metric] = {}
  for metric in metrics:
    if metric.against == HELDOUT:
      new = renamed[metric.output, metric.kind, TRAIN].heldout()
    elif metric.kind == "accuracy" and metric.key not in taken:
      new = metric
    else:
      new = metric._replace(
        key=f"{metric.key}_{metric.role}", title=f"{metric.role} {metric.title}"
      )
    renamed[metric.output, metric.kind, metric.against] = new
  return tuple(renamed.values())


def fact(role: str, name: str) -> str:
  """The name in rows of a fact about the extractor of a role: "judge/sha256"."""
  return f"{role}/{name}"


def outputs(metrics: Iterable[Metric], *kinds: str) -> tuple[str, ...]:
  """The outputs that metrics of these kinds are made of, each once, in order."""
  return tuple(dict.fromkeys(metric.output for metric in metrics if metric.kind in kinds))


def roles(metrics: Iterable[Metric]) -> tuple[str, ...]:
  """The roles of metrics, each once, in order."""
  return tuple(dict.fromkeys(metric.role for metric in metrics))


def leading(metrics: Iterable[Metric]) -> tuple[Metric, ...]:
  """The first Fréchet distance of each role, to the training split."""
  first: dict[str, Metric] = {}
  for metric in metrics:
    if metric.kind == "frechet" and metric.against == TRAIN:
      first.setdefault(metric.role, metric)
  return tuple(first.values())
