"""Embeddings of images, each in the process that computed it, and what processes share of them.

Embeddings stay where they are. What is shared is small, as packed codes are, or comes in blocks.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import multihost_utils

# The most numbers of one process that are in a block.
_BLOCK = 2**22


class Embedded(NamedTuple):
    """Embeddings of those of N images whose rows of each batch lie on this process's devices.

    Attributes:
      embeddings: float32[n, d], or a tree of such arrays.
      labels: int32[n].
      positions: int64[n], increasing, which of the N images they are.
      mask: bool[M], of the rows of all batches, of which N are not masked.
    """

    embeddings: Any
    labels: np.ndarray
    positions: np.ndarray
    mask: np.ndarray


def embed_images(
    embed: Callable[[jax.Array], Any], batches: Iterable[dict[str, jax.Array]]
) -> Embedded:
    """Embeds all images that the batches do not mask; each process its share of each batch.

    Args:
      embed: B inputs, images or vectors -> float32[B, d], or a tree of such arrays, jitted.
      batches: batches of M images in all, padding and damaged ones included.
    """
    parts, num_rows = [], 0
    for batch in batches:
        embeddings = jax.device_put(embed(batch["input"]), batch["mask"].sharding)
        mask, rows = _local_rows(batch["mask"])
        local = jax.tree.map(lambda array: _local_rows(array)[0], (embeddings, batch["label"]))
        parts.append((*local, mask, num_rows + rows))
        num_rows += len(batch["mask"])
    embeddings, labels, mask, rows = jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)
    mask_of_all = gather(mask, rows)
    positions = (np.cumsum(mask_of_all) - 1)[rows[mask]]
    embeddings = jax.tree.map(lambda array: array[mask], embeddings)
    return Embedded(embeddings, labels[mask], positions, mask_of_all)


def gather(values: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """Returns [N, ...], the values of all processes in the order of their positions.

    Args:
      values: [n, ...], of this process.
      positions: int64[n], increasing; all numbers from 0 to N - 1 are those of one process.
    """
    if jax.process_count() == 1:
        return values
    blocks = list(gather_blocks(values, positions))
    gathered = np.empty((sum(len(block) for block, _ in blocks), *values.shape[1:]), values.dtype)
    for block, of_block in blocks:
        gathered[of_block] = block
    return gathered


def gather_blocks(
    values: np.ndarray, positions: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the values of all processes and their positions, a block of a process at a time.

    All processes must call it together.

    Args:
      values, positions: as for `gather`.
    """
    counts = stack(np.int32(len(values)))
    size = max(1, _BLOCK // max(1, int(np.prod(values.shape[1:]))))
    for start in range(0, int(counts.max()), size):
        blocks = [
            _padded(array[start : start + size], min(size, int(counts.max()) - start))
            for array in (values, positions.astype(np.int32))
        ]
        for block, of_block, count in zip(*stack(blocks), counts - start, strict=True):
            yield block[: max(0, count)], of_block[: max(0, count)]


def add_up(counts: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Adds up the integers of all processes, int64[...] by name."""
    # JAX has no integers of 64 bits.
    words = {name: np.atleast_1d(count).view(np.uint32) for name, count in counts.items()}
    totals = {name: of_all.view(np.int64).sum(axis=0) for name, of_all in stack(words).items()}
    return {name: totals[name].reshape(np.shape(count)) for name, count in counts.items()}


def stack(arrays: Any) -> Any:
    """Returns a tree of the arrays of all processes, [P, ...]; of one, without JAX."""
    if jax.process_count() == 1:
        return jax.tree.map(lambda array: np.asarray(array)[None], arrays)
    return multihost_utils.process_allgather(arrays)


def _local_rows(array: jax.Array) -> tuple[np.ndarray, np.ndarray]:
    """Returns the rows of an array that lie on this process's devices, and their numbers."""
    shards = {shard.index[0].start or 0: shard.data for shard in array.addressable_shards}
    starts = sorted(shards)
    rows = [start + np.arange(len(shards[start])) for start in starts]
    return np.concatenate([shards[start] for start in starts]), np.concatenate(rows)


def _padded(array: np.ndarray, length: int) -> np.ndarray:
    """Returns an array with rows of zeros at its end."""
    return np.pad(array, ((0, length - len(array)), *((0, 0),) * (array.ndim - 1)))
