"""Batches taken from their readers in a thread, so that they wait for the consumer.

And so that the consumer does not wait for ever: readers that hang or die are an error.
"""

import contextlib
import multiprocessing
import queue
import threading
from collections.abc import Generator
from typing import Any


class ReadersFailed(RuntimeError):
    """Those who read images hang, or have died."""


class ReadAhead:
    """Takes items from an iterator in a thread of its own, some ahead."""

    def __init__(self, items: Generator, ahead: int = 2):
        self._ready = queue.Queue(ahead)
        self._closing = threading.Event()
        self._stalled = False
        self._thread = threading.Thread(target=self._take, args=(items,), daemon=True)
        self._thread.start()

    def next(self, patience: float, what: str) -> Any:
        """Returns the next item.

        Args:
          patience: seconds to wait for it.
          what: is waited for, for the error.

        Raises:
          ReadersFailed: if it does not come, or a process that reads has died.
          Exception: whatever the iterator has raised.
        """
        try:
            item, error = self._ready.get(timeout=patience)
        except queue.Empty:
            self._stalled = True
            raise ReadersFailed(
                f"Reading has stalled: after {patience:.0f} s {what} are not there; the storage "
                "may hang. The same command continues from the last checkpoint."
            ) from None
        if error is None:
            return item
        if isinstance(error, RuntimeError) and "terminated unexpectedly" in str(error):
            raise ReadersFailed(
                f"A worker process has died while it read images ({_exit_code(error)}); often the "
                "memory is too small for so many: try a smaller config.data.workers. The same "
                "command continues from the last checkpoint."
            ) from error
        raise error

    def close(self) -> None:
        """Stops reading, and waits for the readers unless they hang."""
        self._closing.set()
        while self._thread.is_alive() and not self._stalled:
            with contextlib.suppress(queue.Empty):
                self._ready.get(timeout=0.01)

    def _take(self, items: Generator) -> None:
        try:
            with contextlib.closing(items):
                for item in items:
                    self._ready.put((item, None))
                    if self._closing.is_set():
                        return
            self._ready.put((None, EOFError("There are no more items.")))
        except BaseException as error:  # The consumer raises it, in its own thread.
            self._ready.put((None, error))


def kill_workers() -> None:
    """Kills the worker processes of this one, which could hold up its end."""
    for process in multiprocessing.active_children():
        process.kill()


def _exit_code(error: RuntimeError) -> str:
    """Returns what Grain's message says of a dead worker's exit."""
    _, found, rest = str(error).partition("exit code ")
    return f"exit code {rest.split('.')[0]}" if found else "no exit code"
