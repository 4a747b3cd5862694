"""Local copies of what is at URLs: of data that are read, and of runs that are at work.

What is mapped, or read at random places, needs a file. So does a run: it works in a directory,
and writes each file to its URL as soon as it is complete. The paths have the URLs in them:

  <cache>/objects/copies/<digest>/s3/bucket/a.tar   what is read; the digest is that of the URL,
                                                    and of the sizes and tags of its objects
  <cache>/objects/work/<random>/s3/bucket/run       what is written, removed at the end

The cache is $LLC_CACHE, or llc_jax in $XDG_CACHE_HOME or ~/.cache. Copies take $LLC_CACHE_GB (100)
at most: those that have not been used for longest make room for others.
"""

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
import pathlib
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence

from llc_jax import objects
from llc_jax.errors import InputError
from llc_jax.objects import URL, Object, is_url

_LOCK = ".lock"


def cache_directory() -> pathlib.Path:
    """Returns the directory of the user's cache."""
    base = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
    directory = os.environ.get("LLC_CACHE") or pathlib.Path(base) / "llc_jax"
    return pathlib.Path(directory).expanduser().absolute()


def as_path(path: str | os.PathLike) -> pathlib.Path | URL:
    """Returns a path, or a URL, which pathlib would take for a path."""
    return URL(path) if is_url(path) else pathlib.Path(path)


def named(text: object) -> str:
    """Returns a text with the URLs of the copies that it names."""
    pattern = rf"{re.escape(str(_directory()))}/(?:work|copies)/[^/\s]+/([a-z][a-z0-9+.-]*)/"
    return re.sub(pattern, r"\1://", str(text))


def local(path: str | os.PathLike, beside: Sequence[str] = ()) -> pathlib.Path:
    """Returns the path of a file or folder that is to be read, or of the copy of a URL.

    Args:
      path: of the file or folder, or its URL.
      beside: names of objects in the same folder; those that are there are copied too.

    Raises:
      InputError: if there is nothing at the URL, it cannot be read, or there is no room.
    """
    if not is_url(path):
        return pathlib.Path(path)
    return _obtain(URL(path), beside, _held)[0]


