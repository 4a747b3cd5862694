"""RandAugment: a few random photometric and geometric operations on an image.

Each operation takes uint8[H, W, 3] and a strength, in units of its own, and returns the
same shape; strength 0 is no change. Pixels from outside the image are grey, 128, as in
the paper's code; interpolation is bilinear. Every operation grows stronger with the magnitude;
in the paper's code some grow weaker.

References:
  Cubuk et al., RandAugment: practical automated data augmentation with a reduced search
  space, 2020. The ranges are those of AutoAugment, Cubuk et al. 2019.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import cv2
import numpy as np

from llc_jax.errors import InputError

MAX_MAGNITUDE = 10
_LEVELS = np.arange(256)
_GREY = (128, 128, 128)


def randaugment(
    image: np.ndarray, rng: np.random.Generator, *, layers: int, magnitude: float
) -> np.ndarray:
    """Applies operations drawn at random, with replacement, one after the other.

    Args:
      image: uint8[H, W, 3].
      rng: draws the operations and the signs of their strengths.
      layers: the number of operations; N in the paper.
      magnitude: of all operations, from 0 to 10; M in the paper.

    Returns:
      uint8[H, W, 3].
    """
    operations = tuple(OPERATIONS.values())
    indices = rng.integers(len(operations), size=layers)
    signs = rng.choice((-1, 1), size=layers)
    for index, sign in zip(indices, signs, strict=True):
        operation = operations[index]
        strength = operation.max_strength * magnitude / MAX_MAGNITUDE
        image = operation.apply(image, sign * strength if operation.random_sign else strength)
    return image


def check(options: Any) -> None:
    """Raises an InputError unless the options are layers and magnitude."""
    match options:
        case [int(layers), int() | float() as magnitude]:
            if layers >= 1 and 0 <= magnitude <= MAX_MAGNITUDE:
                return
    raise InputError(
        "config.data.augment.randaugment is the number of layers, at least 1, and a magnitude "
        f"from 0 to {MAX_MAGNITUDE}, as in (2, 9), not {options!r}."
    )


def identity(image: np.ndarray, strength: float) -> np.ndarray:
    """Leaves the image as it is, whatever the strength."""
    del strength
    return image


def auto_contrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Stretches each channel to the levels 0 to 255, whatever the strength."""
    del strength
    counts = _histogram(image)
    low, high = np.argmax(counts > 0, axis=0), 255 - np.argmax(counts[::-1] > 0, axis=0)
    stretched = (_LEVELS[:, None] - low[None]) * (255 / np.maximum(high - low, 1))[None]
    return _look_up(image, np.where(high > low, stretched, _LEVELS[:, None]))


def equalize(image: np.ndarray, strength: float) -> np.ndarray:
    """Equalizes the histogram of each channel, whatever the strength.

    A level becomes 255 times the number of darker pixels over the number of pixels that are not
    of the brightest level.
    """
    del strength
    counts = _histogram(image)
    darker = np.cumsum(counts, axis=0) - counts
    below_brightest = np.where(counts > 0, darker, 0).max(axis=0)
    equalized = 255 * darker / np.maximum(below_brightest, 1)[None]
    return _look_up(image, np.where(below_brightest > 0, equalized, _LEVELS[:, None]))


def solarize(image: np.ndarray, strength: float) -> np.ndarray:
    """Inverts the brightest `strength` of the 256 levels."""
    inverted = 255 - _LEVELS
    return _look_up(image, np.where(inverted < round(strength), inverted, _LEVELS))


def posterize(image: np.ndarray, strength: float) -> np.ndarray:
    """Clears the lowest `strength` of the 8 bits of each level."""
    bits = round(strength)
    return _look_up(image, _LEVELS >> bits << bits)


def color(image: np.ndarray, strength: float) -> np.ndarray:
    """Raises the saturation, or lowers it where the strength is negative; -1 is grey."""
    grey = cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    return _extrapolate(grey, image, strength)


def contrast(image: np.ndarray, strength: float) -> np.ndarray:
    """Moves levels away from the mean grey, or towards it; -1 is the grey alone."""
    mean = round(cv2.mean(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY))[0])
    return _look_up(image, mean + (1 + strength) * (_LEVELS - mean))


