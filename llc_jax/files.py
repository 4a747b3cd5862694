"""Atomic writes, checksums, exclusive locks and checks of disk space."""

import contextlib
import errno
import hashlib
import io
import json
import os
import pathlib
import shutil
import tempfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from llc_jax import copies
from llc_jax.errors import InputError, WriteFailed
from llc_jax.objects import URL

# What the names of temporary files have before their suffix.
_PARTIAL = ".partial"

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there, or ask for a larger quota",
    errno.EFBIG: "allow larger files (ulimit -f)",
    errno.ENOENT: "its directory was removed",
}


@contextlib.contextmanager
def writing(path: str | os.PathLike) -> Iterator[None]:
    """Turns an OSError of the body, which writes `path`, into a WriteFailed."""
    try:
        yield
    except WriteFailed:
        raise
    except OSError as error:
        if error.errno is None:
            raise
        raise write_failed(path, error.errno) from error


def write_failed(what: str | os.PathLike, number: int) -> WriteFailed:
    """Returns the error that a file, or whatever is named, cannot be written; of an `errno`."""
    remedy = f": {_REMEDIES[number]}" if number in _REMEDIES else ""
    return WriteFailed(f"Cannot write {what} ({os.strerror(number)}){remedy}.")


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields a temporary path beside `path` and renames it to `path` at the end.

    If the body raises, or the process dies in it, `path` keeps its old content. What a process
    that dies leaves behind, `sweep` removes. A URL is written once the body has ended.

    Raises:
      WriteFailed: if the file cannot be written.
    """
    path = copies.as_path(path)
    if isinstance(path, URL):
        with copies.written_to(path) as temporary:
            yield temporary
        return
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}.", suffix=f"{_PARTIAL}{path.suffix}"
        )
        os.close(handle)
        temporary = pathlib.Path(temporary)
        try:
            with exclusive_lock(temporary):
                yield temporary
                temporary.chmod(0o666 & ~_umask())
                os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        copies.publish(path)


def sweep(directory: pathlib.Path, min_age: float = 0.0) -> None:
    """Removes the temporary files of atomic writes in a directory whose processes are dead.

    Args:
      directory: that has the files.
      min_age: seconds since a file was written to; where other processes may be at work there,
        those that have just been made are left.
    """
    for path in directory.glob(f".*{_PARTIAL}*"):
        # A living process holds the lock of its file.
        with contextlib.suppress(InputError, OSError), exclusive_lock(path):
            if time.time() - path.stat().st_mtime >= min_age:
                path.unlink()


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Writes `value` as indented JSON, atomically."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n")


def read_json(path: str | os.PathLike) -> dict[str, Any]:
    """Returns the object that a JSON file holds.

    Raises:
      InputError: if it holds none: it is cut off, empty, or not JSON, or cannot be read.
    """
    try:
        value = json.loads(pathlib.Path(path).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}).") from error
    if not isinstance(value, dict):
        raise InputError(f"{path} is damaged (it holds a {type(value).__name__}, not an object).")
    return value


def sha256(path: str | os.PathLike) -> str:
    """Returns the SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_arrays(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays by their names as `.npz`, atomically."""
    with atomic_write(path) as temporary:
        np.savez(temporary, **arrays)


def read_array(path: str | os.PathLike) -> np.ndarray:
    """Reads the array of an `.npy`, which is not pickled and fills the file.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged, or something else.
    """
    return _parse_array(pathlib.Path(path).read_bytes())


def read_arrays(path: str | os.PathLike, skip: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """Reads the arrays of an `.npz` by their names, and compares their checksums.

    Args:
      path: of the file.
      skip: names of arrays that are not read.

    Raises:
      OSError: if the file cannot be read.
      ValueError: if it is damaged, or something else.
    """
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                skipped = {f"{name}.npy" for name in skip}
                names = [name for name in archive.namelist() if name not in skipped]
                contents = {name: archive.read(name) for name in names}
        except Exception as error:  # Damage leads the reader to errors of many kinds.
            raise ValueError(f"it is not a whole .npz file: {error}") from error
    return {name.removesuffix(".npy"): _parse_array(data) for name, data in contents.items()}


def _parse_array(content: bytes) -> np.ndarray:
    """Returns the array that is all of an `.npy` file's content."""
    file = io.BytesIO(content)
    try:
        array = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # Damage leads the reader to errors of many kinds.
        raise ValueError(f"it holds no whole array: {error}") from error
    if file.read(1):
        raise ValueError(f"it holds more than the array of shape {array.shape} in its header")
    return array


def make_directory(directory: pathlib.Path) -> None:
    """Makes a directory, and checks that files can be written in it.

    Raises:
      InputError: if it cannot be made or written in.
    """
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        raise InputError(f"Cannot write in {directory}: {error.strerror}.") from error


@contextlib.contextmanager
def exclusive_lock(path: str | os.PathLike) -> Iterator[None]:
    """Locks a file or directory, so that no other process works on it at the same time.

    Raises:
      InputError: if another process has the lock.
    """
    # A shared disk locks what is open for writing, which a directory cannot be.
    descriptor = os.open(path, os.O_RDONLY if os.path.isdir(path) else os.O_RDWR)
    try:
        if not try_lock(descriptor):
            raise InputError(f"Another process is at work on {path}: wait for it.")
        yield
    finally:
        os.close(descriptor)


def try_lock(descriptor: int) -> bool:
    """Locks an open file until it is closed, at the latest when the process ends.

    Returns:
      Whether this was possible: False if the file is locked already, True too where the
      system or the file system has no locks.
    """
    try:
        import fcntl  # Unix only, and the rest of this module is not.
    except ImportError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass
    return True


def check_space(
    directory: str | os.PathLike, needed: float, what: str, remedy: str = "choose another disk"
) -> None:
    """Checks that the disk of a directory has enough free space.

    Args:
      directory: where the data are to be written.
      needed: the size of the data in bytes.
      what: the name of the data, for the error message.
      remedy: another way than to free space, for the error message.

    Raises:
      InputError: if there is too little.
    """
    free = shutil.disk_usage(directory).free
    if free < needed:
        raise InputError(
            f"{what} needs about {volume(needed)}, but {directory} has {volume(free)} free: "
            f"make room there, or {remedy}."
        )


def volume(size: float) -> str:
    """Spells a number of bytes in words: `1.5 GB`, of 10^9 bytes each."""
    if size < 1e9:
        return f"{size / 1e6:.1f} MB"
    return f"{size / 1e9:.1f} GB" if size < 1e10 else f"{size / 1e9:,.0f} GB"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