@contextlib.contextmanager
def borrowed(path: str | os.PathLike, but: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """Yields what `local` returns; after the body, a copy may make room for others.

    Args:
      path: of the file or folder, or its URL.
      but: names of objects and folders at the URL that are not copied.

    Raises:
      InputError: as `local`.
    """
    if not is_url(path):
        yield pathlib.Path(path)
        return
    copy, lock = _obtain(URL(path), (), _shared_lock, but)
    try:
        yield copy
    finally:
        os.close(lock)


@contextlib.contextmanager
def working_copy(path: str | os.PathLike, but: Sequence[str] = ()) -> Iterator[pathlib.Path]:
    """Yields a directory that stands for a URL while the body runs; a path is yielded as it is.

    What is at the URL is in the directory, and what the body passes to `publish` is written to
    the URL.

    Args:
      path: a path or URL.
      but: names of objects and folders that are not copied.

    Raises:
      InputError: if the URL cannot be read.
    """
    if not is_url(path):
        yield pathlib.Path(path)
        return
    with _own_directory(_directory() / "work") as directory:
        copy = directory / _relative(URL(path))
        if objects.find(path):
            with borrowed(path, but) as found:
                if found.exists():
                    shutil.copytree(found, copy)
        yield copy


@contextlib.contextmanager
def written_to(url: URL) -> Iterator[pathlib.Path]:
    """Yields the path of a file, which is written to the URL at the end of the body.

    Raises:
      WriteFailed: if it cannot be written.
    """
    with _own_directory(_directory() / "work") as directory:
        file = directory / url.name
        yield file
        objects.upload(file, url)


def url_of(path: pathlib.Path) -> URL | None:
    """Returns the URL that a path in a working copy stands for; None for any other path.

    What is hidden has none, nor what is in a hidden directory: when it is complete, it gets
    another name.
    """
    work = _directory() / "work"
    if not path.is_relative_to(work):
        return None
    _, protocol, *parts = path.relative_to(work).parts
    is_hidden = any(part.startswith(".") for part in parts)
    return None if is_hidden else URL(f"{protocol}://{'/'.join(parts)}")


def is_current(copy: pathlib.Path, but: Sequence[str]) -> bool:
    """Whether what is at its URL has not changed since a working copy was made; others are.

    Args:
      copy: in which nothing has been written.
      but: names of objects and folders that may change.

    Raises:
      InputError: if the URL cannot be read.
    """
    url = url_of(copy)
    if url is None:
        return True
    there = {(name, what.size) for name, what in objects.find(url).items()}
    files = (path for path in copy.rglob("*") if path.is_file())
    here = {(url / file.relative_to(copy).as_posix(), file.stat().st_size) for file in files}
    return all(_is_within(name, url, but) for name, _ in there ^ here)


def refresh(path: pathlib.Path) -> None:
    """Copies a file or folder of a working copy from its URL again; does nothing with others.

    Raises:
      InputError: if it cannot be read.
    """
    url = url_of(path)
    for name, what in (objects.find(url) if url else {}).items():
        objects.download(name, path / name.relative_to(url).as_posix(), what.size)


def publish(path: pathlib.Path) -> None:
    """Writes a file or folder of a working copy to its URL; does nothing with others.

    Raises:
      WriteFailed: if it cannot be written.
    """
    url = url_of(path)
    if url is not None:
        (objects.upload_folder if path.is_dir() else objects.upload)(path, url)


def _directory() -> pathlib.Path:
    return cache_directory() / "objects"


def _is_within(name: URL, url: URL, names: Sequence[str]) -> bool:
    """Whether an object below a URL has one of some names, or is in a folder that has."""
    return any(part in names for part in name.relative_to(url).parts)


def _relative(url: URL) -> pathlib.PurePosixPath:
    """Returns the path below a copy that has a URL in it: `s3/bucket/name`."""
    protocol, _, rest = str(url).partition("://")
    return pathlib.PurePosixPath(protocol, rest)


def _obtain(
    url: URL,
    beside: Sequence[str],
    hold: Callable[[pathlib.Path], int],
    but: Sequence[str] = (),
) -> tuple[pathlib.Path, int]:
    """Returns the copy of what is at a URL, made if missing, and what `hold` returns of it."""
    before = None
    while True:
        found = objects.find(url)
        if not found:
            raise InputError(f"There is nothing at {url}.")
        found = {name: what for name, what in found.items() if not _is_within(name, url, but)}
        for name in beside:
            found |= objects.find(url.parent / name)
        description = [str(url), *((str(key), *dataclasses.astuple(found[key])) for key in found)]
        digest = hashlib.sha256(json.dumps(description).encode()).hexdigest()[:20]
        copy = _directory() / "copies" / digest
        try:
            while True:
                with contextlib.suppress(FileNotFoundError):
                    lock = hold(copy)
                    if copy.exists():
                        return copy / _relative(url), lock
                _copy(url, found, copy)
        except InputError:  # A run at work there may have replaced something.
            if found == before:
                raise
            before = found


def _copy(url: URL, found: dict[URL, Object], copy: pathlib.Path) -> None:
    """Copies objects to a directory, which appears when it is complete."""
    copy.parent.mkdir(parents=True, exist_ok=True)
    _make_room(copy.parent, sum(what.size for what in found.values()), url)
    with _own_directory(copy.parent) as partial:
        for name, what in found.items():
            objects.download(name, partial / _relative(name), what.size)
        try:
            partial.rename(copy)
        except OSError:
            if not copy.exists():  # Else another process was faster.
                raise


def _make_room(copies: pathlib.Path, needed: int, url: URL) -> None:
    """Removes the copies that have not been used for longest until there is room for another.

    Raises:
      InputError: if those that are in use leave too little.
    """
    limit = float(os.environ.get("LLC_CACHE_GB", 100)) * 1e9
    unused = sorted(copies.iterdir(), key=lambda copy: copy.stat().st_mtime)
    while True:
        free = min(limit - _total(copies), shutil.disk_usage(copies).free)
        if needed <= free:
            return
        if not unused:
            raise InputError(
                f"A copy of {url} needs {needed / 1e9:.3g} GB, and {copies} has room for "
                f"{max(free, 0) / 1e9:.3g} GB: make room there, name another disk as LLC_CACHE, or "
                "allow more with LLC_CACHE_GB."
            ) from OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # Others may make room.
        _remove_unused(unused.pop(0))


@contextlib.contextmanager
def _own_directory(parent: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields a new directory, removed at the end; those of dead processes are removed before."""
    parent.mkdir(parents=True, exist_ok=True)
    for other in parent.glob(".*"):
        _remove_unused(other)
    lock = None
    while lock is None:  # Another process may take it for that of a dead one.
        directory = pathlib.Path(tempfile.mkdtemp(prefix=".", dir=parent))
        lock = _lock(directory)
    try:
        yield directory
    finally:
        os.close(lock)
        # It may have got its name as a copy.
        shutil.rmtree(directory, ignore_errors=True)


def _remove_unused(directory: pathlib.Path) -> None:
    """Removes a directory unless a process uses it."""
    lock = _lock(directory)
    if lock is not None:
        shutil.rmtree(directory, ignore_errors=True)
        os.close(lock)


def _shared_lock(copy: pathlib.Path) -> int:
    """Returns a descriptor which keeps a copy from being removed until it is closed.

    Raises:
      FileNotFoundError: if there is no such copy.
    """
    import fcntl  # Unix only, and the rest of this module is not.

    lock = os.open(copy / _LOCK, os.O_RDONLY)
    try:
        fcntl.flock(lock, fcntl.LOCK_SH)
        os.utime(copy)
    except OSError:
        os.close(lock)
        raise
    return lock


_held = functools.cache(_shared_lock)  # Until this process ends.


def _lock(directory: pathlib.Path) -> int | None:
    """Returns a descriptor that holds the lock of a directory; None if another has it."""
    import fcntl

    try:
        lock = os.open(directory / _LOCK, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError:
        return None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        return None
    return lock


def _total(directory: pathlib.Path) -> int:
    """Returns the bytes of all files in a directory, some of which may be removed meanwhile."""
    total = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                total += os.stat(os.path.join(folder, name)).st_size
    return total
