"""Decoding with the reliability of each bit: the absolute value of its code logit.

References:
  Chase, A class of algorithms for decoding block codes with channel measurement
  information, IEEE Trans. Information Theory, 1972.
"""

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special

from llc_jax.codes import packing
from llc_jax.decoding import lookup
from llc_jax.decoding.lookup import NONE, HashTable

# Classes that each query is scored against at a time.
_CLASSES_PER_CHUNK = 1024
# Flip patterns that are tried at a time, for each query.
_PATTERNS_PER_CHUNK = 16

# In place of NONE where the lowest label is wanted.
_MAX_LABEL = np.iinfo(np.int32).max


def best_class(logits: jax.Array, class_codes: jax.Array) -> jax.Array:
    """Returns argmax B(C) f, the lowest class where several are best: int32[N].

    It is the likeliest class where the bits are independent and each is +1 with
    probability sigmoid(f_j).

    Args:
      logits: float32[N, k].
      class_codes: uint32[L, ceil(k / 32)].
    """
    classes, num_bits = len(class_codes), logits.shape[-1]
    chunk = min(_CLASSES_PER_CHUNK, classes)
    chunks = -(-classes // chunk)
    # The padding repeats the last code; of equal scores the first counts, so nothing changes.
    padded = jnp.pad(class_codes, ((0, chunks * chunk - classes), (0, 0)), mode="edge")

    def fold(best, start_and_codes):
        start, codes = start_and_codes
        signs = packing.unpack(codes, num_bits).astype(logits.dtype)
        scores = jnp.matmul(logits, signs.T, precision=jax.lax.Precision.HIGHEST)
        label, score = start + jnp.argmax(scores, axis=1), jnp.max(scores, axis=1)
        better = score > best[1]
        return (jnp.where(better, label, best[0]), jnp.where(better, score, best[1])), None

    initial = (jnp.zeros(len(logits), jnp.int32), jnp.full(len(logits), -jnp.inf))
    starts = jnp.arange(chunks, dtype=jnp.int32) * chunk
    best, _ = jax.lax.scan(fold, initial, (starts, padded.reshape(chunks, chunk, -1)))
    return best[0]


def chase(logits: jax.Array, table: HashTable, flips: int) -> jax.Array:
    """Looks up every code that differs from the signs in the least reliable bits only.

    Of the class codes among them, the answer is the one whose flipped bits have the
    least sum of |f_j|, which is the one with the best B(C) f.

    Args:
      logits: float32[N, k].
      table: of the class codes.
      flips: p, how many bits may be flipped; 2^p codes are looked up.

    Returns:
      int32[N], the label, the lowest where several are best; -1 where there is none.
    """
    codes, reliability = packing.pack(logits), jnp.abs(logits)
    _, bits = jax.lax.top_k(-reliability, flips)
    reliability = jnp.take_along_axis(reliability, bits, axis=1)
    # uint32[N, p, W], one bit in each.
    single_bits = packing.pack(jax.nn.one_hot(bits, logits.shape[1], dtype=jnp.bool_))

    def fold(best, flipped_Cp):
        flipped = flipped_Cp[None, :, :]
        candidates = codes[:, None] ^ jnp.sum(
            jnp.where(flipped[..., None], single_bits[:, None], 0), axis=2, dtype=jnp.uint32
        )
        label = lookup.look_up(table, candidates).label
        cost = jnp.sum(jnp.where(flipped, reliability[:, None], 0.0), axis=2)
        cost = jnp.where(label == NONE, jnp.inf, cost)
        # The best so far is one more column; the least cost counts, then the lowest label.
        label = jnp.concatenate([best[0][:, None], label], axis=1)
        cost = jnp.concatenate([best[1][:, None], cost], axis=1)
        least = jnp.min(cost, axis=1)
        label = jnp.where((cost == least[:, None]) & (label != NONE), label, _MAX_LABEL)
        return (jnp.min(label, axis=1), least), None

    patterns = (np.arange(2**flips)[:, None] >> np.arange(flips) & 1) == 1
    chunk = min(_PATTERNS_PER_CHUNK, 2**flips)
    patterns = jnp.asarray(patterns).reshape(2**flips // chunk, chunk, flips)
    initial = (jnp.full(len(logits), _MAX_LABEL), jnp.full(len(logits), jnp.inf))
    (label, _), _ = jax.lax.scan(fold, initial, patterns)
    return jnp.where(label == _MAX_LABEL, NONE, label)


def fit_temperature(
    logits: np.ndarray, labels: np.ndarray, class_codes: np.ndarray, steps: int = 50
) -> np.ndarray:
    """Fits a temperature T_j to each bit, on examples that the network was not trained on.

    T minimises, bit by bit, the cross-entropy of sigmoid(f_j / T_j) with the bits of
    the examples' classes; decode f / T instead of f. Found by Newton's method.

    Args:
      logits: float[N, k].
      labels: int[N].
      class_codes: uint32[L, ceil(k / 32)].
      steps: at most.

    Returns:
      float32[k], between 0.01 and 100.
    """
    logits = np.asarray(logits, np.float64)
    signs = np.asarray(packing.unpack(class_codes, logits.shape[1]))[labels]
    # A margin is positive where the sign of the logit is right.
    margins, inverse_temperature = logits * signs, np.ones(logits.shape[1])
    for _ in range(steps):
        error = scipy.special.expit(-inverse_temperature * margins)
        gradient = -np.mean(error * margins, axis=0)
        curvature = np.mean(error * (1 - error) * margins**2, axis=0)
        updated = inverse_temperature - gradient / np.maximum(curvature, 1e-12)
        # Half or twice as much at most: where the loss is flat, a full step would overshoot.
        updated = np.clip(updated, inverse_temperature / 2, inverse_temperature * 2)
        inverse_temperature = np.clip(updated, 0.01, 100)
    return (1 / inverse_temperature).astype(np.float32)
