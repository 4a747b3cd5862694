"""The log of a run: a console with a progress bar, JSON lines and TensorBoard events.

Only the first process prints and writes.
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
        """
        if not self._primary:
            yield StageLog(name, [], _no_bar)
            return
        metrics = self._workdir / METRICS_FILE
        _truncate_metrics(metrics, name, first_step)
        events = str(self._workdir / "tensorboard" / name)
        with (
            tensorboardX.SummaryWriter(events, purge_step=first_step + 1) as writer,
            metrics.open("a") as file,
            _progress(self._console, name, first_step, num_steps) as update_bar,
        ):

            def to_console(record):
                self.say(_format_record(record))

            def to_file(record):
                file.write(json.dumps(record) + "\n")
                file.flush()

            def to_tensorboard(record):
                for key, value in record.items():
                    if key not in ("stage", "step"):
                        writer.add_scalar(key, value, record["step"])

            yield StageLog(name, [to_console, to_file, to_tensorboard], update_bar)


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
    """Returns the logged records of a run in order, without a last line that was cut off."""
    path = pathlib.Path(workdir) / METRICS_FILE
    records = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with contextlib.suppress(json.JSONDecodeError):
            records.append(json.loads(line))
    return records


def _truncate_metrics(metrics: pathlib.Path, stage: str, step: int) -> None:
    """Removes the records of a stage after a step."""
    records = read_metrics(metrics.parent)
    kept = [record for record in records if record["stage"] != stage or record["step"] <= step]
    with atomic_write(metrics) as temporary:
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept))


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
