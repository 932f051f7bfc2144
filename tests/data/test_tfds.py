"""Data sets of TFDS: prepared here without TensorFlow, and read without it."""

import concurrent.futures
import io
import json
import logging
import pickle
import subprocess
import sys

import numpy as np
import paths
import pytest
import tensorflow_datasets as library
from tfds_sets import CIFAR10, LABEL, PROGRAM, encoded, encoded_file, make, pixels, real, rows

from cfg.base.errors import UserError
from cfg.data import dataset as dataset_lib
from cfg.data import decode, pipeline, recipes, sources, tfds
from cfg.data.preparing import imagenet
from cfg.training import loop

kinds = library.features


@pytest.fixture
def load(tmp_path, config):
  """load(**fields of data): the Dataset of tmp_path; also load.config."""

  def load(**fields):
    config.data.update({"name": "tfds:tiny", "path": str(tmp_path), "resolution": 8, **fields})
    return sources.load(config.data)

  load.config = config
  return load


def test_images_and_labels_are_those_prepared(load, tmp_path):
  """Every picture of the size asked for comes out as it went in, by every recipe; splits, names and
  labels are the data set's.
  """
  make(tmp_path, {"train": rows(7), "validation": rows(5, seed=100), "test": rows(4, seed=200)})
  for recipe in recipes.RECIPES:
    data = load(recipe=recipe)
    assert (data.name, data.class_names, data.image_shape) == (
      "tfds-tiny-1.0.0",
      ("zebra", "ant", "猫"),
      (8, 8, 3),
    )
    for source, seed, count in ((data.train, 0, 7), (data.heldout, 100, 5)):
      assert len(source) == count
      found = [source[i] for i in range(count)]
      assert all(row["image"].dtype == np.uint8 and row["label"].dtype == np.int32 for row in found)
      # TFDS shuffles what it writes
      expected = {pixels(seed + i, 8, 8, 3).tobytes(): i % 3 for i in range(count)}
      assert {row["image"].tobytes(): row["label"] for row in found} == expected


def test_pictures_are_decoded_as_a_folders_are(load, tmp_path):
  """PNG and JPEG, colour, grey, transparent and 16-bit, of any size, by a recipe: the bytes that
  the files give in a folder.
  """
  pictures = {
    "png": encoded(pixels(0, 20, 30, 3)),
    "jpeg": encoded(pixels(1, 31, 17, 3), "JPEG"),
    "grey": encoded(pixels(2, 12, 9)),
    "grey jpeg": encoded(pixels(3, 12, 9), "JPEG"),
    "transparent": encoded(pixels(4, 9, 9, 4)),
    "deep": encoded(pixels(5, 12, 9).astype(np.uint16) * 256),
  }
  make(
    tmp_path,
    {
      split: [
        {"image": io.BytesIO(file), "label": i % 3} for i, file in enumerate(pictures.values())
      ]
      for split in ("train", "test")
    },
  )
  for recipe in ("area", "adm"):
    expected = {
      recipes.RECIPES[recipe](decode.read_rgb(io.BytesIO(file)), 8).tobytes()
      for file in pictures.values()
    }
    source = load(recipe=recipe).train
    assert {source[i]["image"].tobytes() for i in range(len(source))} == expected and len(
      expected
    ) == 6


def test_test_is_held_out_where_there_is_no_validation(load, tmp_path):
  """The test split, unless its labels are not known: then a part of each class of train is held
  out, and no image is decoded for that.
  """
  make(tmp_path, {"train": rows(30), "test": rows(4)}, name="tiny")
  assert len(load().heldout) == 4
  make(
    tmp_path, {"train": rows(30), "test": [{**row, "label": -1} for row in rows(4)]}, name="hidden"
  )
  data = load(name="tfds:hidden", heldout_fraction=0.2)
  parts = [
    {source[i]["image"].tobytes(): int(source[i]["label"]) for i in range(len(source))}
    for source in (data.train, data.heldout)
  ]
  assert sorted(parts[1].values()) == [0, 0, 1, 1, 2, 2] and sorted(parts[0].values()) == sorted(
    [0, 1, 2] * 8
  )
  assert not parts[0].keys() & parts[1].keys()


def test_labels_are_read_without_decoding(load, tmp_path, monkeypatch):
  """The split of train reads labels alone, though a second feature is an image too; the examples
  then have them.
  """
  make(tmp_path, {"train": rows(12, mask=encoded_file(9))}, mask=kinds.Image())
  with monkeypatch.context() as patch:
    patch.setattr(decode, "read_rgb", None)
    patch.setattr(kinds.Image, "decode_example_np", None)
    data = load(heldout_fraction=0.25)
  whole = data.train.source
  np.testing.assert_array_equal(whole.labels, [whole[i]["label"] for i in range(12)])
  assert whole.labels.dtype == np.int32 and len(data.heldout) == 3


