"""Rankings of a database by real numbers: cosine, dot products, and code logits against bits."""

from collections.abc import Callable

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.evaluation.search import Ranking, Search

# Scores that are held at a time.
_SCORES = 2**25


class ScoreSearch(Search):
    """Items ranked by a score, the highest first; equal scores are ties.

    Args:
      score: float32[q, d] queries -> float32[q, N].
      labels: int32[N].
    """

    by_bits = False

    def __init__(self, score: Callable[[np.ndarray], np.ndarray], labels: np.ndarray):
        self._score = score
        self._labels = labels

    def rank(self, queries: np.ndarray, labels: np.ndarray, exclude: np.ndarray, k: int) -> Ranking:
        """Ranks the database for float32[Q, d] queries; see `Search`."""
        assert len(queries) == len(labels) == len(exclude)
        rows = max(1, _SCORES // len(self._labels))
        parts = []
        for start in range(0, len(queries), rows):
            part = slice(start, start + rows)
            scores = self._score(queries[part])
            relevant = self._labels == labels[part, None]
            left_out = np.flatnonzero(exclude[part] >= 0)
            scores[left_out, exclude[part][left_out]] = -np.inf
            relevant[left_out, exclude[part][left_out]] = False
            parts.append(_rank(scores, relevant, k))
        return Ranking(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def dot_search(vectors: np.ndarray, labels: np.ndarray) -> Search:
    """Ranks float32[N, d] vectors by their dot product with the query."""
    return ScoreSearch(lambda queries: queries @ vectors.T, labels)


def cosine_search(vectors: np.ndarray, labels: np.ndarray) -> Search:
    """Ranks float32[N, d] vectors by the cosine of their angle with the query."""
    directions = _directions(vectors)
    return ScoreSearch(lambda queries: _directions(queries) @ directions.T, labels)


def asymmetric_search(codes: np.ndarray, labels: np.ndarray, num_bits: int) -> Search:
    """Ranks uint32[N, W] codes by the dot product of the query's code logits with their signs.

    Each code is scored once however many items have it, so these tie exactly.
    """
    unique, code_of = np.unique(codes, axis=0, return_inverse=True)
    signs = np.asarray(jax.device_get(packing.unpack(unique, num_bits)), np.float32)
    code_of = code_of.ravel()
    return ScoreSearch(lambda logits: (logits @ signs.T)[:, code_of], labels)


def _directions(vectors: np.ndarray) -> np.ndarray:
    """Scales rows to length 1; those of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors / np.where(length > 0, length, 1)


def _rank(scores: np.ndarray, relevant: np.ndarray, k: int) -> Ranking:
    """Ranks by scores[q, N]; what has the score -inf is left out."""
    count, size = scores.shape
    ranks = min(k, size)
    lowest = np.partition(scores, size - ranks, axis=1)[:, size - ranks]
    items, hits = np.zeros((2, count, ranks), np.int32)
    first = np.zeros((count, ranks), bool)
    for row in range(count):
        near = np.flatnonzero((scores[row] >= lowest[row]) & (scores[row] > -np.inf))
        if not len(near):
            continue
        near = near[np.argsort(-scores[row, near], kind="stable")]
        starts = np.flatnonzero(np.diff(scores[row, near], prepend=np.inf))
        found = relevant[row, near]
        items[row, : len(starts)] = np.diff(starts, append=len(near))
        hits[row, : len(starts)] = np.add.reduceat(found, starts, dtype=np.int32)
        first[row, : len(near)] = found[:ranks]
    sizes = np.sum(scores > -np.inf, axis=1, dtype=np.int32)
    return Ranking(items, hits, first, relevant.sum(axis=1, dtype=np.int32), sizes)
