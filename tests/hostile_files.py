"""Small valid files of every reader, and ways to damage them."""

import copy
import io
import json
import pickle
import struct
import tarfile
import zipfile
import zlib

import numpy as np
from PIL import Image

NUMBERS = (0, 1, 2, 127, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**32 - 1, 2**40, 2**63 - 1, 2**64 - 1)


def picture(form="PNG", seed=0):
  """The bytes of an image of 6x5 pixels."""
  pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
  file = io.BytesIO()
  Image.fromarray(pixels).save(file, form)
  return file.getvalue()


def zipped(members, *, method=zipfile.ZIP_DEFLATED):
  """The bytes of a zip of {name: bytes}."""
  file = io.BytesIO()
  with zipfile.ZipFile(file, "w", method) as archive:
    for name, content in members.items():
      archive.writestr(zipfile.ZipInfo(name), content, method)
  return file.getvalue()


def tarred(members, *, mode="w", form=tarfile.PAX_FORMAT):
  """The bytes of a tar of {name: bytes, or a TarInfo}."""
  file = io.BytesIO()
  with tarfile.open(fileobj=file, mode=mode, format=form) as archive:
    for name, content in members.items():
      if isinstance(content, tarfile.TarInfo):
        archive.addfile(content)
        continue
      member = tarfile.TarInfo(name)
      member.size = len(content)
      archive.addfile(member, io.BytesIO(content))
  return file.getvalue()


def npy(header, content=b""):
  """An .npy of a header as it is given."""
  header = header.encode("latin-1") + b"\n"
  return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header + content


def shaped(shape, descr="|u1"):
  """The header of an .npy."""
  return repr({"descr": descr, "fortran_order": False, "shape": shape})


def npz(**arrays):
  """The bytes of an .npz."""
  file = io.BytesIO()
  np.savez(file, **arrays)
  return file.getvalue()


def tar_header(name, size, kind=b"0", *, raw=None):
  """512 bytes of a tar with a right checksum; `raw` takes the place of the size."""
  head = bytearray(tarfile.TarInfo(name).tobuf(tarfile.GNU_FORMAT)[:512])
  head[124:136] = raw or b"%011o\0" % size
  head[156:157] = kind
  return checked(bytes(head))


def checked(head):
  """A header of a tar with its checksum made right."""
  head = head[:148] + b" " * 8 + head[156:]
  return head[:148] + b"%06o\0 " % sum(head) + head[156:]


def png_chunk(kind, content):
  """A chunk of a PNG."""
  crc = zlib.crc32(kind + content)
  return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", crc)


def png(width, height, content=b""):
  """A grey PNG that declares its size."""
  head = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
  body = png_chunk(b"IDAT", zlib.compress(content))
  return b"\x89PNG\r\n\x1a\n" + head + body + png_chunk(b"IEND", b"")


def cifar(**changes):
  """{name: bytes} of CIFAR-10's python files, of two images a batch."""
  batch = {b"data": np.arange(2 * 3072, dtype=np.uint8).reshape(2, 3072), b"labels": [0, 1]}
  dumped = pickle.dumps(batch, protocol=2)
  names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
  meta = pickle.dumps({b"label_names": [b"cat", b"dog"]}, protocol=2)
  return {"batches.meta": meta, **dict.fromkeys(names, dumped), **changes}


def mend(content):
  """The content with the checksums of a PNG, or of a tar's headers, made right, so that damage
  comes past them.
  """
  if content.startswith(b"\x89PNG\r\n\x1a\n"):
    at, parts = 8, [content[:8]]
    while at + 12 <= len(content):
      (length,) = struct.unpack(">I", content[at : at + 4])
      if at + 12 + length > len(content):
        break
      parts.append(png_chunk(content[at + 4 : at + 8], content[at + 8 : at + 8 + length]))
      at += 12 + length
    return b"".join([*parts, content[at:]])
  if content[257:262] == b"ustar":
    blocks = [content[i : i + 512] for i in range(0, len(content), 512)]
    is_head = lambda block: len(block) == 512 and block[257:262] == b"ustar"
    return b"".join(checked(block) if is_head(block) else block for block in blocks)
  return content


def damaged(content, steps):
  """`content` after steps (kind, where, to where, value); places are shares of its length."""
  for kind, first, second, value in steps:
    content = bytearray(content)
    a, b = sorted((int(first * len(content)), int(second * len(content))))
    if kind == "flip" and content:
      content[min(a, len(content) - 1)] ^= 1 << value % 8
    elif kind == "cut":
      content = content[:a]
    elif kind == "remove":
      del content[a : min(b, a + 64)]
    elif kind == "double":
      content[a:a] = content[a:b]
    elif kind == "splice":
      content[b : b + 16] = content[a : a + 16]
    elif kind == "fill":
      content[a : a + 16] = bytes([value % 256]) * 16
    elif kind.startswith("number"):
      width, order = {"number4": (4, "<"), "number8": (8, "<"), "numberB": (4, ">")}[kind]
      number = NUMBERS[value % len(NUMBERS)] % 256**width
      content[a : a + width] = struct.pack(order + {4: "I", 8: "Q"}[width], number)
    elif kind == "digits":  # of a size in octal, decimal or JSON
      found = [i for i, byte in enumerate(content) if chr(byte).isdecimal()]
      if found:
        content[found[int(first * len(found)) % len(found)]] = b"0123456789-.e"[value % 13]
    content = bytes(content)
  return content


KINDS = (
  "flip", "cut", "remove", "double", "splice", "fill", "number4", "number8", "numberB", "digits",
)  # fmt: skip


def inside_a_zip(content, steps):
  """A zip whose first member named by the steps is damaged, with its checksum right."""
  with zipfile.ZipFile(io.BytesIO(content)) as archive:
    members = {info.filename: archive.read(info) for info in archive.infolist()}
    method = archive.infolist()[0].compress_type
  name = list(members)[steps[0][3] % len(members)]
  members[name] = damaged(members[name], steps)
  return zipped(members, method=method)


def inside_json(value, steps):
  """JSON with a value of it changed for another kind."""
  content = json.loads(json.dumps(value))
  odd = [None, [], {}, -1, 2**70, 1e300, "", "../x", [[[]]], True]
  for _, first, _, choice in steps:
    node = content
    while isinstance(node, dict | list) and node:
      keys = list(node) if isinstance(node, dict) else range(len(node))
      key = keys[int(first * len(keys)) % len(keys)]
      if not isinstance(node[key], dict | list) or not node[key] or choice % 3 == 0:
        node[key] = copy.deepcopy(odd[choice % len(odd)])
        break
      first = (first * 7.3) % 1
      node = node[key]
  return json.dumps(content).encode()
