"""Ways to search labelled embeddings, which `embeddings.py` compares; those without training.

Each is a `Method`: how it ranks a database, how it finds the first items, and what it costs.
"""

import argparse
import dataclasses
import importlib.util
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import NamedTuple

import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.encoders import METHODS, LinearEncoder
from llc_jax.evaluation.rankings import HammingRanker, Ranker
from llc_jax.evaluation.score_rankings import ScoreRanker, dot_ranker
from llc_jax.search.index import HammingIndex

if importlib.util.find_spec("faiss"):
    import faiss
else:
    faiss = None

# Bytes that RaBitQ stores beside the bits of each item.
_RABITQ_BYTES = 8
# Training rows for each of the 256 centroids of a product quantizer.
_ROWS_PER_CENTROID = 40

# Positions of queries, int64[q] -> ids of items, int64[q, m], and their scores, float32[q, m].
Find = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]


class Rows(NamedTuple):
    """Labelled embeddings: `vectors`, float32[N, d], and `labels`, int32[N]."""

    vectors: np.ndarray
    labels: np.ndarray


class Setting(NamedTuple):
    """Who searches what.

    Attributes:
      train: what the methods learn from.
      class_names: of its labels.
      queries: what is searched for; its labels and those of the database are of one list.
      database: what is searched.
      has_trained_classes: whether the queries are of the classes that are learnt.
    """

    train: Rows
    class_names: tuple[str, ...]
    queries: Rows
    database: Rows
    has_trained_classes: bool


class Pair(NamedTuple):
    """One array for the queries, [Q, ...], and one for the database, [N, ...]."""

    queries: np.ndarray
    database: np.ndarray


