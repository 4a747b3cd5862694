"""Which classes have a given code: a hash table, for any number of bits."""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

NONE = -1

_BUCKETS_PER_CODE = 4


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["starts", "codes", "labels", "counts"],
    meta_fields=["max_bucket_size"],
)
@dataclasses.dataclass(frozen=True)
class HashTable:
    """The U different class codes, in order of their hash.

    Attributes:
      starts: int32[buckets + 1], where each bucket's codes start; a power of two buckets.
      codes: uint32[U, W].
      labels: int32[U], the lowest class that has the code.
      counts: int32[U], how many classes have it.
      max_bucket_size: codes in the fullest bucket.
    """

    starts: jax.Array
    codes: jax.Array
    labels: jax.Array
    counts: jax.Array
    max_bucket_size: int


class Match(NamedTuple):
    """The classes that have a code.

    Attributes:
      label: int32[...], the lowest of them; -1 where there is none.
      count: int32[...], how many they are.
    """

    label: jax.Array
    count: jax.Array


def build(class_codes: np.ndarray) -> HashTable:
    """Builds the hash table of packed class codes, uint32[L, W]."""
    codes, labels, counts = np.unique(class_codes, axis=0, return_index=True, return_counts=True)
    buckets = 2 ** int(_BUCKETS_PER_CODE * len(codes) - 1).bit_length()
    bucket = np.asarray(_hash(codes)) % buckets
    order = np.argsort(bucket, kind="stable")
    sizes = np.bincount(bucket, minlength=buckets)
    return HashTable(
        starts=jnp.asarray(np.concatenate([[0], np.cumsum(sizes)]), jnp.int32),
        codes=jnp.asarray(codes[order]),
        labels=jnp.asarray(labels[order], jnp.int32),
        counts=jnp.asarray(counts[order], jnp.int32),
        max_bucket_size=int(sizes.max()),
    )


def look_up(table: HashTable, codes: jax.Array) -> Match:
    """Looks up packed codes, uint32[..., W], in as many reads as the fullest bucket has codes."""
    bucket = _hash(codes) % jnp.uint32(len(table.starts) - 1)
    start, stop = table.starts[bucket], table.starts[bucket + 1]
    row = jnp.full(bucket.shape, NONE, jnp.int32)
    for offset in range(table.max_bucket_size):
        candidate = jnp.minimum(start + offset, len(table.codes) - 1)
        equal = jnp.all(table.codes[candidate] == codes, axis=-1)
        row = jnp.where(equal & (start + offset < stop), candidate, row)
    return Match(
        label=jnp.where(row == NONE, NONE, table.labels[row]),
        count=jnp.where(row == NONE, 0, table.counts[row]),
    )


@jax.jit
def _hash(codes: jax.Array) -> jax.Array:
    """Mixes the words of a code into one, uint32[...]: the finaliser of MurmurHash3."""
    mixed = jnp.zeros(codes.shape[:-1], jnp.uint32)
    for word in range(codes.shape[-1]):
        mixed = (mixed ^ codes[..., word]) + jnp.uint32(0x9E3779B9)
        mixed = (mixed ^ (mixed >> 16)) * jnp.uint32(0x85EBCA6B)
        mixed = (mixed ^ (mixed >> 13)) * jnp.uint32(0xC2B2AE35)
        mixed = mixed ^ (mixed >> 16)
    return mixed
