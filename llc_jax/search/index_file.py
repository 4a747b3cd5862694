"""The file format of an index; a truncated or damaged file is refused.

  8 bytes   LLCINDEX
  4 + 4     the version and the length of the header, as little-endian numbers
  header    JSON: num_bits, count, next_id
  codes     uint32[ceil(num_bits / 32), count], little endian
  ids       int64[count], little endian
  32 bytes  SHA-256 of all bytes before

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
from llc_jax.copies import local
from llc_jax.errors import InputError
from llc_jax.files import atomic_write

_MAGIC = b"LLCINDEX"
_VERSION = 1
_ALIGNMENT = 64
_DIGEST_BYTES = 32
_HEADER_LIMIT = 4096
# One more than the largest id, an int64.
_NUMBER_LIMIT = 2**63


class Content(NamedTuple):
    """The items of an index.

    Attributes:
      num_bits: k.
      next_id: int, the id of the next item that is added without one.
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
      WriteFailed: if the file cannot be written.
    """
    digest = hashlib.sha256()
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        for section in _sections(content):
            file.write(section)
            digest.update(section)
        file.write(digest.digest())


def read(path: str | os.PathLike, verify: bool) -> Content:
    """Maps an index into memory.

    Args:
      path: what `write` wrote.
      verify: read all of it, and compare its checksum. Without, the bits of the codes beyond
        `num_bits` are still read, because search relies on their being 0.

    Raises:
      InputError: if there is no such file, or it is not one that `write` wrote.
    """
    path = local(path)
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file_start = file.read(len(_MAGIC) + 8 + _HEADER_LIMIT)
    except OSError as error:
        raise InputError(f"Cannot read the index {path}: {error.strerror}.") from error
    header, end = _read_header(file_start, path)
    words, count = packing.num_words(header["num_bits"]), header.pop("count")
    codes_start = _aligned(end)
    codes_end = codes_start + 4 * words * count
    ids_start = _aligned(codes_end)
    expected_size = ids_start + 8 * count + _DIGEST_BYTES
    if size != expected_size:
        raise InputError(
            f"The index {path} has {size:,} bytes where {expected_size:,} were "
            "written: it is truncated or damaged; write it anew, or copy it again."
        )
    data = np.asarray(np.memmap(path, np.uint8, "r"))
    if verify and hashlib.sha256(data[:-_DIGEST_BYTES]).digest() != data[-_DIGEST_BYTES:].tobytes():
        raise InputError(
            f"The index {path} is damaged, its checksum differs: write it anew, or copy it again."
        )
    columns = data[codes_start:codes_end].view("<u4").reshape(words, count)
    if packing.has_stray_bits(columns[-1], header["num_bits"]):
        raise InputError(
            f"The index {path} is damaged, it has codes with bits set beyond the first "
            f"{header['num_bits']}: write it anew, or copy it again."
        )
    return Content(**header, columns=columns, ids=data[ids_start:-_DIGEST_BYTES].view("<i8"))


def _sections(content: Content) -> Iterator[bytes | np.ndarray]:
    """Yields the content of a file, all but its checksum."""
    words, count = content.columns.shape
    header = {"num_bits": content.num_bits, "count": count, "next_id": content.next_id}
    text = json.dumps(header).encode()
    prefix = _MAGIC + np.array([_VERSION, len(text)], "<u4").tobytes()
    end = len(prefix) + len(text)
    yield prefix + text + bytes(_aligned(end) - end)
    yield np.ascontiguousarray(content.columns, "<u4")
    end = 4 * words * count
    yield bytes(_aligned(end) - end)
    yield np.ascontiguousarray(content.ids, "<i8")


def _read_header(file_start: bytes, path: pathlib.Path) -> tuple[dict[str, int], int]:
    """Returns the header's fields, the count among them, and the offset of its end."""
    if not file_start.startswith(_MAGIC):
        raise InputError(f"{path} is not an index: expected a file that HammingIndex.save wrote.")
    start = len(_MAGIC) + 8
    prefix = file_start[len(_MAGIC) : start].ljust(8, b"\0")
    version, length = (int(number) for number in np.frombuffer(prefix, "<u4"))
    if version > _VERSION:
        raise InputError(
            f"The index {path} has version {version}, and this llc_jax reads up to {_VERSION}: "
            "use a newer one."
        )
    try:
        header = json.loads(file_start[start : start + length])
        fields = {name: header[name] for name in ("num_bits", "count", "next_id")}
        valid = all(type(value) is int and 0 <= value <= _NUMBER_LIMIT for value in fields.values())
        packing.num_words(fields["num_bits"])
    except (ValueError, KeyError, TypeError, RecursionError):
        valid = False
    if version < 1 or not valid:
        raise InputError(f"The index {path} is damaged: its header cannot be read.")
    return fields, start + length


def _aligned(offset: int) -> int:
    """Returns the offset, rounded up to a multiple of 64."""
    return -(-offset // _ALIGNMENT) * _ALIGNMENT
