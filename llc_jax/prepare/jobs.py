"""Long work on files: can it be written, is nobody else at it, how long does it still take."""

import contextlib
import fcntl
import functools
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from llc_jax.errors import InputError

Report = Callable[[str], None]
say: Report = functools.partial(print, flush=True)


class Progress:
    """Says now and then how fast the work goes and how long it still takes."""

    def __init__(self, total: int, unit: str, report: Report, *, every: float = 30.0):
        self._total, self._unit, self._report, self._every = total, unit, report, every
        self._done, self._start = 0, time.monotonic()
        self._said = self._start

    def add(self, count: int) -> None:
        """Counts some more as done."""
        self._done += count
        now = time.monotonic()
        if now - self._said >= self._every:
            rate = self._done / (now - self._start)
            left = duration((self._total - self._done) / rate)
            self._report(
                f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {left} left"
            )
            self._said = now


def duration(seconds: float) -> str:
    """Spells a time in words: `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"


@contextlib.contextmanager
def alone(path: pathlib.Path) -> Iterator[None]:
    """Holds a file or directory, so that no other process works on it at the same time.

    Raises:
      InputError: if another process holds it.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise InputError(f"Another process is at work on {path}: wait for it.") from error
        except OSError:
            pass  # This file system has no locks.
        yield
    finally:
        os.close(descriptor)
