"""Rankings of a database of packed codes, by Hamming distance, on the host.

All that the metrics need of a query comes from three passes over one small number an
item, compiled by Numba: distances are counted, and by the counts every item near enough
has its rank. Nothing is sorted, and memory grows with the queries or with the database,
not with both.
"""

import concurrent.futures
import os
from typing import NamedTuple, Protocol

import numba
import numpy as np

from llc_jax.codes.popcount import popcount

# Queries that a thread ranks in one call.
_PIECE = 16


class Ranking(NamedTuple):
    """What Q queries find in a database. Items at one distance are a group of ties.

    Attributes:
      items: int32[Q, G], how many items are in each group, the nearest group first. A
        group may be empty, and groups that begin after rank K may be missing.
      relevant: int32[Q, G], how many of them are relevant.
      first: bool[Q, min(K, N)], whether what stands at each rank is relevant, ties in the
        order of the database; False beyond its end.
      total_relevant: int32[Q], the relevant items of the database.
      size: int32[Q], the items of the database, less the one that a query leaves out.
    """

    items: np.ndarray
    relevant: np.ndarray
    first: np.ndarray
    total_relevant: np.ndarray
    size: np.ndarray


class Search(Protocol):
    """A database of N labelled items that can be ranked for queries.

    Attributes:
      by_bits: whether group d of a ranking is what is at d bits.
    """

    by_bits: bool

    def rank(self, queries: np.ndarray, labels: np.ndarray, exclude: np.ndarray, k: int) -> Ranking:
        """Ranks the database for some queries.

        Args:
          queries: [Q, ...].
          labels: int32[Q]; relevant is what has the query's label.
          exclude: int64[Q], the item that is left out for each query, -1 for none.
          k: how many ranks are told one by one.
        """


class HammingSearch(Search):
    """Codes ranked by Hamming distance.

    Args:
      codes: uint32[N, ceil(num_bits / 32)].
      labels: int32[N].
      num_bits: k.
    """

    by_bits = True

    def __init__(self, codes: np.ndarray, labels: np.ndarray, num_bits: int):
        assert codes.shape[0] == len(labels)
        assert codes.dtype == np.uint32
        self._columns = np.array(codes.T, order="C")
        self._labels = labels.astype(np.int32)
        self._num_bits = num_bits

    def rank(self, queries: np.ndarray, labels: np.ndarray, exclude: np.ndarray, k: int) -> Ranking:
        """Ranks the database for uint32[Q, W] queries; see `Search`."""
        assert queries.shape == (len(labels), len(self._columns))
        assert exclude.shape == labels.shape
        count, size = len(labels), len(self._labels)
        items = np.empty((count, self._num_bits + 1), np.int32)
        relevant = np.empty_like(items)
        first = np.zeros((count, min(k, size)), bool)
        queries = np.array(queries)  # What JAX gives cannot be written to: another type for Numba.
        labels, exclude = labels.astype(np.int32), exclude.astype(np.int64)

        def rank_some(start: int) -> None:
            part = slice(start, start + _PIECE)
            found = items[part], relevant[part], first[part]
            _rank(queries[part], labels[part], exclude[part], self._columns, self._labels, *found)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(rank_some, range(0, count, _PIECE)))
        sizes = (size - (exclude >= 0)).astype(np.int32)
        return Ranking(items, relevant, first, relevant.sum(axis=1, dtype=np.int32), sizes)


@numba.njit(nogil=True)
def _rank(queries, labels, exclude, columns, database_labels, items, relevant, first):
    """Fills the last three, as `Ranking` has them, for some queries."""
    size, ranks, distances = columns.shape[1], first.shape[1], items.shape[1]
    keys = np.empty(size, np.uint16)
    # Increments of one counter in a row wait for each other: there are two of each.
    counts = np.empty((2, 2 * distances + 1), np.int32)
    next_rank = np.empty(distances, np.int64)
    for row in range(len(queries)):
        _fill_keys(keys, queries[row], labels[row], columns, database_labels)
        if exclude[row] >= 0:
            keys[exclude[row]] = 2 * distances
        counts[:] = 0
        for index in range(0, size - 1, 2):
            counts[0, keys[index]] += 1
            counts[1, keys[index + 1]] += 1
        if size % 2:
            counts[0, keys[size - 1]] += 1
        before, last = 0, 0
        for distance in range(distances):
            key = 2 * distance
            relevant[row, distance] = counts[0, key + 1] + counts[1, key + 1]
            items[row, distance] = counts[0, key] + counts[1, key] + relevant[row, distance]
            next_rank[distance] = before
            if before < ranks:
                last = key + 1
            before += items[row, distance]
        for index in range(size):
            key = keys[index]
            if key <= last:
                rank = next_rank[key >> 1]
                next_rank[key >> 1] += 1
                if rank < ranks:
                    first[row, rank] = key & 1


@numba.njit(nogil=True)
def _fill_keys(keys, query, label, columns, database_labels):
    """Writes 2 x distance + relevance of each item."""
    for index in range(len(keys)):
        keys[index] = database_labels[index] == label
    for word in range(len(query)):
        own, column = query[word], columns[word]
        for index in range(len(keys)):
            keys[index] += np.uint16(2 * popcount(column[index] ^ own))
