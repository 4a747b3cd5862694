"""Rankings of a database of packed codes that is sharded over the devices of a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from llc_jax.codes import hamming
from llc_jax.evaluation.rankings import Ranker, Ranking
from llc_jax.mesh import batch_sharding, replicated_sharding

# The most distances that a device holds at a time.
_MAX_DISTANCES = 2**24


class MeshHammingRanker(Ranker):
    """The same as `HammingRanker`, by all devices: each ranks its shard of the codes.

    Args:
      codes: uint32[N, ceil(num_bits / 32)], the same in every process of the mesh.
      labels: int32[N].
      num_bits: k.
      mesh: the codes are sharded over its axis `data`.
    """

    by_hamming_distance = True

    def __init__(self, codes: np.ndarray, labels: np.ndarray, num_bits: int, mesh: Mesh):
        assert codes.shape[0] == len(labels)
        assert codes.dtype == np.uint32
        self._size, self._num_bits, self._mesh = len(labels), num_bits, mesh
        padding = -len(labels) % mesh.size
        sharding = batch_sharding(mesh)
        self._codes = _device_put(np.pad(codes, ((0, padding), (0, 0))), sharding)
        self._labels = _device_put(np.pad(labels.astype(np.int32), (0, padding)), sharding)
        self._rank = jax.jit(self._rank_on_mesh, static_argnums=0)
        self._batch_size = max(1, _MAX_DISTANCES * mesh.size // len(labels))

    def rank(
        self, queries: np.ndarray, query_labels: np.ndarray, exclude: np.ndarray, k: int
    ) -> Ranking:
        """Ranks the database for uint32[Q, W] queries; see `Ranker`."""
        assert len(queries) == len(query_labels) == len(exclude)
        inputs = (queries, query_labels.astype(np.int32), exclude.astype(np.int32))
        count, batch_size = len(queries), min(self._batch_size, len(queries))
        ranks = min(k, self._size)
        outputs = []
        for start in range(0, count, batch_size):
            # The last batch begins earlier, so that all have one shape.
            first = min(start, count - batch_size)
            batch = (
                _device_put(array[first : first + batch_size], replicated_sharding(self._mesh))
                for array in inputs
            )
            output = jax.device_get(self._rank(ranks, *batch, self._codes, self._labels))
            outputs.append([array[start - first :] for array in output])
        group_sizes, group_relevant, relevance = (
            np.concatenate(arrays) for arrays in zip(*outputs, strict=True)
        )
        total_relevant = group_relevant.sum(axis=1, dtype=np.int32)
        database_size = (self._size - (exclude >= 0)).astype(np.int32)
        return Ranking(group_sizes, group_relevant, relevance, total_relevant, database_size)

    def _rank_on_mesh(self, ranks: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
        """Returns the first three attributes of a `Ranking`."""
        replicated, sharded = PartitionSpec(), PartitionSpec("data")
        rank = jax.shard_map(
            functools.partial(_rank, size=self._size, num_bits=self._num_bits, ranks=ranks),
            mesh=self._mesh,
            in_specs=(replicated, replicated, replicated, sharded, sharded),
            out_specs=replicated,
            check_vma=False,  # It cannot tell that gathered values are the same on all devices.
        )
        return rank(*arrays)


def _device_put(array: np.ndarray, sharding: jax.sharding.Sharding) -> jax.Array:
    """Puts an array that every process has on devices, which may be those of several."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def _rank(queries, query_labels, exclude, codes, labels, *, size, num_bits, ranks):
    """Ranks on each device its shard of the codes, and merges the rankings of all devices."""
    index = jax.lax.axis_index("data") * len(labels) + jnp.arange(len(labels))
    included = (index < size)[None] & (index[None] != exclude[:, None])
    relevance = (labels[None] == query_labels[:, None]) & included
    distances = hamming.distance(queries[:, None], codes[None])
    distances = jnp.where(included, distances, num_bits + 1)

    def count(distance):
        in_group = distances == distance
        return jnp.sum(in_group, axis=1), jnp.sum(in_group & relevance, axis=1)

    counts = jax.lax.map(count, jnp.arange(num_bits + 1))
    group_sizes, group_relevant = (jax.lax.psum(count.T, "data") for count in counts)
    # The shards follow each other in the order of the database, and so do ties in the end.
    nearest = _sort_by_distance(distances, relevance, ranks)
    nearest = (jax.lax.all_gather(shard, "data", axis=1, tiled=True) for shard in nearest)
    _, relevance = _sort_by_distance(*nearest, ranks)
    return group_sizes, group_relevant, relevance


def _sort_by_distance(distances, relevance, ranks):
    """Returns the least distances of each row and the relevance there, ties in order."""
    ordered = jax.lax.sort((distances, relevance), dimension=1, is_stable=True, num_keys=1)
    return tuple(values[:, :ranks] for values in ordered)
