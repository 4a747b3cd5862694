"""What the network makes of all images of a set, brought to every process."""

from collections.abc import Callable, Iterable

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather(
    represent: Callable[[jax.Array], jax.Array], batches: Iterable[dict[str, jax.Array]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encodes all images that the batches do not mask; each process its part of each batch.

    Args:
      represent: uint8[B, H, W, 3] -> float32[B, d], jitted.
      batches: of M images, padding and damaged ones included.

    Returns:
      float32[N, d]; their labels, int32[N]; and which of the M they are, bool[M].
    """
    rows = []
    for batch in batches:
        parts = (represent(batch["image"]), batch["label"], batch["mask"])
        rows.append(multihost_utils.process_allgather(parts, tiled=True))
    vectors, labels, mask = (np.concatenate(column) for column in zip(*rows, strict=True))
    return vectors[mask], labels[mask], mask
