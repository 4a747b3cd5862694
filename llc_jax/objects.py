"""Object stores: what is at URLs such as `s3://bucket/photos`, through fsspec.

An object is written with one request, so that it is whole or absent. A folder of objects is whole
unless it has the object `.incomplete`, which is put there before the first of the others is
written or removed, and is removed after the last.
"""

import contextlib
import dataclasses
import logging
import os
import pathlib
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import absl.logging

from llc_jax.errors import InputError, WriteFailed

# How often a request is made, and the seconds before the second time; then twice as many. The
# packages below fsspec ask again themselves, within seconds.
_ATTEMPTS, _PAUSE = 3, 1.0
# Errors that do not go away, by their names: the packages that have them import slowly.
_LASTING = (
    *("FileNotFoundError", "FileExistsError", "PermissionError", "NoCredentialsError"),
    *("PartialCredentialsError", "DefaultCredentialsError"),
)
# What tells two versions of an object apart, by the names that file systems give it.
_TAGS = ("ETag", "etag", "generation", "md5Hash", "mtime", "LastModified", "updated", "created")
# Seconds without an answer before a request to Google's storage fails; to others 15.
_TIMEOUT = 60
_INCOMPLETE = ".incomplete"
# Seconds between the renewals of a lock, and those without one after which its holder is dead.
_RENEWAL, _PATIENCE = 15.0, 60.0

logging.getLogger("gcsfs").setLevel(logging.CRITICAL)  # It logs what it raises as well.


class URL(pathlib.PurePosixPath):
    """The URL of an object or of a folder, with the names that paths have for their parts."""

    def __str__(self) -> str:
        return super().__str__().replace(":/", "://", 1)

    def absolute(self) -> "URL":
        """Returns the URL, which is absolute as it is."""
        return self

    expanduser = resolve = absolute


class StoreFailed(InputError):
    """A store does not answer as it should, for a reason that may pass."""


class Locked(Exception):
    """A living process has a lock; the message says which."""


@dataclasses.dataclass(frozen=True)
class Object:
    """What a store says of an object.

    Attributes:
      size: in bytes.
      tag: another one where the content is another.
    """

    size: int
    tag: str


def is_url(path: str | os.PathLike) -> bool:
    """Whether a path is a URL, `PROTOCOL://NAME...`."""
    return re.match(r"[a-z][a-z0-9+.-]*://[^/]", os.fspath(path)) is not None


def find(url: str | os.PathLike) -> dict[URL, Object]:
    """Returns the object at a URL, or all in the folder at it, in the order of their names.

    Those in incomplete folders are left out. Nothing may be there.

    Raises:
      InputError: if they cannot be listed.
    """
    with _reading(url):
        root, infos = _request(url, lambda system, root: (root, system.find(root, detail=True)))
    found = {}
    for name, info in infos.items():
        relative = name.removeprefix(root).removeprefix("/")
        is_below = name == root or name.startswith(f"{root}/")
        is_path = name == root or not {"", ".", ".."} & {*relative.split("/")}
        if info["type"] == "file" and is_below and is_path:
            found[URL(url) / relative] = _describe(info)
    incomplete = [name.parent for name in found if name.name == _INCOMPLETE]
    return {
        name: found[name]
        for name in sorted(found)
        if not any(name.is_relative_to(folder) for folder in incomplete)
    }


def glob(pattern: str | os.PathLike) -> dict[URL, Object | None]:
    """Returns the objects and folders whose URLs match a pattern, in the order of their names.

    Args:
      pattern: a URL with wildcards, which have the meaning that they have in paths; names that
        begin with a dot are left out.

    Returns:
      What the store says of each; None of folders.

    Raises:
      InputError: if they cannot be listed.
    """
    folder, rest = re.fullmatch(r"([^*?[]*/)(.*)", os.fspath(pattern), re.DOTALL).groups()

    def match(system, root: str) -> tuple[str, dict[str, Any]]:
        return root.removesuffix(rest), system.glob(root, detail=True)

    with _reading(pattern):
        start, infos = _request(pattern, match)
    names = {name.removeprefix(start).strip("/"): info for name, info in infos.items()}
    return {
        URL(folder) / name: _describe(info) if info["type"] == "file" else None
        for name, info in sorted(names.items())
        if name and "/." not in f"/{name}"
    }


