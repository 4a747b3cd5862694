"""Metrics of retrieval, one value for each query.

They need two things of a ranking: whether the item at each of the first K ranks is
relevant, and, as codes of few bits tie often, how many items and how many relevant ones
there are at each distance. With n items at a distance, n+ of them relevant, after N items
of which N+ are relevant, the order of the n is arbitrary, and position i has on average

  E[rel(i) P@i] = (n+ / n) (N+ + 1 + (i - N - 1) (n+ - 1) / (n - 1)) / i

The sum over the positions of the n that are not beyond K is a harmonic number and a
count, so the exact mean over all orders takes one step for each distance.

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
      least: the value of the worst order.
      most: the value of the best order.
    """

    expected: np.ndarray
    least: np.ndarray
    most: np.ndarray


def average_precision(
    relevance: np.ndarray, total_relevant: np.ndarray, k: int, form: str = "cmap"
) -> np.ndarray:
    """Returns the average precision of rankings, cut at rank k; its mean over queries is MAP@k.

    Args:
      relevance: bool[..., R], whether the item at each rank is relevant, the nearest
        first. R is at least k, or the size of the database.
      total_relevant: int[...], how many relevant items the database has.
      k: the cutoff.
      form: what the sum of P@i over the ranks i of relevant items is divided by:
        "cmap", corrected: by min(total_relevant, k); "rmap", as HashNet reports it: by
        the relevant items among the first k.

    Returns:
      float64[...], 0 where no relevant item is among the first k.

    Raises:
      InputError: if an argument is not as said above.

    References:
      LLC, appendix B.

    Example:
      >>> relevance = np.array([[1, 0, 0, 0, 0], [1, 0, 0, 1, 1]])
      >>> llc_jax.metrics.average_precision(relevance, np.array([10, 10]), k=5)
      array([0.2 , 0.42])
      >>> llc_jax.metrics.average_precision(relevance, np.array([10, 10]), k=5, form="rmap")
      array([1. , 0.7])
    """
    if form not in FORMS:
        raise InputError(f"The form of average precision is cmap or rmap, not {form!r}.")
    relevance = np.asarray(relevance, bool)
    total_relevant = _check_total_relevant(relevance, total_relevant, k)
    relevance = relevance[..., :k]
    ranks = np.arange(1, relevance.shape[-1] + 1)
    hits = np.cumsum(relevance, axis=-1)
    precision_sum = np.sum(hits / ranks, axis=-1, where=relevance)
    divisor = np.minimum(total_relevant, k) if form == "cmap" else np.sum(relevance, axis=-1)
    return precision_sum / np.maximum(divisor, 1)


