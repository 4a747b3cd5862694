"""Being told to stop: SIGTERM from a scheduler, SIGINT from a keyboard."""

import signal
import threading


class Stopped(Exception):
    """The run was told to stop, and has saved where it was.

    Attributes:
      signal: the signal's number.
    """

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.signal = number


class StopRequest:
    """Notes SIGTERM and SIGINT inside a `with` block, instead of dying of them.

    A second signal of the same kind has its usual effect. Outside the main thread,
    where signals cannot be handled, nothing is noted.

    Attributes:
      signal: the number of the signal that came, None until then.
    """

    def __init__(self):
        self.signal = None
        self._previous = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number, _):
        self.signal = number
        signal.signal(number, self._previous[number])
