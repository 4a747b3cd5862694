"""Decoding with the reliability of each bit: the size of its code logit.

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
from llc_jax.decoding.lookup import NONE, Lookup

# Classes whose scores are held at once, for each query.
_CLASSES = 1024
# Flip patterns that are tried at once, for each query.
_PATTERNS = 16

_LAST = np.iinfo(np.int32).max


def best_class(logits: jax.Array, class_codes: jax.Array) -> jax.Array:
    """Returns argmax B(C) f, the lowest class where several are best: int32[N].

    It is the likeliest class where the bits are independent and each is +1 with
    probability sigmoid(f_j).

    Args:
      logits: float32[N, k].
      class_codes: uint32[L, ceil(k / 32)].
    """
    classes, num_bits = len(class_codes), logits.shape[-1]
    chunk = min(_CLASSES, classes)
    chunks = -(-classes // chunk)
    # The last code comes again; of equal scores the first counts, so nothing changes.
    padded = jnp.pad(class_codes, ((0, chunks * chunk - classes), (0, 0)), mode="edge")

    def fold(best, start_and_codes):
        start, some_codes = start_and_codes
        signs = packing.unpack(some_codes, num_bits).astype(logits.dtype)
        scores = jnp.matmul(logits, signs.T, precision=jax.lax.Precision.HIGHEST)
        label, score = start + jnp.argmax(scores, axis=1), jnp.max(scores, axis=1)
        better = score > best[1]
        return (jnp.where(better, label, best[0]), jnp.where(better, score, best[1])), None

    nothing = (jnp.zeros(len(logits), jnp.int32), jnp.full(len(logits), -jnp.inf))
    starts = jnp.arange(chunks, dtype=jnp.int32) * chunk
    best, _ = jax.lax.scan(fold, nothing, (starts, padded.reshape(chunks, chunk, -1)))
    return best[0]


def chase(logits: jax.Array, table: Lookup, flips: int) -> jax.Array:
    """Looks up every code that differs from the signs in the least reliable bits only.

    Of the class codes met, that one counts whose flipped bits have the least |f_j| in
    all, which is the one with the best B(C) f.

    Args:
      logits: float32[N, k].
      table: of the class codes.
      flips: p, how many bits may be flipped; 2^p codes are looked up.

    Returns:
      int32[N], the label, the lowest where several are best; -1 where none is met.
    """
    codes, sizes = packing.pack(logits), jnp.abs(logits)
    _, bits = jax.lax.top_k(-sizes, flips)
    sizes = jnp.take_along_axis(sizes, bits, axis=1)
    # uint32[N, p, W], one bit in each.
    alone = packing.pack(jax.nn.one_hot(bits, logits.shape[1], dtype=jnp.bool_))

    def fold(best, flipped_Cp):
        flipped = flipped_Cp[None, :, :]
        tried = codes[:, None] ^ jnp.sum(
            jnp.where(flipped[..., None], alone[:, None], 0), axis=2, dtype=jnp.uint32
        )
        label = lookup.find(table, tried).label
        cost = jnp.sum(jnp.where(flipped, sizes[:, None], 0.0), axis=2)
        cost = jnp.where(label == NONE, jnp.inf, cost)
        # With what was found before as one more column, the least cost, then the least label.
        label = jnp.concatenate([best[0][:, None], label], axis=1)
        cost = jnp.concatenate([best[1][:, None], cost], axis=1)
        least = jnp.min(cost, axis=1)
        label = jnp.where((cost == least[:, None]) & (label != NONE), label, _LAST)
        return (jnp.min(label, axis=1), least), None

    patterns = (np.arange(2**flips)[:, None] >> np.arange(flips) & 1) == 1
    chunk = min(_PATTERNS, 2**flips)
    patterns = jnp.asarray(patterns).reshape(2**flips // chunk, chunk, flips)
    nothing = (jnp.full(len(logits), _LAST), jnp.full(len(logits), jnp.inf))
    (label, _), _ = jax.lax.scan(fold, nothing, patterns)
    return jnp.where(label == _LAST, NONE, label)


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
    # The size of a logit counts as positive where its sign is right.
    margins, inverse = logits * signs, np.ones(logits.shape[1])
    for _ in range(steps):
        wrong = scipy.special.expit(-inverse * margins)
        slope = -np.mean(wrong * margins, axis=0)
        bend = np.mean(wrong * (1 - wrong) * margins**2, axis=0)
        step = slope / np.maximum(bend, 1e-12)
        # Half or twice as much at most, so that a flat start does not throw it far off.
        inverse = np.clip(inverse - step, inverse / 2, inverse * 2)
        inverse = np.clip(inverse, 0.01, 100)
    return (1 / inverse).astype(np.float32)
