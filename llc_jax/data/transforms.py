"""From image files to uint8 pixels of one size: decode, crop, resize, flip.

Nothing here uses JAX: it runs in worker processes, one image at a time. Random functions take
their generator as an argument.
"""

import dataclasses
import functools
import math
import os
from collections.abc import Callable
from typing import NamedTuple, Protocol

# The most pixels that OpenCV decodes: a small file can claim to be a large image.
os.environ.setdefault("OPENCV_IO_MAX_IMAGE_PIXELS", str(1 << 28))

import cv2
import numpy as np

from llc_jax.data import jpeg, randaugment
from llc_jax.errors import InputError

# `decode` raises an error for what cannot be decoded, which OpenCV's own log would repeat.
cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)


def decode(image: bytes | np.ndarray, name: str, *, exif_orientation: bool = True) -> np.ndarray:
    """Decodes an image file to RGB; pixels pass through.

    Grey, palette, CMYK and 16-bit images become 8-bit RGB, transparency is dropped,
    and an animation gives its first frame.

    Args:
      image: the content of a file, or uint8[H, W, 3].
      name: of the image, for the error.
      exif_orientation: whether to apply the orientation in the EXIF data. TFDS and torchvision
        do not, and neither do the configs for ImageNet.

    Returns:
      uint8[H, W, 3].

    Raises:
      InputError: if the file is empty, cut short, too large or not an image.
    """
    if isinstance(image, np.ndarray):
        return image
    flags = cv2.IMREAD_COLOR_RGB
    if not exif_orientation:
        flags |= cv2.IMREAD_IGNORE_ORIENTATION
    try:
        pixels = cv2.imdecode(np.frombuffer(image, np.uint8), flags)
    except cv2.error as error:
        raise _damaged(name, image) from error
    if pixels is None:
        raise _damaged(name, image)
    return pixels


def shape(image: bytes | np.ndarray, name: str) -> tuple[int, int]:
    """Returns the height and width of an image in pixels; of most JPEGs without decoding them.

    Args:
      image, name: as for `decode`.

    Raises:
      InputError: as `decode` does.
    """
    header = jpeg.read_header(image) if isinstance(image, bytes) else None
    return decode(image, name).shape[:2] if header is None else (header.height, header.width)


def _damaged(name: str, content: bytes) -> InputError:
    return InputError(
        f"{name} ({len(content)} bytes) is not an image that can be decoded: it is damaged, "
        "cut short, too large or of another type. Repair it or remove it."
    )


def center_crop(image: np.ndarray, size: int, crop_fraction: float) -> np.ndarray:
    """Resizes the shorter side to `size / crop_fraction` and crops the middle.

    Args:
      image: uint8[H, W, 3].
      size: side of the result, in pixels. An image that already has it is returned unchanged.
      crop_fraction: 0.875 is the usual resize to 256 and crop to 224.

    Returns:
      uint8[size, size, 3].
    """
    height, width = image.shape[:2]
    if (height, width) == (size, size):
        return image
    scale = size / crop_fraction / min(height, width)
    height, width = (max(size, round(side * scale)) for side in (height, width))
    resized = _resize(image, height, width)
    top, left = round((height - size) / 2), round((width - size) / 2)
    return np.ascontiguousarray(resized[top : top + size, left : left + size])


class Box(NamedTuple):
    """A rectangle of an image, in pixels."""

    top: int
    left: int
    height: int
    width: int


