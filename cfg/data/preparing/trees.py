"""Folders, zips and tars alike: names, and the images behind them."""

import dataclasses
import os
import pathlib
import tarfile
import zipfile

import numpy as np
from tqdm import tqdm

from cfg.base.errors import UserError
from cfg.data import decode
from cfg.data.preparing.parts import Files, Members, Place, ZipPlace


@dataclasses.dataclass(frozen=True)
class Folder:
  """A folder's files; `names` are relative, with / between their parts; a first-level folder is
  there as "name/".
  """

  path: pathlib.Path
  names: list[str]

  def under(self, prefix):
    """What is in the sub-folder `prefix`, "train/" for example."""
    return Folder(self.path / prefix, _under(self.names, prefix))

  def read(self, name):
    """The bytes of a file."""
    return (self.path / name).read_bytes()

  def images(self, names, labels):
    """These files as images with labels."""
    return Files(self.path, names, labels)


@dataclasses.dataclass(frozen=True)
class Archive:
  """A zip's or a tar's files, and those of the tars in a tar, read in place: by `places`."""

  path: pathlib.Path
  places: dict[str, Place | ZipPlace]
  folders: list[str]

  @property
  def names(self):
    return [*self.folders, *self.places]

  def under(self, prefix):
    """What is in the sub-folder `prefix`."""
    places = {
      name.removeprefix(prefix): place
      for name, place in self.places.items()
      if name.startswith(prefix)
    }
    return Archive(self.path, places, _under(self.folders, prefix))

  def read(self, name):
    """The bytes of a file."""
    return self.places[name].read(self.path)

  def images(self, names, labels):
    """These files as images with labels."""
    return Members(self.path, names, labels, [self.places[name] for name in names])


def _under(names, prefix):
  return [name[len(prefix) :] for name in names if name.startswith(prefix) and name != prefix]


def open_tree(path):
  """The Folder or Archive at `path`.

  Raises:
    UserError: neither, or an archive that cannot be read in place.
  """
  if path.is_dir():
    return folder(path)
  if path.is_file():
    try:
      if zipfile.is_zipfile(path):
        return zip_archive(path)
      if tarfile.is_tarfile(path):
        return tar_archive(path)
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError) as e:
      raise UserError(
        f"the archive {str(path)!r} cannot be read ({e}): it may be cut short. Get it again."
      ) from e
  raise UserError(
    f"{str(path)!r} cannot be prepared: give a folder of class sub-folders (or a zip or tar of "
    f"them), a folder with ILSVRC2012's tars, Kaggle's "
    "ImageNet archive, an .npz of images and labels, or CIFAR-10's binary or python archive."
  )


def folder(path):
  """A Folder, hidden files left out."""
  names = []
  for where, folders, files in os.walk(path, followlinks=True):
    folders[:] = sorted(name for name in folders if not name.startswith("."))
    prefix = pathlib.Path(where).relative_to(path).as_posix().removeprefix(".")
    names += [f"{prefix}/{name}" if prefix else name for name in files if not name.startswith(".")]
    names += [] if prefix else [f"{name}/" for name in folders]
  return Folder(path, names)


def zip_archive(path):
  """A zip of stored or deflated files."""
  places, folders = {}, []
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      if info.is_dir():
        folders.append(info.filename)
      elif info.flag_bits & 1 or info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
      ):
        raise UserError(
          f"{info.filename!r} in {str(path)!r} is encrypted, or compressed in a way that is not "
          f"read here: extract the archive and give the folder."
        )
      else:
        places[info.filename] = ZipPlace(
          info.header_offset,
          info.compress_size,
          info.file_size,
          info.compress_type == zipfile.ZIP_DEFLATED,
          info.CRC,
        )
  return _visible(path, places, folders)


def tar_archive(path):
  """An uncompressed tar; tars in it, as ILSVRC2012_img_train.tar has one for each class, are opened
  as folders.
  """
  try:
    with (
      tarfile.open(path, "r:") as archive,
      tqdm(
        total=path.stat().st_size,
        unit="B",
        unit_scale=True,
        desc=f"listing {path.name}",
        disable=None,
        leave=False,
      ) as bar,
    ):
      places, folders = {}, []
      for member in archive:
        bar.update(member.offset - bar.n)
        if member.isfile() and member.name.endswith(".tar"):
          with tarfile.open(fileobj=archive.extractfile(member), mode="r:") as inner:
            name = member.name.removesuffix(".tar")
            folders.append(f"{name}/")
            places |= {
              f"{name}/{m.name.removeprefix('./')}": Place(
                member.offset_data + m.offset_data, m.size
              )
              for m in inner
              if _plain(m)
            }
        elif member.isdir():
          folders.append(f"{member.name.removeprefix('./')}/")
        elif _plain(member):
          places[member.name.removeprefix("./")] = Place(member.offset_data, member.size)
  except tarfile.ReadError as e:
    if path.suffix in (".gz", ".tgz", ".xz", ".bz2"):
      raise UserError(
        f"{str(path)!r} is a compressed tar, in which no file can be reached alone: extract it and "
        f"give the folder."
      ) from e
    raise
  return _visible(path, places, folders)


def _plain(member):
  return member.isfile() and not member.issparse()


def _visible(path, places, folders):
  """An Archive without hidden files and what macOS adds; one folder that holds everything is
  entered.
  """
  shown = lambda name: (
    not any(part.startswith(".") or part == "__MACOSX" for part in name.split("/"))
  )
  archive = Archive(
    path,
    {name: place for name, place in places.items() if shown(name)},
    [name for name in folders if shown(name)],
  )
  tops = {name.split("/")[0] for name in archive.names}
  # class folders lie at least one deeper than what holds them
  if len(tops) == 1 and archive.places and all(name.count("/") >= 2 for name in archive.places):
    return archive.under(f"{tops.pop()}/")
  return archive


def class_folders(names):
  """({class: [image]}, {other file: why}) of the names `<class>/**/<image>`, sorted by the parts of
  the names.

  Files beside the class folders that are no images are left out of both.
  """
  classes, others = {}, {}
  for name in sorted(names, key=lambda name: name.split("/")):
    folder, inside, file = name.partition("/")
    image = pathlib.PurePosixPath(name).suffix.lower() in decode.IMAGE_SUFFIXES
    if inside:
      classes.setdefault(folder, [])
    if image and inside:
      classes[folder].append(name)
    elif image:
      others[name] = "not in a class folder"
    elif file and not name.endswith("/"):
      others[name] = "not an image by its ending"
  return classes, others


def labelled(classes, folders):
  """(names, labels int32) of what `class_folders` gave; a class's number is its place in `folders`."""
  number = {folder: i for i, folder in enumerate(folders)}
  names = [name for images in classes.values() for name in images]
  return names, np.asarray(
    [number[folder] for folder, images in classes.items() for _ in images], np.int32
  )
