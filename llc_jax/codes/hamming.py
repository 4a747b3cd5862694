"""Hamming distances between packed codes."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

# Words that each query meets between two loads of what it has found so far.
_UNROLLED = 8
# Of a uint32 that holds a distance above an index.
_KEY_BITS = 32


class Nearest(NamedTuple):
    """The codes at the least distance from each query.

    Attributes:
      index: int32[Q], the lowest index among them.
      distance: int32[Q], the least distance in bits.
      ties: int32[Q], how many codes stand at that distance, at least 1.
    """

    index: jax.Array
    distance: jax.Array
    ties: jax.Array


def distance(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns the number of bits in which packed codes differ.

    Args:
      a: uint32[..., W].
      b: uint32[..., W], of the same number of axes; axes of length 1 broadcast.

    Returns:
      int32[...].
    """
    different = jax.lax.population_count(jnp.bitwise_xor(a, b))
    return jnp.sum(different.astype(jnp.int32), axis=-1)


@jax.jit
def nearest(queries: jax.Array, codes: jax.Array) -> Nearest:
    """Finds the nearest of `codes` for each query, exactly.

    Every query meets one code after the other, all queries side by side, so memory
    grows with Q and L, not with Q x L.

    Args:
      queries: uint32[Q, W].
      codes: uint32[L, W], L >= 1.
    """
    length, words = codes.shape
    # The least key is the answer: the least distance, and its lowest index.
    index_bits = _KEY_BITS - (32 * words).bit_length()
    size = 2**index_bits
    parts = [codes[start : start + size] for start in range(0, length, size)]
    found = [_nearest_of_part(queries, part, index_bits) for part in parts]
    index, least = found[0]
    for number, (other_index, other_least) in enumerate(found[1:], start=1):
        index = jnp.where(other_least < least, other_index + number * size, index)
        least = jnp.minimum(other_least, least)
    return Nearest(index, least, _count_at(least, queries, codes))


def _nearest_of_part(
    queries: jax.Array, codes: jax.Array, index_bits: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the index, int32[Q], and the distance of the nearest of at most 2^index_bits."""

    def meet(key, index, distances):
        return jnp.minimum(key, (distances << index_bits) | index)

    largest = jnp.full(queries.shape[0], 2**32 - 1, jnp.uint32)
    # A code that is there twice is nearest at its first index: padding changes nothing.
    key = _meet_all(meet, largest, queries, codes)
    index = jnp.minimum(key & (2**index_bits - 1), codes.shape[0] - 1)
    return index.astype(jnp.int32), (key >> index_bits).astype(jnp.int32)


def _count_at(least: jax.Array, queries: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns how many codes are at the given distance from each query, int32[Q]."""
    length = codes.shape[0]

    def meet(count, index, distances):
        return count + ((distances == least.astype(jnp.uint32)) & (index < length))

    return _meet_all(meet, jnp.zeros_like(least), queries, codes)


def _meet_all(meet, state: jax.Array, queries: jax.Array, codes: jax.Array) -> jax.Array:
    """Folds `meet(state, index, distances)` over the codes; the last one may come again."""
    length, words = codes.shape
    size = max(1, _UNROLLED // words)
    chunks = -(-length // size)
    codes = jnp.pad(codes, ((0, chunks * size - length), (0, 0)), mode="edge")
    columns = queries.T

    def fold(state, start_and_codes):
        start, some_codes = start_and_codes
        for offset in range(size):
            differences = (columns[w] ^ some_codes[offset, w] for w in range(words))
            distances = sum(jax.lax.population_count(difference) for difference in differences)
            state = meet(state, start + offset, distances)
        return state, None

    starts = jnp.arange(chunks, dtype=jnp.uint32) * size
    state, _ = jax.lax.scan(fold, state, (starts, codes.reshape(chunks, size, words)))
    return state


def least_distance(codes: np.ndarray, num_bits: int) -> int:
    """Returns the least distance between two of the codes, k for a single one.

    Two codes at distance d agree in one of any d + 1 parts of their bits, so only codes
    that share a part are compared, in as many parts as the answer turns out to need.

    Args:
      codes: uint32[L, ceil(k / 32)].
      num_bits: k.
    """
    octets = np.ascontiguousarray(codes, "<u4").view(np.uint8)
    bits = np.unpackbits(octets, axis=1, count=num_bits, bitorder="little")
    least, parts = num_bits, 1
    while True:
        edges = [num_bits * part // parts for part in range(parts + 1)]
        for start, stop in itertools.pairwise(edges):
            least = min(least, _least_that_share(codes, bits[:, start:stop], least))
        if least <= parts:
            return least
        parts = min(2 * parts, least)


def _least_that_share(codes: np.ndarray, part: np.ndarray, most: int) -> int:
    """Returns the least distance of two codes whose `part` is the same; `most` if none is."""
    _, group = np.unique(np.packbits(part, axis=1), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    codes, group = codes[order], group.ravel()[order]
    # Each code meets the one after it, the one after that, and so on to its group's end.
    rows, shift = np.arange(len(codes)), 1
    while True:
        rows = rows[rows + shift < len(codes)]
        rows = rows[group[rows] == group[rows + shift]]
        if not len(rows):
            return most
        different = np.bitwise_count(codes[rows] ^ codes[rows + shift])
        most = min(most, int(different.sum(axis=1, dtype=np.int32).min()))
        shift += 1