def random_box(
    height: int,
    width: int,
    rng: np.random.Generator,
    *,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Box:
    """Draws a box of random area and aspect ratio, as in GoogLeNet's training.

    Args:
      height, width: of the image, in pixels.
      rng: draws the box.
      scale: range of the box's area, as a fraction of the image's.
      ratio: range of the box's width over its height, which is drawn log-uniformly.

    Returns:
      The box; the central square where none of ten draws fits into the image.
    """
    for _ in range(10):
        area = rng.uniform(*scale) * height * width
        aspect = math.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1])))
        crop_width, crop_height = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < crop_width <= width and 0 < crop_height <= height:
            top = int(rng.integers(height - crop_height + 1))
            left = int(rng.integers(width - crop_width + 1))
            return Box(top, left, crop_height, crop_width)
    side = min(height, width)
    return Box((height - side) // 2, (width - side) // 2, side, side)


def decode_box(
    image: bytes | np.ndarray,
    name: str,
    choose: Callable[[int, int], Box],
    *,
    exif_orientation: bool = True,
) -> np.ndarray:
    """Decodes a box of an image; of a JPEG, no row below it.

    Args:
      image, name, exif_orientation: as for `decode`.
      choose: height and width of the image -> the box.

    Returns:
      uint8[height of the box, width of the box, 3].

    Raises:
      InputError: as `decode` does. Damage below the box can go unnoticed.
    """
    header = jpeg.read_header(image) if isinstance(image, bytes) else None
    pixels = None
    if header is not None and not (header.has_exif and exif_orientation):
        box = choose(header.height, header.width)
        pixels = jpeg.decode_top(image, header, box.top + box.height)
    if pixels is None:
        pixels = decode(image, name, exif_orientation=exif_orientation)
        box = choose(*pixels.shape[:2])
    return pixels[box.top : box.top + box.height, box.left : box.left + box.width]


def random_flip(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Mirrors the image left to right, with probability 1/2."""
    return cv2.flip(image, 1) if rng.random() < 0.5 else image


def _resize(image: np.ndarray, height: int, width: int, average_beyond: float = 1.0) -> np.ndarray:
    """Resizes an image.

    Args:
      image: uint8[H, W, 3].
      height, width: of the result, in pixels.
      average_beyond: the factor of shrinking beyond which pixels are averaged by area, against
        aliasing; up to it, interpolation is bilinear.

    Returns:
      uint8[height, width, 3].
    """
    factor = math.sqrt(image.shape[0] * image.shape[1] / (height * width))
    method = cv2.INTER_AREA if factor > average_beyond else cv2.INTER_LINEAR
    return cv2.resize(image, (width, height), interpolation=method)


class Transform(Protocol):
    """Maps an image to uint8[size, size, 3]; can be pickled."""

    size: int

    def __call__(
        self, image: bytes | np.ndarray, name: str, rng: np.random.Generator | None
    ) -> np.ndarray:
        """Decodes and crops an image."""


@dataclasses.dataclass(frozen=True)
class Crop(Transform):
    """The centre crop of evaluation; the fields are as in `center_crop` and `decode`."""

    size: int
    crop_fraction: float = 0.875
    exif_orientation: bool = True

    def __call__(self, image, name, rng=None):
        """Decodes and crops an image."""
        pixels = decode(image, name, exif_orientation=self.exif_orientation)
        return center_crop(pixels, self.size, self.crop_fraction)


@dataclasses.dataclass(frozen=True)
class RandomCrop(Transform):
    """The random crop, flip and RandAugment of training.

    Attributes:
      size: side of the result, in pixels.
      exif_orientation: as in `decode`.
      scale: as in `random_box`.
      flip: whether to mirror left to right, with probability 1/2.
      randaugment: layers and magnitude of `randaugment.randaugment`, or None. It is drawn
        last, so crop and flip are the same with and without it.
    """

    size: int
    exif_orientation: bool = True
    _: dataclasses.KW_ONLY
    scale: tuple[float, float] = (0.08, 1.0)
    flip: bool = True
    randaugment: tuple[int, float] | None = None

    def __post_init__(self):
        """Checks the options of RandAugment."""
        if self.randaugment is not None:
            randaugment.check(self.randaugment)

    def __call__(self, image, name, rng):
        """Decodes and crops an image."""
        draw = functools.partial(random_box, rng=rng, scale=self.scale)
        pixels = decode_box(image, name, draw, exif_orientation=self.exif_orientation)
        # When shrinking to no less than a half, bilinear interpolation uses nearly all pixels,
        # and takes a fifth of the time of averaging.
        pixels = _resize(pixels, self.size, self.size, average_beyond=2)
        pixels = random_flip(pixels, rng) if self.flip else pixels
        if self.randaugment is None:
            return pixels
        layers, magnitude = self.randaugment
        return randaugment.randaugment(pixels, rng, layers=layers, magnitude=magnitude)
