"""Prefetching of batches in a thread, so that the consumer finds them ready.

Nor does the consumer wait for ever: readers that hang or die are an error.
"""

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Generator
from typing import Any


class ReadersFailed(RuntimeError):
    """The threads or processes that read images hang, or have died."""


class Prefetcher:
    """Runs a generator in a thread of its own and buffers its items."""

    def __init__(self, items: Generator, buffer_size: int = 2):
        self._buffer = queue.Queue(buffer_size)
        self._closing = threading.Event()
        self._stalled = False
        self._thread = threading.Thread(target=self._fill, args=(items,), daemon=True)
        self._thread.start()

    def next(self, timeout: float, what: str) -> Any:
        """Returns the next item.

        Args:
          timeout: seconds to wait for it.
          what: the name of the item, for the error message.

        Raises:
          ReadersFailed: if no item comes in time, or a worker process has died.
          EOFError: if there are no more items.
          Exception: whatever the generator raises.
        """
        try:
            item, error = self._buffer.get(timeout=timeout)
        except queue.Empty:
            self._stalled = True
            raise ReadersFailed(
                f"Reading has stalled: {what} have not come within {timeout:.0f} s; the storage "
                "may hang. The same command continues from the last checkpoint."
            ) from None
        if error is None:
            return item
        if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
            raise ReadersFailed(
                f"A worker process has died while it read images ({_exit_code(error)}); often the "
                "memory is too small for so many workers: try a smaller config.data.workers. The "
                "same command continues from the last checkpoint."
            ) from error
        raise error

    def close(self) -> None:
        """Stops the thread, and waits for its end unless it has stalled."""
        self._closing.set()
        while self._thread.is_alive() and not self._stalled:
            with contextlib.suppress(queue.Empty):
                self._buffer.get(timeout=0.01)

    def _fill(self, items: Generator) -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    self._buffer.put((item, None))
                    if self._closing.is_set():
                        return
            self._buffer.put((None, EOFError("There are no more items.")))
        except BaseException as error:  # The consumer raises it, in its own thread.
            self._buffer.put((None, error))


def kill_workers() -> None:
    """Kills the worker processes, which could keep this process from exiting."""
    for process in multiprocessing.active_children():
        process.kill()


def _exit_code(error: RuntimeError) -> str:
    """Returns the exit code of a dead worker, from Grain's message."""
    _, separator, rest = str(error).partition("exit code ")
    return f"exit code {rest.split('.')[0]}" if separator else "no exit code"
