"""How far a task is: a bar in a terminal, and a line every half minute elsewhere."""

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import Protocol

from rich import progress
from rich.console import Console

from llc_jax.prepare.progress import duration

# Seconds between lines, where there is no terminal.
_INTERVAL = 30.0


class Progress(Protocol):
    """Is told of what is done."""

    def add(self, items: int, work: float) -> None:
        """Counts items as done, which are so much of the whole work; less than 0 of what has to
        be done again.
        """

    def say(self, line: str) -> None:
        """Prints a line."""


class Silent(Progress):
    """Says nothing of the progress; prints lines."""

    def add(self, items: int, work: float) -> None:
        """Does nothing."""

    def say(self, line: str) -> None:
        """Prints a line."""
        print(line, file=sys.stderr, flush=True)


@contextlib.contextmanager
def show(unit: str, work: float) -> Iterator[Progress]:
    """Shows the progress while the body runs.

    Args:
      unit: the name of the items.
      work: the whole, in any unit: the time that is left is that of the work that is left.
    """
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(unit, work)
        return
    columns = (
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[rate]}"),
        progress.TimeRemainingColumn(),
        progress.TextColumn("left"),
    )
    with progress.Progress(*columns, console=console) as bar:
        yield _Bar(unit, bar, bar.add_task("", total=work, rate=""))


class _Bar(Progress):
    """A bar of rich's."""

    def __init__(self, unit: str, bar: progress.Progress, task: progress.TaskID):
        self._rate = _Rate(unit)
        self._bar, self._task = bar, task

    def add(self, items: int, work: float) -> None:
        self._rate.add(items)
        self._bar.update(self._task, advance=work, rate=str(self._rate))

    def say(self, line: str) -> None:
        self._bar.console.print(line, markup=False, highlight=False)


class _Lines(Progress):
    """A line now and then."""

    def __init__(self, unit: str, work: float):
        self._rate = _Rate(unit)
        self._work, self._done = work, 0.0
        self._start = self._last = time.monotonic()

    def add(self, items: int, work: float) -> None:
        self._rate.add(items)
        self._done += work
        now = time.monotonic()
        if now - self._last >= _INTERVAL and self._done > 0:
            self._last = now
            left = duration((now - self._start) * (self._work / self._done - 1))
            self.say(f"{self._done / self._work:.0%}, {self._rate}, {left} left")

    def say(self, line: str) -> None:
        print(line, file=sys.stderr, flush=True)


class _Rate:
    """Items so far, and items a second."""

    def __init__(self, unit: str):
        self._unit, self._items, self._start = unit, 0, time.monotonic()

    def add(self, items: int) -> None:
        """Counts items."""
        self._items += items

    def __str__(self) -> str:
        rate = self._items / max(1e-9, time.monotonic() - self._start)
        return f"{self._items:,} {self._unit}, {rate:,.0f}/s"
