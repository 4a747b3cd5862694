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
_CHUNK = 16


class Ranking(NamedTuple):
    """Rankings of a database for Q queries. Items at one distance are a group of ties.

    Attributes:
      group_sizes: int32[Q, G], how many items are in each group, the nearest group first. A
        group may be empty, and groups that begin after rank K may be missing.
      group_relevant: int32[Q, G], how many items of each group are relevant.
      relevance: bool[Q, min(K, N)], whether the item at each rank is relevant, ties in the
        order of the database; False beyond its end.
      total_relevant: int32[Q], the relevant items of the database.
      database_size: int32[Q], the items of the database, less the one that a query excludes.
    """

    group_sizes: np.ndarray
    group_relevant: np.ndarray
    relevance: np.ndarray
    total_relevant: np.ndarray
    database_size: np.ndarray


class Ranker(Protocol):
    """A database of N labelled items that can be ranked for queries.

    Attributes:
      by_hamming_distance: whether group d of a ranking has the items at Hamming distance d.
    """

    by_hamming_distance: bool

    def rank(
        self, queries: np.ndarray, query_labels: np.ndarray, exclude: np.ndarray, k: int
    ) -> Ranking:
        """Ranks the database for a batch of queries.

        Args:
          queries: [Q, ...].
          query_labels: int32[Q]; the items with the query's label are relevant.
          exclude: int64[Q], the item that is left out for each query, -1 for none.
          k: the number of ranks K that `Ranking.relevance` has.
        """


class HammingRanker(Ranker):
    """Codes ranked by Hamming distance.

    Args:
      codes: uint32[N, ceil(num_bits / 32)].
      labels: int32[N].
      num_bits: k.
    """

    by_hamming_distance = True

    def __init__(self, codes: np.ndarray, labels: np.ndarray, num_bits: int):
        assert codes.shape[0] == len(labels)
        assert codes.dtype == np.uint32
        self._columns = np.array(codes.T, order="C")
        self._labels = labels.astype(np.int32)
        self._num_bits = num_bits

    def rank(
        self, queries: np.ndarray, query_labels: np.ndarray, exclude: np.ndarray, k: int
    ) -> Ranking:
        """Ranks the database for uint32[Q, W] queries; see `Ranker`."""
        assert queries.shape == (len(query_labels), len(self._columns))
        assert exclude.shape == query_labels.shape
        count, size = len(query_labels), len(self._labels)
        group_sizes = np.empty((count, self._num_bits + 1), np.int32)
        group_relevant = np.empty_like(group_sizes)
        relevance = np.zeros((count, min(k, size)), bool)
        # Arrays from JAX are read-only, which is another type for Numba.
        queries = np.array(queries)
        query_labels, exclude = query_labels.astype(np.int32), exclude.astype(np.int64)

        def rank_chunk(start: int) -> None:
            chunk = slice(start, start + _CHUNK)
            inputs = queries[chunk], query_labels[chunk], exclude[chunk]
            outputs = group_sizes[chunk], group_relevant[chunk], relevance[chunk]
            _rank(*inputs, self._columns, self._labels, *outputs)

        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(rank_chunk, range(0, count, _CHUNK)))
        total_relevant = group_relevant.sum(axis=1, dtype=np.int32)
        database_size = (size - (exclude >= 0)).astype(np.int32)
        return Ranking(group_sizes, group_relevant, relevance, total_relevant, database_size)


@numba.njit(nogil=True)
def _rank(
    queries, query_labels, exclude, columns, database_labels, group_sizes, group_relevant, relevance
):
    """Fills the last three arrays, which are as in `Ranking`."""
    size, ranks, distances = columns.shape[1], relevance.shape[1], group_sizes.shape[1]
    keys = np.empty(size, np.uint16)
    # Consecutive increments of one counter wait for each other, so there are two of each.
    counts = np.empty((2, 2 * distances + 1), np.int32)
    next_rank = np.empty(distances, np.int64)
    for row in range(len(queries)):
        _fill_keys(keys, queries[row], query_labels[row], columns, database_labels)
        if exclude[row] >= 0:
            keys[exclude[row]] = 2 * distances
        counts[:] = 0
        for index in range(0, size - 1, 2):
            counts[0, keys[index]] += 1
            counts[1, keys[index + 1]] += 1
        if size % 2:
            counts[0, keys[size - 1]] += 1
        num_nearer, last_key = 0, 0
        for distance in range(distances):
            key = 2 * distance
            relevant = counts[0, key + 1] + counts[1, key + 1]
            group_relevant[row, distance] = relevant
            group_sizes[row, distance] = counts[0, key] + counts[1, key] + relevant
            next_rank[distance] = num_nearer
            if num_nearer < ranks:
                last_key = key + 1
            num_nearer += group_sizes[row, distance]
        for index in range(size):
            key = keys[index]
            if key <= last_key:
                rank = next_rank[key >> 1]
                next_rank[key >> 1] += 1
                if rank < ranks:
                    relevance[row, rank] = key & 1


@numba.njit(nogil=True)
def _fill_keys(keys, query, query_label, columns, database_labels):
    """Writes 2 x distance + relevance of each item."""
    for index in range(len(keys)):
        keys[index] = database_labels[index] == query_label
    for word in range(len(query)):
        query_word, column = query[word], columns[word]
        for index in range(len(keys)):
            keys[index] += np.uint16(2 * popcount(column[index] ^ query_word))