def read(url: str | os.PathLike, size: int | None = None) -> bytes:
    """Returns the content of an object; fewer bytes than `size` are an error.

    Raises:
      InputError: if it cannot be read.
    """

    def get(system, root: str) -> bytes:
        content = system.cat_file(root)
        _check_size(len(content), len(content) if size is None else size)
        return content

    with _reading(url):
        return _request(url, get)


def read_end(url: str | os.PathLike, size: int) -> bytes:
    """Returns the last bytes of an object, `size` of them or all.

    Raises:
      InputError: if it cannot be read.
    """
    with _reading(url):
        return _request(url, lambda system, root: system.cat_file(root, start=-size))


def download(url: str | os.PathLike, file: pathlib.Path, size: int) -> None:
    """Writes the content of an object, all `size` bytes of it, into a file.

    Raises:
      InputError: if it cannot be read.
    """

    def get(system, root: str) -> None:
        system.get_file(root, str(file))
        _check_size(file.stat().st_size, size)

    file.parent.mkdir(parents=True, exist_ok=True)
    with _reading(url):
        _request(url, get)


def upload(file: pathlib.Path, url: str | os.PathLike) -> None:
    """Writes the content of a file to a URL.

    Raises:
      WriteFailed: if it cannot be written.
    """
    _write(url, lambda system, root: system.put_file(str(file), root))


