"""Preemption by signals: SIGTERM from a scheduler, SIGINT from the keyboard.

It imports nothing heavy, so that a program can catch signals from its first moment on.
"""

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from typing import NoReturn, Protocol

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """The run was stopped by a signal, after saving a checkpoint.

    Attributes:
      signal: number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class Peers(Protocol):
    """All processes of a run, this one included."""

    def announce(self, number: int) -> None:
        """Tells all processes of a signal; the first one that is announced counts."""

    def latest(self, events: int) -> int:
        """Returns the greatest number of events that any process has counted."""


class StopRequest:
    """A request to stop, and the moment at which all processes of a run follow it.

    Training is not stopped within a step: the request waits until the step is taken, so that
    it can be saved. At all other times the program may end at once, because all that it has
    written is complete.

    Several processes must stop after the same step, because they save together. They take
    the same steps, and each counts the steps and the ends of stages. Once a signal is known
    to all, each names its count, and takes no further step until all have. The process that
    is furthest has passed the greatest count without stopping, so all stop at the next one;
    or at that one, where training has ended there. A step costs a counter and no message.

    Args:
      leave: ends the program because of the signal of that number, and is called outside of
        training, maybe in another thread. None for a caller who wants to go on: signals are
        then caught in training only.

    Attributes:
      signal: number of the signal that all processes follow, None until then.
    """

    def __init__(self, leave: Callable[[int], NoReturn] | None = None):
        self.signal = None
        self._leave = leave
        self._lock = threading.RLock()
        self._peers: Peers | None = None
        self._events, self._last_event, self._in_training = 0, None, False

    def join(self, peers: Peers) -> None:
        """Shares requests with other processes: from now on a signal to one is one to all."""
        self._peers = peers

    def receive(self, number: int) -> None:
        """Takes note of a signal to this process."""
        if self._peers is None:
            self.follow(number)
        else:
            self._peers.announce(number)

    def follow(self, number: int) -> None:
        """Stops because of a signal to any process; called once in each of them."""
        with self._lock:
            self.signal = number
            latest = self._events if self._peers is None else self._peers.latest(self._events)
            self._last_event = latest
            if self._is_due() and self._leave:
                self._leave(number)

    @contextlib.contextmanager
    def training(self) -> Iterator[None]:
        """A stage's training; from the first `after_step` to its end signals wait.

        Raises:
          Stopped: at its end, if a signal came too late for the last step.
        """
        with contextlib.ExitStack() as stack:
            if self._leave is None:
                self._in_training = True
                stack.enter_context(_caught(self.receive))
            try:
                yield
            except BaseException:
                self._in_training = False
                raise
        if self._count(in_training=False):
            raise Stopped(
                "Stopped at the end of a stage, which is saved: the same command continues "
                "from there.",
                self.signal,
            )

    def after_step(self) -> bool:
        """Whether this step, which has been taken, is the last one for now."""
        return self._count(in_training=True)

    def hold(self) -> None:
        """Gives the end of the program to the calling thread; all others wait for it for ever."""
        self._lock.acquire()

    def _count(self, in_training: bool) -> bool:
        with self._lock:
            self._events += 1
            self._in_training = in_training
            return self._is_due()

    def _is_due(self) -> bool:
        if self._last_event is None:
            return False
        passed = self._events - self._last_event
        return passed > 0 or (passed == 0 and not self._in_training)


@contextlib.contextmanager
def _caught(receive: Callable[[int], None]) -> Iterator[None]:
    """Catches signals; a second one of the same kind has its usual effect.

    Python handles signals in the main thread only; in other threads this does nothing.
    """
    previous = {}

    def handle(number: int, _) -> None:
        signal.signal(number, previous[number])
        receive(number)

    if threading.current_thread() is threading.main_thread():
        previous |= {number: signal.signal(number, handle) for number in SIGNALS}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def catch_for_good(receive: Callable[[int, bool], None]) -> None:
    """Catches signals until the process ends, and handles them in a thread of their own.

    A handler in Python would wait until the main thread returns from compiled code, which
    may take minutes; this does not.

    Args:
      receive: called with the number of a signal, and whether it is the second of its kind.
    """
    reading, writing = os.pipe()
    os.set_blocking(writing, False)

    def watch() -> None:
        seen = set()
        while True:
            number = os.read(reading, 1)[0]
            if number in SIGNALS:
                receive(number, number in seen)
                seen.add(number)

    threading.Thread(target=watch, name="signals", daemon=True).start()
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number in SIGNALS:
        signal.signal(number, lambda *_: None)


def ignore_for_good() -> None:
    """Ignores signals until the process ends, also while Python itself ends."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
