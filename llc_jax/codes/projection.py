"""Linear projections of vectors for binary codes, fitted without labels.

Rows are read in chunks, so memory does not grow with their number, and they may be mapped from
a file. Statistics are float64.

References:
  Gong and Lazebnik, Iterative Quantization: A Procrustean Approach to Learning Binary Codes,
  CVPR 2011 (ITQ; the random rotation is its starting point, and a baseline in its section 3).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import scipy.linalg

from llc_jax.errors import InputError

# Numbers in a chunk of rows: with fewer, BLAS is slower.
_CHUNK_NUMBERS = 2**22


class Covariance(NamedTuple):
    """The mean and the covariance of N vectors of d numbers.

    Attributes:
      mean: float64[d].
      matrix: float64[d, d], with the divisor N.
    """

    mean: np.ndarray
    matrix: np.ndarray


def chunks(count: int, dims: int) -> Iterator[slice]:
    """Yields slices of the rows of a matrix [count, dims], of 2^22 numbers or fewer."""
    rows = max(1, _CHUNK_NUMBERS // dims)
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))


def covariance(vectors: np.ndarray) -> Covariance:
    """Returns the mean and the covariance of float[N, d], in one pass.

    Raises:
      InputError: if a number is not finite, or too large for a float32.
    """
    dims = vectors.shape[1]
    sums, squares = np.zeros(dims), np.zeros((dims, dims))
    shift = None
    for rows in chunks(*vectors.shape):
        chunk = np.array(vectors[rows], np.float64)
        with np.errstate(over="ignore", invalid="ignore"):
            # Relative to a vector near the mean, the squares keep the digits of the variance.
            shift = chunk.mean(axis=0) if shift is None else shift
            chunk -= shift
            sums += chunk.sum(axis=0)
            squares += chunk.T @ chunk
            scales = np.sqrt(np.diag(squares)).astype(np.float32)
        check_finite(scales, vectors, rows)
    offset = sums / len(vectors)
    return Covariance(shift + offset, squares / len(vectors) - np.outer(offset, offset))


def check_finite(results: np.ndarray, vectors: np.ndarray, rows: slice) -> None:
    """Checks that what was calculated from some rows of the vectors is finite.

    Raises:
      InputError: if it is not; it names the first row to blame.
    """
    if np.isfinite(results).all():
        return
    chunk = np.asarray(vectors[rows], np.float64)
    culprits = ~np.isfinite(chunk)
    if not culprits.any():
        culprits = abs(chunk) == abs(chunk).max()
    row, column = np.argwhere(culprits)[0]
    raise InputError(
        f"X has {chunk[row, column]} in row {rows.start + row}, column {column}: every number "
        "must be finite (not NaN or inf) and not near the limits of float32."
    )


def principal_axes(matrix: np.ndarray, count: int) -> np.ndarray:
    """Returns the axes of the largest variance, in descending order.

    Args:
      matrix: float64[d, d], a covariance.
      count: k, at most d.

    Returns:
      float64[d, k], whose columns are orthonormal, each with its entry of largest size positive.
      A column is 0 where the variance is so small that rounding to float32 would hide it.
    """
    dims = len(matrix)
    variances, axes = scipy.linalg.eigh(matrix, subset_by_index=(dims - count, dims - 1))
    variances, axes = variances[::-1], axes[:, ::-1]
    largest = axes[abs(axes).argmax(axis=0), np.arange(count)]
    visible = variances > dims * np.finfo(np.float32).eps ** 2 * variances[0]
    return axes * np.where(largest < 0, -1.0, 1.0) * visible


def random_rotation(dims: int, random: np.random.RandomState) -> np.ndarray:
    """Draws an orthogonal matrix float64[dims, dims], uniformly (by the Haar measure)."""
    orthogonal, triangular = np.linalg.qr(random.normal(size=(dims, dims)))
    # Without this, the signs of the columns would be those that the QR algorithm chooses.
    return orthogonal * np.where(np.diag(triangular) < 0, -1.0, 1.0)


def itq_rotation(projections: np.ndarray, rotation: np.ndarray, num_iterations: int) -> np.ndarray:
    """Rotates centred vectors V towards their signs: minimises |sign(V R) - V R|^2 over R.

    Each iteration finds the best rotation for the signs of the last one, an orthogonal
    Procrustes problem, so the error never rises; the scale of V makes no difference.

    Args:
      projections: V, float[N, k].
      rotation: float64[k, k], orthogonal, where to start.
      num_iterations: how often the signs and the rotation are found anew.

    Returns:
      float64[k, k], orthogonal.
    """
    for _ in range(num_iterations):
        rotated = projections @ rotation.astype(projections.dtype)
        signs = np.where(rotated >= 0, rotated.dtype.type(1), rotated.dtype.type(-1))
        left, _, right = np.linalg.svd((projections.T @ signs).astype(np.float64))
        rotation = left @ right
    return rotation
