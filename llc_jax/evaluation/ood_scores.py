"""Scores by which out-of-distribution (OOD) images are detected: the higher, the more OOD.

From codes: `nearest_distance`, `outside_radius`, `weighted_distance`, `max_soft_logit`,
`soft_energy`, `bit_entropy`. From the class logits of a linear head: `softmax_probability`,
`max_logit`, `energy`, `generalized_entropy`. From features: `neighbor_distance`. From features
and class logits: `virtual_logit`.
"""

from collections.abc import Callable

import numpy as np
import scipy.special

from llc_jax.codes import hamming, packing
from llc_jax.errors import InputError

# The most numbers of a matrix of images by classes, or by neighbours, that are held at a time.
_MAX_NUMBERS = 2**23


def code_scores(
    code_logits: np.ndarray, class_codes: np.ndarray, radius: int = 0
) -> dict[str, np.ndarray]:
    """Returns each score of codes by its name, [N].

    Args:
      code_logits: f, float[N, k]; their signs are the codes.
      class_codes: B(C), packed, uint32[L, ceil(k / 32)].
      radius: of `outside_radius`, in bits.

    Raises:
      InputError: if the arrays do not fit, or a number is not finite.
    """
    code_logits = _checked(code_logits, "code logits")
    codes = packing.pack_on_host(code_logits)
    return {
        "nearest_distance": nearest_distance(codes, class_codes),
        "outside_radius": outside_radius(codes, class_codes, radius),
        "weighted_distance": weighted_distance(code_logits, class_codes),
        "max_soft_logit": max_soft_logit(code_logits, class_codes),
        "soft_energy": soft_energy(code_logits, class_codes),
        "bit_entropy": bit_entropy(code_logits),
    }


def class_logit_scores(class_logits: np.ndarray) -> dict[str, np.ndarray]:
    """Returns each score of class logits by its name, float64[N].

    Args:
      class_logits: of a linear head, float[N, L].

    Raises:
      InputError: if the array has another form, or a number is not finite.
    """
    scores = (softmax_probability, max_logit, energy, generalized_entropy)
    return {score.__name__: score(class_logits) for score in scores}


def nearest_distance(codes: np.ndarray, class_codes: np.ndarray) -> np.ndarray:
    """Returns the least Hamming distance to a class code, in bits, int32[N].

    Args:
      codes: packed, uint32[N, ceil(k / 32)].
      class_codes: packed, uint32[L, ceil(k / 32)].
    """
    given = [f"{array.dtype}{list(array.shape)}" for array in (codes, class_codes)]
    words = codes.shape[-1] if codes.ndim == 2 else 0
    if codes.dtype != np.uint32 or class_codes.dtype != np.uint32 or not words:
        raise InputError(f"Codes are packed, uint32[N, W], not {given[0]} with {given[1]}.")
    if class_codes.shape != (len(class_codes), words) or not len(class_codes):
        raise InputError(f"Class codes for {given[0]} are uint32[L, {words}], not {given[1]}.")
    return np.asarray(hamming.nearest(codes, class_codes).distance)


def outside_radius(codes: np.ndarray, class_codes: np.ndarray, radius: int = 0) -> np.ndarray:
    """Returns whether no class code is within a radius, bool[N].

    Args:
      codes: packed, uint32[N, ceil(k / 32)].
      class_codes: packed, uint32[L, ceil(k / 32)].
      radius: in bits. An image is in-distribution if a class code is so near, or nearer.

    Raises:
      InputError: if the radius is not a whole number from 0, or the codes do not fit.

    References:
      LLC, section 4.3 and appendix E, with radius 0; its introduction has radius 1.
    """
    hamming.check_radius(radius)
    return nearest_distance(codes, class_codes) > radius


