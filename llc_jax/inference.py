"""A trained model: images or embeddings -> codes -> classes."""

import collections
import concurrent.futures
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.data.prefetch import ReadersFailed
from llc_jax.data.readers import EmbeddingReader, ImageReader, Inputs, Reader
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

# Batches that are read, or computed, at the same time, and those that wait for their turn.
_AT_ONCE, _AHEAD = 2, 4
# Seconds after which a batch that does not come is an error.
_PATIENCE = 600.0


class Part(NamedTuple):
    """Code logits of some inputs of a group.

    Attributes:
      group: what the group was called.
      rows: which inputs of the group.
      code_logits: float32[b, k]; those of an input with an error are NaN.
      errors: of the inputs that cannot be read or encoded, by their index in the group.
    """

    group: Any
    rows: slice
    code_logits: np.ndarray
    errors: dict[int, InputError]


class Model:
    """An encoder and its codebook. Made by `load`, and by a fitted `llc_jax.LLC`.

    Its inputs are images, uint8[N, H, W, 3] in RGB or N paths of image files; those of another
    size than the network's are resized and cropped as in its evaluation. A network of
    embeddings takes those, float[N, d], of 16, 32 or 64 bits, in memory or mapped.

    Attributes:
      codebook: the class codes, with the names of the classes.
      weights: of the network, a tree on the devices.
      network_logits: (weights, inputs) -> code logits, float32[b, k]; pure.
    """

    def __init__(self, codebook: Codebook, network: PureNetwork, weights: Tree, reader: Reader):
        mesh = make_mesh()
        replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
        self.codebook = codebook
        self._devices, self._reader = mesh.size, reader

        def network_logits(weights: Tree, inputs: jax.Array) -> jax.Array:
            output = network.evaluate(weights["params"], weights["batch_stats"], inputs)
            return output.code_logits[:, : codebook.num_bits]

        compiled = jit_network(
            network_logits, in_shardings=(replicated, batched), out_shardings=batched
        )
        self.weights, self.network_logits = jax.device_put(weights, replicated), network_logits
        self._code_logits = functools.partial(compiled, self.weights)

    @property
    def num_bits(self) -> int:
        """k, the bits of a code."""
        return self.codebook.num_bits

    @property
    def kind(self) -> str:
        """What it takes, `images` or `embeddings`."""
        return self._reader.kind

    def digest(self) -> str:
        """Returns what identifies the model, 64 hexadecimal digits: models that make the same
        codes have the same digest, wherever they are.
        """
        digest = hashlib.sha256(repr(self._reader).encode())
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.weights):
            digest.update(f"{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}".encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        digest.update(np.ascontiguousarray(self.codebook.packed, "<u4").tobytes())
        digest.update("\0".join(self.codebook.class_names).encode())
        return digest.hexdigest()

    def check(self, inputs: Inputs) -> None:
        """Raises an InputError if inputs are not of the form that the model takes."""
        self._reader.check(inputs)

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
        self.check(inputs)
        logits = np.empty((len(inputs), self.num_bits), np.float32)
        for part in self.stream([(None, inputs)]):
            for row, error in part.errors.items():
                (skip or _raise)(row, error)
            logits[part.rows] = part.code_logits
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
        self.check(inputs)
        codes = np.empty((len(inputs), packing.num_words(self.num_bits)), np.uint32)
        for part in self.stream([(None, inputs)]):
            for row, error in part.errors.items():
                _raise(row, error)
            codes[part.rows] = packing.pack_on_host(part.code_logits)
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

    def stream(self, groups: Iterable[tuple[Any, Inputs]]) -> Iterator[Part]:
        """Yields the code logits of one group of inputs after the other, some at a time.

        Two threads take turns: one reads while the devices work for the other. A group is taken
        when the devices come to it, so there may be more of them than fit into memory.

        Args:
          groups: pairs of any name for a group, and its images or embeddings.

        Raises:
          InputError: if the inputs of a group are of another form.
          ReadersFailed: if a batch does not come in ten minutes.
        """
        pending = collections.deque()
        pool = concurrent.futures.ThreadPoolExecutor(_AT_ONCE)
        try:
            for group, inputs, rows in self._parts(groups):
                future = pool.submit(self._of_batch, inputs, rows)
                pending.append((group, inputs, rows, future))
                if len(pending) > _AHEAD:
                    yield _finish(*pending.popleft())
            while pending:
                yield _finish(*pending.popleft())
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _parts(self, groups: Iterable[tuple[Any, Inputs]]) -> Iterator[tuple[Any, Inputs, slice]]:
        """Yields the groups again, in parts of at most a batch."""
        size = self._reader.batch_size
        for group, inputs in groups:
            self.check(inputs)
            for start in range(0, len(inputs), size):
                yield group, inputs, slice(start, min(start + size, len(inputs)))

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
        logits[list(errors)] = np.nan
        return logits, {rows.start + row: error for row, error in errors.items()}


def load(path: str | os.PathLike, num_bits: int | None = None) -> Model:
    """Loads a trained model.

    Args:
      path: a run's workdir, for its last stage; or a stage's folder in it.
      num_bits: use only the first so many bits, of a nested codebook; None for all.

    Raises:
      InputError: if there is no such run, it is not finished, it has no codes, or its first
        `num_bits` bits are not trained to be codes.

    Example:
      >>> model = llc_jax.load("runs/photos")
      >>> codes = model.encode(images)  # uint8[N, H, W, 3], or N paths of image files
      >>> labels, distances = model.classify(images)
      >>> names = [model.codebook.class_names[label] for label in labels]
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


def _finish(group: Any, inputs: Inputs, rows: slice, future: concurrent.futures.Future) -> Part:
    """Waits for a part of a group."""
    try:
        return Part(group, rows, *future.result(_PATIENCE))
    except concurrent.futures.TimeoutError:
        first = f"{inputs[rows.start]}" if not isinstance(inputs, np.ndarray) else rows.start
        raise ReadersFailed(
            f"Reading has stalled: the inputs from {first} on have not come within "
            f"{_PATIENCE:.0f} s; the storage may hang. The same command begins again."
        ) from None


def _padded(count: int, devices: int, largest: int) -> int:
    """Returns the batch size for `count` inputs: few different ones, so few compilations."""
    sizes = (devices * 2**power for power in itertools.count())
    return next(size for size in sizes if size >= min(count, largest))