@pytest.mark.parametrize("workers", [0, 1])
def test_the_stream_is_the_same_by_threads_and_processes(load, tmp_path, workers):
  """A pickled source in another process, and many threads at once, give what one thread gives."""
  make(tmp_path, {"train": rows(24), "test": rows(3)})
  source = load(resolution=4).train
  alone = [source[i] for i in range(24)]
  with concurrent.futures.ThreadPoolExecutor(8) as pool:
    fresh = pickle.loads(pickle.dumps(source))
    assert all(
      np.array_equal(a["image"], b["image"])
      for a, b in zip(pool.map(fresh.__getitem__, list(range(24)) * 4), alone * 4, strict=True)
    )
  batches = lambda images, **kw: pipeline.train_stream(
    images, batch_size=8, seed=0, start_step=0, num_steps=6, **kw
  )
  array = dataset_lib.ArraySource(
    np.stack([row["image"] for row in alone]), np.asarray([row["label"] for row in alone], np.int32)
  )
  with batches(source, num_workers=workers) as got, batches(array) as expected:
    for a, b in zip(got, expected, strict=True):
      assert all(np.array_equal(a[key], b[key]) for key in ("image", "label", "index"))


def test_cifar10_of_tfds(load, tmp_path):
  """Its ten classes in CIFAR-10's order, 32x32; the shape is known before it is prepared."""
  load.config.data.update(name="tfds:cifar10", path=str(tmp_path), resolution=32)
  assert sources.shape(load.config.data) == (10, (32, 32, 3))
  real(tmp_path, "cifar10", size=32)
  data = load(name="tfds:cifar10", resolution=32)
  assert data.class_names == tuple(CIFAR10)
  assert (
    data.name == "tfds-cifar10-3.0.2"
    and len(data.train) == 4
    and data.train[0]["image"].shape == (32, 32, 3)
  )
  again = pickle.loads(pickle.dumps(data.train))
  assert all(np.array_equal(data.train[i]["image"], again[i]["image"]) for i in range(4))


def test_imagenet2012_of_tfds(load, tmp_path, caplog):
  """Synsets get WordNet's names, in the usual order; cropped by the recipe, and so without a mark
  or a warning.
  """
  real(tmp_path, "imagenet2012", size=40)
  data = load(name="tfds:imagenet2012", resolution=16)
  assert (
    data.class_names == tuple(imagenet.synsets().values())
    and data.class_names[207] == "golden retriever"
  )
  assert (
    data.name == "tfds-imagenet2012-5.1.0"
    and data.train[0]["image"].shape == (16, 16, 3)
    and len(data.heldout) == 3
  )
  assert not [
    record
    for record in caplog.records
    if record.name == "cfg.data.tfds" and record.levelno >= logging.WARNING
  ]


def test_imagenet_resized_is_marked(load, tmp_path, caplog):
  """Neither cropped nor in the usual order: said in the log, and in the name that checkpoints and
  rows carry; names are by its own numbers.
  """
  real(tmp_path, "imagenet_resized/64x64", size=64)
  with caplog.at_level(logging.WARNING):
    data = load(name="tfds:imagenet_resized/64x64", resolution=64)
  assert (
    loop.describe(load.config, dataset=data, step=0)["data_name"]
    == "tfds-imagenet_resized-64x64-0.1.0-squeezed-reordered"
  )
  assert "squeezed to a square" in caplog.text and "order of its own" in caplog.text
  assert (
    data.class_names[0] == imagenet.synsets()["n02119789"] == "kit fox"
  )  # the first line of the authors' map_clsloc.txt
  assert sorted(data.class_names) == sorted(
    imagenet.synsets().values()
  ) and data.class_names != tuple(imagenet.synsets().values())


@pytest.mark.parametrize(
  "name, size, held",
  [
    ("cifar10", 32, "test"),
    ("imagenet2012", 40, "validation"),
    ("imagenet_resized/64x64", 64, "validation"),
  ],
)
def test_what_is_asked_of_tfds(load, tmp_path, name, size, held):
  """Over tfds.testing.mock_data: the two splits, as ArrayRecord, of each the image encoded; what
  TFDS hands out is what comes, pixel by pixel.
  """
  real(tmp_path, name, size=size)
  asked = []

  def examples(builder, split, *, decoders, file_format):
    asked.append(
      (
        builder.name,
        split,
        file_format,
        {feature: type(decoder) for feature, decoder in decoders.items()},
      )
    )
    return [
      {**row, "image": row["image"].getvalue()} for row in rows(5, seed=len(split), size=size)
    ]

  with library.testing.mock_data(
    num_examples=5, data_dir=str(tmp_path), as_data_source_fn=examples
  ):
    data = load(name=f"tfds:{name}", resolution=size)
  skipped = {"image": library.decode.SkipDecoding}
  assert asked == [
    (name.split("/")[0], split, "array_record", skipped) for split in ("train", held)
  ]
  for source, split in ((data.train, "train"), (data.heldout, held)):
    for i in range(len(source)):
      np.testing.assert_array_equal(source[i]["image"], pixels(len(split) + i, size, size, 3))
      assert source[i]["label"] == i % 3
    assert len(source) == 5


