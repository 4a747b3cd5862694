"""Metrics of retrieval, one value a query.

They need little of a search: whether what stands at each of the first K ranks is
relevant, and, as codes of few bits tie often, how many items and how many relevant ones
stand at each distance. With n items at a distance, n+ of them relevant, after N items of
which N+ are relevant, the order of the n is arbitrary, and position i has on average

  E[rel(i) P@i] = (n+ / n) (N+ + 1 + (i - N - 1) (n+ - 1) / (n - 1)) / i

The sum over the positions of the n that are not beyond K is a harmonic number and a
count, so the exact mean over all orders takes one step a distance.

References:
  LLC, appendix B, for the two divisors. McSherry & Najork, "Computing information
  retrieval performance measures efficiently in the presence of tied scores", ECIR 2008,
  for means over the orders of ties.
"""

from typing import NamedTuple

import numpy as np

from llc_jax.errors import InputError

FORMS = ("cmap", "rmap")


class TieAware(NamedTuple):
    """Average precision over all orders of ties, each float64[...].

    Attributes:
      expected: the mean over all orders.
      least: that of the worst order.
      most: that of the best order.
    """

    expected: np.ndarray
    least: np.ndarray
    most: np.ndarray


def average_precision(
    relevance: np.ndarray, total_relevant: np.ndarray, k: int, form: str = "cmap"
) -> np.ndarray:
    """Returns the average precision of rankings, cut at rank k; its mean over queries is MAP@k.

    Args:
      relevance: bool[..., R], whether what stands at each rank is relevant, the nearest
        first. R is at least k, or the size of the database.
      total_relevant: int[...], how many relevant items the database has.
      k: the cutoff.
      form: what the sum of P@i over the ranks i of relevant items is divided by:
        "cmap", corrected: by min(total_relevant, k); "rmap", as HashNet reports it: by
        the relevant items among the first k.

    Returns:
      float64[...], 0 where nothing relevant is found.

    Raises:
      InputError: if an argument is not as said above.

    References:
      LLC, appendix B.
    """
    if form not in FORMS:
        raise InputError(f"The form of average precision is cmap or rmap, not {form!r}.")
    relevance = np.asarray(relevance, bool)
    total_relevant = _checked(relevance, total_relevant, k)
    relevance = relevance[..., :k]
    ranks = np.arange(1, relevance.shape[-1] + 1)
    hits = np.cumsum(relevance, axis=-1)
    total = np.sum(hits / ranks, axis=-1, where=relevance)
    divisor = np.minimum(total_relevant, k) if form == "cmap" else np.sum(relevance, axis=-1)
    return total / np.maximum(divisor, 1)


def tie_aware_average_precision(
    distances: np.ndarray, relevance: np.ndarray, total_relevant: np.ndarray, k: int
) -> TieAware:
    """Returns the corrected average precision at k over all orders of equal distances.

    Args:
      distances: [..., N] numbers, in any order. Items may be missing that are farther
        than the k-th nearest; all that are as far are needed.
      relevance: bool[..., N].
      total_relevant: int[...], how many relevant items the database has.
      k: the cutoff.

    Returns:
      (expected, least, most), each float64[...].

    Raises:
      InputError: if an argument is not as said above.
    """
    distances, relevance = np.asarray(distances), np.asarray(relevance, bool)
    if distances.shape != relevance.shape:
        raise InputError(
            f"There is a distance for each item, so distances{list(distances.shape)} and "
            f"relevance{list(relevance.shape)} have one shape."
        )
    total_relevant = _checked(relevance, total_relevant, k)
    shape, size = relevance.shape[:-1], relevance.shape[-1]
    rows = int(np.prod(shape))
    items, relevant = _tie_groups(distances.reshape(rows, size), relevance.reshape(rows, size))
    found = grouped_average_precision(items, relevant, total_relevant.reshape(rows), k)
    return TieAware(*(values.reshape(shape) for values in found))


