"""The workdir of a run, kept to that run: of one process, or of several that share it.

Where the workdir is a URL, each process works in a copy of its own. The first one alone writes to
the URL; the others copy anew what they need of that (`mesh.catch_up`).
"""

import contextlib
import datetime
import os
import pathlib
import socket
from collections.abc import Iterator, Sequence

import jax

from llc_jax import copies, objects
from llc_jax.errors import InputError
from llc_jax.experiment.workdir import (
    CHECKPOINTS_DIRECTORY,
    EVALUATION_LOCK_FILE,
    FIGURES_DIRECTORY,
    LOCK_FILE,
    REPORT_FILE,
)
from llc_jax.files import WriteFailed, sweep, try_lock, writing
from llc_jax.mesh import from_first_process

# What only the first of several processes reads; weights it sends to the others.
_OF_FIRST_PROCESS = (CHECKPOINTS_DIRECTORY, "tensorboard", FIGURES_DIRECTORY, REPORT_FILE)


@contextlib.contextmanager
def opened(workdir: str | os.PathLike) -> Iterator[pathlib.Path]:
    """Yields the directory in which this process keeps a run while the body runs.

    It is the workdir; or where that is a URL, a copy. Of several processes each has a copy of its
    own, and the first alone writes to the URL.

    Raises:
      InputError: if the URL cannot be read.
    """
    with copies.working_copy(workdir, _left_out()) as directory:
        yield directory.absolute()


def _left_out() -> Sequence[str]:
    """Returns what this process does not copy of a workdir: what only the first one reads."""
    return () if jax.process_index() == 0 else _OF_FIRST_PROCESS


@contextlib.contextmanager
def locked(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a workdir to this run, of one process or several, while the body runs.

    The lock is the operating system's, on the file `lock`, and ends with the first process
    however that ends; at a URL it is an object, which that process renews (`objects.lock`).
    Temporary files that killed processes have left are removed.

    Raises:
      InputError: if another run is at work there, naming its process, host and start.
      WriteFailed: if the disk is full; or if the workdir was removed during the body,
        whatever that has raised.
    """
    with _locked_by_first_process(workdir / LOCK_FILE, "run"):
        if not copies.is_current(workdir, (LOCK_FILE, EVALUATION_LOCK_FILE, *_left_out())):
            raise InputError(
                f"{copies.url_of(workdir)} has changed since this run was started, so another was "
                "at work there: start this one again."
            )

        def sweep_all() -> list[str]:
            for directory in (workdir, *filter(pathlib.Path.is_dir, workdir.iterdir())):
                sweep(directory)
            return []

        from_first_process(sweep_all)
        yield


@contextlib.contextmanager
def locked_for_evaluation(workdir: pathlib.Path) -> Iterator[None]:
    """Keeps a workdir to this evaluation without training; a run may be at work there as well.

    Raises:
      InputError, WriteFailed: as `locked`.
    """
    with _locked_by_first_process(workdir / EVALUATION_LOCK_FILE, "evaluation"):
        yield


@contextlib.contextmanager
def _locked_by_first_process(path: pathlib.Path, what: str) -> Iterator[None]:
    with contextlib.ExitStack() as stack:

        def enter() -> list[str]:
            stack.enter_context(_lock(path, what))
            return []

        from_first_process(enter)
        yield


@contextlib.contextmanager
def _lock(path: pathlib.Path, what: str) -> Iterator[None]:
    now = datetime.datetime.now().astimezone().strftime("%Y-%m-%d %H:%M:%S %Z")
    holder = f"process {os.getpid()} on {socket.gethostname()} since {now}\n"
    url = copies.url_of(path)
    if url is not None:
        try:
            with objects.lock(url, holder):
                yield
        except objects.Locked as error:
            raise _is_locked(url.parent, what, str(error)) from None
        return
    descriptor = _open_locked(path, what)
    try:
        with writing(path):
            os.ftruncate(descriptor, 0)
            os.write(descriptor, holder.encode())
        yield
    finally:
        removed = not _is_at(descriptor, path)
        if not removed:
            path.unlink()
        os.close(descriptor)
        if removed:
            raise WriteFailed(
                f"{path.parent} was removed while the {what} was at work there: start it again."
            )


def _open_locked(path: pathlib.Path, what: str) -> int:
    """Returns the descriptor of a file, made if missing, that no other process has locked."""
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise InputError(f"Cannot open {path}: {error.strerror}.") from error
        if not try_lock(descriptor):
            holder = os.read(descriptor, 1000).decode(errors="replace").strip()
            os.close(descriptor)
            raise _is_locked(path.parent, what, holder or "it has just started")
        # The holder before may have removed the file after it was opened here.
        if _is_at(descriptor, path):
            return descriptor
        os.close(descriptor)


def _is_locked(workdir: pathlib.PurePath, what: str, holder: str) -> InputError:
    return InputError(
        f"Another {what} is at work in {workdir}: {holder}. "
        "Wait until it ends, or choose another --workdir."
    )


def _is_at(descriptor: int, path: pathlib.Path) -> bool:
    """Whether an open file is still the one at its path."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except OSError:
        return False
