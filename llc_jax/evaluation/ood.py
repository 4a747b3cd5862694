"""Metrics of the detection of out-of-distribution (OOD) images by a score.

A score is a number for each image; the higher, the more it seems OOD. Images of the classes
that were trained are in-distribution (ID). OOD is the positive class, except where a name
says otherwise.

A score of few values, such as a Hamming distance, ties often, and the order of ties is
arbitrary. So each metric of the order is given four times; see `Metric`.

References:
  Hendrycks & Gimpel, "A baseline for detecting misclassified and out-of-distribution examples
  in neural networks", ICLR 2017. Zhang et al., "OpenOOD v1.5", 2023. LLC, section 4.3.
"""

from typing import NamedTuple

import numpy as np

from llc_jax.errors import InputError
from llc_jax.evaluation import metrics


class Metric(NamedTuple):
    """A metric of an order of images, over all orders of ties.

    Attributes:
      value: as scikit-learn counts it, where thresholds do not divide ties.
      expected: the mean over all orders.
      least: of the order that makes it least.
      most: of the order that makes it most.
    """

    value: float
    expected: float
    least: float
    most: float


class F1(NamedTuple):
    """The harmonic mean of precision and recall of what is called OOD; numbers, or arrays [...].

    Attributes:
      ood: with OOD as the positive class.
      id: with in-distribution as the positive class.
    """

    ood: float | np.ndarray
    id: float | np.ndarray


class _Ties(NamedTuple):
    """Counts of the images at each value of a score.

    Attributes:
      id: int64[G], in-distribution images, at the highest value first.
      ood: int64[G], OOD images.
    """

    id: np.ndarray
    ood: np.ndarray


def measure(id_scores: np.ndarray, ood_scores: np.ndarray) -> dict[str, float]:
    """Returns all metrics of a score that need no threshold.

    Args:
      id_scores: [N] numbers, the scores of in-distribution images.
      ood_scores: [M] numbers, the scores of OOD images.

    Returns:
      `auroc`, `aupr_in`, `aupr_out` and `fpr95`, each as scikit-learn counts it; with `_tie`
      the mean over all orders of ties, with `_min` and `_max` the bounds; and `values`, how
      many different scores there are.

    Raises:
      InputError: if a kind of image has no scores, or a score is not a finite number.
    """
    ties = _count_ties(id_scores, ood_scores)
    by_name = {
        "auroc": _auroc(ties),
        "aupr_in": _average_precision(ties.id[::-1], ties.ood[::-1]),
        "aupr_out": _average_precision(ties.ood, ties.id),
        "fpr95": _fpr(ties, 0.95),
    }
    figures = {}
    for name, metric in by_name.items():
        names = (name, f"{name}_tie", f"{name}_min", f"{name}_max")
        figures |= dict(zip(names, metric, strict=True))
    return figures | {"values": float(len(ties.id))}


def auroc(id_scores: np.ndarray, ood_scores: np.ndarray) -> Metric:
    """Returns the area under the ROC curve: how often an OOD image scores above one that is ID.

    Its `value` is that of `sklearn.metrics.roc_auc_score`, which counts a tie as half, and so
    it is the mean over all orders too. Arguments and errors as in `measure`.
    """
    return _auroc(_count_ties(id_scores, ood_scores))


def aupr_out(id_scores: np.ndarray, ood_scores: np.ndarray) -> Metric:
    """Returns the area under the precision-recall curve with OOD as the positive class.

    Its `value` is that of `sklearn.metrics.average_precision_score`. It may be above `most`:
    it gives every positive among ties the precision at their end, and where many positives
    tie, the first of them have a lower one in every order. OpenOOD joins the points of the
    curve by lines instead, which differs a little. Arguments and errors as in `measure`.
    """
    ties = _count_ties(id_scores, ood_scores)
    return _average_precision(ties.ood, ties.id)


def aupr_in(id_scores: np.ndarray, ood_scores: np.ndarray) -> Metric:
    """Returns the area as in `aupr_out`, with ID as the positive class, by the negated score."""
    ties = _count_ties(id_scores, ood_scores)
    return _average_precision(ties.id[::-1], ties.ood[::-1])


def fpr_at_tpr(id_scores: np.ndarray, ood_scores: np.ndarray, tpr: float = 0.95) -> Metric:
    """Returns the share of ID images called OOD at the highest threshold that finds enough OOD.

    This is the FPR of the first point of the ROC curve whose TPR is at least `tpr`, as in
    OpenOOD v1.5, where OOD is the positive class; in its first version ID was. The curve has
    a point for each value of the score: `sklearn.metrics.roc_curve(..., drop_intermediate=
    False)`. OpenOOD's curve lacks points between others on a straight line, so where several
    values in a row have equal shares of OOD images, its figure can be larger.

    A threshold does not divide ties, so `value` equals `most`. Where `least` is far below it,
    few more or less OOD images at one value of the score change the figure by much.

    Args:
      id_scores: [N] numbers.
      ood_scores: [M] numbers.
      tpr: the share of OOD images that is to be found, above 0 and at most 1.

    Raises:
      InputError: as `measure`, and if `tpr` is out of range.
    """
    if not 0 < tpr <= 1:
        raise InputError(f"tpr is above 0 and at most 1, not {tpr}.")
    return _fpr(_count_ties(id_scores, ood_scores), tpr)


