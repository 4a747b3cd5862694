"""Stores of files: a folder, a zip, or a tar that is read in place.

ImageNet comes as tars: `ILSVRC2012_img_train.tar` has a tar for each class. A tar is read
through once, for an index of the offset and size of each file. The index is cached in the
user's cache directory, and is valid while the archive has the same size and modification time.
"""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from llc_jax.errors import InputError
from llc_jax.files import write_arrays

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)

# Threads that ask for the sizes of files, and files that each asks for at a time.
_STAT_THREADS = 16
_STAT_FILES = 1000


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files below a directory."""

    root: pathlib.Path

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths relative to the root; hidden ones are left out."""
        paths = []
        walk = os.walk(self.root, onerror=_raise_input_error, followlinks=True)
        for directory, subdirectories, files in walk:
            subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
            relative = pathlib.Path(directory).relative_to(self.root)
            paths += [(relative / name).as_posix() for name in files if is_image(name)]
        return sorted(paths)

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise InputError(f"Cannot read {self.root / name}: {error.strerror}.") from error

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Returns the bytes of each file, int64[N]; 0 where it cannot be read."""
        # On network storage each answer takes long, and threads wait for many at once.
        starts = range(0, len(names), _STAT_FILES)
        parts = [names[start : start + _STAT_FILES] for start in starts]
        with concurrent.futures.ThreadPoolExecutor(_STAT_THREADS) as pool:
            sizes = [size for part in pool.map(self._sizes, parts) for size in part]
        return np.array(sizes, np.int64)

    def _sizes(self, names: Iterable[str]) -> list[int]:
        sizes = []
        for name in names:
            try:
                sizes.append(os.stat(os.path.join(self.root, name)).st_size)
            except OSError:
                sizes.append(0)
        return sizes


class Zip:
    """Files in a zip archive, read in place."""

    def __init__(self, root: pathlib.Path):
        self.root = root
        try:
            self._archive = zipfile.ZipFile(root)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{root} is not a readable zip archive: {error}.") from error

    def __reduce__(self):
        return Zip, (self.root,)

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths inside the archive."""
        names = self._archive.namelist()
        return sorted(name for name in names if is_image(name) and not name.startswith("__MACOSX/"))

    def read(self, name: str) -> bytes:
        """Returns the content of a member."""
        try:
            return self._archive.read(name)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"Cannot read {name} in {self.root}: {error}.") from error

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Returns the bytes of each member, int64[N]."""
        return np.array([self._archive.getinfo(name).file_size for name in names], np.int64)


class Tar:
    """Files in an uncompressed tar, and in the tars inside it.

    Files of an inner tar `n01440764.tar` have names such as `n01440764/a.JPEG`.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        index = _tar_index(root)
        self._names = index["names"].tolist()
        self._offsets, self._sizes = index["offsets"], index["sizes"]
        self._rows = {name: row for row, name in enumerate(self._names)}
        self._descriptor = os.open(root, os.O_RDONLY)

    def __reduce__(self):
        return Tar, (self.root,)

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths inside the archive."""
        return sorted(filter(is_image, self._names))

    def read(self, name: str) -> bytes:
        """Returns the content of a file; may be called from several threads."""
        row = self._rows.get(name)
        if row is None:
            raise InputError(f"There is no {name} in {self.root}.")
        offset, size = int(self._offsets[row]), int(self._sizes[row])
        try:
            content = os.pread(self._descriptor, size, offset)
        except OSError as error:
            raise InputError(f"Cannot read {name} in {self.root}: {error.strerror}.") from error
        if len(content) != size:
            raise InputError(f"{self.root} has changed while it was read, or is cut short.")
        return content

    def sizes(self, names: Sequence[str]) -> np.ndarray:
        """Returns the bytes of each file, int64[N]."""
        return self._sizes[[self._rows[name] for name in names]]


Store = Folder | Zip | Tar


def is_image(name: str) -> bool:
    """Whether a file's name is that of a visible image."""
    path = pathlib.PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _raise_input_error(error: OSError) -> None:
    raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from error


def _tar_index(root: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the names, offsets and sizes of the files in a tar."""

    def compute() -> dict[str, np.ndarray]:
        entries = list(_tar_entries(root))
        names, offsets, sizes = zip(*entries, strict=True) if entries else ((), (), ())
        return {
            "names": np.array(names, np.str_),
            "offsets": np.array(offsets, np.int64),
            "sizes": np.array(sizes, np.int64),
        }

    return cached(str(root.resolve()), [root], compute)


def cached(
    key: str, files: Iterable[pathlib.Path], compute: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns the result of `compute`, from a cache on disk where that is valid.

    Args:
      key: of the cache entry.
      files: on which the result depends. The entry is valid while they have the same sizes and
        modification times.
      compute: computes the result; called where the entry is missing, outdated or damaged.
    """
    try:
        status = [file.stat() for file in files]
    except OSError as error:
        _raise_input_error(error)
    stamp = np.array([(stat.st_size, stat.st_mtime_ns) for stat in status])
    path = _cache_file(key)
    try:
        with path.open("rb") as file, np.load(file) as entry:
            if np.array_equal(entry["stamp"], stamp):
                return {name: entry[name] for name in entry if name != "stamp"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # The entry is missing or damaged.
    result = compute()
    with contextlib.suppress(OSError):  # The cache directory may not be writable.
        write_arrays(path, {"stamp": stamp, **result})
    return result


def _cache_file(key: str) -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return pathlib.Path(base) / "llc_jax" / f"{pathlib.PurePath(key).stem}.{digest}.npz"


def _tar_entries(root: pathlib.Path) -> Iterator[tuple[str, int, int]]:
    """Yields the name, offset and size of each file in a tar and in the tars inside it."""
    with root.open("rb") as archive:
        for name, offset, size in _tar_members(archive, 0, root.stat().st_size, root):
            if name.endswith(".tar"):
                inner_members = _tar_members(archive, offset, size, root)
                for inner_name, inner_offset, inner_size in inner_members:
                    yield f"{name.removesuffix('.tar')}/{inner_name}", inner_offset, inner_size
            else:
                yield name, offset, size


def _tar_members(
    archive: io.BufferedReader, start: int, length: int, root: pathlib.Path
) -> Iterator[tuple[str, int, int]]:
    """Yields the files of the tar at bytes `start` to `start + length` of the archive.

    Yields:
      The name, the offset from the beginning of the archive, and the size of each file.
    """
    try:
        with tarfile.open(fileobj=_FileSlice(archive, start, length), mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("it is cut short")
                yield member.name.removeprefix("./"), start + member.offset_data, member.size
                tar.members = []  # tarfile would keep every member in memory.
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{root} is not a whole, uncompressed tar: {error}.") from error


class _FileSlice(io.RawIOBase):
    """The bytes `start` to `start + length` of a file, as a file."""

    def __init__(self, file: io.BufferedReader, start: int, length: int):
        self._file, self._start, self._length, self._position = file, start, length, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = base + offset
        return self._position

    def readinto(self, buffer) -> int:
        remaining = max(0, self._length - self._position)
        self._file.seek(self._start + self._position)
        content = self._file.read(min(len(buffer), remaining))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
