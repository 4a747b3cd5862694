"""Where files lie: in a folder, in a zip, or in a tar that is read in place.

ImageNet comes as tars: `ILSVRC2012_img_train.tar` holds a tar for each class. A tar is read
through once, for an index of where each file lies; the index is kept in the user's cache
directory and used again while the archive has the same size and time.
"""

import contextlib
import dataclasses
import hashlib
import io
import os
import pathlib
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from llc_jax.errors import InputError
from llc_jax.files import write_arrays

IMAGE_SUFFIXES = (
    *(".avif", ".bmp", ".gif", ".jp2", ".jpe", ".jpeg", ".jpg"),
    *(".pbm", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"),
)


@dataclasses.dataclass(frozen=True)
class Folder:
    """Files below a directory."""

    root: pathlib.Path

    def files(self) -> list[str]:
        """Lists the image files, as sorted paths relative to the root; hidden ones are left out."""
        found = []
        walk = os.walk(self.root, onerror=_refuse, followlinks=True)
        for directory, subdirectories, files in walk:
            subdirectories[:] = [name for name in subdirectories if not name.startswith(".")]
            inside = pathlib.Path(directory).relative_to(self.root)
            found += [(inside / name).as_posix() for name in files if is_image(name)]
        return sorted(found)

    def read(self, name: str) -> bytes:
        """Returns the content of a file."""
        try:
            return (self.root / name).read_bytes()
        except OSError as error:
            raise InputError(f"Cannot read {self.root / name}: {error.strerror}.") from error


class Zip:
    """Files in a zip archive, read in place. A lone top folder is looked through."""

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
        return sorted(n for n in names if is_image(n) and not n.startswith("__MACOSX/"))

    def read(self, name: str) -> bytes:
        """Returns the content of a member."""
        try:
            return self._archive.read(name)
        except (KeyError, OSError, zipfile.BadZipFile) as error:
            raise InputError(f"Cannot read {name} in {self.root}: {error}.") from error


class Tar:
    """Files in an uncompressed tar, and in the tars in it.

    What lies in an inner tar `n01440764.tar` has names such as `n01440764/a.JPEG`.
    """

    def __init__(self, root: pathlib.Path):
        self.root = root
        index = _index(root)
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


Store = Folder | Zip | Tar


def is_image(name: str) -> bool:
    """Whether a file's name is that of a visible image."""
    path = pathlib.PurePosixPath(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith(".")


def _refuse(error: OSError) -> None:
    raise InputError(f"Cannot read {error.filename}: {error.strerror}.") from error


def _index(root: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the names, offsets and sizes of the files in an archive."""

    def read_through() -> dict[str, np.ndarray]:
        entries = list(_walk(root))
        names, offsets, sizes = zip(*entries, strict=True) if entries else ((), (), ())
        return {
            "names": np.array(names, np.str_),
            "offsets": np.array(offsets, np.int64),
            "sizes": np.array(sizes, np.int64),
        }

    return keep(str(root.resolve()), [root], read_through)


def keep(
    name: str, files: Iterable[pathlib.Path], make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Returns what `make` returns, from the cache while the files have the same size and time.

    Args:
      name: what is kept under.
      files: what it is made of.
      make: makes it; called where there is none, or it is old or damaged.
    """
    try:
        status = [file.stat() for file in files]
    except OSError as error:
        _refuse(error)
    stamp = np.array([(one.st_size, one.st_mtime_ns) for one in status])
    cached = _cache_file(name)
    try:
        with cached.open("rb") as file, np.load(file) as found:
            if np.array_equal(found["stamp"], stamp):
                return {key: found[key] for key in found if key != "stamp"}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # There is none, or it is damaged: it is made anew.
    made = make()
    with contextlib.suppress(OSError):  # Where nothing can be kept, it is made again.
        write_arrays(cached, {"stamp": stamp, **made})
    return made


def _cache_file(name: str) -> pathlib.Path:
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    digest = hashlib.sha256(name.encode()).hexdigest()[:16]
    return pathlib.Path(base) / "llc_jax" / f"{pathlib.PurePath(name).stem}.{digest}.npz"


def _walk(root: pathlib.Path) -> Iterator[tuple[str, int, int]]:
    """Yields the name, the offset in the archive and the size of each file."""
    with root.open("rb") as archive:
        for name, start, length in _members(archive, 0, root.stat().st_size, root):
            if name.endswith(".tar"):
                for inner, offset, inner_length in _members(archive, start, length, root):
                    yield f"{name.removesuffix('.tar')}/{inner}", offset, inner_length
            else:
                yield name, start, length


def _members(
    archive: io.BufferedReader, start: int, length: int, root: pathlib.Path
) -> Iterator[tuple[str, int, int]]:
    """Yields the files of the tar in a part of the archive; offsets are the archive's."""
    try:
        with tarfile.open(fileobj=_Part(archive, start, length), mode="r:") as tar:
            for member in tar:
                if not member.isfile():
                    continue
                if member.offset_data + member.size > length:
                    raise tarfile.ReadError("it is cut short")
                yield member.name.removeprefix("./"), start + member.offset_data, member.size
                tar.members = []  # tarfile keeps all that it has seen.
    except (tarfile.TarError, OSError) as error:
        raise InputError(f"{root} is not a whole, uncompressed tar: {error}.") from error


class _Part(io.RawIOBase):
    """Some bytes of a file, as a file."""

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
        left = max(0, self._length - self._position)
        self._file.seek(self._start + self._position)
        content = self._file.read(min(len(buffer), left))
        buffer[: len(content)] = content
        self._position += len(content)
        return len(content)