def tie_aware_average_precision(
    distances: np.ndarray, relevance: np.ndarray, total_relevant: np.ndarray, k: int
) -> TieAware:
    """Returns the corrected average precision at k over all orders of equal distances.

    Args:
      distances: [..., N] numbers, in any order. Items that are farther than the k-th
        nearest may be missing; all items that are as far as it are needed.
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
    total_relevant = _check_total_relevant(relevance, total_relevant, k)
    shape, size = relevance.shape[:-1], relevance.shape[-1]
    rows = int(np.prod(shape))
    groups = _tie_groups(distances.reshape(rows, size), relevance.reshape(rows, size))
    per_row = grouped_average_precision(*groups, total_relevant.reshape(rows), k)
    return TieAware(*(values.reshape(shape) for values in per_row))


def grouped_average_precision(
    group_sizes: np.ndarray, group_relevant: np.ndarray, total_relevant: np.ndarray, k: int
) -> TieAware:
    """Returns the corrected average precision at k over all orders within groups of ties.

    Args:
      group_sizes: int[Q, G], how many items tie in each group, the nearest group first.
      group_relevant: int[Q, G], how many items of each group are relevant.
      total_relevant: int[Q], how many relevant items the database has.
      k: the cutoff. It may fall within a group.
    """
    n, hits = group_sizes.astype(np.float64), group_relevant.astype(np.float64)
    hits_before = np.cumsum(hits, axis=1) - hits
    last = np.cumsum(group_sizes, axis=1, dtype=np.int64)
    start, stop = np.minimum(last - group_sizes, k), np.minimum(last, k)
    harmonic = np.concatenate([[0.0], np.cumsum(1 / np.arange(1, stop.max(initial=0) + 1))])

    def consecutive_sum(rank: np.ndarray) -> np.ndarray:
        """Sums P@i over a group's relevant items where they stand directly after `rank`."""
        rank = np.minimum(rank, k)
        count = np.minimum(group_relevant, k - rank)
        return count + (hits_before - rank) * (harmonic[rank + count] - harmonic[rank])

    slope = (hits - 1) / np.maximum(n - 1, 1)
    constant = hits_before + 1 - slope * (start + 1)
    mean = (
        hits
        / np.maximum(n, 1)
        * (constant * (harmonic[stop] - harmonic[start]) + slope * (stop - start))
    )
    divisor = np.maximum(np.minimum(total_relevant, k), 1)
    # A swap that moves a relevant item before an irrelevant one never lowers the sum: the best
    # order of a group has the relevant items first, the worst has them last, also where k
    # falls within the group.
    worst, best = consecutive_sum(last - group_relevant), consecutive_sum(last - group_sizes)
    expected, least, most = (sums.sum(axis=1) / divisor for sums in (mean, worst, best))
    return TieAware(np.clip(expected, least, np.maximum(least, most)), least, most)


def precision(relevance: np.ndarray, k: int, size: np.ndarray) -> np.ndarray:
    """Returns the share of relevant items among the first min(k, size) of bool[..., R]."""
    hits = np.sum(relevance[..., :k], axis=-1)
    return hits / np.maximum(np.minimum(k, size), 1)


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
      float64[...], 0 where the database has no relevant items.

    References:
      Järvelin & Kekäläinen, ACM TOIS 2002, with the discount 1 / log2(rank + 1).
    """
    discounts = 1 / np.log2(np.arange(2, k + 2))
    relevance = relevance[..., :k]
    gain = np.sum(relevance * discounts[: relevance.shape[-1]], axis=-1)
    ideal = np.concatenate([[0.0], np.cumsum(discounts)])[np.minimum(total_relevant, k)]
    return np.divide(gain, ideal, out=np.zeros_like(gain), where=ideal > 0)


def precision_within(group_sizes: np.ndarray, group_relevant: np.ndarray) -> np.ndarray:
    """Returns the precision of the items within each radius, 0 where there are none.

    Args:
      group_sizes: int[Q, G], how many items are at each distance.
      group_relevant: int[Q, G], how many of them are relevant.

    Returns:
      float64[Q, G].
    """
    return np.cumsum(group_relevant, axis=1) / np.maximum(np.cumsum(group_sizes, axis=1), 1)


def recall_within(group_relevant: np.ndarray, total_relevant: np.ndarray) -> np.ndarray:
    """Returns the recall of the items within each radius, float64[Q, G]; see `precision_within`."""
    return np.cumsum(group_relevant, axis=1) / np.maximum(total_relevant, 1)[:, None]


def _tie_groups(distances: np.ndarray, relevance: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Counts items and relevant items at each distance, both int64[Q, N], nearest first."""
    order = np.argsort(distances, axis=1)
    steps = np.diff(np.take_along_axis(distances, order, axis=1), axis=1) != 0
    groups = np.zeros(distances.shape, np.int64)
    np.cumsum(steps, axis=1, out=groups[:, 1:])
    group_sizes, group_relevant = np.zeros_like(groups), np.zeros_like(groups)
    rows = np.arange(len(groups))[:, None]
    np.add.at(group_sizes, (rows, groups), 1)
    np.add.at(group_relevant, (rows, groups), np.take_along_axis(relevance, order, axis=1))
    return group_sizes, group_relevant


def _check_total_relevant(relevance: np.ndarray, total_relevant: np.ndarray, k: int) -> np.ndarray:
    """Returns `total_relevant` as an array with one value for each query."""
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
