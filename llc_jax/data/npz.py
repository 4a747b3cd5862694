"""Arrays in an .npz, mapped where they lie in it as they are."""

import pathlib
import zipfile
from typing import BinaryIO

import numpy as np


def map_stored(path: pathlib.Path, name: str) -> np.ndarray | None:
    """Maps an array of an .npz; None if it is compressed, of Fortran's order, or not there.

    Raises:
      OSError, ValueError, zipfile.BadZipFile: if the file cannot be read, or is damaged.
    """
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(info) as member:
            shape, fortran, dtype = _read_header(member)
            header = member.tell()
    with path.open("rb") as file:
        # The local header of the member: its name and extra field have their own lengths here.
        file.seek(info.header_offset + 26)
        name_size, extra_size = np.frombuffer(file.read(4), "<u2").astype(int)
    offset = info.header_offset + 30 + name_size + extra_size + header
    size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
    if fortran or dtype.hasobject or not size or info.file_size - header != size:
        return None
    return np.memmap(path, dtype, "r", offset, shape)


def vector_size(path: pathlib.Path, name: str) -> int:
    """Returns d of an array [N, d] of an .npz; 0 where there is none that can be read."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            shape, _, _ = _read_header(member)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        return 0
    return shape[1] if len(shape) == 2 else 0


def num_bytes(path: pathlib.Path) -> int:
    """Returns the bytes of all arrays of an .npz, decompressed."""
    with zipfile.ZipFile(path) as archive:
        return sum(info.file_size for info in archive.infolist())


def _read_header(member: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Returns the shape, whether the order is Fortran's, and the dtype of an .npy file."""
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0
    return (read if version == (1, 0) else np.lib.format.read_array_header_2_0)(member)
