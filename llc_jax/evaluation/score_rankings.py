"""Rankings of a database by real numbers: cosine, dot products, and code logits against bits."""

from collections.abc import Callable

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.evaluation.gathering import gather_blocks
from llc_jax.evaluation.rankings import Ranker, Ranking

# The most scores that are held at a time.
_MAX_SCORES = 2**25


class ScoreRanker(Ranker):
    """Items ranked by a score, the highest first; equal scores are ties.

    Args:
      score: float32[q, d] queries -> float32[q, N].
      labels: int32[N].
    """

    by_hamming_distance = False

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], labels: np.ndarray):
        self._score = score
        self._labels = labels

    def rank(
        self, queries: np.ndarray, query_labels: np.ndarray, exclude: np.ndarray, k: int
    ) -> Ranking:
        """Ranks the database for float32[Q, d] queries; see `Ranker`."""
        assert len(queries) == len(query_labels) == len(exclude)
        batch_size = max(1, _MAX_SCORES // len(self._labels))
        rankings = []
        for start in range(0, len(queries), batch_size):
            batch = slice(start, start + batch_size)
            scores = self._score(queries[batch])
            relevance = self._labels == query_labels[batch, None]
            rows = np.flatnonzero(exclude[batch] >= 0)
            scores[rows, exclude[batch][rows]] = -np.inf
            relevance[rows, exclude[batch][rows]] = False
            rankings.append(_rank(scores, relevance, k))
        return Ranking(*(np.concatenate(arrays) for arrays in zip(*rankings, strict=True)))


def dot_ranker(
    vectors: np.ndarray, labels: np.ndarray, positions: np.ndarray | None = None
) -> Ranker:
    """Ranks vectors by their dot product with the query.

    Args:
      vectors: float32[n, d], of the database of N vectors those that this process has.
      labels: int32[N].
      positions: int64[n], which of the N they are; None where they are all. All processes
        must rank as many queries together.
    """
    return ScoreRanker(_products(vectors, len(labels), positions), labels)


def cosine_ranker(
    vectors: np.ndarray, labels: np.ndarray, positions: np.ndarray | None = None
) -> Ranker:
    """Ranks vectors by the cosine of their angle with the query; see `dot_ranker`."""
    products = _products(_normalize(vectors), len(labels), positions)
    return ScoreRanker(lambda queries: products(_normalize(queries)), labels)


def _products(
    vectors: np.ndarray, size: int, positions: np.ndarray | None
) -> Callable[[np.ndarray], np.ndarray]:
    """Returns a function that multiplies float32[q, d] with the vectors of all processes."""
    if positions is None:
        return lambda queries: queries @ vectors.T

    def multiply(queries: np.ndarray) -> np.ndarray:
        products = np.empty((len(queries), size), np.float32)
        for block, of_block in gather_blocks(vectors, positions):
            products[:, of_block] = queries @ block.T
        return products

    return multiply


def asymmetric_ranker(codes: np.ndarray, labels: np.ndarray, num_bits: int) -> Ranker:
    """Ranks uint32[N, W] codes by the dot product of the query's code logits with their signs.

    Each code is scored once however many items have it, so these tie exactly.
    """
    unique_codes, code_of = np.unique(codes, axis=0, return_inverse=True)
    signs = np.asarray(jax.device_get(packing.unpack(unique_codes, num_bits)), np.float32)
    code_of = code_of.ravel()
    return ScoreRanker(lambda logits: (logits @ signs.T)[:, code_of], labels)


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1; rows of zeros stay."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(norms > 0, norms, 1)


def _rank(scores: np.ndarray, item_relevance: np.ndarray, k: int) -> Ranking:
    """Ranks by scores[q, N]; items with the score -inf are left out."""
    count, size = scores.shape
    ranks = min(k, size)
    thresholds = np.partition(scores, size - ranks, axis=1)[:, size - ranks]
    group_sizes, group_relevant = np.zeros((2, count, ranks), np.int32)
    relevance = np.zeros((count, ranks), bool)
    for row in range(count):
        items = np.flatnonzero((scores[row] >= thresholds[row]) & (scores[row] > -np.inf))
        if not len(items):
            continue
        items = items[np.argsort(-scores[row, items], kind="stable")]
        starts = np.flatnonzero(np.diff(scores[row, items], prepend=np.inf))
        sorted_relevance = item_relevance[row, items]
        group_sizes[row, : len(starts)] = np.diff(starts, append=len(items))
        group_relevant[row, : len(starts)] = np.add.reduceat(
            sorted_relevance, starts, dtype=np.int32
        )
        relevance[row, : len(items)] = sorted_relevance[:ranks]
    total_relevant = item_relevance.sum(axis=1, dtype=np.int32)
    database_size = np.sum(scores > -np.inf, axis=1, dtype=np.int32)
    return Ranking(group_sizes, group_relevant, relevance, total_relevant, database_size)
