"""The nearest codes by an exhaustive scan of the database, for the CPU.

Codes are stored by words, uint32[W, N], so that a few vector instructions compare 64 of
them with a query. The result is a bit mask of the codes whose distance is below the query's
threshold; only for these the distance itself is computed. The threshold comes from a sample
of the codes at first, and falls as nearer codes are found.
"""

import numba
import numpy as np

from llc_jax.codes.popcount import (
    LANES,
    below_threshold,
    compiled,
    hamming_distance,
    lowest_bit,
    popcount,
)

# Queries that scan a block of codes, one after the other, while it is in the cache.
QUERY_GROUP = 64
# Words of codes in a block.
_BLOCK_WORDS = 2**17
# Codes that a query scans between two updates of its threshold.
_CHUNK = 2048
# Bits of a mask that are written without a test whether they are set.
_UNROLLED = 2
# Codes in the sample that gives the first threshold, a multiple of LANES.
_SAMPLE = 2048
# A query's state: its threshold, the candidates below it, and all candidates, both counted.
_THRESHOLD, _BELOW, _SIZE = range(3)


@compiled
def nearest(columns, queries, query_indices, distances, nearest_rows):
    """Finds the nearest codes of each query, by (distance, row).

    Args:
      columns: uint32[W, N], contiguous.
      queries: uint32[Q, W], contiguous.
      query_indices: int64[R], which of the queries to answer.
      distances: int32[Q, top], filled for these; -1 where there are fewer codes.
      nearest_rows: int64[Q, top], filled likewise.
    """
    words, count = columns.shape
    num_queries, top = len(query_indices), nearest_rows.shape[1]
    above_all = 32 * words + 1
    capacity = min(2 * top + LANES, count)
    block = max(_CHUNK, _BLOCK_WORDS // words // _CHUNK * _CHUNK)
    # Where all codes are one block, the queries come one by one: they share nothing.
    group_size = min(QUERY_GROUP, num_queries) if count > block else 1
    states = np.empty((group_size, 3), np.int64)
    histograms = np.empty((group_size, above_all), np.int64)
    rows = np.empty((group_size, capacity), np.int64)
    row_distances = np.empty((group_size, capacity), np.int16)
    scratch = np.empty(max(capacity, _CHUNK + _UNROLLED), np.int64)
    sample = _sample(columns, top)
    for first in range(0, num_queries, group_size):
        group = query_indices[first : first + group_size]
        for i, q in enumerate(group):
            threshold = _first_threshold(sample, queries[q], top / max(count, 1), above_all)
            _reset(states[i], histograms[i], threshold)
        for start in range(0, count, block):
            stop = min(start + block, count)
            for i, q in enumerate(group):
                _scan_block(
                    columns, start, stop, queries[q], top,
                    states[i], histograms[i], rows[i], row_distances[i], scratch,
                )  # fmt: skip
        for i, q in enumerate(group):
            if states[i, _SIZE] < min(top, count):  # The first threshold was too low.
                _reset(states[i], histograms[i], above_all)
                _scan_block(
                    columns, 0, count, queries[q], top,
                    states[i], histograms[i], rows[i], row_distances[i], scratch,
                )  # fmt: skip
            size = _counting_sort(
                states[i, _SIZE], histograms[i], rows[i], row_distances[i], scratch, distances[q]
            )
            nearest_rows[q, :size] = scratch[:size]
            nearest_rows[q, size:] = -1


@compiled
def rows_to_ids(rows, item_ids):
    """Replaces rows, int64[Q, top], by the ids of their items; what is -1 stays."""
    for q in range(len(rows)):
        for slot in range(rows.shape[1]):
            if rows[q, slot] >= 0:
                rows[q, slot] = item_ids[rows[q, slot]]


@compiled
def count_within(columns, queries, histograms):
    """Counts codes by their distance: adds to histograms[q, d], int64[Q, radius + 1]."""
    count = columns.shape[1]
    rows = np.empty(_CHUNK + _UNROLLED, np.int64)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        for q in range(len(queries)):
            size = _collect_below(columns, start, stop, queries[q], histograms.shape[1], rows)
            for i in range(size):
                distance = hamming_distance(columns, rows[i], queries[q])
                # A file that is mapped may have changed since the row was collected.
                if distance < histograms.shape[1]:
                    histograms[q, distance] += 1


@compiled
def write_within(columns, item_ids, queries, slots, distances, ids):
    """Writes what `count_within` has counted, by (query, distance, row).

    Args:
      slots: int64[Q, radius + 1], where the next code at a distance from a query is
        written; incremented.
      distances: int32[M], filled.
      ids: int64[M], filled.
    """
    count = columns.shape[1]
    rows = np.empty(_CHUNK + _UNROLLED, np.int64)
    for start in range(0, count, _CHUNK):
        stop = min(start + _CHUNK, count)
        for q in range(len(queries)):
            size = _collect_below(columns, start, stop, queries[q], slots.shape[1], rows)
            for i in range(size):
                distance = hamming_distance(columns, rows[i], queries[q])
                if distance >= slots.shape[1]:
                    continue
                slot = slots[q, distance]
                slots[q, distance] = slot + 1
                # A file that is mapped may have changed since `count_within` counted.
                if slot < len(ids):
                    distances[slot] = distance
                    ids[slot] = item_ids[rows[i]]


@numba.njit
def _sample(columns, top):
    """Returns evenly spaced codes, uint32[W, S]; none where a sample does not pay."""
    words, count = columns.shape
    if count < 16 * _SAMPLE or top > count // 8:
        return np.empty((words, 0), np.uint32)
    sample = np.empty((words, _SAMPLE), np.uint32)
    stride = count // _SAMPLE
    for word in range(words):
        for row in range(_SAMPLE):
            sample[word, row] = columns[word, row * stride]
    return sample


@numba.njit
def _first_threshold(sample, query, fraction, above_all):
    """Returns a threshold, at most `above_all`, below which a fraction of all codes very likely is.

    Bisection finds that quantile of the sample's distances, plus three standard deviations.
    """
    size = sample.shape[1]
    expected = fraction * size
    needed = expected + 3 * np.sqrt(expected) + 3
    low, high = 0, above_all
    while low < high:
        middle = (low + high) // 2
        below = 0
        for row in range(0, size, LANES):
            below += popcount(below_threshold(sample, row, query, middle))
        if below < needed:
            low = middle + 1
        else:
            high = middle
    return high


@numba.njit
def _reset(state, histogram, threshold):
    """Starts a query's state with a threshold and no candidates."""
    state[_THRESHOLD], state[_BELOW], state[_SIZE] = threshold, 0, 0
    histogram[:] = 0


@numba.njit
def _scan_block(
    columns, start, stop, query, top, state, histogram, rows, row_distances, scratch
):  # fmt: skip
    """Adds those of codes start .. stop - 1 that are below the threshold to the candidates.

    Once `top` candidates are below the threshold, it falls to the distance of the last of
    them: a later code at that distance comes after it, so it does not count.

    Args:
      state: int64[3] of the query.
      histogram: int64[D], how many candidates are at each distance.
      rows: int64[capacity], the rows of the candidates, ascending.
      row_distances: int16[capacity], their distances.
      scratch: for `_collect_below`.
    """
    threshold, below, size = state[_THRESHOLD], state[_BELOW], state[_SIZE]
    while start < stop and threshold > 0:
        end = min(start + _CHUNK, stop)
        num_collected = _collect_below(columns, start, end, query, threshold, scratch)
        start = end
        for i in range(num_collected):
            row = scratch[i]
            distance = hamming_distance(columns, row, query)
            if distance >= threshold:
                continue
            if size == len(rows):
                size = _compact(threshold, top - below, size, histogram, rows, row_distances)
            rows[size] = row
            row_distances[size] = distance
            size += 1
            histogram[distance] += 1
            below += 1
            while below >= top:
                threshold -= 1
                below -= histogram[threshold]
    state[_THRESHOLD], state[_BELOW], state[_SIZE] = threshold, below, size


@numba.njit
def _collect_below(columns, start, stop, query, threshold, rows):
    """Writes which of codes start .. stop - 1 are below the threshold; returns how many.

    rows: int64[stop - start + _UNROLLED] or more.
    """
    size = 0
    row = start
    while row + 4 * LANES <= stop:
        first = below_threshold(columns, row, query, threshold)
        second = below_threshold(columns, row + LANES, query, threshold)
        third = below_threshold(columns, row + 2 * LANES, query, threshold)
        fourth = below_threshold(columns, row + 3 * LANES, query, threshold)
        if first | second | third | fourth != 0:
            size = _append_rows(first, row, rows, size)
            size = _append_rows(second, row + LANES, rows, size)
            size = _append_rows(third, row + 2 * LANES, rows, size)
            size = _append_rows(fourth, row + 3 * LANES, rows, size)
        row += 4 * LANES
    while row < stop:
        if hamming_distance(columns, row, query) < threshold:
            rows[size] = row
            size += 1
        row += 1
    return size


@numba.njit(inline="always")
def _append_rows(mask, first_row, rows, size):
    """Appends the row of each bit that is set in a mask; returns the new size."""
    end = size + popcount(mask)
    # A mask seldom has more than a few bits set: these need no branch.
    for slot in range(size, size + _UNROLLED):
        rows[slot] = first_row + lowest_bit(mask)
        mask &= mask - np.uint64(1)
    size += _UNROLLED
    while size < end:
        rows[size] = first_row + lowest_bit(mask)
        mask &= mask - np.uint64(1)
        size += 1
    return end


@numba.njit
def _compact(threshold, at_threshold, size, histogram, rows, row_distances):
    """Keeps the candidates below the threshold and the first few at it; returns how many."""
    kept = 0
    for i in range(size):
        distance = row_distances[i]
        if distance > threshold or (distance == threshold and at_threshold == 0):
            histogram[distance] -= 1
            continue
        if distance == threshold:
            at_threshold -= 1
        rows[kept] = rows[i]
        row_distances[kept] = distance
        kept += 1
    return kept


@numba.njit
def _counting_sort(size, histogram, rows, row_distances, sorted_rows, distances):
    """Sorts the candidates into `sorted_rows`; returns how many of them are results.

    histogram: how many candidates are at each distance; overwritten.
    distances: int32[top], filled; -1 where there are fewer.
    """
    before = 0
    for distance in range(len(histogram)):
        count = histogram[distance]
        histogram[distance] = before
        distances[before : before + count] = distance
        before += count
    for i in range(size):
        slot = histogram[row_distances[i]]
        histogram[row_distances[i]] = slot + 1
        sorted_rows[slot] = rows[i]
    distances[size:] = -1
    return min(size, len(distances))
