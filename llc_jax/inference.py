"""A trained model: images -> codes -> classes."""

import concurrent.futures
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.data.stores import read_image
from llc_jax.data.transforms import Crop
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.experiment.network import build_network, input_size, load_weights
from llc_jax.experiment.workdir import FinishedStage, find_stage
from llc_jax.mesh import batch_sharding, make_mesh, replicated_sharding
from llc_jax.models.network import Tree

# Images that the network takes at once, at most.
_BATCH = 256


class Model:
    """An encoder and its codebook. Made by `load`.

    Attributes:
      codebook: the class codes, with the names of the classes.
    """

    def __init__(self, stage: FinishedStage, codebook: Codebook):
        mesh = make_mesh()
        replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
        network = build_network(stage.run, stage.config, codebook.num_classes)
        weights = load_weights(stage.directory.checkpoints, network, replicated)
        data = stage.run.data
        self.codebook = codebook
        self._devices = mesh.size
        self._crop = Crop(input_size(stage.run), data.crop_fraction, data.exif_orientation)

        def code_logits(weights: Tree, images: jax.Array) -> jax.Array:
            output = network.evaluate(weights["params"], weights["batch_stats"], images)
            return output.code_logits[:, : codebook.num_bits]

        compiled = jit_network(
            code_logits, in_shardings=(replicated, batched), out_shardings=batched
        )
        self._code_logits = functools.partial(compiled, weights)

    @property
    def num_bits(self) -> int:
        """k, the bits of a code."""
        return self.codebook.num_bits

    def code_logits(
        self,
        images: np.ndarray | Sequence[str | os.PathLike],
        skip: Callable[[int, InputError], None] | None = None,
    ) -> np.ndarray:
        """Computes f = F(x) P, whose signs are the codes.

        Args:
          images: uint8[N, H, W, 3], RGB; or N paths of image files. Images of another
            size than the network's are resized and cropped as in its evaluation.
          skip: called with the index of an image that is missing or damaged, and the error,
            instead of raising it; its code logits are NaN.

        Returns:
          float32[N, k].

        Raises:
          InputError: if an image is of another form, missing or damaged.
        """
        _check_images(images)
        logits = [np.zeros((0, self.num_bits), np.float32)]
        for pixels, readable in self._prepare(images, skip or _raise):
            count = len(pixels)
            padding = _padded(count, self._devices) - count
            pixels = np.pad(pixels, ((0, padding), (0, 0), (0, 0), (0, 0)))
            of_batch = np.asarray(self._code_logits(pixels))[:count]
            logits.append(np.where(readable[:, None], of_batch, np.float32(np.nan)))
        return np.concatenate(logits)

    def encode(self, images: np.ndarray | Sequence[str | os.PathLike]) -> np.ndarray:
        """Computes instance codes.

        Args:
          images: as in `code_logits`.

        Returns:
          uint32[N, ceil(k / 32)], packed; see `llc_jax.unpack`.
        """
        return np.asarray(packing.pack(self.code_logits(images)))

    def classify(
        self, images: np.ndarray | Sequence[str | os.PathLike], decoder: str = "mhd"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classifies images by their codes.

        Args:
          images: as in `code_logits`.
          decoder: a name that `llc_jax.decoders.make` takes.

        Returns:
          Labels int32[N], indices into `codebook.class_names` and -1 where the decoder
          rejects; and distances int32[N] to that class's code, in bits, -1 too where
          there is none.
        """
        decode = decoders.make(decoder, self.codebook)
        labels, distances = decode(self.code_logits(images))
        return np.asarray(labels), np.asarray(distances)

    def _prepare(
        self, images, skip: Callable[[int, InputError], None]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields at most _BATCH images each time, and which of them could be read.

        Those are uint8[b, size, size, 3], black where an image is skipped, and bool[b].
        """
        black = np.zeros((self._crop.size, self._crop.size, 3), np.uint8)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            for start in range(0, len(images), _BATCH):
                read = list(pool.map(self._read, images[start : start + _BATCH]))
                readable = np.array([isinstance(pixels, np.ndarray) for pixels in read])
                for row in np.flatnonzero(~readable):
                    skip(start + int(row), read[row])
                    read[row] = black
                yield np.stack(read), readable

    def _read(self, image: np.ndarray | str | os.PathLike) -> np.ndarray | InputError:
        """Returns uint8[size, size, 3], or the error of an image that cannot be read."""
        if isinstance(image, np.ndarray):
            return self._crop(image, "")
        path = pathlib.Path(image)
        try:
            return self._crop(read_image(path), str(path))
        except OSError as error:
            return InputError(f"Cannot read the image {path}: {error.strerror}.")
        except InputError as error:
            return error


def load(path: str | os.PathLike, num_bits: int | None = None) -> Model:
    """Loads a trained model.

    Args:
      path: a run's workdir, for its last stage; or a stage's folder in it.
      num_bits: use only the first so many bits, of a nested codebook; None for all.

    Raises:
      InputError: if there is no such run, it is not finished, it has no codes, or its first
        `num_bits` bits are not trained to be codes.
    """
    stage = find_stage(path)
    if stage.config.head["name"] == "linear":
        raise InputError(
            f"The stage {stage.name!r} of {stage.workdir} is a linear classifier: it has no codes."
        )
    codebook = stage.directory.load_codebook()
    if codebook is None:
        raise InputError(
            f"The stage {stage.name!r} of {stage.workdir} has no class codes: load a stage that "
            "has."
        )
    trained = sorted({*stage.run.prefixes, codebook.num_bits})
    if num_bits is not None and num_bits not in trained:
        raise InputError(
            f"num_bits is {' or '.join(map(str, trained))} for {stage.workdir}, not {num_bits}: "
            "only the numbers of bits in config.prefixes are trained to be codes."
        )
    return Model(stage, codebook if num_bits is None else codebook.prefix(num_bits))


def _raise(index: int, error: InputError) -> None:
    """Ends at the first image that cannot be read."""
    del index
    raise error


def _check_images(images) -> None:
    if isinstance(images, np.ndarray):
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
            raise InputError(
                f"Images are uint8[N, H, W, 3] or paths, not {images.dtype}{list(images.shape)}."
            )
    elif isinstance(images, str | os.PathLike):
        raise InputError(f"Give a list of paths, not the single path {images}.")


def _padded(count: int, devices: int) -> int:
    """Returns the batch size for `count` images: few different ones, so few compilations."""
    sizes = (devices * 2**power for power in itertools.count())
    return next(size for size in sizes if size >= count)
