"""How well queries find the images of their class in a database."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.evaluation import metrics
from llc_jax.evaluation.gathering import gather
from llc_jax.evaluation.mesh_search import MeshHammingSearch
from llc_jax.evaluation.score_search import asymmetric_search, cosine_search, dot_search
from llc_jax.evaluation.search import HammingSearch, Ranking, Search

RADIUS = 2
# Queries that are ranked at a time, and at most so many ranks of them.
_QUERIES, _RANKS = 512, 2**22


class Retrieved(NamedTuple):
    """What a retrieval is worth.

    Attributes:
      figures: mean over all queries, by name.
      curves: float64[K] or float64[k + 1], precision and recall, by name.
    """

    figures: dict[str, float]
    curves: dict[str, np.ndarray]


class Retrieval:
    """Retrieval by codes, by what the codes are the signs of, or by real features alone.

    Args:
      represent: uint8[B, H, W, 3] -> float32[B, d], jitted.
      cutoffs: the ranks K at which rankings are cut.
      codes: whether the signs of the representation are codes.
      prefixes: also report what the first so many bits alone achieve.
      mesh: rank codes on its devices; None ranks them on the host.
    """

    def __init__(
        self,
        represent: Callable[[jax.Array], jax.Array],
        cutoffs: Sequence[int],
        codes: bool = True,
        prefixes: Sequence[int] = (),
        mesh: Mesh | None = None,
    ):
        self._represent = represent
        self._cutoffs = tuple(cutoffs)
        self._codes = codes
        self._prefixes = tuple(prefixes)
        self._mesh = mesh

    def run(
        self,
        queries: Iterable[dict[str, jax.Array]],
        database: Iterable[dict[str, jax.Array]],
        exclude: np.ndarray | None = None,
    ) -> Retrieved:
        """Returns figures over all queries that the batches do not mask.

        Args:
          queries: batches of images and labels.
          database: batches of what is searched; what has the query's label is relevant.
          exclude: int64[Q], the place in the database of each query's own image, which it
            shall not find; -1 where it is not there.

        For codes, by Hamming distance, at each cutoff K:

          cmap@K, rmap@K: mean average precision, corrected and as HashNet reports it,
            where items at one distance stand in the order of the database
          cmap_tie@K, cmap_min@K, cmap_max@K: the corrected one as the mean over all orders
            of items at one distance, in the worst order, and in the best
          precision@K, recall@K, ndcg@K
          precision_radius_2: precision of what is within 2 bits, 0 where there is nothing

        The same but the last for the code logits of the query against the signs in the
        database (asymmetric/...), and for real representations (cosine/..., dot/...),
        which are all that there is without codes. The first n bits alone are
        `prefix_<n>/...`.

        Curves are `rank/precision` and `rank/recall` of the first 1, 2, ... up to the
        largest K; and for codes, of all within 0, 1, ... bits, `radius/found`, the share of
        queries that find anything, `radius/precision`, the mean over those, and
        `radius/recall`.

        Raises:
          InputError: if a representation is not finite.
        """
        asked, asked_labels, asks = gather(self._represent, queries)
        held, held_labels, holds = gather(self._represent, database)
        for name, vectors in {"queries": asked, "database": held}.items():
            if not np.isfinite(vectors).all():
                raise InputError(
                    f"The network gives numbers that are not finite for images of the {name}: "
                    "check its weights."
                )
        exclude = _places(exclude, asks, holds)
        figures, curves = {}, {}
        for name, search, given in self._searches(asked, held, held_labels):
            found = measure(search, given, asked_labels, exclude, self._cutoffs)
            figures |= {name + key: value for key, value in found.figures.items()}
            curves |= {name + key: value for key, value in found.curves.items()}
        return Retrieved(figures, curves)

    def _searches(
        self, queries: np.ndarray, vectors: np.ndarray, labels: np.ndarray
    ) -> Iterator[tuple[str, Search, np.ndarray]]:
        """Yields each way to search: its name, and the queries as it takes them."""
        lengths = {"": vectors.shape[1], **{f"prefix_{bits}/": bits for bits in self._prefixes}}
        for name, bits in lengths.items() if self._codes else ():
            given, codes = (_pack(some[:, :bits]) for some in (queries, vectors))
            yield name, self._hamming_search(codes, labels, bits), given
            asymmetric = asymmetric_search(codes, labels, bits)
            yield f"{name}asymmetric/", asymmetric, queries[:, :bits]
        yield "cosine/", cosine_search(vectors, labels), queries
        yield "dot/", dot_search(vectors, labels), queries

    def _hamming_search(self, codes: np.ndarray, labels: np.ndarray, num_bits: int) -> Search:
        if self._mesh is None:
            return HammingSearch(codes, labels, num_bits)
        return MeshHammingSearch(codes, labels, num_bits, self._mesh)


def measure(
    search: Search,
    queries: np.ndarray,
    labels: np.ndarray,
    exclude: np.ndarray,
    cutoffs: Sequence[int],
) -> Retrieved:
    """Returns the figures and the curves of one way to search; see `Retrieval.run`.

    Args:
      search: of the database.
      queries: [Q, ...], as the search takes them.
      labels: int32[Q].
      exclude: int64[Q], the item that each query does not see, -1 for none.
      cutoffs: the ranks K.
    """
    if not len(queries):
        raise InputError("There are no queries to search for.")
    step = max(1, min(_QUERIES, _RANKS // max(cutoffs)))
    sums = {}
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        ranking = search.rank(queries[part], labels[part], exclude[part], max(cutoffs))
        values = _along_ranks(ranking)
        for k in cutoffs:
            values |= _at_cutoff(ranking, k)
        if search.by_bits:
            values |= _within_radii(ranking)
        for name, column in values.items():
            sums[name] = sums.get(name, 0.0) + column.sum(axis=0)
    means = {name: total / len(queries) for name, total in sums.items()}
    figures = {name: float(mean) for name, mean in means.items() if not mean.ndim}
    curves = {name: mean for name, mean in means.items() if mean.ndim}
    if search.by_bits:
        within = curves["radius/precision"]
        figures[f"precision_radius_{RADIUS}"] = float(within[: RADIUS + 1][-1])
        found = curves["radius/found"]
        curves["radius/precision"] = within / np.where(found > 0, found, 1)
    return Retrieved(figures, curves)


def _at_cutoff(ranking: Ranking, k: int) -> dict[str, np.ndarray]:
    """Returns the figures of each query at a cutoff, float64[Q]."""
    items, relevant, first, total, size = ranking
    tied = metrics.grouped_average_precision(items, relevant, total, k)
    given = metrics.average_precision(first, total, k, "cmap")
    return {
        f"cmap@{k}": given,
        f"rmap@{k}": metrics.average_precision(first, total, k, "rmap"),
        f"cmap_tie@{k}": tied.expected,
        # The bounds hold of themselves, but for the last digit.
        f"cmap_min@{k}": np.minimum(tied.least, given),
        f"cmap_max@{k}": np.maximum(tied.most, given),
        f"precision@{k}": metrics.precision(first, k, size),
        f"recall@{k}": metrics.recall(first, k, total),
        f"ndcg@{k}": metrics.ndcg(first, k, total),
    }


def _along_ranks(ranking: Ranking) -> dict[str, np.ndarray]:
    """Returns the precision and the recall of each query's first 1, 2, ... items."""
    hits = np.cumsum(ranking.first, axis=1)
    ranks = np.arange(1, hits.shape[1] + 1)
    seen = np.maximum(np.minimum(ranks, ranking.size[:, None]), 1)
    total = np.maximum(ranking.total_relevant, 1)[:, None]
    return {"rank/precision": hits / seen, "rank/recall": hits / total}


def _within_radii(ranking: Ranking) -> dict[str, np.ndarray]:
    """Returns what each query finds within 0, 1, ... bits."""
    items, relevant, _, total, _ = ranking
    return {
        "radius/found": (np.cumsum(items, axis=1) > 0).astype(np.float64),
        "radius/precision": metrics.precision_within(items, relevant),
        "radius/recall": metrics.recall_within(relevant, total),
    }


def _places(exclude: np.ndarray | None, asks: np.ndarray, holds: np.ndarray) -> np.ndarray:
    """Returns the item that each query leaves out, counting only images that are not masked."""
    if exclude is None:
        return np.full(asks.sum(), -1)
    place = np.where(holds, np.cumsum(holds) - 1, -1)
    exclude = np.where(exclude >= 0, place[exclude], -1)
    return exclude[asks[: len(exclude)]]


def _pack(logits: np.ndarray) -> np.ndarray:
    return np.asarray(packing.pack(logits))