def weighted_distance(code_logits: np.ndarray, class_codes: np.ndarray) -> np.ndarray:
    """Returns the least sum of |f_j| over the bits j that differ from a class code, float64[N].

    It is 0 where the code equals a class code. Arguments as in `code_scores`.
    """
    code_logits = _checked(code_logits, "code logits")
    signs = _signs(class_codes, code_logits.shape[1])
    # A bit of +1 costs its logit where the class has -1; a bit of -1 where the class has +1.
    disagrees = np.concatenate([signs < 0, signs > 0], axis=1).astype(np.float64)

    def least(logits: np.ndarray) -> np.ndarray:
        costs = np.concatenate([np.maximum(logits, 0), np.maximum(-logits, 0)], axis=1)
        return np.min(costs @ disagrees.T, axis=1)

    return _in_blocks(least, code_logits, len(signs))


def max_soft_logit(code_logits: np.ndarray, class_codes: np.ndarray) -> np.ndarray:
    """Returns minus the maximum of B(C) f over the classes, float64[N]; see `code_scores`."""
    return _of_soft_logits(_minus_max, code_logits, class_codes)


def soft_energy(code_logits: np.ndarray, class_codes: np.ndarray) -> np.ndarray:
    """Returns minus the log-sum-exp of B(C) f over the classes, float64[N]; see `code_scores`."""
    return _of_soft_logits(_minus_logsumexp, code_logits, class_codes)


def bit_entropy(code_logits: np.ndarray) -> np.ndarray:
    """Returns the mean entropy of the bits, in bits, float64[N].

    Args:
      code_logits: float[N, k]. Bit j is +1 with probability sigmoid(f_j).
    """

    def entropy(logits: np.ndarray) -> np.ndarray:
        # With q the probability of the less likely sign: H = -log(1 - q) + q |f|.
        size = np.abs(logits)
        nats = np.log1p(np.exp(-size)) + scipy.special.expit(-size) * size
        return np.mean(nats, axis=1) / np.log(2)

    code_logits = _checked(code_logits, "code logits")
    return _in_blocks(entropy, code_logits, code_logits.shape[1])


def softmax_probability(class_logits: np.ndarray) -> np.ndarray:
    """Returns minus the maximum softmax probability (MSP), float64[N]; see `class_logit_scores`.

    References:
      Hendrycks & Gimpel, ICLR 2017.
    """
    return _of_class_logits(
        lambda logits: -np.max(scipy.special.softmax(logits, axis=1), axis=1), class_logits
    )


def max_logit(class_logits: np.ndarray) -> np.ndarray:
    """Returns minus the maximum logit, float64[N]; see `class_logit_scores`.

    References:
      Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML
      2022.
    """
    return _of_class_logits(_minus_max, class_logits)


def energy(class_logits: np.ndarray) -> np.ndarray:
    """Returns minus the log-sum-exp of the logits, float64[N]; see `class_logit_scores`.

    References:
      Liu et al., "Energy-based out-of-distribution detection", NeurIPS 2020, with T = 1.
    """
    return _of_class_logits(_minus_logsumexp, class_logits)


def generalized_entropy(class_logits: np.ndarray, gamma: float = 0.1, top: int = 100) -> np.ndarray:
    """Returns the sum of p^gamma (1 - p)^gamma over the largest softmax probabilities p (GEN).

    Args:
      class_logits: float[N, L].
      gamma: between 0 and 1.
      top: M, how many of the probabilities count; all L where there are fewer.

    Returns:
      float64[N].

    Raises:
      InputError: if an argument is not as said above.

    References:
      Liu et al., "GEN: pushing the limits of softmax-based out-of-distribution detection",
      CVPR 2023, with its values for ImageNet.
    """
    if not 0 < gamma < 1:
        raise InputError(f"gamma is between 0 and 1, not {gamma}.")
    if not isinstance(top, int | np.integer) or top < 1:
        raise InputError(f"top is a whole number of at least 1, not {top}.")

    def entropy(logits: np.ndarray) -> np.ndarray:
        probabilities = np.sort(scipy.special.softmax(logits, axis=1), axis=1)[:, -top:]
        return np.sum((probabilities * (1 - probabilities)) ** gamma, axis=1)

    return _of_class_logits(entropy, class_logits)


