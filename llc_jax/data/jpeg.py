"""Partial decoding of JPEG files: only down to the last row that a crop needs.

A JPEG is decoded from its top row on, so the rows below a crop need not be decoded. The file
does not say where a row begins, but its header says how many rows there are. With a smaller
number in the header the decoder stops early, and the rows that it returns are bit for bit those
of the whole image.
"""

from typing import NamedTuple

import numpy as np
import simplejpeg

_START, _END = b"\xff\xd8", b"\xff\xd9"

# Markers (ITU T.81, table B.1): frames that are baseline, extended and progressive; EXIF.
_FRAMES, _EXIF = (0xC0, 0xC1, 0xC2), 0xE1

# `read_header` declines larger images, which are then decoded as other files are.
_MAX_PIXELS = 1 << 26


class Header(NamedTuple):
    """Fields of the header of a JPEG.

    Attributes:
      height, width: in pixels, before the EXIF orientation is applied.
      height_offset: the offset in the file of the two bytes of the height.
      mcu_height: the rows of a minimum coded unit (MCU), which are coded together.
      has_exif: whether there are EXIF data, which may have an orientation.
    """

    height: int
    width: int
    height_offset: int
    mcu_height: int
    has_exif: bool


def read_header(content: bytes) -> Header | None:
    """Returns the header of a JPEG that `decode_top` can decode, None for other files.

    Those are complete files with one or three components of 8 bits.
    """
    if not (content.startswith(_START) and content.endswith(_END)):
        return None
    offset, has_exif = len(_START), False
    while offset + 10 <= len(content) and content[offset] == 0xFF:
        marker = content[offset + 1]
        length = int.from_bytes(content[offset + 2 : offset + 4], "big")
        has_exif |= marker == _EXIF
        if marker in _FRAMES:
            return _read_frame(content, offset + 4, has_exif)
        offset += 2 + length
    return None


def _read_frame(content: bytes, offset: int, has_exif: bool) -> Header | None:
    """Reads a frame's parameters (ITU T.81, B.2.2): bits, height, width, then the components."""
    height = int.from_bytes(content[offset + 1 : offset + 3], "big")
    width = int.from_bytes(content[offset + 3 : offset + 5], "big")
    bits, components = content[offset], content[offset + 5]
    sampling_factors = content[offset + 7 : offset + 6 + 3 * components : 3]
    if bits != 8 or components not in (1, 3) or not 0 < height * width <= _MAX_PIXELS:
        return None
    mcu_height = 8 * max(factors & 15 for factors in sampling_factors)  # The low bits: vertical.
    return Header(height, width, offset + 1, mcu_height, has_exif)


def decode_top(content: bytes, header: Header, rows: int) -> np.ndarray | None:
    """Decodes the upper rows of a JPEG.

    Args:
      content: of the file.
      header: from `read_header`.
      rows: the number of rows, at most the image's height.

    Returns:
      uint8[at least rows, width, 3], RGB, without the EXIF orientation; None if the decoder
      reports damage.
    """
    # One MCU more: with subsampled chroma, a row is interpolated from the rows next to it.
    height = min(header.height, (-(-rows // header.mcu_height) + 1) * header.mcu_height)
    encoded = np.frombuffer(content, np.uint8).copy()
    encoded[header.height_offset : header.height_offset + 2] = divmod(height, 256)
    pixels = np.empty((height, header.width, 3), np.uint8)
    try:
        simplejpeg.decode_jpeg(encoded, buffer=pixels)
    except ValueError as error:
        # This error comes after all rows are decoded, and is due to the rows left in the file.
        if "extraneous bytes before marker" not in str(error):
            return None
    return pixels
