"""What a run says: lines or a progress bar, JSON lines, TensorBoard events.

Only the first process speaks and writes.
"""

import contextlib
import json
import os
import pathlib
from collections.abc import Callable, Iterator

import rich.console
import rich.progress
import tensorboardX

from llc_jax.files import atomic_write

METRICS_FILE = "metrics.jsonl"

# (step, loss, images per second) -> None
MoveBar = Callable[[int, float, float], None]


class RunLog:
    """The log of a run in its workdir: `metrics.jsonl` and `tensorboard/<stage>/`.

    Args:
      workdir: of the run.
      primary: whether this process writes.
    """

    def __init__(self, workdir: str | os.PathLike, primary: bool = True):
        self._workdir = pathlib.Path(workdir)
        self._primary = primary
        self._console = rich.console.Console(quiet=not primary, highlight=False, soft_wrap=True)

    def say(self, *lines: str) -> None:
        """Prints lines; they go above the progress bar."""
        for line in lines:
            self._console.print(line, markup=False)

    def show(self, renderable) -> None:
        """Prints a table or another thing that rich can draw."""
        self._console.print(renderable)

    @contextlib.contextmanager
    def stage(self, name: str, first_step: int, num_steps: int) -> Iterator["StageLog"]:
        """Opens the log of a stage that starts or continues at `first_step`.

        What was logged of the stage beyond that step is dropped, as it comes again.
        """
        if not self._primary:
            yield StageLog(name, [], _no_bar)
            return
        metrics = self._workdir / METRICS_FILE
        _drop_after(metrics, name, first_step)
        events = str(self._workdir / "tensorboard" / name)
        with (
            tensorboardX.SummaryWriter(events, purge_step=first_step + 1) as writer,
            metrics.open("a") as lines,
            _progress(self._console, name, first_step, num_steps) as move_bar,
        ):

            def to_console(record):
                self.say(_one_line(record))

            def to_file(record):
                lines.write(json.dumps(record) + "\n")
                lines.flush()

            def to_tensorboard(record):
                for key, value in record.items():
                    if key not in ("stage", "step"):
                        writer.add_scalar(key, value, record["step"])

            yield StageLog(name, [to_console, to_file, to_tensorboard], move_bar)


class StageLog:
    """The open log of one stage."""

    def __init__(self, name: str, sinks: list[Callable[[dict], None]], move_bar: MoveBar):
        self._name = name
        self._sinks = sinks
        self.progress = move_bar

    def write(self, step: int, values: dict[str, float]) -> None:
        """Records figures of the stage after `step` steps."""
        record = {"stage": self._name, "step": step, **values}
        for sink in self._sinks:
            sink(record)


def read_metrics(workdir: str | os.PathLike) -> list[dict]:
    """Returns the records of a run in order; a last line that was cut off is left out."""
    path = pathlib.Path(workdir) / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _drop_after(metrics: pathlib.Path, stage: str, step: int) -> None:
    records = read_metrics(metrics.parent)
    kept = [record for record in records if record["stage"] != stage or record["step"] <= step]
    with atomic_write(metrics) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))


def _one_line(record: dict) -> str:
    """Writes a record for a person: `codebook  epoch 3  loss 3.859  ...`."""
    words = [f"{record['stage']:<10}"]
    for key, value in record.items():
        if key in ("stage", "step"):
            continue
        number = f"{value:.4g}" if isinstance(value, float) else str(value)
        words.append(f"{key.replace('_', ' ')} {number}")
    return "  ".join(words)


def _no_bar(step: int, loss: float, images_per_second: float) -> None:
    """Moves nothing, where the output is no terminal."""


@contextlib.contextmanager
def _progress(console, name, first_step, num_steps) -> Iterator[MoveBar]:
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

        def move(step, loss, images_per_second):
            progress.update(task, completed=step, loss=loss, rate=images_per_second)

        yield move