def neighbor_distance(features: np.ndarray, train_features: np.ndarray, k: int = 50) -> np.ndarray:
    """Returns the distance to the k-th nearest training image, by features scaled to length 1.

    It is exact: by FAISS where that is installed, else by matrix products in blocks.

    Args:
      features: float[N, d].
      train_features: float[T, d], of the images that the network was trained on.
      k: at least 1, at most T.

    Returns:
      float32[N], Euclidean distances, from 0 to 2.

    Raises:
      InputError: if the arrays do not fit, a number is not finite, or k is out of range.

    References:
      Sun et al., "Out-of-distribution detection with deep nearest neighbors", ICML 2022.
    """
    queries = _unit_rows(_checked(features, "features"))
    train = _unit_rows(_checked(train_features, "training features"))
    if queries.shape[1] != train.shape[1]:
        raise InputError(
            f"Features and training features have one length, not {queries.shape[1]} and "
            f"{train.shape[1]}."
        )
    if not isinstance(k, int | np.integer) or not 1 <= k <= len(train):
        raise InputError(f"k is from 1 to {len(train)}, the training images, not {k}.")
    return np.sqrt(np.maximum(_squared_distances(queries, train, int(k)), 0))


def virtual_logit(
    features: np.ndarray,
    class_logits: np.ndarray,
    *,
    train_features: np.ndarray,
    train_class_logits: np.ndarray,
    weights: np.ndarray,
    biases: np.ndarray,
    dimensions: int | None = None,
) -> np.ndarray:
    """Returns virtual-logit matching (ViM): the scaled residual of the features plus the energy.

    The residual is the length of the part of a feature outside the principal space of the
    training images' features. It is scaled so that over the training images its mean is that of
    the maximum logit. The origin of the features is where all logits are as near to 0 as can be.

    Args:
      features: float[N, d], what the linear classifier takes.
      class_logits: float[N, L], what it gives.
      train_features: float[T, d], of the images that the network was trained on.
      train_class_logits: float[T, L].
      weights: of the classifier, float[d, L]: `class_logits = features @ weights + biases`.
      biases: of the classifier, float[L].
      dimensions: of the principal space, from 0 to d - 1; None is half of d, which is 256 for a
        ResNet-18, as in OpenOOD.

    Returns:
      float64[N].

    Raises:
      InputError: if the arrays do not fit, or a number is not finite.

    References:
      Wang et al., "ViM: out-of-distribution with virtual-logit matching", CVPR 2022.
    """
    features, train = _checked(features, "features"), _checked(train_features, "training features")
    size = len(weights)
    if features.shape[1] != size or train.shape[1] != size:
        raise InputError(
            f"The classifier takes {size} numbers, the features have {features.shape[1]} and the "
            f"training features {train.shape[1]}."
        )
    dimensions = size // 2 if dimensions is None else dimensions
    if not 0 <= dimensions < size:
        raise InputError(f"dimensions is from 0 to {size - 1}, not {dimensions}.")
    origin = -np.linalg.pinv(weights.T.astype(np.float64)) @ biases
    products = np.zeros((size, size))
    step = max(1, _MAX_NUMBERS // size)
    for start in range(0, len(train), step):
        block = train[start : start + step] - origin
        products += block.T @ block
    # The directions come in the order of growing variance.
    residual = np.linalg.eigh(products)[1][:, : size - dimensions]

    def norm(rows: np.ndarray) -> np.ndarray:
        return np.linalg.norm((rows - origin) @ residual, axis=1)

    scale = np.mean(np.max(_checked(train_class_logits, "training class logits"), axis=1))
    scale /= np.mean(_in_blocks(norm, train, size))
    return scale * _in_blocks(norm, features, size) + energy(class_logits)


def _squared_distances(queries: np.ndarray, train: np.ndarray, k: int) -> np.ndarray:
    """Returns the k-th least squared distance of each query, float32[N]."""
    try:
        import faiss
    except ImportError:
        return _squared_distances_by_products(queries, train, k)
    index = faiss.IndexFlatL2(train.shape[1])
    index.add(train)
    return index.search(queries, k)[0][:, -1]


def _squared_distances_by_products(queries: np.ndarray, train: np.ndarray, k: int) -> np.ndarray:
    train_norms = np.sum(train**2, axis=1)

    def kth(block: np.ndarray) -> np.ndarray:
        distances = train_norms - 2 * (block @ train.T)
        return np.partition(distances, k - 1, axis=1)[:, k - 1] + np.sum(block**2, axis=1)

    return _in_blocks(kth, queries, len(train), np.float32)


def _unit_rows(features: np.ndarray) -> np.ndarray:
    """Returns rows scaled to length 1, float32; rows of zeros stay."""
    # Scaled by the largest number first: the squares of large ones would be infinite.
    largest = np.max(np.abs(features), axis=1, keepdims=True).astype(np.float64)
    features = (features / np.where(largest > 0, largest, 1)).astype(np.float32)
    norms = np.linalg.norm(features, axis=1, keepdims=True)
    return np.ascontiguousarray(features / np.where(norms > 0, norms, 1))


def _minus_max(logits: np.ndarray) -> np.ndarray:
    return -np.max(logits, axis=1)


def _minus_logsumexp(logits: np.ndarray) -> np.ndarray:
    return -scipy.special.logsumexp(logits, axis=1)


def _of_class_logits(score: Callable, class_logits: np.ndarray) -> np.ndarray:
    """Returns a score of class logits, float64[N]."""
    class_logits = _checked(class_logits, "class logits")
    return _in_blocks(score, class_logits, class_logits.shape[1])


def _of_soft_logits(
    score: Callable, code_logits: np.ndarray, class_codes: np.ndarray
) -> np.ndarray:
    """Returns a score of the class logits B(C) f, float64[N]."""
    code_logits = _checked(code_logits, "code logits")
    signs = _signs(class_codes, code_logits.shape[1]).astype(np.float64)
    return _in_blocks(lambda logits: score(logits @ signs.T), code_logits, len(signs))


def _signs(class_codes: np.ndarray, num_bits: int) -> np.ndarray:
    """Returns the class codes as int8[L, k] of +1 and -1."""
    class_codes = packing.checked(class_codes, num_bits)
    if not len(class_codes):
        raise InputError("There are no class codes: a codebook has at least one.")
    return np.asarray(packing.unpack(class_codes, num_bits))


def _checked(numbers: np.ndarray, name: str) -> np.ndarray:
    """Returns finite numbers, [N, n] with n at least 1, as they are."""
    numbers = np.asarray(numbers)
    if numbers.ndim != 2 or not numbers.shape[1] or numbers.dtype.kind not in "fiu":
        raise InputError(
            f"The {name} are numbers, a row for each image, not "
            f"{numbers.dtype}{list(numbers.shape)}."
        )
    finite = np.isfinite(numbers).all(axis=1)
    if not finite.all():
        raise InputError(
            f"The {name} of image {np.argmin(finite)} are not finite: leave out images that "
            "cannot be read."
        )
    return numbers


def _in_blocks(
    score: Callable[[np.ndarray], np.ndarray],
    rows: np.ndarray,
    width: int,
    dtype: type = np.float64,
) -> np.ndarray:
    """Returns the score of each row, [N], of the dtype in which it is computed.

    Args:
      score: [b, n] -> [b].
      rows: [N, n].
      width: how many numbers the score holds for each row.
      dtype: of the rows that `score` gets.
    """
    scores, size = np.empty(len(rows), dtype), max(1, _MAX_NUMBERS // width)
    for start in range(0, len(rows), size):
        scores[start : start + size] = score(rows[start : start + size].astype(dtype, copy=False))
    return scores
