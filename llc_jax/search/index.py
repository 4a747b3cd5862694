"""Search among many codes: exact, and always in the same order."""

import os
import threading

import jax
import numpy as np

from llc_jax.codes import hamming, packing
from llc_jax.errors import InputError
from llc_jax.search import buckets, index_file, rescoring, scan, sharded
from llc_jax.search.threads import in_threads


class HammingIndex:
    """Codes with ids, and the nearest of them to any query.

    Results come by distance, and where that is equal, in the order of insertion. An item
    takes 4 bytes for each 32 bits of its code, and 8 for its id. Short codes of many items
    (2^k up to 16 N) also have a table of buckets, 4 bytes an item and 4 for each of the 2^k
    codes. Several threads may search at once, while none adds or removes.

    Attributes:
      num_bits: k, the bits of a code.

    Example:
      >>> index = llc_jax.HammingIndex(num_bits=4)
      >>> index.add(np.array([[0b0000], [0b0011], [0b0111]], np.uint32), ids=np.array([7, 8, 9]))
      >>> distances, ids = index.search(np.array([[0b0001]], np.uint32), k=2)
      >>> distances, ids
      (array([[1, 1]], dtype=int32), array([[7, 8]]))
    """

    def __init__(self, num_bits: int):
        self.num_bits = num_bits
        words = packing.num_words(num_bits)
        self._set_items(np.zeros((words, 0), np.uint32), np.zeros(0, np.int64))
        self._next_id = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        """The number of items."""
        return len(self._ids) + sum(len(ids) for _, ids in self._pending)

    @property
    def ids(self) -> np.ndarray:
        """The ids of all items in the order of insertion, int64[N], not to be written."""
        return self._merged_items()[1]

    @property
    def codes(self) -> np.ndarray:
        """The codes of all items in that order, packed, uint32[N, ceil(k / 32)]."""
        return np.ascontiguousarray(self._merged_items()[0].T)

    @property
    def nbytes(self) -> int:
        """Bytes of memory, or of the file that is mapped, for codes, ids and buckets."""
        arrays = [*self._merged_items(), *(self._buckets or ())]
        return sum(array.nbytes for array in arrays)

    def add(self, codes: np.ndarray | jax.Array, ids: np.ndarray | None = None) -> None:
        """Adds items after those that are in the index.

        Args:
          codes: uint32[N, ceil(k / 32)], as `llc_jax.pack` and `Model.encode` give them.
          ids: int64[N], all different and none in the index; by default running numbers,
            from 0 or from the one after the largest id there has been.

        Raises:
          InputError: if the codes have another form, or an id is in the index already.
        """
        codes = packing.checked(codes, self.num_bits)
        if ids is None:
            ids = np.arange(self._next_id, self._next_id + len(codes))
        ids = _checked_ids(ids)
        if len(ids) != len(codes):
            raise InputError(f"There are {len(codes):,} codes but {len(ids):,} ids.")
        if not len(ids):
            return
        # Ascending ids from the next one on are all new: the others need no search.
        if ids[0] < self._next_id or not np.all(ids[1:] > ids[:-1]):
            self._check_new(ids)
        self._pending.append((np.array(codes.T, order="C"), ids))
        self._next_id = max(self._next_id, int(ids.max()) + 1)

    def remove(self, ids: np.ndarray) -> None:
        """Removes items; the order of the others stays.

        Args:
          ids: int64[M]; one that is given twice is removed once.

        Raises:
          InputError: if one of them is not in the index; then nothing is removed.
        """
        ids = np.unique(_checked_ids(ids))
        columns, item_ids = self._merged_items()
        present = np.isin(ids, item_ids)
        if not present.all():
            raise InputError(f"There is no item with the id {ids[~present][0]} in the index.")
        kept = np.isin(item_ids, ids, invert=True)
        self._set_items(np.ascontiguousarray(columns[:, kept]), item_ids[kept])

    def search(self, queries: np.ndarray | jax.Array, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of each query.

        Args:
          queries: packed codes, uint32[Q, ceil(num_bits / 32)].
          k: how many to find.

        Returns:
          Distances in bits, int32[Q, k], and ids, int64[Q, k], by (distance, insertion);
          both -1 where there are fewer items than k.

        Raises:
          InputError: if the queries have another form, k is not a whole number from 1, or
            so many results do not fit into memory.
        """
        distances, rows = self._nearest_rows(queries, k)
        scan.rows_to_ids(rows, self._merged_items()[1])
        return distances, rows

    def rescore(
        self,
        code_logits: np.ndarray | jax.Array,
        k: int = 10,
        oversample: int = 4,
        vectors: np.ndarray | None = None,
        query_vectors: np.ndarray | jax.Array | None = None,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds k * oversample items by bits, and of these the first k by inner products.

        The score of an item is the inner product of the query's code logits with the item's
        bits as +1 and -1. Where vectors are given, it is that of the query's vector with the
        item's; scale both to length 1 for the cosine.

        Args:
          code_logits: float[Q, num_bits], as `Model.code_logits` gives them; their signs are
            the codes that are searched for.
          k: how many to find.
          oversample: the shortlist is so many times as long. With one as long as the index,
            the order is that of the scores of all items.
          vectors: float[N, d], of all items in the order of `ids`; taken as float32. Of an
            array that is mapped into memory, only the rows of the shortlist are read.
          query_vectors: float[Q, d], together with `vectors`.

        Returns:
          Distances in bits, int32[Q, k], ids, int64[Q, k], and scores, float32[Q, k], by
          (descending score, distance, insertion); -1, -1 and -inf where there are fewer
          items than k. Beside these, it takes at most about 400 MiB of memory for any number
          of queries, or 64 bytes an item where one shortlist alone needs more; vectors take
          16 MiB more for each core.

        Raises:
          InputError: as `search` does; if the logits or vectors have another form, another
            number or are not finite, or oversample is not a whole number from 1.
        """
        code_logits = rescoring.checked_numbers(code_logits, "Code logits", self.num_bits)
        columns, item_ids = self._merged_items()
        return rescoring.rescore(
            self._nearest_rows, columns, item_ids,
            code_logits, k, oversample, vectors, query_vectors,
        )  # fmt: skip

    def _nearest_rows(self, queries: np.ndarray, top: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the distances and rows of the nearest items, int32 and int64[Q, top]."""
        queries = self._checked_queries(queries)
        columns, _ = self._merged_items()
        distances, rows = sharded.empty_results(len(queries), top)
        answered = np.zeros(len(queries), np.bool_)
        table = self._bucket_table()

        def probe(batch: slice) -> None:
            buckets.nearest(
                table.starts, table.rows, self.num_bits, queries[batch, 0],
                distances[batch], rows[batch], answered[batch],
            )  # fmt: skip

        if table is not None:
            in_threads(probe, len(queries))
        remaining = np.flatnonzero(~answered)
        in_threads(
            lambda batch: scan.nearest(columns, queries, remaining[batch], distances, rows),
            len(remaining),
        )
        return distances, rows

    def range_search(
        self, queries: np.ndarray | jax.Array, radius: int
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds all items within a distance of each query.

        Args:
          queries: packed codes, uint32[Q, ceil(k / 32)].
          radius: the largest distance, in bits.

        Returns:
          Offsets int64[Q + 1], distances int32[M] and ids int64[M]: the results of query q
          are at offsets[q] .. offsets[q + 1] - 1, by (distance, insertion).

        Raises:
          InputError: if the queries have another form, or the radius is not a whole number
            from 0.
        """
        hamming.check_radius(radius)
        queries = self._checked_queries(queries)
        columns, item_ids = self._merged_items()
        histograms = np.zeros((len(queries), min(int(radius), self.num_bits) + 1), np.int64)
        in_threads(
            lambda batch: scan.count_within(columns, queries[batch], histograms[batch]),
            len(queries),
        )
        ends = np.cumsum(histograms).reshape(histograms.shape)
        slots = ends - histograms
        offsets = np.concatenate([[0], ends[:, -1]])
        distances, ids = np.empty(offsets[-1], np.int32), np.empty(offsets[-1], np.int64)
        in_threads(
            lambda batch: scan.write_within(
                columns, item_ids, queries[batch], slots[batch], distances, ids
            ),
            len(queries),
        )
        return offsets, distances, ids

    def shard(self, mesh: jax.sharding.Mesh) -> sharded.ShardedIndex:
        """Copies the items to the devices of a mesh, a shard to each, to be searched there."""
        return sharded.ShardedIndex(mesh, self.num_bits, self.codes, self.ids)

    def save(self, path: str | os.PathLike) -> None:
        """Writes the index to a file; the same items give the same bytes.

        Raises:
          WriteFailed: if the file cannot be written.
        """
        columns, ids = self._merged_items()
        content = index_file.Content(self.num_bits, self._next_id, columns, ids)
        index_file.write(path, content)

    @classmethod
    def load(cls, path: str | os.PathLike, verify: bool = True) -> "HammingIndex":
        """Opens a saved index: maps it into memory; adding to it copies it.

        Args:
          path: what `save` wrote.
          verify: read all of it first, and compare its checksum. Without, only its header,
            its size and the last word of each code are checked.

        Raises:
          InputError: if there is no such file, it is truncated or damaged, is something
            else, or was written by a newer version.
        """
        content = index_file.read(path, verify)
        index = cls(content.num_bits)
        index._set_items(content.columns, content.ids)
        index._next_id = content.next_id
        return index

    def _checked_queries(self, queries: np.ndarray | jax.Array) -> np.ndarray:
        """Returns queries in the one layout that the kernels are compiled for."""
        queries = np.ascontiguousarray(packing.checked(queries, self.num_bits)).view()
        queries.flags.writeable = False
        return queries

    def _check_new(self, ids: np.ndarray) -> None:
        """Raises InputError if an id is repeated, or in the index."""
        unique, counts = np.unique(ids, return_counts=True)
        if len(unique) < len(ids):
            raise InputError(f"The id {unique[counts > 1][0]} is given more than once.")
        present = unique[np.isin(unique, self._merged_items()[1])]
        if len(present):
            raise InputError(f"There is an item with the id {present[0]} in the index already.")

    def _set_items(self, columns: np.ndarray, ids: np.ndarray) -> None:
        """Replaces all items of the index."""
        # Mapped arrays are read-only: making all so lets Numba compile for one type.
        columns.flags.writeable = ids.flags.writeable = False
        self._columns, self._ids = columns, ids
        self._pending: list[tuple[np.ndarray, np.ndarray]] = []
        self._buckets: buckets.Buckets | None = None

    def _merged_items(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns the codes by words, uint32[W, N], and ids; merges pending additions first."""
        with self._lock:
            if self._pending:
                columns, ids = zip((self._columns, self._ids), *self._pending, strict=True)
                self._set_items(np.concatenate(columns, axis=1), np.concatenate(ids))
            return self._columns, self._ids

    def _bucket_table(self) -> buckets.Buckets | None:
        """Returns the buckets, built once; None where they are not worthwhile."""
        columns, ids = self._merged_items()
        with self._lock:
            if self._buckets is None and buckets.worthwhile(self.num_bits, len(ids)):
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