def f1(id_scores: np.ndarray, ood_scores: np.ndarray, threshold: float) -> F1:
    """Returns the F1 of calling an image OOD if its score is above a threshold.

    With the distance to the nearest class code as the score, the threshold is the radius.

    Args:
      id_scores: [N] numbers.
      ood_scores: [M] numbers.
      threshold: a number; with -inf all images are called OOD, with inf none.

    Raises:
      InputError: as `measure`, and if the threshold is NaN.
    """
    if np.isnan(threshold):
        raise InputError("The threshold is NaN: give a number.")
    id_scores, ood_scores = check_scores(id_scores, ood_scores)
    called_id, called_ood = id_scores > threshold, ood_scores > threshold
    counts = int(np.sum(called_id)), int(np.sum(called_ood))
    return f1_of_counts(*counts, num_id=len(id_scores), num_ood=len(ood_scores))


def f1_of_counts(
    called_id: int | np.ndarray, called_ood: int | np.ndarray, *, num_id: int, num_ood: int
) -> F1:
    """Returns the F1 of `called_id` ID and `called_ood` OOD images that are called OOD, [...].

    Args:
      called_id: int[...], how many of the ID images are called OOD, wrongly.
      called_ood: int[...], how many of the OOD images are.
      num_id: how many ID images there are, at least 1.
      num_ood: how many OOD images there are, at least 1.
    """
    rest_id, rest_ood = num_id - called_id, num_ood - called_ood
    return F1(
        ood=2 * called_ood / (called_ood + called_id + num_ood),
        id=2 * rest_id / (rest_id + rest_ood + num_id),
    )


def check_scores(id_scores: np.ndarray, ood_scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns both as float64.

    Raises:
      InputError: if a kind of image has no scores, or a score is not a finite number.
    """
    return _checked(id_scores, "in-distribution"), _checked(ood_scores, "OOD")


def _checked(scores: np.ndarray, kind: str) -> np.ndarray:
    scores = np.asarray(scores)
    if scores.ndim != 1 or (scores.size and scores.dtype.kind not in "biuf"):
        raise InputError(
            f"The scores of {kind} images are a number for each, not "
            f"{scores.dtype}{list(scores.shape)}."
        )
    if not scores.size:
        raise InputError(f"There are no scores of {kind} images: both kinds are needed.")
    wrong = np.flatnonzero(~np.isfinite(scores))
    if wrong.size:
        raise InputError(
            f"Score {wrong[0]} of the {kind} images is {scores[wrong[0]]}: leave out images "
            "that have no finite score."
        )
    return scores.astype(np.float64)


def _count_ties(id_scores: np.ndarray, ood_scores: np.ndarray) -> _Ties:
    id_scores, ood_scores = check_scores(id_scores, ood_scores)
    values, group = np.unique(-np.concatenate([id_scores, ood_scores]), return_inverse=True)
    counts = (
        np.bincount(of_kind, minlength=len(values)) for of_kind in np.split(group, [len(id_scores)])
    )
    return _Ties(*counts)


def _auroc(ties: _Ties) -> Metric:
    lower_id = ties.id.sum() - np.cumsum(ties.id)
    pairs = ties.id.sum() * ties.ood.sum()
    least, tied = np.sum(ties.ood * lower_id), np.sum(ties.ood * ties.id)
    value = float((least + tied / 2) / pairs)
    return Metric(value, value, float(least / pairs), float((least + tied) / pairs))


def _average_precision(positives: np.ndarray, negatives: np.ndarray) -> Metric:
    """Returns the average precision of groups of ties, int64[G] each, the first group first."""
    sizes, total = positives + negatives, positives.sum()
    value = float(np.sum(positives * (np.cumsum(positives) / np.cumsum(sizes))) / total)
    if np.all(sizes == 1):  # There are no ties; the sums below would differ by rounding.
        return Metric(value, value, value, value)
    expected, least, most = metrics.grouped_average_precision(
        sizes[None], positives[None], total[None], k=int(sizes.sum())
    )
    return Metric(value, float(expected[0]), min(float(least[0]), value), float(most[0]))


def _fpr(ties: _Ties, tpr: float) -> Metric:
    """Returns the FPR at the first place in the order where the TPR is at least `tpr`."""
    num_id, num_ood = ties.id.sum(), ties.ood.sum()
    # Compared as scikit-learn's rates are: for 0.95 of 20, 19 are enough.
    needed = int(np.searchsorted(np.arange(num_ood + 1) / num_ood, tpr))
    group = int(np.searchsorted(np.cumsum(ties.ood), needed))
    id_before, id_tied = ties.id[:group].sum(), ties.id[group]
    needed_of_group = needed - ties.ood[:group].sum()
    # In a random order each of n ID images stands before the r-th of m OOD images with
    # probability r / (m + 1).
    expected = id_before + id_tied * needed_of_group / (ties.ood[group] + 1)
    most = float((id_before + id_tied) / num_id)
    return Metric(most, float(expected / num_id), float(id_before / num_id), most)
