"""The nearest of many short codes: a table of buckets, one for each code, probed nearest first.

There are few enough codes of k bits for a table that has the items of each code. A query
probes the bucket of its own code, then all buckets at distance 1, at distance 2, and so on
until it has enough items.
"""

from typing import NamedTuple

import numba
import numpy as np

from llc_jax.codes.popcount import compiled, lowest_bit

# The largest number of buckets for each item.
_BUCKETS_PER_ITEM = 16
# A query probes at most one bucket for every so many items.
_ITEMS_PER_PROBE = 128
# All later queries are left out once so many more than half of the queries have failed.
_ALLOWED_FAILURES = 4
# Up to so many values are sorted by insertion, more by their digits.
_INSERTION_SORT_LIMIT = 24
_DIGIT_BITS = 8


class Buckets(NamedTuple):
    """Items by their code, as compressed sparse rows.

    Attributes:
      starts: int32[2^k + 1], where in `rows` the bucket of each code starts.
      rows: int32[N], the rows of items, ascending within a bucket.
    """

    starts: np.ndarray
    rows: np.ndarray


def worthwhile(num_bits: int, num_items: int) -> bool:
    """Returns whether so many codes of so many bits should be searched by their buckets."""
    return num_items < 2**31 and 2**num_bits <= _BUCKETS_PER_ITEM * num_items


def build(codes: np.ndarray, num_bits: int) -> Buckets:
    """Builds the buckets of codes, uint32[N]."""
    starts = np.zeros(2**num_bits + 2, np.int32)
    rows = np.zeros(len(codes), np.int32)
    _fill(codes, starts, rows)
    return Buckets(starts[:-1], rows)


@compiled
def _fill(codes, starts, rows):
    """Sorts rows by code: counts into starts[code + 2], sums, advances starts[code + 1].

    A file that is mapped may change meanwhile: a mask and a minimum keep the indices in range.
    """
    code_mask, last = len(starts) - 3, len(rows) - 1
    for row in range(len(codes)):
        starts[(np.int64(codes[row]) & code_mask) + 2] += 1
    for code in range(2, len(starts)):
        starts[code] += starts[code - 1]
    for row in range(len(codes)):
        code = np.int64(codes[row]) & code_mask
        slot = starts[code + 1]
        starts[code + 1] = slot + 1
        rows[min(slot, last)] = row


@compiled
def nearest(starts, rows, num_bits, queries, distances, nearest_rows, answered):
    """Finds the nearest items of each query, by (distance, row).

    Args:
      starts, rows: of `Buckets`.
      num_bits: k.
      queries: uint32[Q].
      distances: int32[Q, top], filled; -1 where there are fewer items.
      nearest_rows: int64[Q, top], filled likewise.
      answered: bool[Q], filled; False where a query needs too many probes, or was left out
        because many before it did. Its distances and rows mean nothing.
    """
    count, top = len(rows), min(nearest_rows.shape[1], len(rows))
    max_probes = max(count // _ITEMS_PER_PROBE, 1)
    capacity = min(4 * top + 64, count)
    candidates, scratch = np.empty(capacity, np.int32), np.empty(capacity, np.int32)
    digit_counts = np.empty(2**_DIGIT_BITS, np.int32)
    failures = 0
    for q in range(len(queries)):
        if failures > q // 2 + _ALLOWED_FAILURES:
            answered[q:] = False
            return
        size, probes, radius, codes_at_radius = 0, 0, 0, 1
        while size < top and probes + codes_at_radius <= max_probes:
            num_collected = _collect_at_radius(
                starts, rows, num_bits, queries[q], radius, top - size,
                candidates, scratch, digit_counts,
            )  # fmt: skip
            for i in range(num_collected):
                distances[q, size + i] = radius
                nearest_rows[q, size + i] = candidates[i]
            size += num_collected
            probes += codes_at_radius
            codes_at_radius = codes_at_radius * (num_bits - radius) // (radius + 1)
            radius += 1
        answered[q] = size == top
        failures += not answered[q]
        distances[q, size:] = -1
        nearest_rows[q, size:] = -1


@numba.njit
def _collect_at_radius(
    starts, rows, num_bits, query, radius, needed, candidates, scratch, digit_counts
):  # fmt: skip
    """Writes the first `needed` rows at a distance, ascending; returns how many there are."""
    size = 0
    flips = (np.int64(1) << radius) - 1
    while flips < np.int64(1) << num_bits:
        code = np.int64(query) ^ flips
        start = starts[code]
        stop = min(np.int64(starts[code + 1]), start + needed)
        while start < stop:
            if size == len(candidates):
                _sort(candidates, size, len(rows), scratch, digit_counts)
                size = needed
            step = min(stop - start, len(candidates) - size)
            candidates[size : size + step] = rows[start : start + step]
            size += step
            start += step
        if flips == 0:
            break
        # The next number with as many bits set (Gosper's hack).
        lowest = lowest_bit(np.uint64(flips))
        carried = flips + (np.int64(1) << lowest)
        flips = (((carried ^ flips) >> 2) >> lowest) | carried
    if radius > 0:
        _sort(candidates, size, len(rows), scratch, digit_counts)
    return min(size, needed)


@numba.njit
def _sort(values, size, bound, scratch, digit_counts):
    """Sorts the first `size` values, which are from 0 to bound - 1: by insertion or radix."""
    if size <= _INSERTION_SORT_LIMIT:
        for i in range(1, size):
            value = values[i]
            while i > 0 and values[i - 1] > value:
                values[i] = values[i - 1]
                i -= 1
            values[i] = value
        return
    shift = 0
    while (bound - 1) >> shift > 0:
        digit_counts[:] = 0
        for i in range(size):
            digit_counts[(values[i] >> shift) & (2**_DIGIT_BITS - 1)] += 1
        before = 0
        for digit in range(len(digit_counts)):
            count = digit_counts[digit]
            digit_counts[digit] = before
            before += count
        for i in range(size):
            digit = (values[i] >> shift) & (2**_DIGIT_BITS - 1)
            scratch[digit_counts[digit]] = values[i]
            digit_counts[digit] += 1
        values[:size] = scratch[:size]
        shift += _DIGIT_BITS
