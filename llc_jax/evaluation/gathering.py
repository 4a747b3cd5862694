"""Embeddings and labels of all images of a set, gathered in every process."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(
    embed: Callable[[jax.Array], Any], batches: Iterable[dict[str, jax.Array]]
) -> tuple[Any, np.ndarray, np.ndarray]:
    """Embeds all images that the batches do not mask; each process its share of each batch.

    Args:
      embed: B inputs, images or vectors -> float32[B, d], or a tree of such arrays, jitted.
      batches: batches of M images in all, padding and damaged ones included.

    Returns:
      The embeddings of the N images that are not masked, float32[N, d], or a tree of such
      arrays; their labels, int32[N]; and the mask, bool[M].
    """
    gathered = []
    for batch in batches:
        sharded = (embed(batch["input"]), batch["label"], batch["mask"])
        gathered.append(multihost_utils.process_allgather(sharded, tiled=True))
    embeddings, labels, mask = jax.tree.map(lambda *parts: np.concatenate(parts), *gathered)
    return jax.tree.map(lambda rows: rows[mask], embeddings), labels[mask], mask
