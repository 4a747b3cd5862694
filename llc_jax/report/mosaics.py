"""Images side by side as one picture: both sides of every bit, and what queries find."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

# The side of an image, its frame and the room around both, in pixels.
_SIDE, _FRAME, _ROOM = 64, 3, 4
_CELL = _SIDE + 2 * (_FRAME + _ROOM)
_WHITE, _QUERY, _RIGHT, _WRONG = (255, 255, 255), (106, 63, 160), (21, 128, 61), (194, 65, 12)

Cell = tuple[int, tuple[int, int, int]]


class Mosaic(NamedTuple):
    """Rows of images.

    Attributes:
      pixels: uint8[H, W, 3], RGB.
      rows: the middle of each row, in pixels from above.
      labels: of the rows.
    """

    pixels: np.ndarray
    rows: list[float]
    labels: list[str]


def hyperplanes(examples: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> Mosaic:
    """Puts the images of a row on both sides of a bit, -1 at the left.

    Args:
      examples: see `examples.figures`.
      pictures: its images, uint8[h, w, 3] each.
    """
    rows, labels = [], []
    for bit, of_bit in enumerate(examples["bits"]):
        left, right = ([(image, _WHITE) for image, _ in side] for side in of_bit["sides"])
        rows.append([left, right])
        labels.append(f"bit {bit}, {of_bit['balance']:.0%} +1")
    return _mosaic(rows, labels, pictures)


def found(examples: Mapping[str, Any], pictures: Sequence[np.ndarray]) -> Mosaic:
    """Puts what a query finds into its row, framed green where it is right, else red.

    Args: as of `hyperplanes`.
    """
    images, rows, labels = examples["images"], [], []
    for query in examples["queries"]:
        name = images[query["image"]][0]
        hits = [
            (image, _RIGHT if images[image][0] == name else _WRONG) for image, _ in query["found"]
        ]
        rows.append([[(query["image"], _QUERY)], hits])
        labels.append(name)
    return _mosaic(rows, labels, pictures)


def _mosaic(
    rows: Sequence[Sequence[Sequence[Cell]]], labels: list[str], pictures: Sequence[np.ndarray]
) -> Mosaic:
    """Draws rows of two groups of images each; the second group is flush in all rows."""
    first, second = (max(len(row[group]) for row in rows) for group in (0, 1))
    start = (first * _CELL + _CELL // 2, 0)[first == 0]
    pixels = np.full((len(rows) * _CELL, start + second * _CELL, 3), 255, np.uint8)
    for number, groups in enumerate(rows):
        for group, left in zip(groups, (0, start), strict=True):
            for column, (image, frame) in enumerate(group):
                y, x = number * _CELL + _ROOM, left + column * _CELL + _ROOM
                inner = _SIDE + _FRAME
                pixels[y : y + inner + _FRAME, x : x + inner + _FRAME] = frame
                small = cv2.resize(pictures[image], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
                pixels[y + _FRAME : y + inner, x + _FRAME : x + inner] = small
    return Mosaic(pixels, [(n + 0.5) * _CELL for n in range(len(rows))], labels)