class Cost(NamedTuple):
    """Seconds to fit a method, and to encode the database; None where nothing is encoded."""

    fit: float = 0.0
    encode: float | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to search.

    Attributes:
      name: in words.
      bits: of a code; None where they cannot be chosen.
      num_bytes: of a stored item.
      ranker: of the database.
      queries: [Q, ...], as the ranker takes them.
      search: finds the first items of the queries at some positions, int64[q].
      cost: of it.
      accuracy: figures of `evaluation.classification`, by name; {} where it does not classify.
    """

    name: str
    bits: int | None
    num_bytes: int
    ranker: Ranker
    queries: np.ndarray
    search: Callable[[np.ndarray], object]
    cost: Cost
    accuracy: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Search:
    """Makes methods that search one database.

    Attributes:
      labels: of the database, int32[N].
      cutoff: K, how many items are found.
      oversample: the shortlist that is scored again is so many times as long.
    """

    labels: np.ndarray
    cutoff: int
    oversample: int

    @property
    def shortlist(self) -> int:
        """How many items are scored again."""
        return min(self.cutoff * self.oversample, len(self.labels))

    def by_dots(self, name: str, vectors: Pair, cost: Cost, bits: int | None = None) -> Method:
        """By inner products of float32 vectors, of which each item's is stored."""
        num_bytes, ranker = vectors.database[0].nbytes, dot_ranker(vectors.database, self.labels)
        find = _exhaustive_search(vectors, min(self.cutoff, len(self.labels)))
        return Method(name, bits, num_bytes, ranker, vectors.queries, find, cost)

    def by_bits(self, name: str, codes: Pair, bits: int, cost: Cost) -> Method:
        """By the Hamming distance of packed codes, uint32[., W]."""
        ranker, index = HammingRanker(codes.database, self.labels, bits), HammingIndex(bits)
        index.add(codes.database)

        def find(rows: np.ndarray) -> object:
            return index.search(codes.queries[rows], self.cutoff)

        return Method(name, bits, _num_bytes(bits), ranker, codes.queries, find, cost)

    def rescored(self, name: str, logits: Pair, unit: Pair, cost: Cost) -> Iterator[Method]:
        """By Hamming distance, then by the code logits; and then by the cosine of the floats.

        Args:
          name: of the codes.
          logits: code logits, float32[., k].
          unit: the embeddings, scaled to length 1.
          cost: of the codes.
        """
        bits, index = logits.database.shape[1], HammingIndex(logits.database.shape[1])
        index.add(packing.pack_on_host(logits.database))
        codes = packing.pack_on_host(logits.queries)

        # All of the shortlist is ranked, so that ties at rank K are seen.
        def find_by_logits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            return index.rescore(logits.queries[rows], self.shortlist, oversample=1)[1:]

        def find_by_vectors(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
            # One product of matrices is faster than the scores of `rescore`, if all are needed.
            _, ids = index.search(codes[rows], self.shortlist)
            scores = unit.queries[rows] @ unit.database.T
            return ids, np.take_along_axis(scores, ids, axis=1)

        def search_by_logits(rows: np.ndarray) -> object:
            return index.rescore(logits.queries[rows], self.cutoff, self.oversample)

        def search_by_vectors(rows: np.ndarray) -> object:
            floats = {"vectors": unit.database, "query_vectors": unit.queries[rows]}
            return index.rescore(logits.queries[rows], self.cutoff, self.oversample, **floats)

        ways = (
            ("logits", 0, find_by_logits, search_by_logits),
            ("floats", unit.database[0].nbytes, find_by_vectors, search_by_vectors),
        )
        for way, more_bytes, find, search in ways:
            num_bytes = _num_bytes(bits) + more_bytes
            yield self.found(f"{name}, then {way}", bits, num_bytes, find, len(codes), search, cost)

    def found(
        self,
        name: str,
        bits: int | None,
        num_bytes: int,
        find: Find,
        num_queries: int,
        search: Callable[[np.ndarray], object],
        cost: Cost,
    ) -> Method:
        """By the scores of the items that a search finds; the others are not ranked."""

        def score(rows: np.ndarray) -> np.ndarray:
            ids, found = find(rows)
            scores = np.full((len(rows), len(self.labels)), -np.inf, np.float32)
            np.put_along_axis(scores, ids, found, axis=1)
            return scores

        queries = np.arange(num_queries)
        return Method(name, bits, num_bytes, ScoreRanker(score, self.labels), queries, search, cost)


def linear_encoders(
    setting: Setting, search: Search, options: argparse.Namespace
) -> Iterator[Method]:
    """Yields the encoders that are fitted without labels.

    The principal components are computed once, for the longest code. The encoders are fitted
    to those: the components of the components are themselves, but for their signs.
    """
    floats = tuple(rows.vectors for rows in (setting.train, setting.queries, setting.database))
    lengths = [bits for bits in options.bits if bits <= min(floats[0].shape)]
    pca, fit_seconds = timed(LinearEncoder("pca_sign", max(lengths)).fit, floats[0])
    of_database, encode_seconds = timed(pca.code_logits, floats[2])
    components = (*map(pca.code_logits, floats[:2]), of_database)
    raw, reduced = (floats, Cost(0.0, 0.0)), (components, Cost(fit_seconds, encode_seconds))
    for method in METHODS:
        (train, queries, database), before = raw if method == "sign" else reduced
        for bits in lengths:
            encoder = LinearEncoder(method, bits, random_state=options.seed)
            _, fit = timed(encoder.fit, train)
            codes, encode = timed(encoder.transform, database)
            cost = Cost(before.fit + fit, before.encode + encode)
            yield search.by_bits(method, Pair(encoder.transform(queries), codes), bits, cost)


def quantizers(
    train: np.ndarray, unit: Pair, search: Search, options: argparse.Namespace
) -> Iterator[Method]:
    """Yields FAISS's quantizers of vectors of length 1, of as many bytes as the codes have.

    A product quantizer has a byte for each part of a vector, which is padded with zeros where
    the parts would not be equal. RaBitQ has 8 bytes and a bit for each principal component.
    """
    dims = train.shape[1]
    for bits in options.bits:
        num_bytes = _num_bytes(bits)
        padding = -dims % num_bytes
        product = faiss.IndexPQ(dims + padding, num_bytes, 8)
        product.pq.cp.seed = options.seed + 1
        product.pq.cp.max_points_per_centroid = _ROWS_PER_CENTROID
        product.pq.cp.min_points_per_centroid = 1  # It would print a line for each part.
        arrays = [np.pad(array, ((0, 0), (0, padding))) for array in (train, *unit)]
        yield _quantizer("FAISS PQ", bits, product, arrays, search)
    for bits in options.bits:
        components = 8 * (_num_bytes(bits) - _RABITQ_BYTES)
        if 0 < components <= min(train.shape):
            pca = faiss.PCAMatrix(dims, components, 0, True)
            rabitq = faiss.IndexPreTransform(pca, faiss.IndexRaBitQ(components))
            name = f"FAISS RaBitQ ({components} components)"
            yield _quantizer(name, bits, rabitq, (train, *unit), search)


def _quantizer(name: str, bits: int, index, arrays: Iterable[np.ndarray], search: Search):
    """Returns the method of an index of FAISS that is to be trained.

    Args:
      name: in words.
      bits: of as many bytes as it takes for an item.
      index: a `faiss.Index`.
      arrays: to train it, the queries and the database, float32[., d].
      search: of the database.
    """
    train, queries, database = arrays
    cost = Cost(timed(index.train, train)[1], timed(index.add, database)[1])

    def find(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        distances, ids = index.search(queries[rows], search.shortlist)
        return ids, -distances

    def find_first(rows: np.ndarray) -> object:
        return index.search(queries[rows], min(search.cutoff, len(database)))

    return search.found(name, bits, _num_bytes(bits), find, len(queries), find_first, cost)


def timed(function: Callable, *arguments) -> tuple:
    """Returns what a function returns, and the seconds that it takes."""
    start = time.perf_counter()
    return function(*arguments), time.perf_counter() - start


def _exhaustive_search(vectors: Pair, count: int) -> Callable[[np.ndarray], object]:
    """Returns the search by inner products: by FAISS, or without it by NumPy."""
    if faiss is not None:
        index = faiss.IndexFlatIP(vectors.database.shape[1])
        index.add(vectors.database)
        return lambda rows: index.search(vectors.queries[rows], count)

    def search(rows: np.ndarray) -> np.ndarray:
        scores = -(vectors.queries[rows] @ vectors.database.T)
        ids = np.argpartition(scores, count - 1, axis=1)[:, :count]
        order = np.argsort(np.take_along_axis(scores, ids, axis=1), axis=1)
        return np.take_along_axis(ids, order, axis=1)

    return search


def _num_bytes(bits: int) -> int:
    """Returns the bytes that hold a code."""
    return -(-bits // 8)
