"""The hierarchy of classes that is found in their codes, by agglomerative clustering.

References:
  LLC, section 3.2, figure 1, and appendix D, figure 3.
"""

import dataclasses
import re

import numpy as np
import scipy.cluster.hierarchy
import scipy.spatial.distance

from llc_jax.codes.codebook import Codebook

# To order the leaves at their best takes a time that grows faster than the square of the classes:
# seconds for these.
_MOST_ORDERED = 1000

# Names that Newick takes as they are. In a bare name an underscore stands for a blank.
_BARE_NAME = re.compile(r"[A-Za-z0-9.+-]+")


@dataclasses.dataclass(frozen=True)
class Dendrogram:
    """A binary tree whose leaves are the classes.

    Attributes:
      class_names: L names.
      linkage: float64[L - 1, 4], as SciPy has it, for `scipy.cluster.hierarchy.dendrogram`: row
        i merges the two nodes of its first two columns to the node L + i, at the distance of
        its third column, in bits; its fourth is the number of leaves. Nodes below L are classes.
      leaves: int32[L], the classes from left to right.
    """

    class_names: tuple[str, ...]
    linkage: np.ndarray
    leaves: np.ndarray

    def newick(self) -> str:
        """Returns the tree as Newick text, with the leaves from left to right.

        The way along the tree between two classes is as long as the distance at which they are
        merged, in bits. Names are in quotes unless they are only letters, digits and `.+-`.
        """
        size = len(self.class_names)
        texts = [_newick_name(name) for name in self.class_names]
        heights = np.concatenate([np.zeros(size), self.linkage[:, 2] / 2])
        for node, (left, right) in enumerate(self.linkage[:, :2].astype(int), start=size):
            # Means that are equal may differ by their rounding.
            above_left, above_right = np.maximum(heights[node] - heights[[left, right]], 0)
            texts.append(f"({texts[left]}:{above_left:.6g},{texts[right]}:{above_right:.6g})")
            texts[left] = texts[right] = ""
        return f"{texts[-1]};"


def cluster(codebook: Codebook, seed: int = 0) -> Dendrogram:
    """Clusters the classes by the Hamming distances of their codes, with average linkage.

    Neighbouring leaves are as near to each other as the tree allows (Bar-Joseph et al., 2001),
    where there are at most 1,000 classes.

    Args:
      codebook: L classes. Memory grows with L^2.
      seed: of the order in which equal distances are merged, see `link`.
    """
    if codebook.num_classes == 1:
        return Dendrogram(codebook.class_names, np.zeros((0, 4)), np.zeros(1, np.int32))
    distances = pairwise_distances(codebook)
    linkage = link(distances, seed)
    if codebook.num_classes <= _MOST_ORDERED:
        linkage = scipy.cluster.hierarchy.optimal_leaf_ordering(linkage, distances)
    leaves = scipy.cluster.hierarchy.leaves_list(linkage)
    return Dendrogram(codebook.class_names, linkage, leaves)


def pairwise_distances(codebook: Codebook) -> np.ndarray:
    """Returns the Hamming distances of all pairs of classes in bits, float64[L (L - 1) / 2].

    They are in the order of `scipy.spatial.distance.squareform`.
    """
    shares = scipy.spatial.distance.pdist(codebook.latent >= 0, "hamming")
    return np.rint(shares * codebook.num_bits)


def link(distances: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the linkage of classes, float64[L - 1, 4]; see `Dendrogram`.

    Short codes have many equal distances, and which of them is merged first changes the tree.
    The order of the classes does not decide it, because it may follow a true hierarchy, as the
    ids of ImageNet's classes do.

    Args:
      distances: those of all pairs, of L >= 2 classes; see `pairwise_distances`.
      seed: of the random order of the classes in which they are clustered.
    """
    size = scipy.spatial.distance.num_obs_y(distances)
    order = np.random.default_rng(seed).permutation(size)
    shuffled = scipy.spatial.distance.squareform(distances)[np.ix_(order, order)]
    shuffled = scipy.spatial.distance.squareform(shuffled, checks=False)
    linkage = scipy.cluster.hierarchy.linkage(shuffled, "average")
    nodes = np.concatenate([order, np.arange(size, 2 * size - 1)])
    linkage[:, :2] = nodes[linkage[:, :2].astype(int)]
    return linkage


def _newick_name(name: str) -> str:
    """Returns a name in single quotes, with those in it doubled, where Newick demands it."""
    if _BARE_NAME.fullmatch(name):
        return name
    return "'" + name.replace("'", "''") + "'"
