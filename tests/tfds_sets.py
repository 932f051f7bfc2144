"""Small data sets of TFDS, written as ArrayRecord files without TensorFlow, as tests/test_tfds.py
needs them.
"""

import io
import types

import numpy as np
import tensorflow_datasets as library
from PIL import Image

kinds = library.features
LABEL = kinds.ClassLabel(names=["zebra", "ant", "猫"])


def encoded(pixels, form="PNG"):
  """The bytes of an image file."""
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


def pixels(seed, *shape):
  """uint8 noise."""
  return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def rows(count, *, seed=0, size=8, labels=3, **more):
  """Examples of noise, of labels 0, 1, ... in turn."""
  return [
    {"image": io.BytesIO(encoded(pixels(seed + i, size, size, 3))), "label": i % labels, **more}
    for i in range(count)
  ]


def prepare(builder, splits):
  """Write {split: examples} as a builder's ArrayRecord files, without TensorFlow."""
  builder._split_generators = lambda _: {
    split: enumerate(examples) for split, examples in splits.items()
  }
  builder.download_and_prepare(file_format="array_record")


def make(path, splits, *, name="tiny", **features):
  """A data set that is known by its files alone; `features` beside or instead of an image and a
  label.
  """
  features = {"image": kinds.Image(shape=(None, None, None)), "label": LABEL, **features}
  features = {key: feature for key, feature in features.items() if feature is not None}
  methods = {
    "VERSION": library.core.Version("1.0.0"),
    "_info": lambda self: library.core.DatasetInfo(
      builder=self, features=kinds.FeaturesDict(features)
    ),
    "_split_generators": None,
    "_generate_examples": None,
  }
  bases, unknown = (library.core.GeneratorBasedBuilder,), {"skip_registration": True}
  builder = types.new_class(name.capitalize(), bases, unknown, lambda body: body.update(methods))
  prepare(builder(data_dir=str(path)), splits)


def encoded_file(seed):
  """A file of 8x8 noise."""
  return io.BytesIO(encoded(pixels(seed, 8, 8, 3)))


CIFAR10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


def real(path, name, *, size):
  """The data set that TFDS has by this name, of a few examples of noise."""
  builder = library.builder(name, data_dir=str(path))
  extra = {"file_name": "x"} if name == "imagenet2012" else {"id": "x"} if name == "cifar10" else {}
  if name == "cifar10":  # TFDS learns them from the archive
    builder.info.features["label"].names = CIFAR10
  prepare(
    builder,
    {
      "train": rows(4, size=size, **extra),
      "validation" if "imagenet" in name else "test": rows(3, size=size, **extra),
    },
  )


# loads a set of TFDS, its config in argv[1], and is sure that no TensorFlow was (that in argv[2]
# would leave a file)
PROGRAM = """
import json, pathlib, sys
from ml_collections import ConfigDict
from cfg.data import pipeline, sources

assert "tensorflow_datasets" not in sys.modules
data = sources.load(ConfigDict(json.loads(sys.argv[1])))
with pipeline.train_stream(data.train, batch_size=2, seed=0, start_step=0, num_steps=3) as stream:
  print(sum(int(batch["label"].size) for batch in stream), data.num_classes)
loaded = {name.split(".")[0] for name in sys.modules}
assert "tensorflow_datasets" in loaded and not loaded & {"tensorflow", "torch", "cv2"}, loaded
assert not pathlib.Path(sys.argv[2]).exists(), "tried"
import tensorflow
"""
