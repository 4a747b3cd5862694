"""A trained model: images or embeddings -> codes -> classes."""

import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.data.stores import read_image
from llc_jax.data.transforms import Crop
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.experiment.config import RunConfig
from llc_jax.experiment.network import (
    build_network,
    input_size,
    load_weights,
    takes_embeddings,
)
from llc_jax.experiment.workdir import find_stage
from llc_jax.mesh import batch_sharding, make_mesh, replicated_sharding
from llc_jax.models.network import PureNetwork, Tree

# What a model encodes: pixels, paths, or embeddings.
Inputs = np.ndarray | Sequence[str | os.PathLike]


class Reader(Protocol):
    """Reads inputs for a network.

    Attributes:
      batch_size: inputs that the network takes at once, at most.
    """

    batch_size: int

    def check(self, inputs: Inputs) -> None:
        """Raises an InputError if the inputs are of another kind."""

    def read(self, inputs: Inputs, rows: slice) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns some of the inputs as the network takes them, and why which cannot be read."""


class Model:
    """An encoder and its codebook. Made by `load`, and by a fitted `llc_jax.LLC`.

    Its inputs are images, uint8[N, H, W, 3] in RGB or N paths of image files; those of another
    size than the network's are resized and cropped as in its evaluation. A network of
    embeddings takes those, float[N, d], of 16, 32 or 64 bits, in memory or mapped.

    Attributes:
      codebook: the class codes, with the names of the classes.
    """

    def __init__(self, codebook: Codebook, network: PureNetwork, weights: Tree, reader: Reader):
        mesh = make_mesh()
        replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
        self.codebook = codebook
        self._devices, self._reader = mesh.size, reader

        def code_logits(weights: Tree, inputs: jax.Array) -> jax.Array:
            output = network.evaluate(weights["params"], weights["batch_stats"], inputs)
            return output.code_logits[:, : codebook.num_bits]

        compiled = jit_network(
            code_logits, in_shardings=(replicated, batched), out_shardings=batched
        )
        self._code_logits = functools.partial(compiled, jax.device_put(weights, replicated))

    @property
    def num_bits(self) -> int:
        """k, the bits of a code."""
        return self.codebook.num_bits

    def code_logits(
        self, inputs: Inputs, skip: Callable[[int, InputError], None] | None = None
    ) -> np.ndarray:
        """Computes f = F(x) P, whose signs are the codes.

        Args:
          inputs: images or embeddings.
          skip: called with the index of an input that is missing or damaged, and the error,
            instead of raising it; its code logits are NaN.

        Returns:
          float32[N, k].

        Raises:
          InputError: if an input is of another form, missing or damaged.
        """
        self._reader.check(inputs)
        logits = np.empty((len(inputs), self.num_bits), np.float32)
        for rows, of_batch in self._batches(inputs, skip or _raise):
            logits[rows] = of_batch
        return logits

    def encode(self, inputs: Inputs) -> np.ndarray:
        """Computes instance codes.

        Args:
          inputs: images or embeddings.

        Returns:
          uint32[N, ceil(k / 32)], packed; see `llc_jax.unpack`.

        Raises:
          InputError: as `code_logits`.
        """
        self._reader.check(inputs)
        codes = np.empty((len(inputs), packing.num_words(self.num_bits)), np.uint32)
        for rows, of_batch in self._batches(inputs, _raise):
            codes[rows] = packing.pack(of_batch)
        return codes

    def classify(self, inputs: Inputs, decoder: str = "mhd") -> tuple[np.ndarray, np.ndarray]:
        """Classifies inputs by their codes.

        Args:
          inputs: images or embeddings.
          decoder: a name that `llc_jax.decoders.make` takes.

        Returns:
          Labels int32[N], indices into `codebook.class_names` and -1 where the decoder
          rejects; and distances int32[N] to that class's code, in bits, -1 too where
          there is none.

        Raises:
          InputError: as `code_logits`.
        """
        decode = decoders.make(decoder, self.codebook)
        labels, distances = decode(self.code_logits(inputs))
        return np.asarray(labels), np.asarray(distances)

    def detect_ood(self, inputs: Inputs, radius: int = 0) -> np.ndarray:
        """Tells which inputs are out-of-distribution: no class code is near theirs.

        Args:
          inputs: images or embeddings.
          radius: in bits. An input is unknown if the codes of all classes differ from its
            code in more bits.

        Returns:
          bool[N], True for an input that belongs to no class.

        Raises:
          InputError: as `code_logits`, or if the radius is not a whole number from 0.

        References:
          LLC, section 4.3 and appendix E, with radius 0; its introduction has radius 1.
        """
        labels, _ = decoders.make("radius", self.codebook, radius=radius)(self.encode(inputs))
        return np.asarray(labels) == decoders.REJECTED

    def _batches(
        self, inputs: Inputs, skip: Callable[[int, InputError], None]
    ) -> Iterator[tuple[slice, np.ndarray]]:
        """Yields the code logits of some inputs at a time, and which these are.

        Two threads take turns: one reads while the devices work for the other.
        """
        size = self._reader.batch_size
        starts = range(0, len(inputs), size)
        parts = [slice(start, min(start + size, len(inputs))) for start in starts]
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            computed = pool.map(functools.partial(self._of_batch, inputs), parts)
            for rows, (logits, errors) in zip(parts, computed, strict=True):
                for row, error in errors.items():
                    skip(rows.start + row, error)
                    logits[row] = np.nan
                yield rows, logits

    def _of_batch(self, inputs: Inputs, rows: slice) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns the code logits of some inputs, and what is wrong with which of them."""
        batch, errors = self._reader.read(inputs, rows)
        count = len(batch)
        padding = _padded(count, self._devices, self._reader.batch_size) - count
        if padding:
            batch = np.pad(batch, ((0, padding), *((0, 0),) * (batch.ndim - 1)))
        logits = np.array(self._code_logits(batch)[:count])
        for row in np.flatnonzero(~np.isfinite(logits).all(axis=1)):
            problem = f"The code logits of input {rows.start + row} are not finite: it has NaN or "
            errors.setdefault(int(row), InputError(problem + "inf, or too large numbers."))
        return logits, errors


