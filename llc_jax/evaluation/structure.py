"""The structure of class codes: the hierarchy in them, and what they keep of real numbers.

References:
  LLC, section 3.2, figures 1 and 2, and appendix D.
"""

import os
from typing import NamedTuple

import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.evaluation import dendrogram, similarity, superclasses
from llc_jax.evaluation.dendrogram import Dendrogram
from llc_jax.evaluation.superclasses import Hierarchy


class Structure(NamedTuple):
    """What `describe` finds in L class codes.

    Attributes:
      figures: by name; see `describe`.
      dendrogram: the hierarchy found in the codes.
      code_products: float32[L, L], inner products of the codes in the order of the leaves.
      representation_products: float32[L, L], those of the real representations in the same
        order; None where there are none.
    """

    figures: dict[str, float]
    dendrogram: Dendrogram
    code_products: np.ndarray
    representation_products: np.ndarray | None


def describe(
    codebook: Codebook,
    representations: np.ndarray | None = None,
    hierarchy: str | os.PathLike | Hierarchy | None = None,
    seed: int = 0,
    repeats: int = 10,
) -> Structure:
    """Describes the structure of class codes, beside that of random codes of the same size.

    The figures, where there is a hierarchy:

      purity, purity_std: dendrogram purity, mean and standard deviation over random orders in
        which equal distances are merged; see `superclasses.dendrogram_purity`
      nearest_agreement: how often the nearest other class code is of the same superclass

    and where there are representations:

      spearman: mean over classes of the rank correlation between the inner products of codes
        and those of representations; see `similarity.spearman`

    `random/<name>` is the mean of each over random codebooks, and `random/<name>_std` its
    standard deviation.

    Args:
      codebook: L classes.
      representations: real[L, d], real representations of the classes: the rows of a linear
        classifier's weights, or the means of features.
      hierarchy: the superclass of each class; see `superclasses.read`.
      seed: the first of those for the orders of ties, and for the random codebooks.
      repeats: how many orders, and how many random codebooks.

    Raises:
      InputError: if representations or hierarchy are not of these classes.
    """
    if repeats < 1:
        raise InputError(f"repeats is 1 or more, not {repeats}.")
    groups = None if hierarchy is None else superclasses.read(hierarchy, codebook.class_names)
    products = None if representations is None else similarity.inner_products(representations)
    if products is not None and len(products) != codebook.num_classes:
        raise InputError(
            f"The codebook has {codebook.num_classes} classes, but there are representations of "
            f"{len(products)}."
        )
    seeds = range(seed, seed + repeats)
    figures = _figures(codebook, products, groups, seeds) | {
        f"random/{name}": value
        for name, value in _random_figures(codebook, products, groups, seeds).items()
    }
    tree = dendrogram.cluster(codebook, seed)
    code_products = similarity.inner_products(_signs(codebook), tree.leaves)
    in_order = None if products is None else products[np.ix_(tree.leaves, tree.leaves)]
    return Structure(figures, tree, code_products, in_order)


def _figures(
    codebook: Codebook, products: np.ndarray | None, groups: np.ndarray | None, seeds: range
) -> dict[str, float]:
    """Returns the figures of a codebook, those of purity over the orders of ties of the seeds."""
    figures = {}
    if groups is not None:
        distances = dendrogram.pairwise_distances(codebook)
        linkages = (dendrogram.link(distances, seed) for seed in seeds)
        purities = [superclasses.dendrogram_purity(linkage, groups) for linkage in linkages]
        figures["purity"], figures["purity_std"] = float(np.mean(purities)), float(np.std(purities))
        figures["nearest_agreement"] = superclasses.nearest_agreement(distances, groups)
    if products is not None:
        code_products = similarity.inner_products(_signs(codebook))
        figures["spearman"] = float(similarity.spearman(code_products, products).mean())
    return figures


def _random_figures(
    codebook: Codebook, products: np.ndarray | None, groups: np.ndarray | None, seeds: range
) -> dict[str, float]:
    """Returns mean and standard deviation of each figure over random codebooks of that size."""
    drawn = []
    for seed in seeds:
        random = Codebook.random(codebook.num_classes, codebook.num_bits, seed)
        # Which classes share a code, where they have to, does not depend on their order.
        order = np.random.default_rng(seed).permutation(codebook.num_classes)
        random = Codebook.from_numpy(random.latent[order])
        drawn.append(_figures(random, products, groups, range(seed, seed + 1)))
    figures = {}
    for name in (name for name in drawn[0] if name != "purity_std"):
        values = [of_draw[name] for of_draw in drawn]
        figures[name], figures[f"{name}_std"] = float(np.mean(values)), float(np.std(values))
    return figures


def _signs(codebook: Codebook) -> np.ndarray:
    """Returns the class codes as int8[L, k] of +1 and -1."""
    return np.where(codebook.latent >= 0, 1, -1).astype(np.int8)
