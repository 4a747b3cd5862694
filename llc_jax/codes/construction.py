"""Codebooks that are constructed, not learnt: latent values float32[L, k].

Memory grows with L, not with L x L, so a million classes work.

References:
  LLC, section 4.1 (random, SVD, CCA). Yuan et al., Central Similarity Quantization,
  CVPR 2020 (Hadamard).
"""

import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import scipy.linalg

from llc_jax.codes import packing
from llc_jax.errors import InputError

# Up to this many classes, balanced codes are spread far apart; more only differ.
_MAX_SPREAD_CLASSES = 10_000
# Codes drawn at once, of which those far enough from all others are kept.
_NUM_CANDIDATES = 1024


def random(num_classes: int, num_bits: int, seed: int = 0) -> np.ndarray:
    """Draws random codes, all different where 2^k >= L.

    For more classes than codes, the numbers of classes that share a code differ by at
    most one.

    Args:
      num_classes: L.
      num_bits: k.
      seed: of the draw.

    Returns:
      float32[L, k] of +1 and -1.
    """
    _check_size(num_classes, num_bits)
    rng = np.random.default_rng(seed)
    if 2**num_bits < 4 * num_classes:
        rounds = -(-num_classes // 2**num_bits)
        values = np.concatenate([rng.permutation(2**num_bits) for _ in range(rounds)])
        return _signs(values[:num_classes, None] >> np.arange(num_bits) & 1)

    def draw(count: int) -> np.ndarray:
        return rng.integers(0, 2, (count, num_bits), np.uint8)

    return _signs(_draw_distinct(num_classes, draw))


def hadamard(num_classes: int, num_bits: int, seed: int = 0) -> np.ndarray:
    """Builds codes that are far apart.

    Where k is a power of two and L <= 2 k: the rows of a Hadamard matrix, then their
    complements, k / 2 bits or more from each other. Else random codes with floor(k / 2)
    bits of +1: for up to 10,000 classes as far apart as such draws allow, for more only
    different. Where there are too few such codes: `random`.

    Args:
      num_classes: L.
      num_bits: k.
      seed: of the draw.

    Returns:
      float32[L, k] of +1 and -1.
    """
    _check_size(num_classes, num_bits)
    if num_bits.bit_count() == 1 and num_classes <= 2 * num_bits:
        rows = scipy.linalg.hadamard(num_bits)
        return np.concatenate([rows, -rows])[:num_classes].astype(np.float32)
    if math.comb(num_bits, num_bits // 2) < 4 * num_classes:
        return random(num_classes, num_bits, seed)
    rng = np.random.default_rng(seed)
    balanced = np.arange(num_bits) < num_bits // 2

    def draw(count: int) -> np.ndarray:
        return rng.permuted(np.tile(balanced, (count, 1)), axis=1)

    if num_classes > _MAX_SPREAD_CLASSES:
        return _signs(_draw_distinct(num_classes, draw))
    return _spread_apart(num_classes, num_bits, draw)


def svd(weights: np.ndarray, num_bits: int) -> np.ndarray:
    """Projects a linear classifier on its first k singular directions.

    Args:
      weights: float[L, d], one row a class.
      num_bits: k, at most min(L, d).

    Returns:
      float32[L, k], the first columns of U S, each with its entry of largest size positive.
    """
    weights = _checked_matrix(weights, "The classifier's weights")
    _check_rank("SVD", num_bits, min(weights.shape))
    dims = weights.shape[1]
    _, directions = scipy.linalg.eigh(
        weights.T @ weights, subset_by_index=(dims - num_bits, dims - 1)
    )
    return _normalise_signs(weights @ directions[:, ::-1])


class Moments(NamedTuple):
    """The sufficient statistics of features for CCA; those of batches add up.

    Attributes:
      counts: float64[L], examples of each class.
      sums: float64[L, d], the sum of their features.
      squares: float64[d, d], the sum of all features' outer products with themselves.
    """

    counts: np.ndarray
    sums: np.ndarray
    squares: np.ndarray


def moments(features: np.ndarray, labels: np.ndarray, num_classes: int) -> Moments:
    """Returns the moments of float[N, d] features with labels int[N] from 0 to L - 1."""
    features, labels = _checked_matrix(features, "The features"), np.asarray(labels)
    if labels.shape != features.shape[:1] or not np.issubdtype(labels.dtype, np.integer):
        raise InputError(
            f"There is one integer label for each of the {len(features)} feature vectors, "
            f"not {labels.dtype}{list(labels.shape)}."
        )
    sums = np.zeros((num_classes, features.shape[1]))
    np.add.at(sums, labels, features)
    counts = np.bincount(labels, minlength=num_classes).astype(np.float64)
    return Moments(counts, sums, features.T @ features)


def cca(
    features: np.ndarray, labels: np.ndarray, num_bits: int, regularisation: float = 1e-3
) -> np.ndarray:
    """Projects the labels on their first k canonical directions with the features.

    Args:
      features: float[N, d].
      labels: int[N], classes from 0 to L - 1.
      num_bits: k, at most min(L - 1, d).
      regularisation: see `cca_of_moments`.

    Returns:
      float32[L, k].
    """
    classes = int(np.max(labels, initial=-1)) + 1
    return cca_of_moments(moments(features, labels, classes), num_bits, regularisation)


def cca_of_moments(
    class_moments: Moments, num_bits: int, regularisation: float = 1e-3
) -> np.ndarray:
    """Projects the labels on their first k canonical directions with the features.

    With one-hot labels, the canonical directions w of the features maximise the share
    of the variance of their projections that lies between the classes; a class's
    canonical variate is the mean of its projections, here scaled to unit variance.

    Args:
      class_moments: of features and labels.
      num_bits: k, at most min(L - 1, d).
      regularisation: added to the diagonal of the features' covariance, as a share of
        the mean of that diagonal.

    Returns:
      float32[L, k]; each column has its entry of largest size positive.
    """
    counts, sums, squares = class_moments
    if not counts.all():
        raise InputError(f"CCA needs examples of every class: class {counts.argmin()} has none.")
    classes, dims = sums.shape
    _check_rank("CCA", num_bits, min(classes - 1, dims))
    shares, mean = counts / counts.sum(), sums.sum(0) / counts.sum()
    covariance = squares / counts.sum() - np.outer(mean, mean)
    covariance[np.diag_indices(dims)] += regularisation * np.trace(covariance) / dims
    class_means = sums / counts[:, None] - mean
    between = class_means.T @ (shares[:, None] * class_means)
    correlations, directions = scipy.linalg.eigh(
        between, covariance, subset_by_index=(dims - num_bits, dims - 1)
    )
    variates = class_means @ directions / np.sqrt(np.maximum(correlations, np.finfo(float).tiny))
    return _normalise_signs(variates[:, ::-1])


def repair(latent: np.ndarray) -> np.ndarray:
    """Moves each class whose code an earlier class has to the nearest free code.

    Of the free codes at the least distance, the class gets the one whose flipped bits had
    the least sum of absolute latent values.

    Args:
      latent: float[L, k], L <= 2^k.

    Returns:
      float32[L, k], of which no two rows have the same signs; flipped bits keep their
      absolute value.
    """
    latent = np.array(latent, np.float32)
    classes, num_bits = latent.shape
    if classes > 2**num_bits:
        raise InputError(f"{classes} classes cannot have different codes of {num_bits} bits.")
    rows = np.packbits(latent >= 0, axis=1, bitorder="little")
    codes = [int.from_bytes(row.tobytes(), "little") for row in rows]
    taken, seen = set(codes), set()
    for row, code in enumerate(codes):
        if code in seen:
            flips = _cheapest_flips(code, np.abs(latent[row]), taken)
            code ^= sum(1 << bit for bit in flips)
            taken.add(code)
            # The sign of zero is +1, so a flipped zero becomes a tiny negative value.
            magnitudes = np.maximum(np.abs(latent[row, flips]), np.finfo(np.float32).tiny)
            latent[row, flips] = np.where(latent[row, flips] >= 0, -magnitudes, magnitudes)
        seen.add(code)
    return latent


def _cheapest_flips(code: int, costs: np.ndarray, taken: set[int]) -> list[int]:
    """Returns the fewest bits, and of equally few the cheapest, that lead to a free code."""
    for count in range(1, len(costs) + 1):
        free = [
            flips
            for flips in itertools.combinations(range(len(costs)), count)
            if code ^ sum(1 << bit for bit in flips) not in taken
        ]
        if free:
            return list(min(free, key=lambda flips: costs[list(flips)].sum()))
    raise AssertionError("There are more codes than classes.")


def _draw_distinct(count: int, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """Draws rows of bits, and draws duplicates again until there are none."""
    rows = draw(count)
    while len(duplicates := _duplicates(rows)):
        rows[duplicates] = draw(len(duplicates))
    return rows


def _duplicates(rows: np.ndarray) -> np.ndarray:
    """Returns which rows of bits equal an earlier one, ascending."""
    packed = np.packbits(rows, axis=1)
    words = np.pad(packed, ((0, 0), (0, -packed.shape[1] % 8))).view(np.uint64)
    order = np.lexsort(words.T)  # Stable: of equal rows the first stays first.
    equal = (words[order[1:]] == words[order[:-1]]).all(axis=1)
    return np.sort(order[1:][equal])


def _spread_apart(count: int, num_bits: int, draw: Callable[[int], np.ndarray]) -> np.ndarray:
    """Draws codes and keeps those far from all kept ones; lowers the distance where few are."""
    kept, size, min_distance = np.empty((count, num_bits), np.float32), 0, num_bits // 2
    while size < count:
        candidates, size_before = _signs(draw(_NUM_CANDIDATES)), size
        # The inner product of two codes is k less twice their distance.
        max_product = num_bits - 2 * min_distance
        far = (candidates @ kept[:size].T).max(axis=1, initial=-num_bits) <= max_product
        for candidate in candidates[far]:
            products = kept[size_before:size] @ candidate
            if size < count and products.max(initial=-num_bits) <= max_product:
                kept[size] = candidate
                size += 1
        if size - size_before < _NUM_CANDIDATES // 50:
            min_distance = max(1, min_distance - 1)
    return kept


def _signs(bits: np.ndarray) -> np.ndarray:
    return np.where(bits, np.float32(1), np.float32(-1))


def _normalise_signs(columns: np.ndarray) -> np.ndarray:
    """Gives each column the sign that makes its entry of largest size positive."""
    rows = np.abs(columns).argmax(axis=0)
    signs = np.where(columns[rows, np.arange(columns.shape[1])] < 0, -1.0, 1.0)
    return (columns * signs).astype(np.float32)


def _checked_matrix(array: np.ndarray, name: str) -> np.ndarray:
    matrix = np.asarray(array, np.float64)
    if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
        raise InputError(f"{name} are a matrix of finite numbers, not of shape {matrix.shape}.")
    return matrix


def _check_size(num_classes: int, num_bits: int) -> None:
    packing.num_words(num_bits)
    if num_classes < 1:
        raise InputError(f"A codebook has at least 1 class, not {num_classes}.")


def _check_rank(method: str, num_bits: int, max_bits: int) -> None:
    packing.num_words(num_bits)
    if num_bits > max_bits:
        raise InputError(f"{method} gives codes of at most {max_bits} bits here, not {num_bits}.")