def upload_folder(folder: pathlib.Path, url: URL) -> None:
    """Writes a folder to a URL, in place of what is there.

    Raises:
      WriteFailed: if it cannot be written.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with _incomplete(url):
        for file in files:
            upload(file, url / file.relative_to(folder).as_posix())


def remove_folder(url: URL) -> None:
    """Removes the folder at a URL, if there is one.

    Raises:
      WriteFailed: if it cannot be removed.
    """
    with _incomplete(url):
        pass


@contextlib.contextmanager
def lock(url: URL, holder: str) -> Iterator[None]:
    """Keeps a lock, an object that says who has it, while the body runs.

    It is renewed every 15 s. One that has not been renewed for 60 s is taken over.

    Raises:
      Locked: if another process has the lock.
      WriteFailed: if the object cannot be written; or if another process has taken it over during
        the body, because this one was suspended.
    """
    content = holder.encode()
    while not _create(url, content):
        _await_end(url)
    done, lost = threading.Event(), threading.Event()

    def renew() -> None:
        while not done.wait(_RENEWAL):
            with contextlib.suppress(InputError, WriteFailed):  # The next time will do.
                if _read_lock(url)[0] not in (content, b""):
                    lost.set()
                    return
                _write(url, lambda system, root: system.pipe_file(root, content))

    thread = threading.Thread(target=renew, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        if lost.is_set():
            raise WriteFailed(
                f"{url} was taken over by another process, {_read_lock(url)[0].decode()}, while "
                "this one did not answer: only one of them may go on."
            )
        with contextlib.suppress(WriteFailed):  # It will be taken over.
            _remove(url)


def _await_end(url: URL) -> None:
    """Removes a lock if it is not renewed; raises Locked when it is."""
    before = _read_lock(url)
    holder = before[0].decode(errors="replace").strip()
    absl.logging.warning(
        "%s is locked: %s. Waiting for up to %.0f s to see whether that is at work.",
        *(url, holder, _PATIENCE),
    )
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        time.sleep(_RENEWAL / 5)
        now = _read_lock(url)
        if not now[0]:
            return
        if now != before:
            raise Locked(holder)
    _remove(url)


def _read_lock(url: URL) -> tuple[bytes, str]:
    """Returns the content of a lock and when it was written; nothing where there is none."""

    def get(system, root: str) -> tuple[bytes, str]:
        try:
            info = system.info(root)
            keys = ("LastModified", "updated", "mtime", "created", *_TAGS)
            return system.cat_file(root), next(str(info[key]) for key in keys if info.get(key))
        except FileNotFoundError:
            return b"", ""

    with _reading(url):
        return _request(url, get)


def _create(url: URL, content: bytes) -> bool:
    """Writes an object unless there is one; returns whether there was none."""

    def create(system, root: str) -> None:
        if system.exists(root):  # There are stores that do not know the condition below.
            raise FileExistsError
        system.pipe_file(root, content, mode="create")

    try:
        _write(url, create)
    except WriteFailed as error:
        if _says_exists(error.__cause__):
            return False
        raise
    return True


@contextlib.contextmanager
def _incomplete(url: URL) -> Iterator[None]:
    """Marks a folder as incomplete, removes what is in it, and marks it as whole at the end."""
    mark = url / _INCOMPLETE
    names = _write(url, lambda system, root: system.find(root))
    _write(mark, lambda system, root: system.pipe_file(root, b""))
    for name in names:
        if not name.endswith(f"/{_INCOMPLETE}"):
            _write(url, lambda system, root, name=name: system.rm_file(name))
    yield
    _remove(mark)


def _remove(url: URL) -> None:
    _write(url, lambda system, root: system.rm_file(root))


def _write(url: str | os.PathLike, call: Callable[[Any, str], Any]) -> Any:
    try:
        return _request(url, call)
    except InputError:
        raise
    except Exception as error:
        raise WriteFailed(f"Cannot write {url}: {_reason(error)}.") from error


@contextlib.contextmanager
def _reading(url: str | os.PathLike) -> Iterator[None]:
    """Turns errors of the body into an InputError."""
    try:
        yield
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"There is nothing at {url}.") from error
    except Exception as error:
        kind = InputError if type(error).__name__ in _LASTING else StoreFailed
        raise kind(f"Cannot read {url}: {_reason(error)}.") from error


def _request(url: str | os.PathLike, call: Callable[[Any, str], Any]) -> Any:
    """Returns what a call of a file system and a path in it returns; tries again if it fails."""
    system, root = _open(str(url))
    for attempt in range(_ATTEMPTS):
        try:
            return call(system, root)
        except Exception as error:  # fsspec and the packages below it have errors of many kinds.
            lasting = type(error).__name__ in _LASTING or _says_exists(error)
            if lasting or attempt == _ATTEMPTS - 1:
                raise
        time.sleep(_PAUSE * 2**attempt)


def _open(url: str) -> tuple[Any, str]:
    """Returns the file system of a URL, and the path of the URL in it."""
    options = {"use_listings_cache": False}
    try:
        import fsspec  # Slow to import, and only needed here.

        if url.startswith(("gs://", "gcs://")):
            import aiohttp

            timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_TIMEOUT)
            options["requests_timeout"] = timeout
        return fsspec.url_to_fs(url, **options)
    except ImportError as error:
        raise InputError(
            f"{url} needs more packages: pip install 'llc_jax[cloud]' ({error})."
        ) from error
    except ValueError as error:
        raise InputError(f"{url} is no URL that can be opened ({error}).") from error


def _describe(info: dict[str, Any]) -> Object:
    """Returns what a file system says of an object."""
    tag = next((str(info[key]) for key in _TAGS if info.get(key) is not None), "")
    return Object(int(info["size"] or 0), tag)


def _check_size(size: int, expected: int) -> None:
    if size != expected:
        raise OSError(f"{size:,} bytes came of {expected:,}")


def _says_exists(error: BaseException | None) -> bool:
    """Whether a store has refused to create an object, because there is one."""
    return isinstance(error, FileExistsError) or "recondition" in str(error)


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else f"no answer in time ({type(error).__name__})"
