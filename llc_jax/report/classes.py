"""Which classes are recognised, and which are taken for which: a CSV, and a table of it."""

import collections
import csv
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np
import rich.table
import rich.text

from llc_jax.errors import InputError
from llc_jax.files import atomic_write

# The most classes that the table shows, and the most others that a class is said to be taken for.
_ROWS, _OTHERS = 10, 2


class Confusion(NamedTuple):
    """How many images of a class were taken for a class, which can be the same."""

    true: str
    predicted: str
    images: int


def count_confusions(
    labels: np.ndarray, predictions: np.ndarray, class_names: Sequence[str]
) -> list[Confusion]:
    """Counts the pairs of a class and what its images were taken for, in the order of both.

    Args:
      labels: the true classes, int32[N].
      predictions: those that were found, int32[N].
      class_names: L names.
    """
    pairs, counts = np.unique(np.stack([labels, predictions], 1), axis=0, return_counts=True)
    return [
        Confusion(class_names[true], class_names[predicted], int(count))
        for (true, predicted), count in zip(pairs, counts, strict=True)
    ]


def write_confusions(path: str | os.PathLike, confusions: Iterable[Confusion]) -> None:
    """Writes confusions as a CSV of `class,predicted,images`, atomically."""
    with (
        atomic_write(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file,
    ):
        csv.writer(file).writerows([("class", "predicted", "images"), *confusions])


def read_confusions(path: str | os.PathLike) -> list[Confusion]:
    """Reads what `write_confusions` has written.

    Raises:
      InputError: if it is damaged.
    """
    try:
        with pathlib.Path(path).open(
            newline="", encoding="utf-8", errors="surrogateescape"
        ) as file:
            _, *rows = csv.reader(file)
        return [Confusion(true, predicted, int(images)) for true, predicted, images in rows]
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"Cannot read {path} ({error}): remove it, and the run has no table of its classes."
        ) from error


def classes_table(confusions: Iterable[Confusion], source: str) -> rich.table.Table:
    """Draws the classes that are recognised least, with what they are taken for most.

    Args:
      confusions: of all classes.
      source: the file that has them, for the caption.
    """
    of_class = collections.defaultdict(dict)
    for true, predicted, images in confusions:
        of_class[true][predicted] = images

    def accuracy(name: str) -> float:
        return of_class[name].get(name, 0) / sum(of_class[name].values())

    worst = sorted(of_class, key=accuracy)[:_ROWS]
    rest = len(of_class) - len(worst)
    more = f"{rest} more classes, and all confusions" if rest else "all confusions"
    table = rich.table.Table(caption=rich.text.Text(f"{more}: {source}"))
    table.add_column("class")
    for title in ("images", "accuracy"):
        table.add_column(title, justify="right", no_wrap=True)
    table.add_column("most often taken for")
    for name in worst:
        total = sum(of_class[name].values())
        others = [(count, other) for other, count in of_class[name].items() if other != name]
        others.sort(key=lambda item: -item[0])
        taken = ", ".join(f"{other} {count / total:.1%}" for count, other in others[:_OTHERS])
        row = (_one_line(name), str(total), f"{accuracy(name):.1%}", _one_line(taken))
        table.add_row(*map(rich.text.Text, row))
    return table


def _one_line(text: str) -> str:
    """Returns text with what cannot be printed replaced."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
