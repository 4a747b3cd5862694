"""Vectors as examples: rows of arrays in memory or in mapped files, read in batches."""

import contextlib
import dataclasses
import functools
import mmap
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from llc_jax.data.pipeline import Batch, Images, Order, ProcessShard
from llc_jax.data.sources import Source
from llc_jax.errors import InputError

# Rows of a file that identify it.
_SAMPLED = 64


@dataclasses.dataclass(frozen=True)
class Shard:
    """The vectors of one file.

    Attributes:
      path: of the file.
      array: float[n, d], in memory or mapped.
      is_mapped: whether the array is read from the file as it is used.
    """

    path: pathlib.Path
    array: np.ndarray
    is_mapped: bool

    @functools.cached_property
    def _state(self) -> tuple[int, int, int]:
        return _state(self.path)

    def __post_init__(self):
        """Notes the state of the file as it is opened."""
        if self.is_mapped:
            self.check()
            if self.array.size:
                # Else the system reads what lies around each row too, which shuffling wastes.
                self.array.base.madvise(mmap.MADV_RANDOM)

    def __reduce__(self):
        """Pickles the place of a mapped array, and not the array."""
        if not self.is_mapped:
            return Shard, (self.path, self.array, False)
        array = self.array
        order = "C" if array.flags.c_contiguous else "F"
        place = (array.dtype.str, "r", array.offset, array.shape, order)
        return _map_again, (self.path, self._state, place)

    def read(self, rows: np.ndarray) -> np.ndarray:
        """Returns some rows, in ascending order.

        Raises:
          InputError: as `check`.
        """
        self.check()
        if self.is_mapped and self.array.flags.c_contiguous:
            self._read_ahead(rows)
        return self.array[rows]

    def _read_ahead(self, rows: np.ndarray) -> None:
        """Asks the system for the pages of all rows at once, so that none is waited for alone."""
        start = self.array.offset % mmap.ALLOCATIONGRANULARITY
        size, page = self.array.strides[0], mmap.PAGESIZE
        first = (start + rows * size) // page
        last = (start + (rows + 1) * size - 1) // page
        breaks = np.flatnonzero(first[1:] > last[:-1] + 1) + 1
        starts = first[np.concatenate([[0], breaks])] * page
        ends = (last[np.concatenate([breaks - 1, [len(rows) - 1]])] + 1) * page
        with contextlib.suppress(OSError):  # The rows can be read without it.
            for start, length in zip(starts.tolist(), (ends - starts).tolist(), strict=True):
                self.array.base.madvise(mmap.MADV_WILLNEED, start, length)

    def check(self) -> None:
        """Raises an InputError if the file has changed since it was opened, or is gone.

        Reading a mapped file that has become shorter would kill the process.
        """
        if self.is_mapped:
            _check(self.path, self._state)


def _map_again(path: pathlib.Path, state: tuple[int, int, int], place: tuple) -> Shard:
    """Returns a pickled shard, if its file is still what it was."""
    _check(path, state)
    return Shard(path, np.memmap(path, *place), is_mapped=True)


def _check(path: pathlib.Path, before: tuple[int, int, int]) -> None:
    """Raises an InputError if a file is not in the state that it was in before."""
    try:
        changed = before != _state(path)
    except OSError as error:
        raise InputError(
            f"The embeddings in {path} cannot be read any more ({error.strerror}): put the file "
            "back, and the same command continues."
        ) from error
    if changed:
        raise InputError(
            f"{path} has changed since it was opened: the embeddings of a run must stay as they "
            "are."
        )


def _state(path: pathlib.Path) -> tuple[int, int, int]:
    """Returns what changes when a file is replaced, written to or cut off."""
    status = os.stat(path)
    return status.st_ino, status.st_size, status.st_mtime_ns


