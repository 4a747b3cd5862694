"""Stores of files: a folder, a zip, or a tar that is read in place.

ImageNet comes as tars: `ILSVRC2012_img_train.tar` has a tar for each class. A tar is read
through once, for an index of the offset and size of each file. The index is cached in the
user's cache directory, and is valid while the archive has the same size and modification time.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import io
import os
import pathlib
import posixpath
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np

from llc_jax import objects
from llc_jax.copies import cache_directory
from llc_jax.errors import InputError
from llc_jax.files import read_arrays, volume, write_arrays
from llc_jax.objects import URL

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)

# The most bytes of an image file: one for each pixel of the largest image that is decoded.
MAX_IMAGE_BYTES = 2**28

# Bytes of a zip's member that are decompressed at once, so that few can claim to be many.
_PIECE = 2**14
# The most paths on which links may lead to one directory.
_MAX_PATHS = 1000

# Entries of the cache that have another number were written by another version.
_CACHE_FORMAT = (1, 0)
# Threads that ask for the sizes of files, and files that each asks for at a time.
_STAT_THREADS = 16
_STAT_FILES = 1000


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files below a directory."""

    root: pathlib.Path

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths relative to the root; hidden ones are left out.

        Links are followed, but not to a directory that is on the path already, or above one on
        it: the path would go round in circles.

        Raises:
          InputError: if a directory cannot be read, or too many paths lead to it.
        """
        paths, visits = [], collections.Counter()
        # Directories by their paths and real paths, with the real paths of the directories
        # whose links lead to them.
        pending = [("", os.path.realpath(self.root), ())]
        while pending:
            directory, real_path, trail = pending.pop()
            for entry in _entries(self.root / directory):
                path = f"{directory}{entry.name}"
                if entry.name.startswith("."):
                    continue
                if not _is_directory(entry):
                    if is_image(entry.name):
                        paths.append(path)
                elif not entry.is_symlink():
                    pending.append((f"{path}/", f"{real_path}/{entry.name}", trail))
                elif not _is_above(target := os.path.realpath(entry), (*trail, real_path)):
                    pending.append((f"{path}/", target, (*trail, real_path)))
                    visits[target] += 1
                    if visits[target] > _MAX_PATHS:
                        raise InputError(
                            f"More than {_MAX_PATHS:,} paths lead to {target}, through links: "
                            "remove those between the directories."
                        )
        return sorted(paths)

    def real_paths(self, files: Sequence[str]) -> list[str]:
        """Returns where files are, links followed: one path, whatever the names of a file."""

        @functools.cache
        def open_directory(directory: str) -> tuple[str, frozenset[str]]:
            path, links = os.path.realpath(self.root / directory), []
            with contextlib.suppress(InputError):  # Files can be read where none can be listed.
                links = [entry.name for entry in _entries(pathlib.Path(path)) if entry.is_symlink()]
            return path, frozenset(links)

        paths = []
        for file in files:
            directory, name = os.path.split(file)
            real_directory, links = open_directory(directory)
            path = os.path.join(real_directory, name)
            paths.append(os.path.realpath(path) if name in links else path)
        return paths

    def has(self, name: str) -> bool:
        """Whether there is a file of that name."""
        return os.path.isfile(self.root / name)

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        try:
            return read_image(self.root / name)
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
        except Exception as error:  # Damage leads the reader to errors of many kinds.
            raise InputError(f"{root} is not a readable zip archive: {_reason(error)}.") from error
        self._members = {_name_inside(info.filename): info for info in self._archive.infolist()}

    def __reduce__(self):
        return Zip, (self.root,)

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths inside the archive."""
        names = (name for name, info in self._members.items() if not info.is_dir())
        return sorted(name for name in names if is_image(name) and not name.startswith("__MACOSX/"))

    def read(self, name: str) -> bytes:
        """Returns the content of a member."""
        info = self._members.get(name)
        if info is None:
            raise InputError(f"There is no {name} in {self.root}.")
        check_size(f"{name} in {self.root}", info.file_size)
        try:
            with self._archive.open(info) as member:
                return b"".join(iter(lambda: member.read(_PIECE), b""))
        except Exception as error:  # Damage leads the decompressors to errors of many kinds.
            raise InputError(f"Cannot read {name} in {self.root}: {_reason(error)}.") from error

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
        self._offsets, self._sizes = index["offsets"], index["sizes"]
        self._rows = {name: row for row, name in enumerate(index["names"].tolist())}
        self._descriptor = os.open(root, os.O_RDONLY)

    def __reduce__(self):
        return Tar, (self.root,)

    def __del__(self):
        if hasattr(self, "_descriptor"):
            os.close(self._descriptor)

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths inside the archive."""
        return sorted(filter(is_image, self._rows))

    def members(self) -> list[str]:
        """Lists all files, in the order of the archive."""
        return list(self._rows)

    def read(self, name: str) -> bytes:
        """Returns the content of a file; may be called from several threads."""
        row = self._rows.get(name)
        if row is None:
            raise InputError(f"There is no {name} in {self.root}.")
        offset, size = int(self._offsets[row]), int(self._sizes[row])
        check_size(f"{name} in {self.root}", size)
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


def read_image(path: pathlib.Path | URL) -> bytes:
    """Returns the content of an image file.

    Raises:
      OSError: if it cannot be read.
      InputError: if it is larger than image files are, or not a file at all.
    """
    if isinstance(path, URL):
        return objects.read(path)
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is not a file that can be read as an image.")
    check_size(str(path), status.st_size)
    return path.read_bytes()


def check_size(name: str, size: int) -> None:
    """Raises an InputError if a file is larger than image files are."""
    if size > MAX_IMAGE_BYTES:
        raise InputError(
            f"{name} has {volume(size)}, and an image file has at most {volume(MAX_IMAGE_BYTES)}: "
            "make it smaller, remove it, or set config.data.on_error=skip."
        )


def _reason(error: Exception) -> str:
    return str(error) or f"it ends early ({type(error).__name__})"


def _name_inside(name: str) -> str:
    """Returns the name of an archive's file as a path below the archive's root."""
    return posixpath.normpath("/" + name.lstrip("/"))[1:]


def _entries(directory: pathlib.Path) -> list[os.DirEntry]:
    try:
        with os.scandir(directory) as entries:
            return list(entries)
    except OSError as error:
        raise InputError(f"Cannot read {directory}: {error.strerror}.") from error


def _is_directory(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # A link to itself.
        return False


def _is_above(directory: str, places: Iterable[str]) -> bool:
    """Whether a directory is one of some places, or one of them is below it; by real paths."""
    start = f"{directory.rstrip('/')}/"
    return any(f"{place}/".startswith(start) for place in places)


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
        raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from error
    stamp = np.array([_CACHE_FORMAT, *((file.st_size, file.st_mtime_ns) for file in status)])
    path = _cache_file(key)
    try:
        entry = read_arrays(path)
        if np.array_equal(entry.pop("stamp"), stamp):
            return entry
    except (OSError, ValueError, KeyError):
        pass  # The entry is missing or damaged.
    result = compute()
    with contextlib.suppress(OSError):  # The cache directory may not be writable.
        write_arrays(path, {"stamp": stamp, **result})
    return result


def _cache_file(key: str) -> pathlib.Path:
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]
    return cache_directory() / f"{pathlib.PurePath(key).stem}.{digest}.npz"


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
                if member.size < 0 or member.offset_data + member.size > length:
                    raise tarfile.ReadError("it is cut short")
                yield _name_inside(member.name), start + member.offset_data, member.size
                tar.members = []  # tarfile would keep every member in memory.
    except Exception as error:  # Damage leads the reader to errors of many kinds.
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
