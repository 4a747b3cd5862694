"""What a backbone takes, and how it is made ready on the device."""

import dataclasses
import functools
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.options import choose


class Normalization(NamedTuple):
    """Mean and standard deviation of each channel, of pixels from 0 to 255."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


# The normalisations that pretrained models expect: torchvision's models and DeiT the first,
# timm's MobileNets and its own vision transformers the second, EfficientNet-Lite the third.
NORMALIZATIONS = {
    "imagenet": Normalization((123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "inception": Normalization((127.5,) * 3, (127.5,) * 3),
    "efficientnet_lite": Normalization((127.0,) * 3, (128.0,) * 3),
}


@dataclasses.dataclass(frozen=True)
class ImageInput:
    """Square images, uint8[B, size, size, 3].

    Attributes:
      size: the side, in pixels, that the backbone is designed for.
      normalization: the usual one, a name in NORMALIZATIONS.
    """

    size: int
    normalization: str = "imagenet"
    kind: ClassVar[str] = "images"

    def abstract(self, size: int) -> jax.ShapeDtypeStruct:
        """Returns the form of a batch of one image with sides of `size` pixels."""
        return jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)

    def preparation(self, normalization: str | None = None) -> Callable[[jax.Array], jax.Array]:
        """Returns what is done to images before the backbone.

        Args:
          normalization: a name in NORMALIZATIONS; None is the usual one of the backbone.

        Raises:
          InputError: if there is no such normalisation.
        """
        name = self.normalization if normalization is None else normalization
        values = choose(name, NORMALIZATIONS, "config.model.normalization")
        return functools.partial(_normalize, normalization=values)


@dataclasses.dataclass(frozen=True)
class VectorInput:
    """Vectors, such as embeddings, float32[B, size] or float16."""

    kind: ClassVar[str] = "embeddings"

    def abstract(self, size: int) -> jax.ShapeDtypeStruct:
        """Returns the form of a batch of one vector of `size` numbers."""
        return jax.ShapeDtypeStruct((1, size), np.float32)

    def preparation(self) -> Callable[[jax.Array], jax.Array]:
        """Returns what is done to vectors before the backbone."""
        return _as_float32


def _normalize(images: jax.Array, normalization: Normalization) -> jax.Array:
    if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
        raise TypeError(f"Images are uint8[B, H, W, 3], not {images.dtype}{images.shape}.")
    mean, std = (np.float32(values)[None, None, None] for values in normalization)
    return (images.astype(jnp.float32) - mean) / std


def _as_float32(vectors: jax.Array) -> jax.Array:
    if vectors.ndim != 2 or not jnp.issubdtype(vectors.dtype, jnp.floating):
        raise TypeError(f"Vectors are float32[B, d], not {vectors.dtype}{vectors.shape}.")
    return vectors.astype(jnp.float32)
