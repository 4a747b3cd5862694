"""What a run says on the console while it trains: a line an epoch, and the time that is left."""

import time
from collections.abc import Mapping

from llc_jax.prepare.progress import duration

# How metrics of training are put into words; a metric that is not here has its own name.
_TRAINING = {
    "epoch": "epoch {}",
    "loss": "loss {:.3f}",
    "accuracy": "training accuracy {:.1%}",
    "bits_right": "training bits right {:.1%}",
    "flipped_bits": "{:.2%} of bits flipped",
    "unique_codes": "{} unique codes",
    "min_distance": "least distance {}",
}
# Those that the console leaves to `metrics.jsonl`.
_UNSAID = ("logit_scale", "learning_rate", "images_per_second")

# The figures of an evaluation on the way that the console shows.
_EVALUATION = {
    "class_logits": "accuracy {:.1%}",
    "soft": "soft {:.1%}",
    "mhd": "MHD {:.1%}",
    "ed": "ED {:.1%}",
}

# The time that is left is said after so many seconds of training, if it is that much at least.
_CERTAIN_SECONDS, _WORTH_SECONDS = 10.0, 60.0

# Columns of the name of the stage.
_INDENT = 10


class TimeLeft:
    """The time that is left of a run, from the time that the steps of a stage have taken.

    Args:
      num_steps: of this stage and of those after it.
      batch_size: images of a step; 0 where it is not known, and neither is the time.

    Attributes:
      is_worth_saying: whether the time is known well enough, and is not short.
    """

    def __init__(self, num_steps: int, batch_size: int):
        self._num_steps, self._batch_size = num_steps, batch_size
        self._first, self._step_seconds = None, 0.0
        self.is_worth_saying = False

    def tick(self, step: int, images_per_second: float) -> None:
        """Notes that a step is done, and the rate of the last steps."""
        now = time.monotonic()
        if self._first is None:
            self._first = (step, now)
        steps, seconds = step - self._first[0], now - self._first[1]
        if steps and seconds >= _CERTAIN_SECONDS:
            # Whatever else the time goes to is in it: checkpoints, evaluations on the way.
            self._step_seconds = seconds / steps
        elif images_per_second:
            self._step_seconds = self._batch_size / images_per_second
        certain = max(seconds, self._step_seconds) >= _CERTAIN_SECONDS
        self.is_worth_saying = certain and self._seconds(step) >= _WORTH_SECONDS

    def after(self, step: int) -> str:
        """Returns the time in words after a step of the stage; "" where it is not known."""
        seconds = self._seconds(step)
        return duration(seconds) if seconds else ""

    def _seconds(self, step: int) -> float:
        return (self._num_steps - step) * self._step_seconds


def epoch_lines(
    stage: str,
    values: Mapping[str, float],
    evaluation: Mapping[str, float],
    left: str,
    width: int,
) -> list[str]:
    """Puts the metrics of an epoch into lines that break between metrics.

    Args:
      stage: its name.
      values: the metrics of training.
      evaluation: the figures of the evaluation images, if they were evaluated.
      left: the time that is left of the run, or "".
      width: of the console, in columns.
    """
    fields = [form.format(values[name]) for name, form in _TRAINING.items() if name in values]
    for name, value in values.items():
        if name not in _TRAINING and name not in _UNSAID:
            number = f"{value:.4g}" if isinstance(value, float) else str(value)
            fields.append(f"{name.replace('_', ' ')} {number}")
    lines = _break(stage, [*fields, *([f"{left} left"] if left else [])], width)
    evaluated = [form.format(evaluation[n]) for n, form in _EVALUATION.items() if n in evaluation]
    return lines + (_break("", ["evaluation:", *evaluated], width) if evaluated else [])


def _break(title: str, fields: list[str], width: int) -> list[str]:
    """Joins fields to lines of at most `width` columns, the first with a title."""
    lines = [f"{title:<{_INDENT}}"]
    for field in fields:
        line = f"{lines[-1]}  {field}"
        if len(line) > width and lines[-1].strip():
            line = f"{'':<{_INDENT}}  {field}"
            lines.append(line)
        lines[-1] = line
    return lines
