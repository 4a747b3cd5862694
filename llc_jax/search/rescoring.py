"""A shortlist by Hamming distance, put into the order of inner products.

The distance counts all bits alike, and many items share one. The code logits of a query also
say how certain each of its bits is, so their inner product with the bits of an item, as +1
and -1, tells more; and it needs nothing but the bits of the items. Where float vectors of the
items are kept as well, those of the shortlist are compared instead.

Inner products are summed in float64, an item at a time and always in the same order, and
rounded to float32: equal items have equal scores, wherever they are.
"""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.popcount import compiled, lowest_bit
from llc_jax.errors import InputError
from llc_jax.search import sharded
from llc_jax.search.threads import in_threads

# Items on the shortlists of the queries that are answered together. One takes about 64 bytes,
# with what its search and its ordering need meanwhile; the allocator can keep twice as much.
_SHORTLISTED = 2**21
# Numbers of float vectors that a thread reads at once: 4 bytes each.
_NUMBERS = 2**22

# Finds packed queries' nearest items: their distances, int32[Q, top], and rows, int64[Q, top].
Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def rescore(
    search: Search,
    columns: np.ndarray,
    item_ids: np.ndarray,
    code_logits: np.ndarray,
    k: int,
    oversample: int,
    vectors: np.ndarray | None,
    query_vectors: np.ndarray | None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the nearest items by bits, and orders them; see `HammingIndex.rescore`.

    Args:
      search: finds the nearest by bits.
      columns: the codes of all items by words, uint32[W, N].
      item_ids: int64[N].
      code_logits: float32[Q, num_bits], checked.
      k, oversample, vectors, query_vectors: as there.

    Returns:
      Distances int32[Q, k], ids int64[Q, k] and scores float32[Q, k].
    """
    queries = np.asarray(packing.pack(code_logits))
    if vectors is None and query_vectors is None:
        score = _by_bits(columns, queries, code_logits)
    else:
        score = _by_vectors(vectors, query_vectors, len(queries), item_ids)
    distances, ids = sharded.empty_results(len(queries), k)
    if not isinstance(oversample, int | np.integer) or oversample < 1:
        raise InputError(f"oversample is a whole number of at least 1, not {oversample}.")
    shortlisted = min(int(k) * int(oversample), len(item_ids))
    found = min(int(k), shortlisted)
    scores = np.empty(distances.shape, np.float32)
    distances[:, found:], ids[:, found:], scores[:, found:] = -1, -1, -np.inf
    if not found:
        return distances, ids, scores

    def answer(start: int, stop: int) -> None:
        near_distances, near_rows = search(queries[start:stop], shortlisted)

        def order(batch: slice) -> None:
            rows, of = near_rows[batch], slice(start + batch.start, start + batch.stop)
            near_scores = score(of, rows)
            # Stable: the shortlist is in the order of (distance, insertion).
            best = np.argsort(-near_scores, axis=1, kind="stable")[:, :found]
            distances[of, :found] = np.take_along_axis(near_distances[batch], best, axis=1)
            ids[of, :found] = item_ids[np.take_along_axis(rows, best, axis=1)]
            scores[of, :found] = np.take_along_axis(near_scores, best, axis=1)

        in_threads(order, len(near_rows))

    step = max(1, _SHORTLISTED // shortlisted)
    for start in range(0, len(queries), step):
        answer(start, min(start + step, len(queries)))
    return distances, ids, scores


def checked_numbers(values: np.ndarray, what: str, num_columns: int) -> np.ndarray:
    """Returns real numbers as float32[Q, num_columns].

    Raises:
      InputError: if they have another form, or one of them is not finite.
    """
    values = np.asarray(values)
    if values.ndim != 2 or values.shape[1] != num_columns or not _is_signed(values):
        raise InputError(
            f"{what} are float[Q, {num_columns}], not {values.dtype}{list(values.shape)}."
        )
    with np.errstate(over="ignore"):  # Too large for float32 is not finite.
        values = np.ascontiguousarray(values, np.float32).view()
    # As arrays of JAX are: Numba compiles for one type.
    values.flags.writeable = False
    finite = np.isfinite(values).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise InputError(f"{what} are finite numbers, but those of query {row} are not.")
    return values


def _is_signed(values: np.ndarray) -> bool:
    """Whether an array has floats, or integers with a sign; packed codes have none."""
    return jnp.issubdtype(values.dtype, jnp.floating) or values.dtype.kind == "i"


def _by_bits(
    columns: np.ndarray, queries: np.ndarray, code_logits: np.ndarray
) -> Callable[[slice, np.ndarray], np.ndarray]:
    """Returns a function of queries and rows of items, int64[b, m], that returns scores.

    Those are the inner products of the code logits with the items' bits, float32[b, m].
    """

    def score(of: slice, rows: np.ndarray) -> np.ndarray:
        scores = np.empty(rows.shape, np.float32)
        _score_bits(columns, queries[of], code_logits[of], rows, scores)
        return scores

    return score


@compiled
def _score_bits(columns, queries, code_logits, rows, scores):
    """Writes the inner products of code logits with codes.

    Args:
      columns: uint32[W, N], the codes of the items by words.
      queries: uint32[b, W], the signs of the code logits.
      code_logits: float32[b, k].
      rows: int64[b, m], which items.
      scores: float32[b, m], filled.
    """
    num_words = len(columns)
    # The product of each code logit with its own bit; 0 for unused bits.
    products = np.zeros(32 * num_words, np.float64)
    for q in range(len(queries)):
        total = 0.0
        for bit in range(code_logits.shape[1]):
            is_set = (queries[q, bit // 32] >> np.uint32(bit % 32)) & np.uint32(1)
            products[bit] = code_logits[q, bit] if is_set else -code_logits[q, bit]
            total += products[bit]
        for i in range(rows.shape[1]):
            lost = 0.0
            for word in range(num_words):
                mask = np.uint64(columns[word, rows[q, i]] ^ queries[q, word])
                while mask != 0:
                    lost += products[32 * word + lowest_bit(mask)]
                    mask &= mask - np.uint64(1)
            scores[q, i] = total - 2 * lost


def _by_vectors(
    vectors: np.ndarray | None,
    query_vectors: np.ndarray | None,
    num_queries: int,
    item_ids: np.ndarray,
) -> Callable[[slice, np.ndarray], np.ndarray]:
    """Returns a function as `_by_bits` does: of the inner products of float vectors.

    Raises:
      InputError: if the vectors do not belong to the items and the queries, in number and
        in length; the function, if an inner product is not finite.
    """
    if vectors is None or query_vectors is None:
        raise InputError("vectors, of the items, and query_vectors are given together.")
    vectors = np.asarray(vectors)
    if vectors.ndim != 2 or len(vectors) != len(item_ids) or not _is_signed(vectors):
        raise InputError(
            f"The vectors of {len(item_ids):,} items are float[{len(item_ids)}, d], a row an "
            f"item in the order of insertion, not {vectors.dtype}{list(vectors.shape)}."
        )
    query_vectors = checked_numbers(query_vectors, "query_vectors", vectors.shape[1])
    if len(query_vectors) != num_queries:
        raise InputError(
            f"There are code logits of {num_queries:,} queries but {len(query_vectors):,} "
            "query_vectors."
        )
    step = max(1, _NUMBERS // max(1, vectors.shape[1]))

    def score(of: slice, rows: np.ndarray) -> np.ndarray:
        scores = np.empty(rows.shape, np.float32)
        for q, query_vector in enumerate(query_vectors[of]):
            for start in range(0, rows.shape[1], step):
                part = slice(start, start + step)
                with np.errstate(over="ignore"):
                    near = np.ascontiguousarray(vectors[rows[q, part]], np.float32)
                _score_vectors(near, query_vector, scores[q, part])
            finite = np.isfinite(scores[q])
            if not finite.all():
                item_id = item_ids[rows[q, np.argmin(finite)]]
                raise InputError(
                    f"The inner product of the vectors of query {of.start + q} and of the item "
                    f"with the id {item_id} is not finite: vectors are of finite numbers."
                )
        return scores

    return score


@compiled
def _score_vectors(vectors, query_vector, scores):
    """Writes the inner products of vectors, float32[m, d], with one, as float32[m]."""
    length = len(query_vector)
    for i in range(len(vectors)):
        # Four sums: an addition need not wait for the one before.
        first, second, third, fourth = 0.0, 0.0, 0.0, 0.0
        j = 0
        while j + 4 <= length:
            first += np.float64(vectors[i, j]) * np.float64(query_vector[j])
            second += np.float64(vectors[i, j + 1]) * np.float64(query_vector[j + 1])
            third += np.float64(vectors[i, j + 2]) * np.float64(query_vector[j + 2])
            fourth += np.float64(vectors[i, j + 3]) * np.float64(query_vector[j + 3])
            j += 4
        while j < length:
            first += np.float64(vectors[i, j]) * np.float64(query_vector[j])
            j += 1
        scores[i] = (first + second) + (third + fourth)