def grouped_average_precision(
    items: np.ndarray, relevant: np.ndarray, total_relevant: np.ndarray, k: int
) -> TieAware:
    """Returns the corrected average precision at k over all orders within groups of ties.

    Args:
      items: int[Q, G], how many items tie in each group, the nearest group first.
      relevant: int[Q, G], how many of them are relevant.
      total_relevant: int[Q], how many relevant items the database has.
      k: the cutoff. It may fall within a group.
    """
    n, hits = items.astype(np.float64), relevant.astype(np.float64)
    hits_before = np.cumsum(hits, axis=1) - hits
    last = np.cumsum(items, axis=1, dtype=np.int64)
    start, stop = np.minimum(last - items, k), np.minimum(last, k)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, stop.max(initial=0) + 1))])

    def in_a_row(before: np.ndarray) -> np.ndarray:
        """Sums P@i over the group's relevant items where they follow on rank `before`."""
        before = np.minimum(before, k)
        count = np.minimum(relevant, k - before)
        return count + (hits_before - before) * (harmonic[before + count] - harmonic[before])

    slope = (hits - 1) / np.maximum(n - 1, 1)
    constant = hits_before + 1 - slope * (start + 1)
    mean = (
        hits
        / np.maximum(n, 1)
        * (constant * (harmonic[stop] - harmonic[start]) + slope * (stop - start))
    )
    divisor = np.maximum(np.minimum(total_relevant, k), 1)
    # Each swap that puts a relevant item before another one gains: the best order of a group
    # has the relevant ones first, the worst has them last, also where k cuts it.
    sums = (mean, in_a_row(last - relevant), in_a_row(last - items))
    expected, least, most = (part.sum(axis=1) / divisor for part in sums)
    return TieAware(np.clip(expected, least, np.maximum(least, most)), least, most)


def precision(relevance: np.ndarray, k: int, size: np.ndarray) -> np.ndarray:
    """Returns the share of relevant items among the first k, or all `size`, of [..., R]."""
    found = np.sum(relevance[..., :k], axis=-1)
    return found / np.maximum(np.minimum(k, size), 1)


def recall(relevance: np.ndarray, k: int, total_relevant: np.ndarray) -> np.ndarray:
    """Returns the share of the relevant items that is among the first k, 0 if there are none."""
    return np.sum(relevance[..., :k], axis=-1) / np.maximum(total_relevant, 1)


def ndcg(relevance: np.ndarray, k: int, total_relevant: np.ndarray) -> np.ndarray:
    """Returns the normalised discounted cumulative gain at k, of gains 0 and 1.

    Args:
      relevance: bool[..., R], the nearest first.
      k: the cutoff.
      total_relevant: int[...], how many relevant items the database has.

    Returns:
      float64[...], 0 where there is nothing relevant.

    References:
      Järvelin & Kekäläinen, ACM TOIS 2002, with the discount 1 / log2(rank + 1).
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    kept = relevance[..., :k]
    gain = np.sum(kept * discounts[: kept.shape[-1]], axis=-1)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(total_relevant, k)]
    return np.divide(gain, ideal, out=np.zeros_like(gain), where=ideal > 0)


def precision_within(items: np.ndarray, relevant: np.ndarray) -> np.ndarray:
    """Returns the precision of all that is within each radius, 0 where there is nothing.

    Args:
      items: int[Q, G], how many items are at each distance.
      relevant: int[Q, G], how many of them are relevant.

    Returns:
      float64[Q, G].
    """
    return np.cumsum(relevant, axis=1) / np.maximum(np.cumsum(items, axis=1), 1)


def recall_within(relevant: np.ndarray, total_relevant: np.ndarray) -> np.ndarray:
    """Returns the recall of all that is within each radius, float64[Q, G]; see above."""
    return np.cumsum(relevant, axis=1) / np.maximum(total_relevant, 1)[:, None]


def _tie_groups(distances: np.ndarray, relevance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts items and relevant items at each distance, both int64[Q, N], nearest first."""
    order = np.argsort(distances, axis=1)
    steps = np.diff(np.take_along_axis(distances, order, axis=1), axis=1) != 0
    groups = np.zeros(distances.shape, np.int64)
    np.cumsum(steps, axis=1, out=groups[:, 1:])
    items, relevant = np.zeros_like(groups), np.zeros_like(groups)
    rows = np.arange(len(groups))[:, None]
    np.add.at(items, (rows, groups), 1)
    np.add.at(relevant, (rows, groups), np.take_along_axis(relevance, order, axis=1))
    return items, relevant


def _checked(relevance: np.ndarray, total_relevant: np.ndarray, k: int) -> np.ndarray:
    """Returns `total_relevant` as an array of a value a query."""
    if k < 1:
        raise InputError(f"Average precision is cut at rank 1 or later, not {k}.")
    total_relevant = np.asarray(total_relevant)
    if relevance.ndim < 1 or total_relevant.shape != relevance.shape[:-1]:
        raise InputError(
            f"total_relevant has a count for each query of relevance{list(relevance.shape)}: "
            f"it is of shape {list(relevance.shape[:-1])}, not {list(total_relevant.shape)}."
        )
    if np.any(np.sum(relevance, axis=-1) > total_relevant):
        raise InputError("More items are relevant than total_relevant says the database has.")
    return total_relevant
