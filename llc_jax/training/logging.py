"""The log of a run: a console with a progress bar, JSON lines and TensorBoard events.

Only the first process prints and writes.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
import rich.table
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from llc_jax import copies
from llc_jax.files import atomic_write, writing
from llc_jax.training.console import TimeLeft, epoch_lines

METRICS_FILE = "metrics.jsonl"


# (step, loss or None, images per second) -> None
ProgressCallback = Callable[[int, float | None, float], None]


class RunLog:
    """The log of a run in its workdir: `metrics.jsonl` and `tensorboard/<stage>/`.

    Args:
      workdir: of the run.
      primary: whether this process prints and writes.
    """

    def __init__(self, workdir: str | os.PathLike, primary: bool = True):
        self._workdir = pathlib.Path(workdir)
        self._primary = primary
        self._console = rich.console.Console(quiet=not primary, highlight=False, soft_wrap=True)
        self._later_steps, self._batch_size, self._has_estimated = 0, 0, False

    def expect(self, later_steps: int, batch_size: int) -> None:
        """Notes what is to come, from which the time that is left is estimated.

        Args:
          later_steps: the steps of the stages after the next one that is opened.
          batch_size: images of a step.
        """
        self._later_steps, self._batch_size = later_steps, batch_size

    def say(self, *lines: str) -> None:
        """Prints lines, above the progress bar if there is one."""
        for line in lines:
            self._console.print(copies.named(line), markup=False)

    def show(self, renderable) -> None:
        """Prints a table or anything else that rich can render."""
        self._console.print(renderable)

    @contextlib.contextmanager
    def stage(self, name: str, first_step: int, num_steps: int) -> Iterator["StageLog"]:
        """Opens the log of a stage that starts or continues at `first_step`.

        Records of the stage after that step are removed, because the steps are taken again.
        Each new record is on its way to the disk when it is written: a killed run keeps it.

        Raises:
          WriteFailed: here or by `StageLog.write`, if the files cannot be written.
        """
        if not self._primary:
            yield StageLog(name, [], _no_bar, _say_nothing)
            return
        time_left = TimeLeft(num_steps + self._later_steps, self._batch_size)
        metrics = self._workdir / METRICS_FILE
        self.say(*_truncate_metrics(metrics, name, first_step))
        events = self._workdir / "tensorboard" / name
        with (
            _open_events(events, first_step) as write_events,
            _progress(self._console, name, first_step, num_steps, time_left) as update_bar,
        ):

            def progress(step, loss, images_per_second):
                time_left.tick(step, images_per_second)
                if time_left.is_worth_saying:
                    self._say_how_long(time_left.after(step))
                update_bar(step, loss, images_per_second)

            def to_console(step, values, evaluation):
                left, width = time_left.after(step), self._console.width
                self.say(*epoch_lines(name, values, evaluation, left, width))

            def to_file(record):
                with writing(metrics), metrics.open("a") as file:
                    file.write(json.dumps(record) + "\n")
                copies.publish(metrics)

            yield StageLog(name, [to_file, write_events], progress, to_console)

    @contextlib.contextmanager
    def counting(
        self, title: str, steps: range, batch_size: int
    ) -> Iterator[Callable[[int], None]]:
        """Shows the progress of what is done to all images before a stage.

        Args:
          title: what is done.
          steps: that are left.
          batch_size: images of a step.

        Yields:
          The function that notes how many steps are done.
        """
        time_left, start = TimeLeft(steps.stop, batch_size), time.monotonic()
        with _progress(self._console, title, steps.start, steps.stop, time_left) as update_bar:

            def progress(step: int) -> None:
                seconds = max(time.monotonic() - start, 1e-9)
                rate = (step - steps.start) * batch_size / seconds
                time_left.tick(step, rate)
                update_bar(step, None, rate)

            yield progress
        self.say(f"{title}: {time.monotonic() - start:.0f} s")

    def _say_how_long(self, left: str) -> None:
        """Says how long the run will take, the first time that it is known."""
        if not self._has_estimated:
            self._has_estimated = True
            stages = "all stages that are left" if self._later_steps else "this stage"
            self.say(f"About {left} of training for {stages}.")


class ProgressLog:
    """The log of a training that writes no files: a progress bar, and a line for each stage.

    Args:
      quiet: whether to print nothing at all.
    """

    def __init__(self, quiet: bool = False):
        self._quiet = quiet
        self._console = rich.console.Console(quiet=quiet, highlight=False, soft_wrap=True)

    def say(self, *lines: str) -> None:
        """Prints lines."""
        for line in lines:
            self._console.print(line, markup=False)

    @contextlib.contextmanager
    def stage(self, name: str, first_step: int, num_steps: int) -> Iterator["StageLog"]:
        """Opens the log of a stage."""
        if self._quiet:
            yield StageLog(name, [], _no_bar, _say_nothing)
            return
        time_left = TimeLeft(num_steps, 0)
        with _progress(self._console, name, first_step, num_steps, time_left) as update_bar:

            def to_console(step, values, evaluation):
                if step == num_steps:
                    self.say(*epoch_lines(name, values, evaluation, "", self._console.width))

            yield StageLog(name, [], update_bar, to_console)


class StageLog:
    """The open log of one stage.

    Args:
      name: of the stage.
      writers: each writes a record to one output.
      progress: (step, loss, images per second) -> None, after every step.
      show: (step, metrics, figures of an evaluation) -> None, prints them.
    """

    def __init__(
        self,
        name: str,
        writers: list[Callable[[dict], None]],
        progress: ProgressCallback,
        show: Callable[[int, dict, dict], None],
    ):
        self._name = name
        self._writers = writers
        self._show = show
        self.progress = progress

    def write(
        self, step: int, values: dict[str, float], evaluation: dict[str, float] | None = None
    ) -> None:
        """Logs metrics of the stage after `step` steps.

        Args:
          step: steps of the stage so far.
          values: the metrics of training.
          evaluation: figures of the evaluation images, where they were evaluated; they have
            their names without a prefix in the record too.
        """
        evaluation = evaluation or {}
        self._show(step, values, evaluation)
        record = {"stage": self._name, "step": step, **values, **evaluation}
        for write_record in self._writers:
            write_record(record)


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """Returns the logged records of a run in order, without lines that are damaged or cut off."""
    path = pathlib.Path(workdir) / METRICS_FILE
    lines = path.read_bytes().splitlines() if path.exists() else []
    return [record for record in map(_parse_record, lines) if record is not None]


def _parse_record(line: bytes) -> dict | None:
    """Returns the record that a line of the metrics holds, None if it holds none."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        return None
    names_step = isinstance(record, dict) and isinstance(record.get("step"), int)
    return record if names_step and "stage" in record else None


