"""Progress reports of long work: its rate, and the time that remains."""

import functools
import time
from collections.abc import Callable

Report = Callable[[str], None]
print_line: Report = functools.partial(print, flush=True)


class Progress:
    """Reports at intervals the rate of the work and the time that remains.

    Args:
      total: the number of items to do.
      unit: the name of the items.
      report: receives lines to print.
      interval: seconds between reports.
    """

    def __init__(self, total: int, unit: str, report: Report, *, interval: float = 30.0):
        self._total, self._unit, self._report, self._interval = total, unit, report, interval
        self._done, self._start = 0, time.monotonic()
        self._last_report = self._start

    def add(self, count: int) -> None:
        """Counts `count` more items as done."""
        self._done += count
        now = time.monotonic()
        if now - self._last_report >= self._interval:
            rate = self._done / (now - self._start)
            remaining = duration((self._total - self._done) / rate)
            self._report(
                f"{self._done:,} of {self._total:,} {self._unit}, {rate:,.0f}/s, {remaining} left"
            )
            self._last_report = now


def duration(seconds: float) -> str:
    """Spells a time in words: `3 h 20 min`."""
    minutes = round(seconds / 60)
    if minutes < 1:
        return f"{max(1, round(seconds))} s"
    return f"{minutes // 60} h {minutes % 60} min" if minutes >= 60 else f"{minutes} min"
