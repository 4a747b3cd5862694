"""Rankings of a database of packed codes that is spread over the devices of a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from llc_jax.codes import hamming
from llc_jax.evaluation.search import Ranking, Search
from llc_jax.mesh import batch_sharding, replicated_sharding

# Distances that a device holds at a time.
_DISTANCES = 2**24


class MeshHammingSearch(Search):
    """The same as `HammingSearch`, by all devices: each ranks its part of the codes.

    Args:
      codes: uint32[N, ceil(num_bits / 32)], the same in every process.
      labels: int32[N].
      num_bits: k.
      mesh: whose axis `data` the codes are spread over.
    """

    by_bits = True

    def __init__(self, codes: np.ndarray, labels: np.ndarray, num_bits: int, mesh: Mesh):
        assert codes.shape[0] == len(labels)
        assert codes.dtype == np.uint32
        self._size, self._num_bits, self._mesh = len(labels), num_bits, mesh
        padding = -len(labels) % mesh.size
        spread = batch_sharding(mesh)
        self._codes = _put(np.pad(codes, ((0, padding), (0, 0))), spread)
        self._labels = _put(np.pad(labels.astype(np.int32), (0, padding)), spread)
        self._rank = jax.jit(self._rank_on_mesh, static_argnums=0)
        self._rows = max(1, _DISTANCES * mesh.size // len(labels))

    def rank(self, queries: np.ndarray, labels: np.ndarray, exclude: np.ndarray, k: int) -> Ranking:
        """Ranks the database for uint32[Q, W] queries; see `Search`."""
        assert len(queries) == len(labels) == len(exclude)
        count, rows = len(queries), min(self._rows, len(queries))
        ranks = min(k, self._size)
        parts = []
        for start in range(0, count, rows):
            # The last part begins earlier, so that all have one shape.
            part = slice(min(start, count - rows), min(start, count - rows) + rows)
            given = (queries[part], labels[part].astype(np.int32), exclude[part].astype(np.int32))
            given = (_put(array, replicated_sharding(self._mesh)) for array in given)
            found = jax.device_get(self._rank(ranks, *given, self._codes, self._labels))
            parts.append([column[start - part.start :] for column in found])
        items, relevant, first = (np.concatenate(column) for column in zip(*parts, strict=True))
        sizes = (self._size - (exclude >= 0)).astype(np.int32)
        return Ranking(items, relevant, first, relevant.sum(axis=1, dtype=np.int32), sizes)

    def _rank_on_mesh(self, ranks: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Returns items, relevant ones and relevance of the first ranks; see `Ranking`."""
        whole, rows = PartitionSpec(), PartitionSpec("data")
        rank = functools.partial(_rank, size=self._size, num_bits=self._num_bits, ranks=ranks)
        spread = jax.shard_map(
            rank,
            mesh=self._mesh,
            in_specs=(whole, whole, whole, rows, rows),
            out_specs=whole,
            check_vma=False,  # It does not see that what is gathered is the same everywhere.
        )
        return spread(*arrays)


def _put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts what every process has on the devices, which may be those of several."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _rank(queries, query_labels, exclude, codes, labels, *, size, num_bits, ranks):
    """Ranks on one device its part of the codes, and with the others the whole."""
    index = jax.lax.axis_index("data") * len(labels) + jnp.arange(len(labels))
    counted = (index < size)[None] & (index[None] != exclude[:, None])
    relevant = (labels[None] == query_labels[:, None]) & counted
    distances = hamming.distance(queries[:, None], codes[None])
    distances = jnp.where(counted, distances, num_bits + 1)

    def count(distance):
        there = distances == distance
        return jnp.sum(there, axis=1), jnp.sum(there & relevant, axis=1)

    counts = jax.lax.map(count, jnp.arange(num_bits + 1))
    items, hits = (jax.lax.psum(counted.T, "data") for counted in counts)
    # The parts follow each other in the order of the database: so do ties, all along.
    parts = _nearest_first(distances, relevant, ranks)
    parts = (jax.lax.all_gather(part, "data", axis=1, tiled=True) for part in parts)
    _, first = _nearest_first(*parts, ranks)
    return items, hits, first


def _nearest_first(distances, relevant, ranks):
    """Returns the least distances of each row and what is relevant there, ties in order."""
    ordered = jax.lax.sort((distances, relevant), dimension=1, is_stable=True, num_keys=1)
    return tuple(values[:, :ranks] for values in ordered)
