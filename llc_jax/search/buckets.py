"""The nearest of many short codes: those that are equal lie together, near ones are tried first.

There are few enough codes of k bits to keep, for each, where the items that have it are.
A query tries its own code, then all at one bit, at two, and so on until it has enough.
"""

from typing import NamedTuple

import numba
import numpy as np

from llc_jax.codes.popcount import compiled, lowest_bit

# Codes that there may be, for each item; and items, for each code that a query tries.
_SPARSE = 16
_TRIES = 128
# Queries that fail before the others are not tried.
_PATIENCE = 4
# Up to so many values are sorted by insertion.
_FEW = 24
_DIGIT = 8


class Buckets(NamedTuple):
    """Items by their code.

    Attributes:
      starts: int32[2^k + 1], where in `places` the items of each code start.
      places: int32[N], the places of items, ascending within a code.
    """

    starts: np.ndarray
    places: np.ndarray


def pay(num_bits: int, count: int) -> bool:
    """Returns whether so many codes of so many bits should be searched by their buckets."""
    return count < 2**31 and 2**num_bits <= _SPARSE * count


def build(codes: np.ndarray, num_bits: int) -> Buckets:
    """Builds the buckets of codes, uint32[N]."""
    starts = np.zeros(2**num_bits + 2, np.int32)
    places = np.empty(len(codes), np.int32)
    _fill(codes, starts, places)
    return Buckets(starts[:-1], places)


@compiled
def _fill(codes, starts, places):
    """Counts items into starts[code + 2], sums, and lets starts[code + 1] run to its end."""
    for place in range(len(codes)):
        starts[codes[place] + 2] += 1
    for code in range(2, len(starts)):
        starts[code] += starts[code - 1]
    for place in range(len(codes)):
        slot = starts[codes[place] + 1]
        starts[codes[place] + 1] = slot + 1
        places[slot] = place


@compiled
def nearest(starts, places, num_bits, ids, queries, distances, found, answered):
    """Finds the nearest items of each query, by (distance, place).

    Args:
      starts, places: of `Buckets`.
      num_bits: k.
      ids: int64[N], what to call each place.
      queries: uint32[Q].
      distances: int32[Q, top] to fill, with -1 where there are fewer items.
      found: int64[Q, top] to fill with ids, likewise.
      answered: bool[Q] to fill; False where it takes too many tries, or the queries before
        have. What is filled there means nothing.
    """
    count, wanted = len(places), found.shape[1]
    tries = max(count // _TRIES, 1)
    room = min(4 * wanted + 64, count)
    ring, spare = np.empty(room, np.int32), np.empty(room, np.int32)
    digits = np.empty(2**_DIGIT, np.int32)
    failed = 0
    for q in range(len(queries)):
        if failed > q // 2 + _PATIENCE:
            answered[q:] = False
            return
        size, tried, radius, codes = 0, 0, 0, 1
        while size < min(wanted, count) and tried + codes <= tries:
            need = min(wanted, count) - size
            here = _gather(starts, places, num_bits, queries[q], radius, need, ring, spare, digits)
            for i in range(here):
                distances[q, size + i] = radius
                found[q, size + i] = ids[ring[i]]
            size += here
            tried += codes
            codes = codes * (num_bits - radius) // (radius + 1)
            radius += 1
        answered[q] = size == min(wanted, count)
        failed += not answered[q]
        distances[q, size:] = -1
        found[q, size:] = -1


@numba.njit
def _gather(starts, places, num_bits, query, radius, need, ring, spare, digits):
    """Writes the first places at a distance into `ring`, ascending; returns how many."""
    size = 0
    mask = (np.int64(1) << radius) - 1
    while mask < np.int64(1) << num_bits:
        code = np.int64(query) ^ mask
        start = starts[code]
        stop = min(np.int64(starts[code + 1]), start + need)
        while start < stop:
            if size == len(ring):
                _sort(ring, size, len(places), spare, digits)
                size = need
            step = min(stop - start, len(ring) - size)
            ring[size : size + step] = places[start : start + step]
            size += step
            start += step
        if mask == 0:
            break
        # The next number with as many bits.
        lowest = lowest_bit(np.uint64(mask))
        high = mask + (np.int64(1) << lowest)
        mask = (((high ^ mask) >> 2) >> lowest) | high
    if radius > 0:
        _sort(ring, size, len(places), spare, digits)
    return min(size, need)


@numba.njit
def _sort(values, size, bound, spare, digits):
    """Sorts the first values, all of them from 0 to bound - 1."""
    if size <= _FEW:
        for i in range(1, size):
            value = values[i]
            while i > 0 and values[i - 1] > value:
                values[i] = values[i - 1]
                i -= 1
            values[i] = value
        return
    shift = 0
    while (bound - 1) >> shift > 0:
        digits[:] = 0
        for i in range(size):
            digits[(values[i] >> shift) & (2**_DIGIT - 1)] += 1
        before = 0
        for digit in range(len(digits)):
            here = digits[digit]
            digits[digit] = before
            before += here
        for i in range(size):
            digit = (values[i] >> shift) & (2**_DIGIT - 1)
            spare[digits[digit]] = values[i]
            digits[digit] += 1
        values[:size] = spare[:size]
        shift += _DIGIT
