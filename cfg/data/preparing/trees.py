"""Folders, zips and tars alike: names, and the files behind them."""

import dataclasses
import logging
import os
import pathlib
import posixpath
import re
import stat
import zipfile
from collections.abc import Mapping, Sequence

import numpy as np

from cfg.base import untrusted
from cfg.base.errors import UserError
from cfg.base.progress import Progress
from cfg.data import decode
from cfg.data.preparing import layout, tars
from cfg.data.preparing.parts import FilePlace, ImageFiles, NoPlace, Place, TarPlace, ZipPlace

log = logging.getLogger(__name__)

LONGEST_LINK = 4096  # bytes of the name that a link leads to

WANTED = (
  "a folder of class sub-folders (or a zip or tar of them), a folder with ILSVRC2012's tars, "
  "Kaggle's ImageNet archive, an .npz of images and labels, or CIFAR-10's binary or python archive"
)


@dataclasses.dataclass(frozen=True)
class Tree:
  """The files in a folder, or in an archive, where they are read in place: by `places`.

  Names are relative to the folder `inside` of it, with / between their parts; folders end in /.
  What hides, and what tools keep for themselves, is not there; `ignored` says what else is not,
  {full name: why}.
  """

  path: pathlib.Path
  places: Mapping[str, Place]
  folders: Sequence[str]
  ignored: Mapping[str, str]
  inside: str = ""

  @property
  def names(self) -> list[str]:
    """Of folders and files."""
    return [*self.folders, *self.places]

  @property
  def where(self) -> str:
    """Its path, for messages."""
    return str(self.path / self.inside)

  def under(self, prefix: str) -> "Tree":
    """What is in the sub-folder `prefix`, "train/" for example."""
    places = {
      name.removeprefix(prefix): place
      for name, place in self.places.items()
      if name.startswith(prefix)
    }
    folders = [name.removeprefix(prefix) for name in self.folders if name.startswith(prefix)]
    return dataclasses.replace(
      self, places=places, folders=[name for name in folders if name], inside=self.inside + prefix
    )

  def only(self, names: Sequence[str]) -> "Tree":
    """These files, under their names, and no folders."""
    return dataclasses.replace(self, places={n: self.places[n] for n in names}, folders=[])

  def read(self, name: str) -> bytes:
    """The bytes of a file; OSError or ValueError if they cannot be read."""
    with self.places[name].open(self.path) as file:
      return file.read()

  def images(self, names: Sequence[str], labels: np.ndarray) -> ImageFiles:
    """These files as images with labels."""
    places = [self.places[name] for name in names]
    return ImageFiles(self.path, self.inside, names, labels, places)


def open_tree(path: pathlib.Path, *, wanted: str = WANTED) -> Tree:
  """The Tree at `path`; `wanted` says what to give where there is none.

  Raises:
    UserError: no folder and no archive, or one that cannot be read in place.
  """
  if not path.exists():
    raise UserError(f"{str(path)!r} is not there: give {wanted}.")
  if path.is_dir():
    return folder(path)
  if path.is_file():
    try:
      with untrusted.reading():
        if zipfile.is_zipfile(path):
          return zip_archive(path)
        if tars.is_tar(path):
          return tar_archive(path)
        if tars.is_compressed(path):
          raise UserError(
            f"{str(path)!r} is a compressed tar, or another compressed file, in which no file can "
            f"be reached alone: extract it and give the folder."
          )
    except (OSError, ValueError) as e:
      raise UserError(
        f"the archive {str(path)!r} cannot be read ({e}): it may be cut short. Get it again."
      ) from e
  raise UserError(f"{str(path)!r} is no folder, no zip and no tar: give {wanted}.")


def is_archive(path: pathlib.Path) -> bool:
  """Whether a file is for `open_tree`, as far as its ends tell."""
  try:
    with untrusted.reading():
      return zipfile.is_zipfile(path) or tars.is_tar(path) or tars.is_compressed(path)
  except (OSError, ValueError):
    return False


def folder(path: pathlib.Path) -> Tree:
  """The Tree of a folder, each real folder visited once, whatever links lead to it."""
  log.info("listing %s", path)
  places = {}
  folders = []
  ignored = {}
  # to go up is to come back
  visited = {_identity(parent) for parent in path.resolve().parents}
  # links come last: a folder is called by its own name where it has one here
  ahead = [""]
  links = []
  while ahead or links:
    inside = ahead.pop() if ahead else links.pop(0)
    if _identity(path / inside) in visited:
      ignored[inside] = "a link to a folder that is read already, or that this one lies in"
      continue
    visited.add(_identity(path / inside))
    if inside:
      folders.append(inside)
    for entry in _entries(path, inside):
      name = inside + entry.name
      if layout.is_hidden(entry.name):
        continue
      if not _is_folder(entry):
        if entry.is_symlink() and not decode.is_image(name) and not os.path.exists(entry.path):
          ignored[name] = "a link to nothing"
        else:
          places[name] = FilePlace(name)
      elif entry.is_symlink():
        links.append(f"{name}/")
      else:
        ahead.append(f"{name}/")
  return _tree(path, places, folders, ignored)


def _identity(path):
  status = path.stat()
  return status.st_dev, status.st_ino


