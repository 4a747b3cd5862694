"""Preemption by signals: SIGTERM from a scheduler, SIGINT from the keyboard."""

import signal
import threading


class Stopped(Exception):
    """The run was stopped by a signal, after saving a checkpoint.

    Attributes:
      signal: number of the signal.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Records SIGTERM and SIGINT inside a `with` block, instead of ending the process.

    A second signal of the same kind has its usual effect. Python handles signals in the
    main thread only; in other threads nothing is recorded.

    Attributes:
      signal: number of the signal that was received, None until then.
    """

    def __init__(self):
        self.signal = None
        self._previous_handlers = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous_handlers[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous_handlers.items():
            signal.signal(number, handler)

    def _handle(self, number, _):
        self.signal = number
        signal.signal(number, self._previous_handlers[number])
