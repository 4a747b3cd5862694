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
    names = codebook.class_names
    groups = None if hierarchy is None else superclasses.read(hierarchy, names)
    products = None
    if representations is not None:
        products = similarity.inner_products(representations)
        if len(products) != codebook.num_classes:
            raise InputError(
                f"The codebook has {codebook.num_classes} classes, but there are "
                f"representations of {len(products)}."
            )
    seeds = range(seed, seed + repeats)
    figures = {}
    for name, values in _figures(codebook, products, groups, seeds).items():
        figures[name] = float(np.mean(values))
        if len(values) > 1:
            figures[f"{name}_std"] = float(np.std(values))
    drawn = [
        _figures(Codebook.random(*codebook.latent.shape, draw), products, groups, [draw])
        for draw in seeds
    ]
    for name in drawn[0]:
        values = [of_draw[name][0] for of_draw in drawn]
        figures[f"random/{name}"] = float(np.mean(values))
        figures[f"random/{name}_std"] = float(np.std(values))
    tree = dendrogram.cluster(codebook, seed)
    in_order = None if products is None else products[np.ix_(tree.leaves, tree.leaves)]
    return Structure(
        figures, tree, similarity.inner_products(_signs(codebook), tree.leaves), in_order
    )


def _figures(
    codebook: Codebook,
    products: np.ndarray | None,
    groups: np.ndarray | None,
    seeds: range | list[int],
) -> dict[str, list[float]]:
    """Returns each figure, of purity one value for each order of ties."""
    figures = {}
    if groups is not None:
        distances = dendrogram.pairwise_distances(codebook)
        figures["nearest_agreement"] = [superclasses.nearest_agreement(distances, groups)]
        figures["purity"] = [
            superclasses.dendrogram_purity(dendrogram.link(distances, seed), groups)
            for seed in seeds
        ]
    if products is not None:
        of_codes = similarity.inner_products(_signs(codebook))
        figures["spearman"] = [float(similarity.spearman(of_codes, products).mean())]
    return figures


def _signs(codebook: Codebook) -> np.ndarray:
    """Returns the class codes as int8[L, k] of +1 and -1."""
    return np.where(codebook.latent >= 0, 1, -1).astype(np.int8)