def test_the_shape_reads_no_files(load, tmp_path):
  """With data.num_classes nothing is opened; a number that is not the data set's is an error when
  it is.
  """
  load.config.data.update(name="tfds:nothing_like_it", num_classes=7, resolution=16)
  assert sources.shape(load.config.data) == (7, (16, 16, 3))
  make(tmp_path, {"train": rows(4), "test": rows(2)})
  with pytest.raises(UserError, match="data.num_classes is 7, but tfds-tiny-1.0.0 has 3 classes"):
    load(num_classes=7)


NO_SQUARE = {
  "resolution": ({"resolution": 0}, "data.resolution is 0"),
  "recipe": ({"recipe": "are"}, "did you mean 'area'"),
}
NAMES = {
  "unknown": ("cifra10", "did you mean 'cifar10'"),
  "no such config": ("imagenet_resized/65x65", "refuses it: BuilderConfig 65x65.*64x64"),
  "no such version": ("cifar10:9.9.9", "cannot be loaded at version 9.9.9"),
  "empty": ("", "TFDS refuses it.*Write tfds:NAME"),
  "not prepared": (
    "cifar10",
    "cifar10/3.0.2.*no prepared data "
    "set.*download_and_prepare.file_format='array_record'..*training does not",
  ),
  "another version": ("tiny:2.0.0", "tiny' has only 1.0.0. Write.*:VERSION"),
  "no such argument": ("cifar10/colour=1", "refuses it.*unexpected keyword argument 'colour'"),
  "no image": ("imdb_reviews", "features are .*label: ClassLabel.* int64.*Needed are an image"),
}


WRONG = {
  **{what: ({"name": f"tfds:{name}"}, said) for what, (name, said) in NAMES.items()},
  **NO_SQUARE,
}


@pytest.mark.parametrize("fields, said", WRONG.values(), ids=WRONG)
def test_what_cannot_be_loaded_is_said(load, tmp_path, fields, said):
  """A wrong name, version or field of the config: what is wrong and what to do."""
  make(tmp_path, {"train": rows(2)})
  with pytest.raises(UserError, match=said) as error:
    load(**fields)
  assert "\n" not in str(error.value)


KINDS = {
  "float image": (
    dict(image=kinds.Image(shape=(4, 4, 1), dtype=np.float32)),
    "image: Image.4,4,1. float32",
  ),
  "animation": (dict(image=kinds.Image(shape=(None, 4, 4, 3))), "image: Image.None,4,4,3. uint8"),
  "film": (dict(image=kinds.Sequence(kinds.Image())), "image: Sequence"),
  "tensor": (
    dict(image=kinds.Tensor(shape=(4, 4, 3), dtype=np.uint8)),
    "image: Tensor.4,4,3. uint8",
  ),
  "no label": (dict(label=None), "Needed are an image"),
  "number as label": (dict(label=kinds.Scalar(dtype=np.int64)), "label: Scalar.. int64"),
  "label of an unknown number": (dict(label=kinds.ClassLabel()), "label: ClassLabel.. int64"),
}


@pytest.mark.parametrize("changes, said", KINDS.values(), ids=KINDS)
def test_features_that_are_no_labelled_images(load, tmp_path, changes, said):
  """Films, floats, plain tensors, no label, labels without classes: the error says what the data
  set has.
  """
  make(tmp_path, {"train": rows(2)})
  features = {"image": kinds.Image(), "label": LABEL, **changes}
  kinds.FeaturesDict(
    {name: feature for name, feature in features.items() if feature is not None}
  ).save_config(str(tmp_path / "tiny" / "1.0.0"))
  with pytest.raises(UserError, match=f"features are .*{said}"):
    load()


def test_no_labels_to_train_on(load, tmp_path):
  """A data set without a training split, or whose labels are all unknown, is an error that lists
  the splits.
  """
  make(tmp_path, {"test": rows(2)})
  with pytest.raises(UserError, match="no training split with labels .splits: test"):
    load()
  make(tmp_path, {"train": [{**row, "label": -1} for row in rows(2)]}, name="hidden")
  with pytest.raises(UserError, match="no training split with labels"):
    load(name="tfds:hidden")
  make(
    tmp_path, {"train": [*rows(20), {**rows(1)[0], "label": -1}], "test": rows(2)}, name="partly"
  )
  with pytest.raises(UserError, match="of the split train of TFDS partly/1.0.0 has no label"):
    list(pipeline.epoch_batches(load(name="tfds:partly").train, batch_size=7))