def brightness(image: np.ndarray, strength: float) -> np.ndarray:
    """Multiplies the levels by 1 + `strength`."""
    return _look_up(image, (1 + strength) * _LEVELS)


def sharpness(image: np.ndarray, strength: float) -> np.ndarray:
    """Sharpens, or blurs where the strength is negative, all but the outermost pixels.

    -1 is a weighted mean of 3 x 3 pixels, in which the one in the middle counts 5 times.
    """
    kernel = np.ones((3, 3), np.float32)
    kernel[1, 1] = 5
    blurred = image.copy()
    blurred[1:-1, 1:-1] = cv2.filter2D(image, -1, kernel / kernel.sum())[1:-1, 1:-1]
    return _extrapolate(blurred, image, strength)


def rotate(image: np.ndarray, strength: float) -> np.ndarray:
    """Rotates the image about its centre, `strength` degrees anticlockwise."""
    height, width = image.shape[:2]
    return _warp(image, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), strength, 1))


def shear_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts each row to the right, by `strength` times its distance from the top."""
    return _warp(image, np.array([[1, strength, 0], [0, 1, 0]], float))


def shear_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts each column down, by `strength` times its distance from the left."""
    return _warp(image, np.array([[1, 0, 0], [strength, 1, 0]], float))


def translate_x(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts the image to the right, by `strength` times its width, to a whole pixel."""
    return _warp(image, np.array([[1, 0, round(strength * image.shape[1])], [0, 1, 0]], float))


def translate_y(image: np.ndarray, strength: float) -> np.ndarray:
    """Shifts the image down, by `strength` times its height, to a whole pixel."""
    return _warp(image, np.array([[1, 0, 0], [0, 1, round(strength * image.shape[0])]], float))


def _histogram(image: np.ndarray) -> np.ndarray:
    """Returns the number of pixels of each level in each channel, int[256, 3]."""
    channels = image.reshape(-1, 3).T
    return np.stack([np.bincount(channel, minlength=256) for channel in channels], axis=1)


def _look_up(image: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Maps each level by a table [256], or [256, 3] by channel, whose values are rounded."""
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    return cv2.LUT(image, table.reshape(1, 256, -1))


def _extrapolate(base: np.ndarray, image: np.ndarray, strength: float) -> np.ndarray:
    """Returns image + strength (image - base)."""
    return cv2.addWeighted(image, 1 + strength, base, -strength, 0)


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Moves pixel (x, y) to `matrix` @ (x, y, 1); `matrix` is affine, float[2, 3]."""
    return cv2.warpAffine(image, matrix, image.shape[1::-1], borderValue=_GREY)


class Operation(NamedTuple):
    """An operation and its range.

    Attributes:
      apply: (uint8[H, W, 3], strength) -> uint8[H, W, 3].
      max_strength: the strength at the highest magnitude.
      random_sign: whether the sign of the strength is random.
    """

    apply: Callable[[np.ndarray, float], np.ndarray]
    max_strength: float
    random_sign: bool = False


OPERATIONS = {
    "identity": Operation(identity, 0),
    "auto_contrast": Operation(auto_contrast, 0),
    "equalize": Operation(equalize, 0),
    "rotate": Operation(rotate, 30, random_sign=True),
    "solarize": Operation(solarize, 256),
    "color": Operation(color, 0.9, random_sign=True),
    "posterize": Operation(posterize, 4),
    "contrast": Operation(contrast, 0.9, random_sign=True),
    "brightness": Operation(brightness, 0.9, random_sign=True),
    "sharpness": Operation(sharpness, 0.9, random_sign=True),
    "shear_x": Operation(shear_x, 0.3, random_sign=True),
    "shear_y": Operation(shear_y, 0.3, random_sign=True),
    # AutoAugment's 150 pixels in images of 331 pixels.
    "translate_x": Operation(translate_x, 150 / 331, random_sign=True),
    "translate_y": Operation(translate_y, 150 / 331, random_sign=True),
}
