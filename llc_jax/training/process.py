"""The process of a program that trains, and its end, whatever brings it about.

It imports nothing heavy, so that signals are caught while the rest is imported.
"""

import contextlib
import os
import signal
import sys
import threading
import time
import traceback
from typing import NoReturn

from llc_jax.copies import named
from llc_jax.data.prefetch import kill_workers
from llc_jax.training.preemption import StopRequest, catch_for_good, ignore_for_good
from llc_jax.training.schedulers import resolve

_STOPPED = "Stopped by {}: the same command continues from what is saved."
# Seconds to wait for the other processes, after a signal and after an error.
_PATIENCE, _PATIENCE_AFTER_ERROR = 60.0, 5.0


class Process:
    """This process and its end, in good order with the other processes of a run.

    All that a run has written is complete at any time, so nothing needs to be undone.

    Attributes:
      stop_request: of signals to any of the processes.
    """

    def __init__(self):
        self.stop_request = StopRequest(self._leave)
        self._cluster = None
        # Whichever thread ends the process has it; and the exit status that it has chosen.
        self._last_word, self._status = threading.RLock(), 1
        catch_for_good(self._receive)

    def join(
        self,
        coordinator: str | None,
        num_processes: int | None,
        process_id: int | None,
        timeout: int,
        platform: str | None = None,
    ) -> None:
        """Joins the other processes, if there are any, and says which devices there are.

        Args:
          coordinator, num_processes, process_id: as `schedulers.resolve` takes them.
          timeout: seconds to wait for the others.
          platform: "cpu", "gpu" or "tpu", the devices that are meant; None for those of the
            scheduler, or whichever there are.

        Raises:
          InputError: if the processes were told different things, or there are other devices than
            those meant.
          NotConnected: if another process does not come in time.
        """
        job = resolve(coordinator, num_processes, process_id)
        platform = platform or (job and job.platform)
        from llc_jax import mesh

        mesh.choose_platform(platform)
        if job is not None:
            from llc_jax.training import cluster

            self._cluster = cluster.join(job, timeout, on_loss=self._follow_loss)
        if self._cluster is not None:
            self.stop_request.join(self._cluster)
            self._cluster.listen(
                on_signal=self.stop_request.follow, on_failure=self._follow_failure
            )
        mesh.check_platform(platform)
        if self._cluster is not None:
            place = f"Process {job.process_id} of {job.num_processes}"
            print(f"{place}: {mesh.describe_devices()}", flush=True)

    def finish(self) -> None:
        """Leaves the other processes when the run is finished in all; nothing stops it now.

        Where there are others, it ends the process as well: Python would wait for threads.
        """
        ignore_for_good()
        self._take_last_word(0)
        if self._cluster is not None:
            self._cluster.part(_PATIENCE)
            _flush()
            _exit(0)

    def end(self, status: int, message: str, patience: float = _PATIENCE) -> NoReturn:
        """Ends the process, from any thread, together with others that come in time."""
        self.stop_request.hold()
        self._take_last_word(status)
        _say(message)
        if self._cluster is not None:
            self._cluster.part(patience)
        _exit(status)

    def fail(self, status: int, message: str) -> NoReturn:
        """Ends the process because of an error, and with it all others."""
        if self._cluster is not None:
            self._cluster.announce_failure(status, message)
        self.end(status, f"error: {message}", _PATIENCE_AFTER_ERROR)

    def crash(self, error: Exception) -> NoReturn:
        """Fails because of an error that is a bug, or the loss of another process."""
        if self._cluster is None:
            raise error
        time.sleep(2.0)  # Where it comes of the loss of a process, a lifeline tells which.
        if message := self._cluster.loss(error):
            self.fail(1, message)
        traceback.print_exception(error)
        self.fail(1, f"{type(error).__name__}: {error}")

    def _receive(self, number: int, is_second: bool) -> None:
        if is_second:
            _say(_STOPPED.format(signal.Signals(number).name))
            _exit(128 + number)
        self.stop_request.receive(number)

    def _leave(self, number: int) -> NoReturn:
        self.end(128 + number, _STOPPED.format(signal.Signals(number).name))

    def _follow_failure(self, status: int, message: str) -> NoReturn:
        time.sleep(1.0)  # Where this process has the same error, it says so itself.
        self.end(status, f"error: {message}", _PATIENCE_AFTER_ERROR)

    def _follow_loss(self, message: str) -> NoReturn:
        if self._last_word.acquire(blocking=False):
            _say(f"error: {message}")
            if self._cluster is not None:
                self._cluster.announce_loss(message)
        else:
            time.sleep(0.5)  # The thread that ends the process may still be speaking.
        _exit(self._status)

    def _take_last_word(self, status: int) -> None:
        """Waits for ever where another thread has it, and ends the process."""
        self._last_word.acquire()
        self._status = status


def _say(message: str) -> None:
    """Prints a last message, if somebody still reads what is printed."""
    _flush()
    # A progress bar has hidden the cursor.
    end = "\x1b[?25h\n" if sys.stderr.isatty() else "\n"
    with contextlib.suppress(OSError):
        print(named(message), end=end, file=sys.stderr, flush=True)


def _flush() -> None:
    with contextlib.suppress(OSError):
        sys.stdout.flush()


def _exit(status: int) -> NoReturn:
    """Exits without waiting for readers that hang or processes that are lost."""
    kill_workers()
    os._exit(status)