class RowNames(Sequence):
    """The names of rows of shards, `FILE[ROW]`, made as they are asked for."""

    def __init__(self, shards: Sequence[Shard], rows: np.ndarray):
        self._files = [shard.path.name for shard in shards]
        self._ends = np.cumsum([len(shard.array) for shard in shards])
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        row = int(self._rows[index])
        shard = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self._files[shard]}[{row - (self._ends[shard - 1] if shard else 0)}]"


@dataclasses.dataclass(frozen=True)
class VectorSource(Source):
    """N labelled vectors: rows of shards.

    Attributes:
      shards: files with vectors of one size.
      rows: int64[N], rows of the shards taken together.
      labels: int32[N], indices into `class_names`.
      class_names: L names.
      origin: the file or folder that was opened.
    """

    shards: tuple[Shard, ...]
    rows: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    origin: str

    @property
    def names(self) -> RowNames:
        """N names, `FILE[ROW]`."""
        return RowNames(self.shards, self.rows)

    @property
    def size(self) -> int:
        """d, the numbers of a vector."""
        return self.shards[0].array.shape[1]

    def read(self, index: int) -> np.ndarray:
        """Returns a vector, float32[d]."""
        return self.gather(np.array([index]))[0]

    def select(self, indices: np.ndarray) -> "VectorSource":
        """Returns the source of the vectors at `indices`, in that order."""
        return dataclasses.replace(self, rows=self.rows[indices], labels=self.labels[indices])

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the vectors: the forms of the files, and samples of them."""
        for shard in self.shards:
            array = shard.array
            yield f"{shard.path.name} {array.shape} {array.dtype.str}".encode()
            sampled = np.unique(np.linspace(0, len(array) - 1, _SAMPLED).astype(int))
            yield np.ascontiguousarray(array[sampled]).tobytes()
        yield self.rows.astype("<i8").tobytes()
        yield self.labels.astype("<i4").tobytes()

    def gather(self, indices: np.ndarray) -> np.ndarray:
        """Returns some of the vectors, float32[n, d].

        Raises:
          InputError: if one has NaN or inf, or a mapped file has changed.
        """
        rows = self.rows[indices]
        vectors = np.empty((len(rows), self.size), np.float32)
        ends = np.cumsum([len(shard.array) for shard in self.shards])
        shard_of = np.searchsorted(ends, rows, side="right")
        for number in np.unique(shard_of):
            shard, within = self.shards[number], np.flatnonzero(shard_of == number)
            local = rows[within] - (ends[number] - len(shard.array))
            order = np.argsort(local)  # Neighbours in the file are read together.
            with np.errstate(over="ignore"):
                vectors[within[order]] = shard.read(local[order])
        bad = np.flatnonzero(~np.isfinite(vectors).all(axis=1))
        if len(bad):
            raise InputError(
                f"The embedding {self.names[indices[bad[0]]]} of {self.origin} has NaN, inf or "
                "numbers too large for float32: remove it, or repair it."
            )
        return vectors


@dataclasses.dataclass(frozen=True)
class Vectors(Images):
    """Vectors in batches.

    Attributes:
      source: where they are read.
      damaged: empty: a vector that is not finite is an error.
    """

    source: VectorSource
    damaged: set[int] = dataclasses.field(default_factory=set)

    @property
    def labels(self) -> np.ndarray:
        """int32[N]."""
        return self.source.labels

    def batches(self, order: Order, shard: ProcessShard, steps: range) -> Iterator[Batch]:
        """Yields this process's shard of the batch of each step.

        Raises:
          InputError: as `VectorSource.gather`.
        """
        for step in steps:
            examples = order(shard.positions(step))
            mask = examples >= 0
            vectors = np.zeros((len(examples), self.source.size), np.float32)
            vectors[mask] = self.source.gather(examples[mask])
            labels = np.where(mask, self.labels[examples], 0).astype(np.int32)
            yield {"input": vectors, "label": labels, "mask": mask}

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the vectors."""
        return self.source.identity()
