"""The file of an index: whole, or refused.

  8 bytes   LLCINDEX
  4 + 4     the version and the length of the header, as little-endian numbers
  header    JSON: num_bits, count, next_id
  codes     uint32[ceil(num_bits / 32), count], little endian
  ids       int64[count], little endian
  32 bytes  SHA-256 of all that is before

Codes and ids start at multiples of 64 bytes, with zeros before them.
"""

import hashlib
import json
import os
import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.files import atomic_write

_MAGIC = b"LLCINDEX"
_VERSION = 1
_ALIGNED = 64
_DIGEST = 32
_HEADER_LIMIT = 4096


class Content(NamedTuple):
    """What an index holds.

    Attributes:
      num_bits: k.
      next_id: int, the id of the next item that comes without one.
      columns: uint32[W, N], the codes by words.
      ids: int64[N].
    """

    num_bits: int
    next_id: int
    columns: np.ndarray
    ids: np.ndarray


def write(path: str | os.PathLike, content: Content) -> None:
    """Writes an index; the same content gives the same bytes.

    Raises:
      InputError: if the file cannot be written.
    """
    digest = hashlib.sha256()
    try:
        with atomic_write(path) as temporary, temporary.open("wb") as file:
            for piece in _pieces(content):
                file.write(piece)
                digest.update(piece)
            file.write(digest.digest())
    except OSError as error:
        raise InputError(f"Cannot write the index {path}: {error.strerror}.") from error


def read(path: str | os.PathLike, verify: bool) -> Content:
    """Maps an index into memory.

    Args:
      path: what `write` wrote.
      verify: read all of it, and compare its checksum.

    Raises:
      InputError: if there is no such file, or it is not what was written.
    """
    path = pathlib.Path(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(len(_MAGIC) + 8 + _HEADER_LIMIT)
    except OSError as error:
        raise InputError(f"Cannot read the index {path}: {error.strerror}.") from error
    header, end = _read_header(head, path)
    words, count = packing.num_words(header["num_bits"]), header.pop("count")
    codes_at = _aligned(end)
    ids_at = _aligned(codes_at + 4 * words * count)
    if size != ids_at + 8 * count + _DIGEST:
        raise InputError(
            f"The index {path} has {size:,} bytes where {ids_at + 8 * count + _DIGEST:,} were "
            "written: it is truncated or damaged; write it anew, or copy it again."
        )
    whole = np.asarray(np.memmap(path, np.uint8, "r"))
    if verify and hashlib.sha256(whole[:-_DIGEST]).digest() != whole[-_DIGEST:].tobytes():
        raise InputError(
            f"The index {path} is damaged, its checksum differs: write it anew, or copy it again."
        )
    columns = whole[codes_at : codes_at + 4 * words * count].view("<u4").reshape(words, count)
    return Content(**header, columns=columns, ids=whole[ids_at:-_DIGEST].view("<i8"))


def _pieces(content: Content) -> Iterator[bytes | np.ndarray]:
    """Yields what a file holds, all but its checksum."""
    words, count = content.columns.shape
    header = {"num_bits": content.num_bits, "count": count, "next_id": content.next_id}
    text = json.dumps(header).encode()
    numbers = np.array([_VERSION, len(text)], "<u4").tobytes()
    end = len(_MAGIC) + len(numbers) + len(text)
    yield _MAGIC + numbers + text + bytes(_aligned(end) - end)
    yield np.ascontiguousarray(content.columns, "<u4")
    end = 4 * words * count
    yield bytes(_aligned(end) - end)
    yield np.ascontiguousarray(content.ids, "<i8")


def _read_header(head: bytes, path: pathlib.Path) -> tuple[dict[str, int], int]:
    """Returns the header's fields, the count among them, and where it ends."""
    if not head.startswith(_MAGIC):
        raise InputError(f"{path} is not an index: expected a file that HammingIndex.save wrote.")
    start = len(_MAGIC) + 8
    numbers = np.frombuffer(head[len(_MAGIC) : start].ljust(8, b"\0"), "<u4")
    version, length = (int(number) for number in numbers)
    if version > _VERSION:
        raise InputError(
            f"The index {path} has version {version}, and this llc_jax reads up to {_VERSION}: "
            "use a newer one."
        )
    try:
        header = json.loads(head[start : start + length])
        fields = {name: header[name] for name in ("num_bits", "count", "next_id")}
        whole = all(type(value) is int and value >= 0 for value in fields.values())
        packing.num_words(fields["num_bits"])
    except (ValueError, KeyError, TypeError):
        whole = False
    if version < 1 or not whole:
        raise InputError(f"The index {path} is damaged: its header cannot be read.")
    return fields, start + length


def _aligned(place: int) -> int:
    """Returns the next multiple of 64."""
    return -(-place // _ALIGNED) * _ALIGNED
