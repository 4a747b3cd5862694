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
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event, SessionLog
from tensorboardX.summary import scalar

from llc_jax.files import atomic_write, writing

METRICS_FILE = "metrics.jsonl"

# (step, loss, images per second) -> None
ProgressCallback = Callable[[int, float, float], None]


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

    def say(self, *lines: str) -> None:
        """Prints lines, above the progress bar if there is one."""
        for line in lines:
            self._console.print(line, markup=False)

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
            yield StageLog(name, [], _no_bar)
            return
        metrics = self._workdir / METRICS_FILE
        self.say(*_truncate_metrics(metrics, name, first_step))
        events = self._workdir / "tensorboard" / name
        with (
            _open_events(events, first_step) as write_events,
            _progress(self._console, name, first_step, num_steps) as update_bar,
        ):

            def to_console(record):
                self.say(_format_record(record))

            def to_file(record):
                with writing(metrics), metrics.open("a") as file:
                    file.write(json.dumps(record) + "\n")

            yield StageLog(name, [to_console, to_file, write_events], update_bar)


class StageLog:
    """The open log of one stage.

    Args:
      name: of the stage.
      writers: each writes a record to one output.
      progress: (step, loss, images per second) -> None, updates the progress bar.
    """

    def __init__(
        self, name: str, writers: list[Callable[[dict], None]], progress: ProgressCallback
    ):
        self._name = name
        self._writers = writers
        self.progress = progress

    def write(self, step: int, values: dict[str, float]) -> None:
        """Logs metrics of the stage after `step` steps."""
        record = {"stage": self._name, "step": step, **values}
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

    def write_record(record):
        step, now = record["step"], time.time()
        names = (name for name in record if name not in ("stage", "step"))
        summaries = (scalar(name, record[name]) for name in names)
        write(*(Event(step=step, wall_time=now, summary=summary) for summary in summaries))

    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
        # A process that starts again within the second must not take the file of the last one.
        writer = EventsWriter(str(directory / "events"), f".{time.time_ns()}")
    try:
        start, now = SessionLog(status=SessionLog.START), time.time()
        write(Event(step=first_step + 1, wall_time=now, session_log=start))
        yield write_record
    finally:
        with contextlib.suppress(OSError):  # All is written, or its error was raised.
            writer.close()


def _format_record(record: dict) -> str:
    """Formats a record for the console: `codebook  epoch 3  loss 3.859  ...`."""
    fields = [f"{record['stage']:<10}"]
    for key, value in record.items():
        if key in ("stage", "step"):
            continue
        number = f"{value:.4g}" if isinstance(value, float) else str(value)
        fields.append(f"{key.replace('_', ' ')} {number}")
    return "  ".join(fields)


def _no_bar(step: int, loss: float, images_per_second: float) -> None:
    """Replaces the progress bar where the output is no terminal."""


@contextlib.contextmanager
def _progress(console, name, first_step, num_steps) -> Iterator[ProgressCallback]:
    """Shows a progress bar on a terminal."""
    if not console.is_terminal:
        yield _no_bar
        return
    progress = rich.progress.Progress(
        rich.progress.TextColumn("{task.description}"),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn("{task.fields[rate]:,.0f} images/s"),
        rich.progress.TextColumn("loss {task.fields[loss]:.3f}"),
        rich.progress.TextColumn("ETA"),
        rich.progress.TimeRemainingColumn(),
        console=console,
        transient=True,
    )
    with progress:
        task = progress.add_task(
            name, total=num_steps, completed=first_step, loss=float("nan"), rate=0.0
        )

        def update_bar(step, loss, images_per_second):
            progress.update(task, completed=step, loss=loss, rate=images_per_second)

        yield update_bar
