"""Lists of images as OpenOOD publishes them: a line has a path and the number of a class.

  cifar100/train/apple/0001.png 0
  places365/dam/Places365_val_00000061.jpg -1

The number -1 is for unknown images, of no class. The paths are relative to a folder that is
named after the list, `LIST.txt:FOLDER`, or else to the folder of the list.
"""

import os
import pathlib
import re
from typing import NamedTuple

from llc_jax.data.sources import FileSource, label_listed, shortened
from llc_jax.errors import InputError

# The name of the one class of a list of unknown images.
UNKNOWN = "unknown"
_UNKNOWN_LABEL = -1


class Place(NamedTuple):
    """Where a list is, and the folder that its paths are relative to."""

    path: pathlib.Path
    folder: pathlib.Path


def find(source: str) -> Place | None:
    """Returns what `LIST.txt` or `LIST.txt:FOLDER` names; None where a source is no list."""
    match = re.fullmatch(r"(.+?\.txt)(?::(.+))?", source, re.IGNORECASE | re.DOTALL)
    if match is None:
        return None
    path = pathlib.Path(os.path.expanduser(match[1]))
    return Place(path, pathlib.Path(os.path.expanduser(match[2])) if match[2] else path.parent)


def locate(place: Place) -> str:
    """Returns the name of a list that holds in every working directory."""
    return ":".join(os.path.realpath(path) for path in place)


def read(place: Place) -> FileSource:
    """Reads a list of images.

    The classes are named by their numbers, in the order of the numbers: "0", "1" and so on. In
    a list of unknown images all have one class, `UNKNOWN`.

    Raises:
      InputError: if the list cannot be read, a line has another form, known and unknown images
        are mixed, or a file is missing.
    """
    path = place.path
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    entries = [
        _parse(line.strip(), f"{path}, line {number}")
        for number, line in enumerate(lines, start=1)
        if line.strip()
    ]
    files, labels = [file for file, _ in entries], [label for _, label in entries]
    if set(labels) == {_UNKNOWN_LABEL}:
        return label_listed(path, place.folder, files, [UNKNOWN] * len(files))
    if _UNKNOWN_LABEL in labels:
        raise InputError(
            f"{path} has images of classes and unknown ones, such as "
            f"{shortened(files[labels.index(_UNKNOWN_LABEL)])}: give each kind a list of its own."
        )
    source = label_listed(path, place.folder, files, list(map(str, labels)))
    return source.restrict(tuple(sorted(source.class_names, key=int)))


def _parse(line: str, where: str) -> tuple[str, int]:
    """Returns the path and the number of a line; a path can have spaces."""
    file, *label = line.rsplit(maxsplit=1)
    if not label or re.fullmatch(r"-1|\d{1,9}", label[0], re.ASCII) is None:
        raise InputError(
            f"{where}: expected a path, a space and a class number from 0, or -1 for an unknown "
            f"image, found {shortened(line)!r}."
        )
    return file, int(label[0])