@dataclasses.dataclass(frozen=True)
class ImageReader:
    """Reads images for a network.

    Attributes:
      crop: makes uint8[size, size, 3] of an image.
      batch_size: images that the network takes at once, at most.
    """

    crop: Crop
    batch_size: int = 256

    def check(self, images: np.ndarray | Sequence[str | os.PathLike]) -> None:
        """Raises an InputError unless these are pixels or paths."""
        if isinstance(images, np.ndarray):
            if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != np.uint8:
                raise InputError(
                    "Images are uint8[N, H, W, 3] or paths, not "
                    f"{images.dtype}{list(images.shape)}."
                )
        elif isinstance(images, str | os.PathLike):
            raise InputError(f"Give a list of paths, not the single path {images}.")

    def read(
        self,
        images: np.ndarray | Sequence[str | os.PathLike],
        rows: slice,
    ) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns some images, uint8[b, size, size, 3]; black is one that cannot be read."""
        with concurrent.futures.ThreadPoolExecutor() as pool:
            read = list(pool.map(self._read, images[rows]))
        errors = {row: image for row, image in enumerate(read) if isinstance(image, InputError)}
        for row in errors:
            read[row] = np.zeros((self.crop.size, self.crop.size, 3), np.uint8)
        return np.stack(read), errors

    def _read(self, image: np.ndarray | str | os.PathLike) -> np.ndarray | InputError:
        """Returns uint8[size, size, 3], or the error of an image that cannot be read."""
        if isinstance(image, np.ndarray):
            return self.crop(image, "")
        path = pathlib.Path(image)
        try:
            return self.crop(read_image(path), str(path))
        except OSError as error:
            return InputError(f"Cannot read the image {path}: {error.strerror}.")
        except InputError as error:
            return error


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

    def check(self, embeddings: np.ndarray) -> None:
        """Raises an InputError unless these are embeddings of the size."""
        kind, shape = getattr(embeddings, "dtype", None), getattr(embeddings, "shape", ())
        if kind is None or kind.kind != "f" or len(shape) != 2 or shape[1] != self.size:
            given = type(embeddings).__name__ if kind is None else f"{kind}{list(shape)}"
            raise InputError(f"Embeddings are float[N, {self.size}], not {given}.")

    def read(self, embeddings: np.ndarray, rows: slice) -> tuple[np.ndarray, dict[int, InputError]]:
        """Returns some embeddings, float32[b, d]."""
        return np.asarray(embeddings[rows], np.float32), {}


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
    network = build_network(stage.run, stage.config, codebook.num_classes)
    return Model(
        codebook if num_bits is None else codebook.prefix(num_bits),
        network,
        load_weights(stage.directory.checkpoints, network, replicated_sharding(make_mesh())),
        make_reader(stage.run),
    )


def make_reader(config: RunConfig) -> Reader:
    """Returns what reads the inputs of a run's network."""
    size, data = input_size(config), config.data
    if takes_embeddings(config):
        return EmbeddingReader(size, 1024 if jax.default_backend() == "cpu" else 4096)
    return ImageReader(Crop(size, data.crop_fraction, data.exif_orientation))


def _raise(index: int, error: InputError) -> None:
    """Ends at the first image that cannot be read."""
    del index
    raise error


def _padded(count: int, devices: int, largest: int) -> int:
    """Returns the batch size for `count` inputs: few different ones, so few compilations."""
    sizes = (devices * 2**power for power in itertools.count())
    return next(size for size in sizes if size >= min(count, largest))
