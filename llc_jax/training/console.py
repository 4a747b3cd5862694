"""What a run says on the console while it trains: a line an epoch, and the time that is left."""

import dataclasses
from collections.abc import Mapping

from llc_jax.prepare.progress import duration

# How metrics of training are put into words; a metric that is not here has its own name.
_TRAINING = {
    "epoch": "epoch {}",
    "loss": "loss {:.4g}",
    "accuracy": "training accuracy {:.1%}",
    "bits_right": "training bits right {:.1%}",
    "unique_codes": "{} unique codes",
    "min_distance": "least distance {}",
    "flipped_bits": "{:.2%} of bits flipped",
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

# Columns of the name of the stage.
_INDENT = 10


@dataclasses.dataclass(frozen=True)
class TimeLeft:
    """The time that is left of a run.

    Attributes:
      num_steps: of the stage that is trained and of those after it.
      batch_size: images of a step; 0 where it is not known, and neither is the time.
    """

    num_steps: int
    batch_size: int

    def after(self, step: int, images_per_second: float) -> str:
        """Returns the time in words after a step of the stage; "" where it is not known."""
        if not images_per_second or not self.batch_size:
            return ""
        return duration((self.num_steps - step) * self.batch_size / images_per_second)


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
    fields = []
    for name, value in values.items():
        if name not in _UNSAID:
            number = "{:.4g}" if isinstance(value, float) else "{}"
            form = _TRAINING.get(name, f"{name.replace('_', ' ')} {number}")
            fields.append(form.format(value))
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
