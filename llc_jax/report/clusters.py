"""Which class codes lie near each other: agglomerative clustering, as in the paper's figure 1."""

import dataclasses

import numpy as np
from scipy.cluster import hierarchy

from llc_jax.codes.codebook import Codebook
from llc_jax.evaluation.dendrogram import pairwise_distances

# The distances of more classes than these would not fit in the memory of a small machine.
_MOST_CLASSES = 5000
# To order the leaves at their best takes a time that grows with the square of the classes.
_MOST_ORDERED = 500


@dataclasses.dataclass(frozen=True)
class Clusters:
    """A dendrogram of L class codes.

    Attributes:
      order: the classes in the order of its leaves, int64[L].
      links: one merge a row, float64[L - 1, 4]: two clusters (a class, or L + i for what row i
        has merged), their distance in bits, and the number of classes; as SciPy has them. Empty
        where there is one class, or too many for a dendrogram.
    """

    order: np.ndarray
    links: np.ndarray


def cluster_codes(codebook: Codebook) -> Clusters:
    """Clusters class codes by their Hamming distances, with average linkage.

    Where there are too many classes, they are only sorted by their codes.
    """
    bits = codebook.latent >= 0
    if not 2 <= len(bits) <= _MOST_CLASSES:
        return Clusters(np.lexsort(bits.T[::-1]), np.empty((0, 4)))
    distances = pairwise_distances(codebook)
    ordered = len(bits) <= _MOST_ORDERED
    links = hierarchy.linkage(distances, "average", optimal_ordering=ordered)
    return Clusters(hierarchy.leaves_list(links).astype(np.int64), links)
