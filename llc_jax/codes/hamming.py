"""Hamming distances between packed codes."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

# Codes compared at once with each query: 4 MiB of distances for 1,024 queries.
_CHUNK = 1024


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

    The codes are compared in chunks, so memory grows with Q, not with Q x L.

    Args:
      queries: uint32[Q, W].
      codes: uint32[L, W], L >= 1.
    """
    length, words = codes.shape
    chunk = min(_CHUNK, length)
    chunks = -(-length // chunk)
    codes = jnp.pad(codes, ((0, chunks * chunk - length), (0, 0)))
    starts = jnp.arange(chunks, dtype=jnp.int32) * chunk

    def fold(best: Nearest, start_and_codes):
        start, some_codes = start_and_codes
        distances = distance(queries[:, None, :], some_codes[None, :, :])
        positions = start + jnp.arange(chunk, dtype=jnp.int32)
        distances = jnp.where(positions[None, :] < length, distances, _FAR)
        least = jnp.min(distances, axis=1)
        ties = jnp.sum(distances == least[:, None], axis=1, dtype=jnp.int32)
        index = start + jnp.argmin(distances, axis=1).astype(jnp.int32)
        merged = Nearest(
            index=jnp.where(least < best.distance, index, best.index),
            distance=jnp.minimum(least, best.distance),
            ties=jnp.where(least <= best.distance, ties, 0)
            + jnp.where(best.distance <= least, best.ties, 0),
        )
        return merged, None

    zeros = jnp.zeros(queries.shape[0], jnp.int32)
    start = Nearest(index=zeros, distance=zeros + _FAR, ties=zeros)
    best, _ = jax.lax.scan(fold, start, (starts, codes.reshape(chunks, chunk, words)))
    return best


_FAR = 2**31 - 1
