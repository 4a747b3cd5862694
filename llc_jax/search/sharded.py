"""Search among codes that are spread over the devices of a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llc_jax.codes import hamming, packing
from llc_jax.errors import InputError

# Codes, and queries, that a device compares at once, at most.
_BLOCK = 2**15
_QUERY_BATCH = 256
# Rows are counted with an int32.
_MAX_TOP = 2**31 - 1


class ShardedIndex:
    """Codes with ids on the devices of a mesh; built once, then searched.

    The order of insertion is that of the processes, and within a process that of its
    items. Every process takes part in every search, and gets all results.

    Attributes:
      num_bits: k, the bits of a code.
    """

    def __init__(self, mesh: Mesh, num_bits: int, codes: np.ndarray, ids: np.ndarray):
        """Places the items of this process on its devices.

        Args:
          mesh: of one axis, in the order of the processes.
          num_bits: k.
          codes: packed, uint32[N, ceil(k / 32)]; N may differ between processes.
          ids: int64[N].

        Raises:
          InputError: if the mesh has several axes, or the codes another form.
        """
        if len(mesh.axis_names) != 1:
            raise InputError(f"The mesh has the axes {mesh.axis_names}: codes are split over one.")
        codes = packing.checked(codes, num_bits)
        if len(codes) != len(ids):
            raise InputError(f"There are {len(codes):,} codes but {len(ids):,} ids.")
        self.num_bits = num_bits
        self._mesh = mesh
        devices = len(mesh.local_devices)
        rows = _rows_per_device(len(codes), devices)
        to_devices = functools.partial(
            jax.make_array_from_process_local_data,
            NamedSharding(mesh, PartitionSpec(*mesh.axis_names)),
        )
        counts = np.clip(len(codes) - rows * np.arange(devices), 0, rows).astype(np.int32)
        self._codes = to_devices(_padded(codes, devices * rows))
        # Two words an id: devices have no 64-bit integers.
        id_words = np.ascontiguousarray(ids, "<i8").view("<u4").reshape(-1, 2)
        self._ids = to_devices(_padded(id_words, devices * rows))
        self._counts = to_devices(counts)

    def search(self, queries: np.ndarray | jax.Array, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of each query; see `HammingIndex.search`.

        Args:
          queries: uint32[Q, ceil(num_bits / 32)], the same in all processes.
          k: how many to find.

        Returns:
          Distances int32[Q, k] and ids int64[Q, k].

        Raises:
          InputError: as `HammingIndex.search` does.
        """
        queries = packing.checked(queries, self.num_bits)
        distances, ids = empty_results(len(queries), k)
        for start in range(0, len(queries), _QUERY_BATCH):
            batch = queries[start : start + _QUERY_BATCH]
            # Padded to a power of two, so that few shapes are compiled for.
            padded = _padded(batch, 1 << (len(batch) - 1).bit_length())
            batch_distances, id_words = _search(
                self._codes, self._ids, self._counts, padded, self._mesh, k
            )
            id_words = np.ascontiguousarray(np.asarray(id_words)[: len(batch)], "<u4")
            distances[start : start + _QUERY_BATCH] = np.asarray(batch_distances)[: len(batch)]
            ids[start : start + _QUERY_BATCH] = id_words.view("<i8")[..., 0]
        return distances, ids


def empty_results(num_queries: int, top: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns arrays to fill: distances, int32[Q, top], and ids, int64[Q, top].

    Raises:
      InputError: if `top` is not a whole number from 1, or they do not fit into memory.
    """
    if not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"A search is for a whole number of at least 1 item, not {top}.")
    if top > _MAX_TOP:
        raise InputError(f"A search is for at most {_MAX_TOP:,} items, not {top:,}.")
    try:
        return np.empty((num_queries, top), np.int32), np.empty((num_queries, top), np.int64)
    except (MemoryError, ValueError) as error:
        raise InputError(
            f"The results of {num_queries:,} queries for {top:,} items each do not fit into "
            "memory: search for fewer items, or with fewer queries at a time."
        ) from error


@functools.partial(jax.jit, static_argnums=(4, 5))
def _search(codes, ids, counts, queries, mesh: Mesh, top: int):
    """Returns distances int32[Q, top] and the two words of ids, uint32[Q, top, 2]."""
    (axis,) = mesh.axis_names

    def search_shard(codes, ids, counts, queries):
        distances, rows = _nearest_in_shard(codes, counts[0], queries, top)
        distances = jax.lax.all_gather(distances, axis, axis=1, tiled=True)
        id_words = jax.lax.all_gather(ids[rows], axis, axis=1, tiled=True)
        # Of ties the first is taken: that of the first device, and its first row.
        distances, positions = _smallest(distances, min(top, distances.shape[1]))
        return distances, jnp.take_along_axis(id_words, positions[..., None], axis=1)

    split, replicated = PartitionSpec(axis), PartitionSpec()
    distances, id_words = jax.shard_map(
        search_shard,
        mesh=mesh,
        in_specs=(split, split, split, replicated),
        out_specs=replicated,
        check_vma=False,
    )(codes, ids, counts, queries)
    missing = top - distances.shape[1]
    distances = jnp.pad(distances, ((0, 0), (0, missing)), constant_values=jnp.inf)
    id_words = jnp.pad(id_words, ((0, 0), (0, missing), (0, 0)))
    none = jnp.isinf(distances)
    distances = jnp.where(none, -1, distances).astype(jnp.int32)
    return distances, jnp.where(none[..., None], jnp.uint32(2**32 - 1), id_words)


def _nearest_in_shard(codes, count, queries, top: int):
    """Returns the distances, inf where there is no item, and rows of a device's nearest items."""
    num_rows, words = codes.shape
    block_size = min(_BLOCK, num_rows)
    top = min(top, num_rows)

    def merge_block(best, start_and_block):
        start, block = start_and_block
        distances = hamming.distance(queries[:, None, :], block[None, :, :])
        rows = start + jnp.arange(block_size, dtype=jnp.int32)
        distances = jnp.where(rows[None] < count, distances.astype(jnp.float32), jnp.inf)
        # The best of earlier blocks come first, so they stay first among ties.
        distances = jnp.concatenate([best[0], distances], axis=1)
        rows = jnp.broadcast_to(rows, (len(queries), block_size))
        rows = jnp.concatenate([best[1], rows], axis=1)
        distances, positions = _smallest(distances, top)
        return (distances, jnp.take_along_axis(rows, positions, axis=1)), None

    best = (
        jnp.full((len(queries), top), jnp.inf, jnp.float32),
        jnp.zeros((len(queries), top), jnp.int32),
    )
    starts = jnp.arange(num_rows // block_size, dtype=jnp.int32) * block_size
    best, _ = jax.lax.scan(merge_block, best, (starts, codes.reshape(-1, block_size, words)))
    return best


def _smallest(distances, top: int):
    """Returns the smallest values of each row and their positions; of ties the first ones."""
    negative, positions = jax.lax.top_k(-distances, top)
    return -negative, positions


def _rows_per_device(count: int, devices: int) -> int:
    """Returns the rows, at least 1, that every device of every process gets."""
    if jax.process_count() > 1:
        count = int(np.max(multihost_utils.process_allgather(np.array(count))))
    rows = max(1, -(-count // devices))
    return rows if rows <= _BLOCK else -(-rows // _BLOCK) * _BLOCK


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Returns an array with rows of zeros at its end."""
    return np.pad(array, ((0, length - len(array)), (0, 0)))
