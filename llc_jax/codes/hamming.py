"""Hamming distances between packed codes."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.errors import InputError

# Words that a query is compared with between two loads of its state.
_UNROLLED = 8
# Bits of a key, a uint32: a distance in the high bits, an index in the low ones.
_KEY_BITS = 32


class Nearest(NamedTuple):
    """The codes at the least distance from each query.

    Attributes:
      index: int32[Q], the lowest index among them.
      distance: int32[Q], the least distance in bits.
      ties: int32[Q], how many codes are at that distance, at least 1.
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

    All queries are compared with one code after the other, so memory grows with Q and L,
    not with Q x L.

    Args:
      queries: uint32[Q, W].
      codes: uint32[L, W], L >= 1.
    """
    length, words = codes.shape
    # The least key has the least distance, and among equal distances the lowest index.
    index_bits = _KEY_BITS - (32 * words).bit_length()
    size = 2**index_bits
    chunks = [codes[start : start + size] for start in range(0, length, size)]
    index, least = _nearest_in_chunk(queries, chunks[0], index_bits)
    for number, chunk in enumerate(chunks[1:], start=1):
        chunk_index, chunk_least = _nearest_in_chunk(queries, chunk, index_bits)
        index = jnp.where(chunk_least < least, chunk_index + number * size, index)
        least = jnp.minimum(chunk_least, least)
    return Nearest(index, least, _count_at(least, queries, codes))


def _nearest_in_chunk(
    queries: jax.Array, codes: jax.Array, index_bits: int
) -> tuple[jax.Array, jax.Array]:
    """Returns the index and distance, int32[Q] each, of the nearest of at most 2^index_bits."""

    def update(key, index, distances):
        return jnp.minimum(key, (distances << index_bits) | index)

    largest = jnp.full(queries.shape[0], 2**32 - 1, jnp.uint32)
    # Of equal codes the first index wins: padding with the last code changes nothing.
    key = _scan_codes(update, largest, queries, codes)
    index = jnp.minimum(key & (2**index_bits - 1), codes.shape[0] - 1)
    return index.astype(jnp.int32), (key >> index_bits).astype(jnp.int32)


def _count_at(least: jax.Array, queries: jax.Array, codes: jax.Array) -> jax.Array:
    """Returns how many codes are at the given distance from each query, int32[Q]."""
    length = codes.shape[0]

    def update(count, index, distances):
        return count + ((distances == least.astype(jnp.uint32)) & (index < length))

    return _scan_codes(update, jnp.zeros_like(least), queries, codes)


def _scan_codes(update, state: jax.Array, queries: jax.Array, codes: jax.Array) -> jax.Array:
    """Folds `update(state, index, distances)` over the codes; the last one may be repeated."""
    length, words = codes.shape
    size = max(1, _UNROLLED // words)
    num_blocks = -(-length // size)
    codes = jnp.pad(codes, ((0, num_blocks * size - length), (0, 0)), mode="edge")
    columns = queries.T

    def scan_block(state, start_and_block):
        start, block = start_and_block
        for offset in range(size):
            differences = (columns[w] ^ block[offset, w] for w in range(words))
            distances = sum(jax.lax.population_count(difference) for difference in differences)
            state = update(state, start + offset, distances)
        return state, None

    starts = jnp.arange(num_blocks, dtype=jnp.uint32) * size
    state, _ = jax.lax.scan(scan_block, state, (starts, codes.reshape(num_blocks, size, words)))
    return state


def check_radius(radius: int) -> None:
    """Raises an InputError unless a radius is a whole number of bits, from 0."""
    if not isinstance(radius, int | np.integer) or radius < 0:
        raise InputError(f"A radius is a whole number of at least 0 bits, not {radius}.")


def least_distance(codes: np.ndarray, num_bits: int) -> int:
    """Returns the least distance between two of the codes, k for a single one.

    Two codes at distance d agree in one of any d + 1 substrings of their bits (pigeonhole
    principle, as in multi-index hashing). So only codes that share a substring are
    compared; the number of substrings grows until it reaches the distance found.

    Args:
      codes: uint32[L, ceil(k / 32)].
      num_bits: k.
    """
    code_bytes = np.ascontiguousarray(codes, "<u4").view(np.uint8)
    bits = np.unpackbits(code_bytes, axis=1, count=num_bits, bitorder="little")
    least, num_substrings = num_bits, 1
    while True:
        edges = [num_bits * i // num_substrings for i in range(num_substrings + 1)]
        for start, stop in itertools.pairwise(edges):
            least = min(least, _least_in_groups(codes, bits[:, start:stop], least))
        if least <= num_substrings:
            return least
        num_substrings = min(2 * num_substrings, least)


def _least_in_groups(codes: np.ndarray, substrings: np.ndarray, least: int) -> int:
    """Returns the least distance of two codes of equal substrings, `least` at most."""
    _, group = np.unique(np.packbits(substrings, axis=1), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    codes, group = codes[order], group.ravel()[order]
    # Each code is compared with the next, the one after that, and so on to its group's end.
    rows, shift = np.arange(len(codes)), 1
    while True:
        rows = rows[rows + shift < len(codes)]
        rows = rows[group[rows] == group[rows + shift]]
        if not len(rows):
            return least
        differences = np.bitwise_count(codes[rows] ^ codes[rows + shift])
        least = min(least, int(differences.sum(axis=1, dtype=np.int32).min()))
        shift += 1
