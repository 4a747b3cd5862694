"""The bits of codes, one by one: over images, what each is worth, and what it divides.

References:
  LLC, appendix D, figure 4.
"""

from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from llc_jax.codes import hamming, packing
from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import soft
from llc_jax.errors import InputError
from llc_jax.options import choose

# Images that are decoded, or counted, at once.
_CHUNK = 2**14


class BitStatistics(NamedTuple):
    """How k bits are distributed over images.

    Attributes:
      balance: float64[k], the share of images with +1; 1/2 is balanced.
      entropy: float64[k], of each bit, from 0 to 1 bit.
      correlation: float64[k, k], between bits; 0 with a bit that is the same in all images.
    """

    balance: np.ndarray
    entropy: np.ndarray
    correlation: np.ndarray


class Removal(NamedTuple):
    """What removing single bits costs.

    Attributes:
      accuracy: with all bits, from 0 to 1.
      without: float64[k], the accuracy with all bits but bit j.
    """

    accuracy: float
    without: np.ndarray

    @property
    def cost(self) -> np.ndarray:
        """float64[k], how much accuracy is lost without bit j; negative where it is gained."""
        return self.accuracy - self.without


class Side(NamedTuple):
    """Images on one side of a bit's hyperplane, the most certain first.

    Attributes:
      indices: int64[n].
      probabilities: float64[n], that the bit is on this side, from 1/2 to 1.
    """

    indices: np.ndarray
    probabilities: np.ndarray


class Hyperplane(NamedTuple):
    """The images that a bit divides.

    Attributes:
      positive: those whose bit is +1.
      negative: those whose bit is -1.
    """

    positive: Side
    negative: Side


def statistics(code_logits: np.ndarray) -> BitStatistics:
    """Returns balance, entropy and correlation of bits over images.

    Args:
      code_logits: real[N, k]; only the signs count, so codes of +1 and -1 will do.

    Raises:
      InputError: if they are of another form, there are none, or they are not finite.
    """
    code_logits = _checked(code_logits)
    count, num_bits = code_logits.shape
    sums, products = np.zeros(num_bits), np.zeros((num_bits, num_bits))
    for rows in _chunks(count):
        # Sums of so few +1 and -1 are exact.
        signs = np.where(code_logits[rows] >= 0, 1, -1).astype(np.float32)
        sums += signs.sum(axis=0)
        products += signs.T @ signs
    means = sums / count
    covariance = products / count - np.outer(means, means)
    deviation = np.sqrt(1 - means**2)
    scale = np.outer(deviation, deviation)
    correlation = np.divide(covariance, scale, out=np.zeros_like(scale), where=scale > 0)
    np.fill_diagonal(correlation, 1)
    balance = (1 + means) / 2
    entropy = (scipy.special.entr(balance) + scipy.special.entr(1 - balance)) / np.log(2)
    return BitStatistics(balance, entropy, np.clip(correlation, -1, 1))


def removal(
    code_logits: np.ndarray, labels: np.ndarray, codebook: Codebook, decoder: str = "mhd"
) -> Removal:
    """Measures what removing each bit, from images and classes alike, costs.

    Args:
      code_logits: real[N, k].
      labels: int[N], the true classes.
      codebook: L classes of k bits.
      decoder: "mhd", the nearest class code, or "soft", the argmax of B(C) f. Where n classes
        are equally near, or of soft have the same code, the true one among them counts 1 / n.

    Raises:
      InputError: if an argument is not as said above.
    """
    credit = choose(decoder, _CREDITS, "The decoder")
    code_logits = _checked(code_logits)
    labels, num_bits = np.asarray(labels), codebook.num_bits
    if code_logits.shape[1] != num_bits or labels.shape != (len(code_logits),):
        raise InputError(
            f"The codebook has {num_bits} bits: give float[N, {num_bits}] and int[N] labels, not "
            f"{list(code_logits.shape)} and {list(labels.shape)}."
        )
    if labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= codebook.num_classes:
        raise InputError(f"Labels are from 0 to {codebook.num_classes - 1}, as in the codebook.")
    kept = np.concatenate([np.ones((1, num_bits), bool), ~np.eye(num_bits, dtype=bool)])
    accuracies = np.zeros(len(kept))
    for rows in _chunks(len(labels)):
        logits = jnp.asarray(code_logits[rows], jnp.float32)
        of_rows = jnp.asarray(labels[rows], jnp.int32)
        for index, mask in enumerate(kept):
            sharing = _sharing(codebook, mask)
            accuracies[index] += float(credit(logits, of_rows, codebook.packed, mask, sharing))
    accuracies /= len(labels)
    return Removal(float(accuracies[0]), accuracies[1:])


