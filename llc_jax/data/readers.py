"""What a model encodes, read for its network: image files, pixels or embeddings."""

import concurrent.futures
import dataclasses
import os
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np

from llc_jax.copies import as_path
from llc_jax.data.stores import read_image
from llc_jax.data.transforms import Crop
from llc_jax.errors import InputError
from llc_jax.models.inputs import ImageInput, VectorInput

# Images that a thread reads one after the other.
_READ_TOGETHER = 8


class Openable(Protocol):
    """An image file that is no path, such as one in a tar; `str` gives its name."""

    def read_bytes(self) -> bytes:
        """Returns the content of the file; raises an InputError if it cannot be read."""


# What a model encodes: pixels, image files, or embeddings.
Inputs = np.ndarray | Sequence[str | os.PathLike | Openable]


class Reader(Protocol):
    """Reads inputs for a network.

    Attributes:
      batch_size: inputs that the network takes at once, at most.
      kind: of the inputs, images or embeddings.
    """

    batch_size: int
    kind: ClassVar[str]

    def check(self, inputs: Inputs) -> None:
        """Raises an InputError if the inputs are of another kind."""

    def read(self, inputs: Inputs, rows: slice) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns some of the inputs as the network takes them, and why which cannot be read."""


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads images for a network.

    Attributes:
      crop: makes uint8[size, size, 3] of an image.
      batch_size: images that the network takes at once, at most.
    """

    crop: Crop
    batch_size: int = 256
    kind: ClassVar[str] = ImageInput.kind

    def check(self, images: Inputs) -> None:
        """Raises an InputError unless these are pixels or image files."""
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                raise InputError(
                    "Images are uint8[N, H, W, 3] or paths, not "
                    f"{images.dtype}{list(images.shape)}."
                )
        elif isinstance(images, str | os.PathLike):
            raise InputError(f"Give a list of paths, not the single path {images}.")

    def read(self, images: Inputs, rows: slice) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns some images, uint8[b, size, size, 3]; black is one that cannot be read."""
        wanted, size = images[rows], self.crop.size
        if isinstance(wanted, np.ndarray) and wanted.shape[1:3] == (size, size):
            return wanted, {}
        batch, errors = np.zeros((len(wanted), size, size, 3), np.uint8), {}

        def fill(start: int) -> None:
            for row in range(start, min(start + _READ_TOGETHER, len(wanted))):
                try:
                    batch[row] = self._read(wanted[row])
                except InputError as error:
                    errors[row] = error

        with concurrent.futures.ThreadPoolExecutor() as pool:
            list(pool.map(fill, range(0, len(wanted), _READ_TOGETHER)))
        return batch, dict(sorted(errors.items()))

    def _read(self, image: np.ndarray | str | os.PathLike | Openable) -> np.ndarray:
        """Returns uint8[size, size, 3]."""
        if isinstance(image, np.ndarray):
            return self.crop(image, "")
        if not isinstance(image, str | os.PathLike):
            return self.crop(image.read_bytes(), str(image))
        path = as_path(image)
        try:
            return self.crop(read_image(path), str(path))
        except OSError as error:
            raise InputError(f"Cannot read the image {path}: {error.strerror}.") from error


@dataclasses.dataclass(frozen=True)
class EmbeddingReader:
    """Reads embeddings for a network.

    Attributes:
      size: d, the numbers of an embedding.
      batch_size: embeddings that the network takes at once, at most; a CPU is fastest where
        they fit into its cache.
    """

    size: int
    batch_size: int
    kind: ClassVar[str] = VectorInput.kind

    def check(self, embeddings: np.ndarray) -> None:
        """Raises an InputError unless these are embeddings of the size."""
        kind, shape = getattr(embeddings, "dtype", None), getattr(embeddings, "shape", ())
        if kind is None or kind.kind != "f" or len(shape) != 2 or shape[1] != self.size:
            given = type(embeddings).__name__ if kind is None else f"{kind}{list(shape)}"
            raise InputError(f"Embeddings are float[N, {self.size}], not {given}.")

    def read(self, embeddings: np.ndarray, rows: slice) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns some embeddings, float32[b, d]."""
        with np.errstate(over="ignore"):  # Their code logits are not finite, which is noticed.
            return np.asarray(embeddings[rows], np.float32), {}
