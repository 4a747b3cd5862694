"""JPEG files, decoded no further down than a crop needs.

A JPEG decodes from its top row on, so what lies below a crop need not be. Nothing tells where
in the file a row begins; but the header tells how many rows there are, and with a smaller
number there the decoder stops early. The rows that it gives are those of the whole image, bit
for bit.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

_START, _END = b"\xff\xd8", b"\xff\xd9"

# Markers (ITU T.81, table B.1): frames that are baseline, extended and progressive; EXIF.
_FRAMES, _EXIF = (0xC0, 0xC1, 0xC2), 0xE1

# Larger images go the way of all other files.
_MAX_PIXELS = 1 << 26


class Header(NamedTuple):
    """What the header of a JPEG says.

    Attributes:
      height, width: in pixels, before any turning.
      height_at: where in the file the height stands.
      unit: rows that are coded together.
      exif: whether there are EXIF data, which may want the image turned.
    """

    height: int
    width: int
    height_at: int
    unit: int
    exif: bool


def read_header(content: bytes) -> Header | None:
    """Returns the header of a JPEG that `decode_top` takes, None for other files.

    It takes whole files, grey or of three colours, with 8 bits each.
    """
    if not (content.startswith(_START) and content.endswith(_END)):
        return None
    at, exif = len(_START), False
    while at + 10 <= len(content) and content[at] == 0xFF:
        marker, length = content[at + 1], int.from_bytes(content[at + 2 : at + 4], "big")
        exif |= marker == _EXIF
        if marker in _FRAMES:
            return _read_frame(content, at + 4, exif)
        at += 2 + length
    return None


def _read_frame(content: bytes, at: int, exif: bool) -> Header | None:
    """Reads a frame's parameters (ITU T.81, B.2.2): bits, height, width, then the components."""
    height = int.from_bytes(content[at + 1 : at + 3], "big")
    width = int.from_bytes(content[at + 3 : at + 5], "big")
    bits, components = content[at], content[at + 5]
    sampling = content[at + 7 : at + 6 + 3 * components : 3]
    if bits != 8 or components not in (1, 3) or not 0 < height * width <= _MAX_PIXELS:
        return None
    unit = 8 * max(one & 15 for one in sampling)
    return Header(height, width, at + 1, unit, exif)


def decode_top(content: bytes, header: Header, rows: int) -> np.ndarray | None:
    """Decodes the upper rows of a JPEG.

    Args:
      content: of the file.
      header: as `read_header` found it.
      rows: how many, at most the image's height.

    Returns:
      uint8[at least rows, width, 3], RGB, not turned; None if the decoder finds fault.
    """
    # One unit more: where colours are coded coarser, a row looks at its neighbours' colours.
    enough = min(header.height, (-(-rows // header.unit) + 1) * header.unit)
    encoded = np.frombuffer(content, np.uint8).copy()
    encoded[header.height_at : header.height_at + 2] = divmod(enough, 256)
    pixels = np.empty((enough, header.width, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(encoded, buffer=pixels)
    except ValueError as error:
        # It is raised when all is decoded; the rows that are left are what it should complain of.
        if "extraneous bytes before marker" not in str(error):
            return None
    return pixels