def hyperplane(code_logits: np.ndarray, bit: int, count: int = 20) -> Hyperplane:
    """Returns the images on both sides of a bit's hyperplane, the most certain first.

    Bit j is +1 with probability sigmoid(f_j).

    Args:
      code_logits: real[N, k].
      bit: j, from 0.
      count: of images on each side, at most.

    Raises:
      InputError: if there is no such bit, or an argument is not as said above.
    """
    code_logits = _checked(code_logits)
    num_bits = code_logits.shape[1]
    if not 0 <= bit < num_bits:
        raise InputError(f"There are the bits 0 to {num_bits - 1}, not {bit}.")
    if count < 1:
        raise InputError(f"There is at least 1 image on each side, not {count}.")
    logits = code_logits[:, bit].astype(np.float64)

    def side(is_on: np.ndarray, certainty: np.ndarray) -> Side:
        indices = np.flatnonzero(is_on)
        # Probabilities of large logits are all 1, so the logits are sorted.
        indices = indices[np.argsort(-certainty[indices], kind="stable")[:count]]
        return Side(indices, scipy.special.expit(certainty[indices]))

    return Hyperplane(side(logits >= 0, logits), side(logits < 0, -logits))


@jax.jit
def _credit_mhd(logits, labels, class_codes, mask, sharing) -> jax.Array:
    """Returns the sum of credits of the nearest class codes, of the bits in the mask only."""
    del sharing
    kept = packing.pack(mask)[None]
    codes, class_codes = packing.pack(logits) & kept, class_codes & kept
    nearest = hamming.nearest(codes, class_codes)
    right = hamming.distance(codes, class_codes[labels]) == nearest.distance
    return jnp.sum(right / nearest.ties)


@jax.jit
def _credit_soft(logits, labels, class_codes, mask, sharing) -> jax.Array:
    """Returns the sum of credits of argmax B(C) f, of the bits in the mask only."""
    predictions = soft.best_class(jnp.where(mask[None], logits, 0), class_codes)
    return jnp.sum((sharing[predictions] == sharing[labels]) / _counts(sharing)[labels])


def _counts(sharing: jax.Array) -> jax.Array:
    """Returns how many classes share the code of each class, int32[L]."""
    return jnp.bincount(sharing, length=len(sharing))[sharing]


def _sharing(codebook: Codebook, mask: np.ndarray) -> np.ndarray:
    """Returns numbers of the class codes of the bits in the mask, equal for equal codes: int[L]."""
    kept = np.asarray(codebook.latent >= 0)[:, mask]
    return np.unique(np.packbits(kept, axis=1), axis=0, return_inverse=True)[1].ravel()


_CREDITS = {"mhd": _credit_mhd, "soft": _credit_soft}


def _chunks(count: int) -> Iterator[slice]:
    """Yields slices of at most `_CHUNK` rows."""
    for start in range(0, count, _CHUNK):
        yield slice(start, start + _CHUNK)


def _checked(code_logits: np.ndarray) -> np.ndarray:
    """Returns code logits as an array, real[N, k]."""
    code_logits = np.asarray(code_logits)
    if code_logits.ndim != 2 or not code_logits.size or code_logits.dtype.kind not in "fi":
        raise InputError(
            "Code logits are real[N, k] of one image or more, not "
            f"{code_logits.dtype}{list(code_logits.shape)}."
        )
    if not np.isfinite(code_logits).all():
        raise InputError("There are code logits that are not finite: leave those images out.")
    return code_logits
