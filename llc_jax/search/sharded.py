"""Search among codes that are spread over the devices of a mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from llc_jax.codes import hamming, packing
from llc_jax.errors import InputError

# Codes that a device compares with the queries at once, and queries, at most.
_BLOCK = 2**15
_QUERIES = 256


class ShardedIndex:
    """Codes with ids on the devices of a mesh; made once, then searched.

    The order of insertion is that of the processes, and within a process that of its
    items. Every process takes part in every search, and gets all answers.

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
        rows = _rows(len(codes), devices)
        place = functools.partial(
            jax.make_array_from_process_local_data,
            NamedSharding(mesh, PartitionSpec(*mesh.axis_names)),
        )
        counts = np.clip(len(codes) - rows * np.arange(devices), 0, rows).astype(np.int32)
        self._codes = place(_padded(codes, devices * rows))
        # Two words an id: devices have no 64-bit integers.
        id_words = np.ascontiguousarray(ids, "<i8").view("<u4").reshape(-1, 2)
        self._ids = place(_padded(id_words, devices * rows))
        self._counts = place(counts)

    def search(self, queries: np.ndarray | jax.Array, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of each query; see `HammingIndex.search`.

        Args:
          queries: uint32[Q, ceil(num_bits / 32)], the same in all processes.
          k: how many to find.

        Returns:
          Distances int32[Q, k] and ids int64[Q, k].
        """
        queries = packing.checked(queries, self.num_bits)
        distances, found = empty_answers(len(queries), k)
        for start in range(0, len(queries), _QUERIES):
            part = queries[start : start + _QUERIES]
            # Few different numbers of queries: few compilations.
            some = _padded(part, 1 << (len(part) - 1).bit_length())
            near, words = _search(self._codes, self._ids, self._counts, some, self._mesh, k)
            words = np.ascontiguousarray(np.asarray(words)[: len(part)], "<u4")
            distances[start : start + _QUERIES] = np.asarray(near)[: len(part)]
            found[start : start + _QUERIES] = words.view("<i8")[..., 0]
        return distances, found


def empty_answers(queries: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns room for distances, int32[Q, count], and ids, int64[Q, count].

    Raises:
      InputError: if the count is less than 1.
    """
    if count < 1:
        raise InputError(f"A search is for at least 1 item, not {count}.")
    return np.empty((queries, count), np.int32), np.empty((queries, count), np.int64)


@functools.partial(jax.jit, static_argnums=(4, 5))
def _search(codes, ids, counts, queries, mesh: Mesh, top: int):
    """Returns distances int32[Q, top] and the two words of ids, uint32[Q, top, 2]."""
    (axis,) = mesh.axis_names

    def search_one(codes, ids, counts, queries):
        distances, rows = _nearest_of_device(codes, counts[0], queries, top)
        own = jax.lax.all_gather(distances, axis, axis=1, tiled=True)
        words = jax.lax.all_gather(ids[rows], axis, axis=1, tiled=True)
        # Of equal ones the first is taken: that of the first device, and its first row.
        distances, places = _least(own, min(top, own.shape[1]))
        return distances, jnp.take_along_axis(words, places[..., None], axis=1)

    split, whole = PartitionSpec(axis), PartitionSpec()
    distances, words = jax.shard_map(
        search_one,
        mesh=mesh,
        in_specs=(split, split, split, whole),
        out_specs=whole,
        check_vma=False,
    )(codes, ids, counts, queries)
    missing = top - distances.shape[1]
    distances = jnp.pad(distances, ((0, 0), (0, missing)), constant_values=jnp.inf)
    words = jnp.pad(words, ((0, 0), (0, missing), (0, 0)))
    none = jnp.isinf(distances)
    distances = jnp.where(none, -1, distances).astype(jnp.int32)
    return distances, jnp.where(none[..., None], jnp.uint32(2**32 - 1), words)


def _nearest_of_device(codes, count, queries, top: int):
    """Returns distances, inf where there is none, and rows of the nearest of one device."""
    rows, words = codes.shape
    block = min(_BLOCK, rows)
    top = min(top, rows)

    def fold(best, numbered):
        start, some = numbered
        distances = hamming.distance(queries[:, None, :], some[None, :, :])
        own = start + jnp.arange(block, dtype=jnp.int32)
        distances = jnp.where(own[None] < count, distances.astype(jnp.float32), jnp.inf)
        # What was found before comes first, so it stays first among equals.
        distances = jnp.concatenate([best[0], distances], axis=1)
        own = jnp.concatenate([best[1], jnp.broadcast_to(own, (len(queries), block))], axis=1)
        distances, places = _least(distances, top)
        return (distances, jnp.take_along_axis(own, places, axis=1)), None

    best = (
        jnp.full((len(queries), top), jnp.inf, jnp.float32),
        jnp.zeros((len(queries), top), jnp.int32),
    )
    starts = jnp.arange(rows // block, dtype=jnp.int32) * block
    best, _ = jax.lax.scan(fold, best, (starts, codes.reshape(-1, block, words)))
    return best


def _least(distances, top: int):
    """Returns the least values and their places; of equal ones the first places."""
    negative, places = jax.lax.top_k(-distances, top)
    return -negative, places


def _rows(count: int, devices: int) -> int:
    """Returns the rows that every device of every process gets, at least 1."""
    if jax.process_count() > 1:
        count = int(np.max(multihost_utils.process_allgather(np.array(count))))
    rows = max(1, -(-count // devices))
    return rows if rows <= _BLOCK else -(-rows // _BLOCK) * _BLOCK


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Returns an array with rows of zeros at its end."""
    return np.pad(array, ((0, length - len(array)), (0, 0)))
