"""The nearest class of every code there is: minimum Hamming decoding in one read."""

import concurrent.futures
import os
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.popcount import compiled
from llc_jax.errors import InputError

# 2^24 codes of 8 bytes.
MEMORY_LIMIT = 2**27

# At most, and while the table is built: the widths that suffice are known only then.
_BYTES = 8
# Codes that a thread reads at a time. Fewer than two pieces do not repay the threads.
_PIECE = 2**20


class Table(NamedTuple):
    """The nearest class of each of the 2^k codes, indexed by the code as a number.

    Each array has the narrowest of the types uint8, uint16 and uint32 that holds it.

    Attributes:
      key: unsigned[2^k], the least distance times 2^label_bits, plus the lowest class there.
      ties: unsigned[2^k], how many classes are at the least distance.
      label_bits: uint32, of a class in a key.
    """

    key: jax.Array | np.ndarray
    ties: jax.Array | np.ndarray
    label_bits: jax.Array | np.ndarray


def build(class_codes: np.ndarray, num_bits: int, memory_limit: int = MEMORY_LIMIT) -> Table:
    """Builds the table, in k passes over it.

    The Hamming distance is a sum over bits, so the least one over all classes is found
    one bit after the other: before the pass over bit j, a code has answers from the
    classes that agree with it in all bits from j on; after it, also from those that
    differ in bit j.

    Args:
      class_codes: uint32[L, 1].
      num_bits: k.
      memory_limit: bytes that the table may take. It takes 2 to 8 times 2^k: 3 for
        k = 20 and 1,000 random classes. Building it takes 8 times 2^k more for a moment.

    Raises:
      InputError: if 8 times 2^k bytes are more than the limit.
    """
    if _BYTES * 2**num_bits > memory_limit:
        raise InputError(
            f"A table for codes of {num_bits} bits takes up to {_BYTES} times 2^{num_bits} bytes, "
            f"and memory_limit is {memory_limit:,}: raise it, or use the decoder 'mhd'."
        )
    label_bits = (len(class_codes) - 1).bit_length()
    if (2 * num_bits + 1) << label_bits >= 2**32:
        raise InputError(f"There are too many classes, {len(class_codes):,}, for a table.")
    labels, codes = np.arange(len(class_codes), dtype=np.uint32), class_codes[:, 0]
    key = np.full(2**num_bits, (num_bits + 1) << label_bits, np.uint32)
    ties = np.zeros(2**num_bits, np.uint32)
    np.minimum.at(key, codes, labels)
    np.add.at(ties, codes, 1)
    _minimize_over_bits(key, ties, label_bits)
    return Table(_narrow(key), _narrow(ties), jnp.uint32(label_bits))


@compiled
def _minimize_over_bits(key, ties, label_bits):
    """Turns the keys and ties at distance 0 into those at the least distance, in place."""
    one_bit, shift = np.uint32(1 << label_bits), np.uint32(label_bits)
    half = 1
    while half < len(key):
        for start in range(0, len(key), 2 * half):
            for i in range(start, start + half):
                j = i + half
                key_i, key_j, ties_i, ties_j = key[i], key[j], ties[i], ties[j]
                distance_i, distance_j = key_i >> shift, key_j >> shift
                key[i] = min(key_i, np.uint32(key_j + one_bit))
                key[j] = min(key_j, np.uint32(key_i + one_bit))
                ties[i] = (ties_i if distance_i <= distance_j + 1 else 0) + (
                    ties_j if distance_j + 1 <= distance_i else 0
                )
                ties[j] = (ties_j if distance_j <= distance_i + 1 else 0) + (
                    ties_i if distance_i + 1 <= distance_j else 0
                )
        half *= 2


def _narrow(values: np.ndarray) -> jax.Array:
    """Returns unsigned integers in the narrowest type that holds them."""
    return jnp.asarray(values.astype(np.min_scalar_type(int(values.max()))))


def read(table: Table, codes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the nearest class and its distance, int32[N] each, of codes uint32[N, 1]."""
    # The barrier keeps the two results from reading the table once each.
    key = jax.lax.optimization_barrier(table.key[codes[:, 0]]).astype(jnp.uint32)
    distance = key >> table.label_bits
    return (key - (distance << table.label_bits)).astype(jnp.int32), distance.astype(jnp.int32)


def read_on_host(table: Table, codes: np.ndarray, with_ties: bool) -> tuple[np.ndarray, ...]:
    """Reads the table in the host's memory: the loop over the codes is compiled by Numba.

    Args:
      table: of NumPy arrays that are not writeable.
      codes: uint32[N, 1].
      with_ties: whether to return the ties too.

    Returns:
      The nearest class, its distance, and the ties if wanted, int32[N] each.

    Raises:
      InputError: if a code has bits set beyond the k of the table.
    """
    # Numba compiles once for each layout and again for read-only arrays: all get one form.
    flat = np.ascontiguousarray(codes).reshape(-1)
    flat.flags.writeable = False
    results = tuple(np.empty(len(flat), np.int32) for _ in range(3 if with_ties else 2))
    label_bits = int(table.label_bits)

    def read_piece(start: int, stop: int) -> bool:
        piece = flat[start:stop]
        labels, distances, *ties = (result[start:stop] for result in results)
        for counts in ties:
            _read_ties(table.ties, piece, counts)
        return _read_keys(table.key, label_bits, piece, labels, distances)

    if len(flat) < 2 * _PIECE:
        valid = read_piece(0, len(flat))
    else:
        starts = range(0, len(flat), _PIECE)
        with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
            valid = all(pool.map(lambda start: read_piece(start, start + _PIECE), starts))
    if not valid:
        packing.checked(codes, len(table.key).bit_length() - 1)
    return results


@compiled
def _read_keys(key, label_bits, codes, labels, distances):
    """Fills labels and distances; returns whether all codes are below the table's length."""
    code_mask, label_mask = np.uint32(len(key) - 1), np.uint32((1 << label_bits) - 1)
    shift, all_bits = np.uint32(label_bits), np.uint32(0)
    for i in range(len(codes)):
        code = codes[i]
        all_bits |= code
        # The mask keeps a wrong code within the table; the caller raises for it.
        entry = key[code & code_mask]
        labels[i] = entry & label_mask
        distances[i] = entry >> shift
    return all_bits <= code_mask


@compiled
def _read_ties(ties, codes, counts):
    code_mask = np.uint32(len(ties) - 1)
    for i in range(len(codes)):
        counts[i] = ties[codes[i] & code_mask]
