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
import rich.table
import tensorboardX

from llc_jax.files import atomic_write
from llc_jax.training.console import TimeLeft, epoch_lines

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
            yield StageLog(name, [], _no_bar, _say_nothing)
            return
        time_left = TimeLeft(num_steps + self._later_steps, self._batch_size)
        metrics = self._workdir / METRICS_FILE
        _truncate_metrics(metrics, name, first_step)
        events = str(self._workdir / "tensorboard" / name)
        with (
            tensorboardX.SummaryWriter(events, purge_step=first_step + 1) as writer,
            metrics.open("a") as file,
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
                file.write(json.dumps(record) + "\n")
                file.flush()

            def to_tensorboard(record):
                for key, value in record.items():
                    if key not in ("stage", "step"):
                        writer.add_scalar(key, value, record["step"])

            yield StageLog(name, [to_file, to_tensorboard], progress, to_console)

    def _say_how_long(self, left: str) -> None:
        """Says how long the run will take, the first time that it is known."""
        if not self._has_estimated:
            self._has_estimated = True
            stages = "all stages that are left" if self._later_steps else "this stage"
            self.say(f"About {left} of training for {stages}.")


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


def _no_bar(step: int, loss: float, images_per_second: float) -> None:
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
            status = f"{images_per_second:,.0f} images/s  loss {loss:.3f}"
            status += f"  {left} left" if left else ""
            progress.update(task, completed=step, status=status)

        yield update_bar
