"""Images that are made of others: of no class, or the same ones, coded anew as JPEG."""

import dataclasses
import zlib

import cv2
import numpy as np

from llc_jax.data.transforms import Crop, Transform, center_crop
from llc_jax.errors import InputError


def noise(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Shuffles the pixels of an image, uint8[H, W, 3]: its colours stay."""
    return rng.permutation(image.reshape(-1, 3)).reshape(image.shape)


def blur(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Blurs an image, uint8[S, S, 3], with a Gaussian filter of a quarter of its side."""
    del rng
    return cv2.GaussianBlur(image, (0, 0), len(image) / 4)


def texture(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Fills an image, uint8[S, S, 3], with a random patch of an eighth of its side.

    Every second patch is mirrored, so that there are no edges between them.
    """
    side = len(image)
    patch = max(1, side // 8)
    top, left = rng.integers(side - patch + 1, size=2)
    tile = image[top : top + patch, left : left + patch]
    tile = np.concatenate([tile, tile[::-1]])
    tile = np.concatenate([tile, tile[:, ::-1]], axis=1)
    repeats = -(-side // len(tile))
    return np.tile(tile, (repeats, repeats, 1))[:side, :side]


KINDS = {"noise": noise, "blur": blur, "texture": texture}


def recode(image: np.ndarray, quality: int) -> np.ndarray:
    """Codes an image, uint8[H, W, 3] in RGB, as JPEG, and decodes it."""
    _, content = cv2.imencode(".jpg", image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])
    return cv2.imdecode(content, cv2.IMREAD_COLOR_RGB)


@dataclasses.dataclass(frozen=True)
class Altered(Transform):
    """The centre crop of evaluation of images that are altered first.

    An image is cropped to `side` pixels, made into one of a kind, coded as JPEG, and resized to
    what the network takes. Where two sets are read with one `side` and `quality`, neither how
    their images were resized nor how they were coded tells them apart any more: `side` is at
    most that of either, and `quality` is lower than that of their files.

    Attributes:
      crop: that the network takes.
      kind: a name in KINDS; "" leaves the image as it is.
      side: in pixels; 0 is that of the crop.
      quality: of the JPEG, 1 to 100; 0 for none.
      seed: of what is random. An image is altered in one way, whatever images are beside it.
    """

    crop: Crop
    kind: str = ""
    side: int = 0
    quality: int = 0
    seed: int = 0

    def __post_init__(self):
        """Checks the numbers."""
        if self.side < 0 or not 0 <= self.quality <= 100:
            raise InputError(
                "The side is at least 0 pixels and the quality of JPEG from 0 to 100, not "
                f"{self.side} and {self.quality}."
            )

    @property
    def size(self) -> int:
        """Side of the result, in pixels."""
        return self.crop.size

    def __call__(self, image, name, rng=None):
        """Decodes, alters and crops an image."""
        pixels = dataclasses.replace(self.crop, size=self.side or self.size)(image, name)
        if self.kind:
            rng = np.random.default_rng([self.seed, zlib.crc32(name.encode(errors="replace"))])
            pixels = KINDS[self.kind](pixels, rng)
        if self.quality:
            pixels = recode(pixels, self.quality)
        return center_crop(pixels, self.size, 1.0)
