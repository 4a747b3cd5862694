"""The nearest class of every code there is: minimum Hamming decoding in one read."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.errors import InputError

# 2^24 codes of 8 bytes.
MEMORY_LIMIT = 2**27

_BYTES = 8


class Table(NamedTuple):
    """The answers for all 2^k codes, by the code as a number.

    Attributes:
      key: uint32[2^k], the least distance times 2^label_bits, plus the lowest class there.
      ties: int32[2^k], how many classes are at the least distance.
      label_bits: uint32, of a class in a key.
    """

    key: jax.Array
    ties: jax.Array
    label_bits: jax.Array


def build(class_codes: np.ndarray, num_bits: int, memory_limit: int = MEMORY_LIMIT) -> Table:
    """Builds the table, in k passes over it.

    The Hamming distance is a sum over bits, so the least one over all classes is found
    one bit after the other: before the pass over bit j, a code has answers from the
    classes that agree with it in all bits from j on; after it, also from those that
    differ in bit j.

    Args:
      class_codes: uint32[L, 1].
      num_bits: k.
      memory_limit: bytes that the table may take; it takes 8 times 2^k, and building it
        three times as much again.

    Raises:
      InputError: if it would be larger.
    """
    if _BYTES * 2**num_bits > memory_limit:
        raise InputError(
            f"A table for codes of {num_bits} bits takes {_BYTES} times 2^{num_bits} bytes, and "
            f"memory_limit is {memory_limit:,}: raise it, or use the decoder 'mhd'."
        )
    label_bits = (len(class_codes) - 1).bit_length()
    if (2 * num_bits + 1) << label_bits >= 2**32:
        raise InputError(f"There are too many classes, {len(class_codes):,}, for a table.")
    key, ties = _build(jnp.asarray(class_codes), num_bits, label_bits)
    return Table(key, ties, jnp.uint32(label_bits))


@functools.partial(jax.jit, static_argnums=(1, 2))
def _build(class_codes: jax.Array, num_bits: int, label_bits: int) -> tuple[jax.Array, jax.Array]:
    codes, size = class_codes[:, 0], 2**num_bits
    labels = jnp.arange(len(codes), dtype=jnp.uint32)
    key = jnp.full(size, (num_bits + 1) << label_bits, jnp.uint32).at[codes].min(labels)
    ties = jnp.zeros(size, jnp.int32).at[codes].add(1)

    def add_bit(bit, answers):
        key, ties = answers
        other_side = jnp.arange(size) ^ (1 << bit)
        across, across_ties = key[other_side] + jnp.uint32(1 << label_bits), ties[other_side]
        here, there = key >> label_bits, across >> label_bits
        ties = jnp.where(here <= there, ties, 0) + jnp.where(there <= here, across_ties, 0)
        return jnp.minimum(key, across), ties

    return jax.lax.fori_loop(0, num_bits, add_bit, (key, ties))


def read(table: Table, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest class and its distance, int32[N] each, of codes uint32[N, 1]."""
    # The barrier keeps the two results from reading the table once each.
    key = jax.lax.optimization_barrier(table.key[codes[:, 0]])
    distance = key >> table.label_bits
    return (key - (distance << table.label_bits)).astype(jnp.int32), distance.astype(jnp.int32)