def _entries(path, inside):
  try:
    with os.scandir(path / inside) as entries:
      return sorted(entries, key=lambda entry: entry.name)
  except OSError as e:
    if any(map(layout.is_system, inside.split("/"))):
      return []
    raise UserError(
      f"the folder {str(path / inside)!r} cannot be read ({e.strerror}): allow it, or move it away."
    ) from e


def _is_folder(entry):
  try:
    return entry.is_dir()
  except OSError:  # a link to itself, for example
    return False


def zip_archive(path: pathlib.Path) -> Tree:
  """A zip of stored or deflated files."""
  log.info("listing %s", path)
  names = _Names(path)
  with zipfile.ZipFile(path) as archive:
    for info in archive.infolist():
      if info.is_dir() or info.filename.endswith("\\"):
        names.add_folder(info.filename)
      elif info.flag_bits & 1 or info.compress_type not in (
        zipfile.ZIP_STORED,
        zipfile.ZIP_DEFLATED,
      ):
        raise UserError(
          f"{info.filename!r} in {str(path)!r} is encrypted, or compressed in a way that is not "
          f"read here: extract the archive and give the folder."
        )
      elif stat.S_ISLNK(info.external_attr >> 16) and info.file_size > LONGEST_LINK:
        names.add(info.filename, NoPlace("it is a link to a name that no file can have"))
      elif stat.S_ISLNK(info.external_attr >> 16):
        names.add_link(info.filename, archive.read(info).decode("utf-8", "replace"))
      else:
        deflated = info.compress_type == zipfile.ZIP_DEFLATED
        place = ZipPlace(info.header_offset, info.compress_size, info.file_size, deflated, info.CRC)
        names.add(info.filename, place)
  return names.tree()


def tar_archive(path: pathlib.Path) -> Tree:
  """An uncompressed tar; tars in it, as ILSVRC2012_img_train.tar has one for each class, are opened
  as folders.
  """
  names = _Names(path)
  size = path.stat().st_size
  with (
    path.open("rb") as file,
    Progress(f"listing {path.name}", total=size, unit="bytes", passing=True) as progress,
  ):
    for member in tars.members(file, size=size):
      progress.update(member.offset)
      if member.isfile() and not member.issparse() and member.name.endswith(".tar"):
        inside = f"{member.name.removesuffix('.tar')}/"
        names.add_folder(inside)
        start = member.offset_data
        for m in tars.members(file, start=start, size=min(member.size, size - start)):
          names.add_member(m, inside=inside, start=start)
      else:
        names.add_member(member)
  return names.tree()


class _Names:
  """The names of an archive as they are read, those of Windows and absolute ones made relative."""

  def __init__(self, path):
    self._path = path
    self._places = {}
    self._folders = []
    self._ignored = {}
    self._links = {}

  def add(self, name, place):
    """A file."""
    name = self._relative(name)
    if name in self._places:
      self._ignored[name] = "the archive has it more than once: the last is read"
    self._places[name] = place

  def add_folder(self, name):
    """A folder, as its name or with / behind it."""
    if name := self._relative(name):
      self._folders.append(f"{name}/")

  def add_member(self, member, *, inside="", start=0):
    """A member of a tar, or of a tar that begins at `start` of it and is the folder `inside`."""
    name = inside + member.name.lstrip("/")
    if member.isdir():
      self.add_folder(name)
    elif member.isfile() and not member.issparse():
      self.add(name, TarPlace(start + member.offset_data, member.size))
    elif member.islnk():
      self.add_link(name, f"/{inside}{member.linkname}")
    elif member.issym():
      self.add_link(name, member.linkname)
    else:
      self.add(name, NoPlace("it is not a regular file"))

  def add_link(self, name, target):
    """A link to `target`, relative to the folder it is in; /... is relative to the archive."""
    self.add(name, NoPlace(f"it is a link to {target!r}, which the archive does not have"))
    name = self._relative(name)
    target = posixpath.join("/", posixpath.dirname(name), target.replace("\\", "/"))
    self._links[name] = posixpath.normpath(target).lstrip("/")

  def _relative(self, name):
    """cat\\1.png, ./cat/1.png, /cat/1.png and C:\\cat\\1.png are all cat/1.png."""
    parts = re.sub(r"^[A-Za-z]:(?=[\\/])", "", name).replace("\\", "/").split("/")
    if ".." in parts:
      raise UserError(
        f"{name!r} in {str(self._path)!r} leads out of the archive: make it anew, with the names "
        f"of class folders at its top."
      )
    return "/".join(part for part in parts if part not in ("", "."))

  def tree(self):
    """The Tree of all that was added."""
    for name in self._links:
      place = self._places.get(self._end(name))
      if place is not None and not isinstance(place, NoPlace):
        self._places[name] = place
      elif not decode.is_image(name):
        del self._places[name]
        self._ignored[name] = "a link, which is not followed in an archive"
    return _tree(self._path, self._places, self._folders, self._ignored)

  def _end(self, name):
    """The name at the end of a chain of links; None if it comes back."""
    seen = set()
    while name in self._links:
      if name in seen:
        return None
      seen.add(name)
      name = self._links[name]
    return name


def _tree(path, places, folders, ignored):
  """A Tree without what hides and what tools keep for themselves."""
  names, system = layout.visible([*folders, *places])
  return Tree(
    path,
    {name: places[name] for name in names if name in places},
    [name for name in names if name not in places],
    {name: ignored[name] for name in layout.visible(ignored)[0]} | system,
  )