def _truncate_metrics(metrics: pathlib.Path, stage: str, step: int) -> list[str]:
    """Removes the records of a stage after a step, and lines that hold no record.

    Returns:
      What there is to say of those; a last line that was cut off is no surprise.
    """
    lines = metrics.read_bytes().splitlines(keepends=True) if metrics.exists() else []
    kept, remarks = [], []
    for number, line in enumerate(lines, start=1):
        record = _parse_record(line)
        if record is None and line.endswith(b"\n"):
            text = line.decode(errors="replace").strip()
            remarks.append(f"Line {number} of {metrics} is damaged, and is removed: {text}")
        elif record is not None and (record["stage"] != stage or record["step"] <= step):
            kept.append(json.dumps(record) + "\n")
    with atomic_write(metrics) as temporary:
        temporary.write_text("".join(kept))
    return remarks


@contextlib.contextmanager
def _open_events(directory: pathlib.Path, first_step: int) -> Iterator[Callable[[dict], None]]:
    """Opens a file of TensorBoard events; yields the function that writes a record to it.

    TensorBoard passes over what earlier files have of later steps than the first.
    """

    def write(*events):
        with writing(directory):
            for event in events:
                writer.write_event(event)
            writer.flush()
        for file in directory.glob(f"*{suffix}"):
            copies.publish(file)

    def write_record(record):
        step, now = record["step"], time.time()
        names = (name for name in record if name not in ("stage", "step"))
        summaries = (scalar(name, record[name]) for name in names)
        write(*(Event(step=step, wall_time=now, summary=summary) for summary in summaries))

    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        # A process that starts again within the second must not take the file of the last one.
        suffix = f".{time.time_ns()}"
        writer = EventsWriter(str(directory / "events"), suffix)
    try:
        start, now = SessionLog(status=SessionLog.START), time.time()
        write(Event(step=first_step + 1, wall_time=now, session_log=start))
        yield write_record
    finally:
        with contextlib.suppress(OSError):  # All is written, or its error was raised.
            writer.close()


def _no_bar(step: int, loss: float | None, images_per_second: float) -> None:
    """Replaces the progress bar where the output is no terminal."""


def _say_nothing(step: int, values: dict, evaluation: dict) -> None:
    """Replaces the console in processes that print nothing."""


@contextlib.contextmanager
def _progress(
    console, name: str, first_step: int, num_steps: int, time_left: TimeLeft
) -> Iterator[ProgressCallback]:
    """Shows a progress bar on a terminal; elsewhere says only that the stage is compiled."""
    if not console.is_terminal:
        console.print(f"{name}: compiling", markup=False)
        yield _no_bar
        return
    progress = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        # The bar has what the others leave.
        rich.progress.BarColumn(bar_width=None, table_column=rich.table.Column(ratio=1)),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[status]}"),
        console=console,
        expand=True,
        transient=True,
    )
    with progress:
        task = progress.add_task(
            name, total=num_steps, completed=first_step, status="compiling, first step"
        )

        def update_bar(step, loss, images_per_second):
            left = time_left.after(step)
            status = f"{images_per_second:,.0f} images/s"
            status += "" if loss is None else f"  loss {loss:.3f}"
            status += f"  {left} left" if left else ""
            progress.update(task, completed=step, status=status)

        yield update_bar
