"""Search among many codes: exact, and always in the same order."""

import concurrent.futures
import os
import threading
from collections.abc import Callable

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.search import buckets, index_file, scan, sharded

# Queries that a thread takes at once, at most.
_PIECE = scan.GROUP


class HammingIndex:
    """Codes with ids, and the nearest of them to any query.

    What is found comes by distance, and where that is equal, in the order of insertion.
    An item takes 4 bytes for each 32 bits of its code, and 8 for its id. Short codes of
    many items (2^k up to 16 N) are also kept by their code, in 4 bytes an item and 4 for
    each of the 2^k codes. Several threads may search at once, while none adds or removes.

    Attributes:
      num_bits: k, the bits of a code.
    """

    def __init__(self, num_bits: int):
        self.num_bits = num_bits
        self._set(np.zeros((packing.num_words(num_bits), 0), np.uint32), np.zeros(0, np.int64))
        self._next_id = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of items."""
        return len(self._ids) + sum(len(ids) for _, ids in self._added)

    @property
    def ids(self) -> np.ndarray:
        """The ids of all items in the order of insertion, int64[N], not to be written."""
        return self._settled()[1]

    @property
    def codes(self) -> np.ndarray:
        """The codes of all items in that order, packed, uint32[N, ceil(k / 32)]."""
        return np.ascontiguousarray(self._settled()[0].T)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of the file that is mapped, for codes, ids and buckets."""
        arrays = [*self._settled(), *(self._buckets or ())]
        return sum(array.nbytes for array in arrays)

    def add(self, codes: np.ndarray | jax.Array, ids: np.ndarray | None = None) -> None:
        """Adds items after those that are there.

        Args:
          codes: uint32[N, ceil(k / 32)], as `llc_jax.pack` and `Model.encode` give them.
          ids: int64[N], all different and none in the index; by default running numbers,
            from 0 or from the one after the largest id there has been.

        Raises:
          InputError: if the codes have another form, or an id is there already.
        """
        codes = packing.checked(codes, self.num_bits)
        if ids is None:
            ids = np.arange(self._next_id, self._next_id + len(codes))
        ids = _checked_ids(ids)
        if len(ids) != len(codes):
            raise InputError(f"There are {len(codes):,} codes but {len(ids):,} ids.")
        if not len(ids):
            return
        # Running numbers need no look at those that are there.
        if ids[0] < self._next_id or not np.all(ids[1:] > ids[:-1]):
            self._refuse_known(ids)
        self._added.append((np.array(codes.T, order="C"), ids))
        self._next_id = max(self._next_id, int(ids.max()) + 1)

    def remove(self, ids: np.ndarray) -> None:
        """Removes items; the order of the others stays.

        Args:
          ids: int64[M]; what is named twice is removed once.

        Raises:
          InputError: if one of them is not in the index; then nothing is removed.
        """
        ids = np.unique(_checked_ids(ids))
        columns, own = self._settled()
        known = np.isin(ids, own)
        if not known.all():
            raise InputError(f"There is no item with the id {ids[~known][0]} in the index.")
        kept = np.isin(own, ids, invert=True)
        self._set(np.ascontiguousarray(columns[:, kept]), own[kept])

    def search(self, queries: np.ndarray | jax.Array, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of each query.

        Args:
          queries: packed codes, uint32[Q, ceil(num_bits / 32)].
          k: how many to find.

        Returns:
          Distances in bits, int32[Q, k], and ids, int64[Q, k], by (distance, insertion);
          both -1 where there are fewer items than k.

        Raises:
          InputError: if the queries have another form, or k is less than 1.
        """
        queries = self._queries(queries)
        columns, ids = self._settled()
        distances, found = sharded.empty_answers(len(queries), k)
        answered = np.zeros(len(queries), np.bool_)
        table = self._table()

        def look_up(part: slice) -> None:
            buckets.nearest(
                table.starts, table.places, self.num_bits, ids, queries[part, 0],
                distances[part], found[part], answered[part],
            )  # fmt: skip

        if table is not None:
            _in_threads(look_up, len(queries))
        rest = np.flatnonzero(~answered)
        _in_threads(
            lambda part: scan.nearest(columns, ids, queries, rest[part], distances, found),
            len(rest),
        )
        return distances, found

    def range_search(
        self, queries: np.ndarray | jax.Array, radius: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds all items within a distance of each query.

        Args:
          queries: packed codes, uint32[Q, ceil(k / 32)].
          radius: the largest distance, in bits.

        Returns:
          Offsets int64[Q + 1], distances int32[M] and ids int64[M]: what query q has found
          is at offsets[q] .. offsets[q + 1] - 1, by (distance, insertion).

        Raises:
          InputError: if the queries have another form, or the radius is negative.
        """
        if radius < 0:
            raise InputError(f"A radius is at least 0 bits, not {radius}.")
        queries = self._queries(queries)
        columns, ids = self._settled()
        levels = np.zeros((len(queries), min(int(radius), self.num_bits) + 1), np.int64)
        _in_threads(
            lambda part: scan.count_within(columns, queries[part], levels[part]), len(queries)
        )
        ends = np.cumsum(levels).reshape(levels.shape)
        slots = ends - levels
        offsets = np.concatenate([[0], ends[:, -1]])
        distances, found = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
        _in_threads(
            lambda part: scan.write_within(
                columns, ids, queries[part], slots[part], distances, found
            ),
            len(queries),
        )
        return offsets, distances, found

    def shard(self, mesh: jax.sharding.Mesh) -> sharded.ShardedIndex:
        """Spreads what is in the index over the devices of a mesh, to be searched there."""
        return sharded.ShardedIndex(mesh, self.num_bits, self.codes, self.ids)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index to a file; the same items give the same bytes.

        Raises:
          InputError: if the file cannot be written.
        """
        columns, ids = self._settled()
        content = index_file.Content(self.num_bits, self._next_id, columns, ids)
        index_file.write(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike, verify: bool = True) -> "HammingIndex":
        """Opens a saved index. It is mapped into memory, and copied when it is added to.

        Args:
          path: what `save` wrote.
          verify: read all of it first, and compare its checksum. Without, only its header
            and its size are looked at.

        Raises:
          InputError: if there is no such file, it is truncated or damaged, is something
            else, or was written by a newer version.
        """
        content = index_file.read(path, verify)
        index = cls(content.num_bits)
        index._set(content.columns, content.ids)
        index._next_id = content.next_id
        return index

    def _queries(self, queries: np.ndarray | jax.Array) -> np.ndarray:
        """Returns queries in the one form that is compiled for."""
        queries = np.ascontiguousarray(packing.checked(queries, self.num_bits)).view()
        queries.flags.writeable = False
        return queries

    def _refuse_known(self, ids: np.ndarray) -> None:
        """Raises InputError if ids repeat each other, or those in the index."""
        different, counts = np.unique(ids, return_counts=True)
        if len(different) < len(ids):
            raise InputError(f"The id {different[counts > 1][0]} is given more than once.")
        known = different[np.isin(different, self._settled()[1])]
        if len(known):
            raise InputError(f"There is an item with the id {known[0]} in the index already.")

    def _set(self, columns: np.ndarray, ids: np.ndarray) -> None:
        """Makes these all that is in the index."""
        # Numba compiles once for what may not be written, and what is mapped never may.
        columns.flags.writeable = ids.flags.writeable = False
        self._columns, self._ids = columns, ids
        self._added: list[tuple[np.ndarray, np.ndarray]] = []
        self._buckets: buckets.Buckets | None = None

    def _settled(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the codes by words, uint32[W, N], and ids, with what was added last."""
        with self._lock:
            if self._added:
                columns, ids = zip((self._columns, self._ids), *self._added, strict=True)
                self._set(np.concatenate(columns, axis=1), np.concatenate(ids))
            return self._columns, self._ids

    def _table(self) -> buckets.Buckets | None:
        """Returns the items by their code, made once; None where that does not pay."""
        columns, ids = self._settled()
        with self._lock:
            if self._buckets is None and buckets.pay(self.num_bits, len(ids)):
                self._buckets = buckets.build(columns[0], self.num_bits)
            return self._buckets


def _checked_ids(ids: np.ndarray) -> np.ndarray:
    """Returns ids as int64[N]."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or (len(ids) and not np.can_cast(ids.dtype, np.int64)):
        raise InputError(f"Ids are int64[N], not {ids.dtype}{list(ids.shape)}.")
    ids = ids.astype(np.int64)
    if np.any(ids == -1):
        raise InputError("-1 stands for no item and cannot be an id.")
    return ids


def _in_threads(work: Callable[[slice], None], count: int) -> None:
    """Does the work for parts of `count` queries, on all cores."""
    cores = os.cpu_count() or 1
    size = max(1, min(-(-count // cores), _PIECE))
    parts = [slice(start, min(start + size, count)) for start in range(0, count, size)]
    if len(parts) <= 1:
        for part in parts:
            work(part)
        return
    with concurrent.futures.ThreadPoolExecutor(cores) as pool:
        for _ in pool.map(work, parts):
            pass
