"""Retrieval: how well queries find the images of their class in a database.

Each of P processes ranks the database for the queries that it embedded. It has the packed codes
and the labels of all N items, N (4 ceil(k / 32) + 5) bytes, but only its own N / P embeddings of d
numbers. To be ranked by those, the others' come in blocks, once for so many queries as have 2^25
scores. All sums are of integers, so that their order does not matter: where no score is rounded
otherwise, the figures are those of one process.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.evaluation import metrics
from llc_jax.evaluation.gathering import Embedded, add_up, embed_images, gather, stack
from llc_jax.evaluation.mesh_rankings import MeshHammingRanker
from llc_jax.evaluation.rankings import HammingRanker, Ranker, Ranking
from llc_jax.evaluation.score_rankings import asymmetric_ranker, cosine_ranker, dot_ranker

RADIUS = 2
# The most queries, and the most ranks of all of them, that are ranked at a time.
_MAX_QUERIES, _MAX_RANKS = 512, 2**22
# Figures of a query, from 0 to 1, are added up in such parts: those of up to 2^23 queries.
_PARTS = 2**40


class RetrievalResult(NamedTuple):
    """Figures and curves of a retrieval.

    Attributes:
      figures: means over all queries, by name.
      curves: float64[K] or float64[k + 1], precision and recall, by name.
    """

    figures: dict[str, float]
    curves: dict[str, np.ndarray]


class Retrieval:
    """Retrieval by codes and the code logits behind them, or by real features alone.

    Args:
      embed: B inputs, images or vectors -> float32[B, d], jitted.
      cutoffs: the ranks K at which rankings are cut.
      codes: whether the embeddings are code logits, whose signs are codes.
      prefixes: numbers of bits n; the figures of the first n bits alone are also reported.
      mesh: rank codes on its devices, which are this process's; None ranks them on the host.
    """

    def __init__(
        self,
        embed: Callable[[jax.Array], jax.Array],
        cutoffs: Sequence[int],
        codes: bool = True,
        prefixes: Sequence[int] = (),
        mesh: Mesh | None = None,
    ):
        self._embed = embed
        self._cutoffs = tuple(cutoffs)
        self._codes = codes
        self._prefixes = tuple(prefixes)
        self._mesh = mesh

    def run(
        self,
        queries: Iterable[dict[str, jax.Array]],
        database: Iterable[dict[str, jax.Array]],
        exclude: np.ndarray | None = None,
    ) -> RetrievalResult:
        """Returns figures over all queries that the batches do not mask.

        Args:
          queries: batches of images and labels.
          database: batches of images and labels; those with the query's label are relevant.
          exclude: int64[Q], the position in the database of each query's own image, which is
            left out of its ranking; -1 where the database does not have it. Damaged images
            count in Q and in the positions.

        For codes, by Hamming distance, at each cutoff K:

          cmap@K, rmap@K: mean average precision, corrected and as HashNet reports it,
            where items at one distance stand in the order of the database
          cmap_tie@K, cmap_min@K, cmap_max@K: the corrected one as the mean over all orders
            of items at one distance, in the worst order, and in the best
          precision@K, recall@K, ndcg@K
          precision_radius_2: precision of the items within 2 bits, 0 where there are none

        The same but the last for the code logits of the query against the codes of the
        database (asymmetric/...), and for embeddings (cosine/..., dot/...), which are all
        that there is without codes. The figures of the first n bits alone are
        `prefix_<n>/...`.

        Curves are `rank/precision` and `rank/recall` of the first 1, 2, ... up to the
        largest K; and for codes, of all items within 0, 1, ... bits: `radius/found`, the
        share of queries that have any, `radius/precision`, the mean over those queries, and
        `radius/recall`.

        Raises:
          InputError: if an embedding is not finite, or if there are no queries.
        """
        queries, database = (embed_images(self._embed, images) for images in (queries, database))
        for name, embedded in (("queries", queries), ("database", database)):
            if not np.isfinite(embedded.embeddings).all():
                raise InputError(
                    f"The network gives numbers that are not finite for images of the {name}: "
                    "check its weights."
                )
        exclude = _unmasked_positions(exclude, queries.mask, database.mask)[queries.positions]
        figures, curves = {}, {}
        for prefix, ranker, vectors in self._rankers(queries.embeddings, database):
            result = evaluate_ranker(ranker, vectors, queries.labels, exclude, self._cutoffs)
            figures |= {prefix + name: value for name, value in result.figures.items()}
            curves |= {prefix + name: curve for name, curve in result.curves.items()}
        return RetrievalResult(figures, curves)

    def _rankers(
        self, queries: np.ndarray, database: Embedded
    ) -> Iterator[tuple[str, Ranker, np.ndarray]]:
        """Yields each ranker after the prefix of its figures' names, and its queries.

        Args:
          queries: float32[q, d], embeddings.
          database: those of this process.
        """
        embeddings, positions = database.embeddings, database.positions
        labels = gather(database.labels, positions)
        lengths = {"": embeddings.shape[1], **{f"prefix_{bits}/": bits for bits in self._prefixes}}
        for prefix, bits in lengths.items() if self._codes else ():
            codes = gather(_pack(embeddings[:, :bits]), positions)
            yield prefix, self._hamming_ranker(codes, labels, bits), _pack(queries[:, :bits])
            asymmetric = asymmetric_ranker(codes, labels, bits)
            yield f"{prefix}asymmetric/", asymmetric, queries[:, :bits]
        positions = None if jax.process_count() == 1 else positions
        yield "cosine/", cosine_ranker(embeddings, labels, positions), queries
        yield "dot/", dot_ranker(embeddings, labels, positions), queries

    def _hamming_ranker(self, codes: np.ndarray, labels: np.ndarray, num_bits: int) -> Ranker:
        if self._mesh is None:
            return HammingRanker(codes, labels, num_bits)
        return MeshHammingRanker(codes, labels, num_bits, self._mesh)


def evaluate_ranker(
    ranker: Ranker,
    queries: np.ndarray,
    query_labels: np.ndarray,
    exclude: np.ndarray,
    cutoffs: Sequence[int],
) -> RetrievalResult:
    """Returns the figures and the curves of one ranker; see `Retrieval.run`.

    Args:
      ranker: of the database.
      queries: [q, ...], those of this process, as the ranker takes them.
      query_labels: int32[q].
      exclude: int64[q], the item that is left out for each query, -1 for none.
      cutoffs: the ranks K.

    Raises:
      InputError: if no process has a query.
    """
    counts = stack(np.int32(len(queries)))
    if not counts.any():
        raise InputError("There are no queries to search for.")
    # All processes rank as many queries together, also those that have fewer.
    padding = counts.max() - len(queries)
    queries = np.pad(queries, ((0, padding), *((0, 0),) * (queries.ndim - 1)))
    query_labels, exclude = np.pad(query_labels, (0, padding)), np.pad(exclude, (0, padding))
    batch_size = max(1, min(_MAX_QUERIES, _MAX_RANKS // max(cutoffs)))
    sums = {}
    for start in range(0, len(queries), batch_size):
        batch, count = slice(start, start + batch_size), len(queries) - padding - start
        ranking = ranker.rank(queries[batch], query_labels[batch], exclude[batch], max(cutoffs))
        values = _rank_curves(ranking)
        for k in cutoffs:
            values |= _figures_at_cutoff(ranking, k)
        if ranker.by_hamming_distance:
            values |= _radius_curves(ranking)
        for name, per_query in values.items():
            parts = np.rint(_PARTS * per_query[: max(0, count)]).astype(np.int64)
            sums[name] = sums.get(name, 0) + parts.sum(axis=0)
    means = {name: total / _PARTS / counts.sum() for name, total in add_up(sums).items()}
    figures = {name: float(mean) for name, mean in means.items() if not mean.ndim}
    curves = {name: mean for name, mean in means.items() if mean.ndim}
    if ranker.by_hamming_distance:
        precision, nonempty = curves["radius/precision"], curves["radius/found"]
        figures[f"precision_radius_{RADIUS}"] = float(precision[: RADIUS + 1][-1])
        curves["radius/precision"] = precision / np.where(nonempty > 0, nonempty, 1)
    return RetrievalResult(figures, curves)


def _figures_at_cutoff(ranking: Ranking, k: int) -> dict[str, np.ndarray]:
    """Returns the figures of each query at a cutoff, float64[Q]."""
    group_sizes, group_relevant, relevance, total_relevant, database_size = ranking
    tie_aware = metrics.grouped_average_precision(group_sizes, group_relevant, total_relevant, k)
    cmap = metrics.average_precision(relevance, total_relevant, k, "cmap")
    return {
        f"cmap@{k}": cmap,
        f"rmap@{k}": metrics.average_precision(relevance, total_relevant, k, "rmap"),
        f"cmap_tie@{k}": tie_aware.expected,
        # Rounding alone can put the ranking's own value beyond the bounds.
        f"cmap_min@{k}": np.minimum(tie_aware.least, cmap),
        f"cmap_max@{k}": np.maximum(tie_aware.most, cmap),
        f"precision@{k}": metrics.precision(relevance, k, database_size),
        f"recall@{k}": metrics.recall(relevance, k, total_relevant),
        f"ndcg@{k}": metrics.ndcg(relevance, k, total_relevant),
    }


def _rank_curves(ranking: Ranking) -> dict[str, np.ndarray]:
    """Returns the precision and the recall of each query's first 1, 2, ... items."""
    hits = np.cumsum(ranking.relevance, axis=1)
    ranks = np.arange(1, hits.shape[1] + 1)
    retrieved = np.maximum(np.minimum(ranks, ranking.database_size[:, None]), 1)
    total_relevant = np.maximum(ranking.total_relevant, 1)[:, None]
    return {"rank/precision": hits / retrieved, "rank/recall": hits / total_relevant}


def _radius_curves(ranking: Ranking) -> dict[str, np.ndarray]:
    """Returns the figures of each query's items within 0, 1, ... bits."""
    group_sizes, group_relevant = ranking.group_sizes, ranking.group_relevant
    return {
        "radius/found": (np.cumsum(group_sizes, axis=1) > 0).astype(np.float64),
        "radius/precision": metrics.precision_within(group_sizes, group_relevant),
        "radius/recall": metrics.recall_within(group_relevant, ranking.total_relevant),
    }


def _unmasked_positions(
    exclude: np.ndarray | None, query_mask: np.ndarray, database_mask: np.ndarray
) -> np.ndarray:
    """Returns the item that each unmasked query excludes, counting unmasked items alone."""
    if exclude is None:
        return np.full(query_mask.sum(), -1)
    position = np.where(database_mask, np.cumsum(database_mask) - 1, -1)
    exclude = np.where(exclude >= 0, position[exclude], -1)
    return exclude[query_mask[: len(exclude)]]


def _pack(logits: np.ndarray) -> np.ndarray:
    return np.asarray(packing.pack(logits))
