"""The nearest of many codes, by a look at all of them; for the host.

Codes lie by words, uint32[W, N], so that 64 of them meet a query in a few vector
instructions. What comes back is a bit each: is it near enough to count? Only where it
is, the distance itself is looked at. What is near enough, a sample of the codes says
at first, and then what has been found so far.
"""

import numba
import numpy as np

from llc_jax.codes.popcount import LANES, closer, compiled, distance, lowest_bit, popcount

# Queries that meet a block of codes, one after the other, while it is in the cache.
GROUP = 64
# Words of codes in a block.
_BLOCK_WORDS = 2**17
# Codes that a query meets between two changes of what is near enough.
_RUN = 2048
# Bits of a mask that are written without asking whether they are set.
_AT_ONCE = 2
# Codes that are looked at first, a multiple of LANES.
_SAMPLE = 2048


@compiled
def nearest(columns, ids, queries, rows, distances, found):
    """Finds the nearest codes of each query, by (distance, place).

    Args:
      columns: uint32[W, N], contiguous.
      ids: int64[N], what to call each place.
      queries: uint32[Q, W], contiguous.
      rows: int64[R], which of the queries to answer.
      distances: int32[Q, top] to fill there; with -1 where there are fewer codes.
      found: int64[Q, top] to fill with ids, likewise.
    """
    words, count = columns.shape
    number, wanted = len(rows), found.shape[1]
    farthest = 32 * words + 1
    room = min(2 * wanted + LANES, count)
    block = max(_RUN, _BLOCK_WORDS // words // _RUN * _RUN)
    # Where all codes are one block, the queries come one by one: they share nothing.
    size = min(GROUP, number) if count > block else 1
    levels = np.empty((size, farthest), np.int64)
    states = np.empty((size, 3), np.int64)
    places = np.empty((size, room), np.int64)
    bits = np.empty((size, room), np.int16)
    spare = np.empty(max(room, _RUN + _AT_ONCE), np.int64)
    sample = _sample(columns, wanted)
    for first in range(0, number, size):
        group = rows[first : first + size]
        for q, row in enumerate(group):
            limit = _likely_limit(sample, queries[row], wanted / max(count, 1), farthest)
            _begin(states[q], levels[q], limit)
        for start in range(0, count, block):
            stop = min(start + block, count)
            for q, row in enumerate(group):
                _meet(
                    columns, start, stop, queries[row], wanted,
                    states[q], levels[q], places[q], bits[q], spare,
                )  # fmt: skip
        for q, row in enumerate(group):
            if states[q, 2] < min(wanted, count):  # The sample has misled.
                _begin(states[q], levels[q], farthest)
                _meet(
                    columns, 0, count, queries[row], wanted,
                    states[q], levels[q], places[q], bits[q], spare,
                )  # fmt: skip
            kept = _sort(states[q, 2], levels[q], places[q], bits[q], spare, distances[row])
            _name(ids, spare[:kept], found[row])


@compiled
def count_within(columns, queries, levels):
    """Counts codes by their distance: adds to levels[q, d], int64[Q, radius + 1]."""
    count = columns.shape[1]
    near = np.empty(_RUN + _AT_ONCE, np.int64)
    for start in range(0, count, _RUN):
        stop = min(start + _RUN, count)
        for q in range(len(queries)):
            size = _note_near(columns, start, stop, queries[q], levels.shape[1], near)
            for i in range(size):
                levels[q, distance(columns, near[i], queries[q])] += 1


@compiled
def write_within(columns, ids, queries, slots, distances, found):
    """Writes what `count_within` has counted, by (query, distance, place).

    Args:
      slots: int64[Q, radius + 1], where the codes at a distance from a query go; moved on.
      distances: int32[M] to fill.
      found: int64[M] to fill with ids.
    """
    count = columns.shape[1]
    near = np.empty(_RUN + _AT_ONCE, np.int64)
    for start in range(0, count, _RUN):
        stop = min(start + _RUN, count)
        for q in range(len(queries)):
            size = _note_near(columns, start, stop, queries[q], slots.shape[1], near)
            for i in range(size):
                bits = distance(columns, near[i], queries[q])
                slot = slots[q, bits]
                slots[q, bits] = slot + 1
                distances[slot] = bits
                found[slot] = ids[near[i]]


@numba.njit
def _sample(columns, wanted):
    """Returns codes spread evenly over all, uint32[W, S]; none where that does not pay."""
    words, count = columns.shape
    if count < 16 * _SAMPLE or wanted > count // 8:
        return np.empty((words, 0), np.uint32)
    sample = np.empty((words, _SAMPLE), np.uint32)
    stride = count // _SAMPLE
    for word in range(words):
        for row in range(_SAMPLE):
            sample[word, row] = columns[word, row * stride]
    return sample


@numba.njit
def _likely_limit(sample, query, share, most):
    """Returns a limit, `most` or less, below which a share of all codes very likely is."""
    size = sample.shape[1]
    expected = share * size
    needed = expected + 3 * np.sqrt(expected) + 3
    low, high = 0, most
    while low < high:
        middle = (low + high) // 2
        below = 0
        for row in range(0, size, LANES):
            below += popcount(closer(sample, row, query, middle))
        if below < needed:
            low = middle + 1
        else:
            high = middle
    return high


@numba.njit
def _begin(state, levels, limit):
    """Sets a query's state: its limit, how many are noted below it, and how many at all."""
    state[0], state[1], state[2] = limit, 0, 0
    levels[:] = 0


@numba.njit
def _meet(columns, start, stop, query, wanted, state, levels, places, bits, spare):
    """A query meets codes start..stop-1, and notes the places and bits of those near enough.

    A code is, if its distance is below the limit. Once as many as are wanted are noted
    below it, the limit falls to the distance of the last of them: what comes later and is
    as far does not count.
    """
    limit, below, size = state[0], state[1], state[2]
    while start < stop and limit > 0:
        end = min(start + _RUN, stop)
        near = _note_near(columns, start, end, query, limit, spare)
        start = end
        for i in range(near):
            place = spare[i]
            here = distance(columns, place, query)
            if here >= limit:
                continue
            if size == len(places):
                size = _drop(limit, wanted - below, size, levels, places, bits)
            places[size] = place
            bits[size] = here
            size += 1
            levels[here] += 1
            below += 1
            while below >= wanted:
                limit -= 1
                below -= levels[limit]
    state[0], state[1], state[2] = limit, below, size


@numba.njit
def _note_near(columns, start, stop, query, limit, near):
    """Writes which of codes start..stop-1 are nearer than the limit; returns how many.

    near: int64[stop - start + _AT_ONCE] or more.
    """
    size = 0
    row = start
    while row + 4 * LANES <= stop:
        first = closer(columns, row, query, limit)
        second = closer(columns, row + LANES, query, limit)
        third = closer(columns, row + 2 * LANES, query, limit)
        fourth = closer(columns, row + 3 * LANES, query, limit)
        if first | second | third | fourth != 0:
            size = _note(first, row, near, size)
            size = _note(second, row + LANES, near, size)
            size = _note(third, row + 2 * LANES, near, size)
            size = _note(fourth, row + 3 * LANES, near, size)
        row += 4 * LANES
    while row < stop:
        if distance(columns, row, query) < limit:
            near[size] = row
            size += 1
        row += 1
    return size


@numba.njit(inline="always")
def _note(mask, row, near, size):
    """Writes the places of the bits of a mask; returns the size with them."""
    end = size + popcount(mask)
    # Seldom more than a few: they are written without asking how many.
    for slot in range(size, size + _AT_ONCE):
        near[slot] = row + lowest_bit(mask)
        mask &= mask - np.uint64(1)
    size += _AT_ONCE
    while size < end:
        near[size] = row + lowest_bit(mask)
        mask &= mask - np.uint64(1)
        size += 1
    return end


@numba.njit
def _drop(limit, at_limit, size, levels, places, bits):
    """Keeps what is noted below the limit, and the first few at it; returns how many."""
    kept = 0
    for i in range(size):
        here = bits[i]
        if here > limit or (here == limit and at_limit == 0):
            levels[here] -= 1
            continue
        if here == limit:
            at_limit -= 1
        places[kept] = places[i]
        bits[kept] = here
        kept += 1
    return kept


@numba.njit
def _sort(size, levels, places, bits, by_distance, distances):
    """Sorts what is noted into `by_distance`; returns how many of them are wanted.

    levels: how many are noted at each distance; is lost.
    distances: int32[top] to fill, with -1 where there are fewer.
    """
    before = 0
    for here in range(len(levels)):
        count = levels[here]
        levels[here] = before
        distances[before : before + count] = here
        before += count
    for i in range(size):
        slot = levels[bits[i]]
        levels[bits[i]] = slot + 1
        by_distance[slot] = places[i]
    distances[size:] = -1
    return min(size, len(distances))


@numba.njit
def _name(ids, places, found):
    """Writes the ids of places, and -1 after them."""
    for slot in range(len(places)):
        found[slot] = ids[places[slot]]
    found[len(places) :] = -1
