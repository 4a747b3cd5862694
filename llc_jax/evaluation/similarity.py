"""Inner products of classes, by their codes and by their real representations.

References:
  LLC, section 3.2, figure 2, and appendix D.
"""

import numpy as np
import scipy.stats

from llc_jax.errors import InputError


def inner_products(vectors: np.ndarray, order: np.ndarray | None = None) -> np.ndarray:
    """Returns the inner products of all pairs of classes, for a heat map.

    Args:
      vectors: real[L, d]: codes of +1 and -1, or real representations, such as the rows of a
        linear classifier's weights.
      order: int[L], the order of rows and columns, such as `Dendrogram.leaves`; by default
        that of the vectors.

    Returns:
      float32[L, L]; of codes, k minus twice the Hamming distance.

    Raises:
      InputError: if the vectors are of another form, or not finite.
    """
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or vectors.dtype.kind not in "fiub":
        raise InputError(
            f"Representations of classes are real[L, d], not {vectors.dtype}{list(vectors.shape)}."
        )
    vectors = vectors.astype(np.float32)
    if not np.isfinite(vectors).all():
        raise InputError("Representations of classes are finite numbers: there are NaN or inf.")
    ordered = vectors if order is None else vectors[order]
    return ordered @ ordered.T


def spearman(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns, for each class, Spearman's rank correlation of its inner products with the others.

    The product of a class with itself is left out: it is nearly always the largest, which alone
    would give random codes a correlation of 3 / L.

    Args:
      first: real[L, L], inner products.
      second: real[L, L], others of the same classes, in the same order.

    Returns:
      float64[L], 0 where all products of a class are equal: such ties, broken at random, have
      it on average.

    Raises:
      InputError: if the matrices are not of the same three classes or more.
    """
    first, second = _without_diagonal(first), _without_diagonal(second)
    if first.shape != second.shape or len(first) < 3:
        raise InputError(
            "Spearman's correlation compares the inner products of the same three classes or "
            f"more, not of {len(first)} and {len(second)}."
        )
    correlations = np.zeros(len(first))
    rows = (np.ptp(first, axis=1) > 0) & (np.ptp(second, axis=1) > 0)
    if rows.any():
        ranks = (scipy.stats.rankdata(products[rows], axis=1) for products in (first, second))
        correlations[rows] = scipy.stats.pearsonr(*ranks, axis=1).statistic
    return correlations


def _without_diagonal(products: np.ndarray) -> np.ndarray:
    """Returns the products of each class with the others, [L, L - 1]."""
    products = np.asarray(products)
    size = len(products)
    if products.shape != (size, size):
        raise InputError(f"Inner products are a square matrix, not {list(products.shape)}.")
    return products[~np.eye(size, dtype=bool)].reshape(size, max(size - 1, 0))