def test_what_is_prepared_in_another_way(load, tmp_path):
  """Files in tfrecord, and another version than TFDS would take: each is said, with the way out."""
  make(tmp_path, {"train": rows(2)})
  about = tmp_path / "tiny" / "1.0.0" / "dataset_info.json"
  about.write_text(about.read_text().replace("array_record", "tfrecord"))
  with pytest.raises(
    UserError,
    match="prepared as tfrecord.*array_record in another folder.*file_format='array_record'",
  ):
    load()
  (tmp_path / "cifar10" / "3.0.1").mkdir(parents=True)
  with pytest.raises(UserError, match="There is 3.0.1: take one, as tfds:cifar10:3.0.1, or"):
    load(name="tfds:cifar10")


def test_damaged_files_are_named(load, tmp_path):
  """A record cut by a bad disk, and a picture that is none: the split and the example, and what to
  do.
  """
  make(
    tmp_path,
    {
      "train": [*rows(3), {"image": io.BytesIO(b"\x89PNG\r\n\x1a\nnot so"), "label": 0}],
      "test": rows(2),
    },
  )
  data = load()
  with pytest.raises(
    UserError,
    match="example . of the split train of TFDS tiny/1.0.0 has no image.*cannot "
    "identify.*Prepare.*again, without it",
  ):
    [data.train[i] for i in range(4)]
  (file,) = (tmp_path / "tiny" / "1.0.0").glob("tiny-test.array_record*")
  content = bytearray(file.read_bytes())
  middle = content.index(b"IDAT") if b"IDAT" in content else len(content) // 2
  content[middle : middle + 40] = b"x" * 40
  file.write_bytes(content)
  with pytest.raises(
    UserError,
    match="example . of the split test of TFDS tiny/1.0.0 cannot be read.*Prepare the data set "
    "again",
  ):
    data = load()
    [data.heldout[i] for i in range(2)]


def test_a_description_that_needs_tensorflow(load, tmp_path, monkeypatch):
  """Where TFDS's own code of a data set cannot be run, the error says how to do without it: by the
  version that is prepared.
  """
  real(tmp_path, "cifar10", size=32)
  kind = library.builder_cls("cifar10")
  with monkeypatch.context() as patch:
    patch.setattr(kind, "_info", lambda self: __import__("tensorflow_that_is_not_here"))
    with pytest.raises(
      UserError, match="No module named 'tensorflow_that_is_not_here'.*give its version too"
    ):
      load(name="tfds:cifar10", resolution=32)
    assert len(load(name="tfds:cifar10:3.0.2", resolution=32).train) == 4


def test_tfds_is_an_extra(load, monkeypatch):
  """Where it is not installed, the error has the command that does."""
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
  with pytest.raises(
    UserError, match=r"tensorflow-datasets cannot be imported.*pip install -e '.\[tfds\]'"
  ):
    load(name="tfds:cifar10")


def test_tensorflow_is_not_even_tried(load, tmp_path):
  """In a fresh process with packages named tensorflow and torch that tell of their import, none is
  told of; at its end the trap is seen to work.
  """
  make(tmp_path / "data", {"train": rows(9), "test": rows(2)})
  told = tmp_path / "told"
  for name in ("tensorflow", "torch"):
    (tmp_path / "traps" / name).mkdir(parents=True)
    (tmp_path / "traps" / name / "__init__.py").write_text(
      f"open({str(told)!r}, 'a').write('{name} ')\nraise ImportError('a trap')\n"
    )
  load.config.data.update(name="tfds:tiny", path=str(tmp_path / "data"))
  root = paths.ROOT
  done = subprocess.run(
    [sys.executable, "-c", PROGRAM, json.dumps(load.config.data.to_dict()), str(told)],
    cwd=root,
    capture_output=True,
    text=True,
    timeout=120,
    env={"PATH": "", "PYTHONPATH": f"{tmp_path / 'traps'}:{root}"},
  )
  assert done.stdout.split() == ["6", "3"] and done.stderr.endswith("ImportError: a trap\n"), (
    done.stderr
  )
  assert told.read_text() == "tensorflow "


def test_the_prefix_is_offered(load):
  """A name that is nothing here is answered with the known ones and with TFDS's form."""
  with pytest.raises(UserError, match=f"{tfds.PREFIX}NAME is a data set of TFDS"):
    load(name="cifar10")
