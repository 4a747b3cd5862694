"""The rule of codes against thresholds that are set with out-of-distribution (OOD) images.

An image is OOD by the rule if no class code is within a radius of its code, which needs no OOD
images. A baseline calls it OOD if its score (higher is more OOD), such as minus the maximum
softmax probability, is above a threshold, which is set with OOD images: for the best F1 on a
validation set, or from the scores of 50 of them.

References:
  LLC, appendix E, figures 5 and 6. The baselines are after Hendrycks & Gimpel, ICLR 2017.
"""

import dataclasses
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np

from llc_jax.codes import hamming
from llc_jax.errors import InputError
from llc_jax.evaluation import ood

COUNTS = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10_000)

Positive = Literal["ood", "id"]


class Scores(NamedTuple):
    """A score of the same images by each of several networks; images are in the same order.

    Attributes:
      id: [N] numbers, of in-distribution images.
      ood: [M] numbers, of OOD images.
    """

    id: np.ndarray
    ood: np.ndarray


class Band(NamedTuple):
    """The mean of repeats, and where most of them lie, each float64[C].

    Attributes:
      mean: over the repeats.
      low: a lower quantile of the repeats.
      high: an upper quantile.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison:
    """F1 on test sets, of R repeats with C numbers of OOD images each, float64[R, C].

    Attributes:
      counts: int64[C], OOD images in the validation set.
      tuned: of the threshold that has the best F1 on the validation set.
      fixed: of the threshold one standard deviation beyond the mean of a few OOD images.
      codes: of the rule of codes.
    """

    counts: np.ndarray
    tuned: np.ndarray
    fixed: np.ndarray
    codes: np.ndarray


def compare(
    scores: Scores,
    distances: Scores,
    counts: Sequence[int] = COUNTS,
    *,
    representative: bool = False,
    radius: int = 0,
    num_test: int = 10_000,
    num_fixed: int = 50,
    positive: Positive = "ood",
    repeats: int = 20,
    seed: int = 0,
) -> Comparison:
    """Compares the rule of codes with both baselines, in a setting of appendix E.

    All in-distribution images are in the validation and in the test set. If the validation
    set is not representative (figure 5), n OOD images are in it, for each n of `counts`, and
    `num_test` in the test set. If it is (figure 6), n are in each.

    In each repeat the OOD images are shuffled; the first are in the test set and the last in the
    validation set, so the sets share images only where there are too few. The paper does not
    say whether its sets do; with 10,000 of 18,000 images in both they must.

    Args:
      scores: of the baselines, the higher the more OOD; minus the maximum softmax probability
        in the paper.
      distances: from each code to the nearest class code, in bits.
      counts: n, the numbers of OOD images in the validation set.
      representative: which of the settings.
      radius: of the rule of codes, in bits.
      num_test: OOD images in the test set, where the validation set is not representative.
      num_fixed: OOD images for the second baseline.
      positive: the positive class of the F1 that is tuned and measured, "ood" or "id".
      repeats: R, how many.
      seed: of the shuffling; repeat r is the same whatever R is.

    Raises:
      InputError: if the images do not fit, there are too few, or an option is out of range.
    """
    scores, distances = Scores(*ood.check_scores(*scores)), Scores(*ood.check_scores(*distances))
    sizes = [tuple(map(len, images)) for images in (scores, distances)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"Scores and distances are of the same images, not of {sizes[0]} and {sizes[1]}, "
            "in-distribution and OOD."
        )
    hamming.check_radius(radius)
    _check_positive(positive)
    wanted = {"counts": [*counts], "num_fixed": [num_fixed], "repeats": [repeats]}
    if not representative:
        wanted["num_test"] = [num_test]
    for name, numbers in wanted.items():
        most = None if name == "repeats" else len(scores.ood)
        _check_numbers(name, numbers, most)
    called = Scores(*(values > radius for values in distances))
    by_repeat = []
    for repeat in range(repeats):
        order = np.random.default_rng([seed, repeat]).permutation(len(scores.ood))
        fixed = mean_threshold(scores.ood[order[-num_fixed:]])
        by_count = []
        for count in counts:
            test = order[: count if representative else num_test]
            tuned = tune_threshold(scores.id, scores.ood[order[-count:]], positive)
            outcomes = [
                *((scores.id > threshold, scores.ood > threshold) for threshold in (tuned, fixed)),
                called,
            ]
            by_count.append([_f1(*outcome, test, positive) for outcome in outcomes])
        by_repeat.append(by_count)
    return Comparison(np.array(counts), *np.moveaxis(np.array(by_repeat), -1, 0))


def tune_threshold(
    id_scores: np.ndarray, ood_scores: np.ndarray, positive: Positive = "ood"
) -> float:
    """Returns the threshold of the best F1; an image is called OOD if its score is above it.

    Args:
      id_scores: [N] numbers, of the in-distribution images of a validation set.
      ood_scores: [M] numbers, of its OOD images.
      positive: the positive class of F1, "ood" or "id".

    Returns:
      A number halfway between two scores; -inf where it is best to call all images OOD, inf
      for none. Where several are best, the highest, which calls the fewest images OOD.

    Raises:
      InputError: as `ood.measure`, or if there is no such class.

    References:
      LLC, appendix E, the first baseline.
    """
    _check_positive(positive)
    id_scores, ood_scores = map(np.sort, ood.check_scores(id_scores, ood_scores))
    values = np.unique(np.concatenate([id_scores, ood_scores]))
    # Below each value, and above all.
    called_id, called_ood = (
        np.append(len(scores) - np.searchsorted(scores, values), 0)
        for scores in (id_scores, ood_scores)
    )
    f1 = ood.f1_of_counts(called_id, called_ood, num_id=len(id_scores), num_ood=len(ood_scores))
    of_class = getattr(f1, positive)
    best = len(values) - int(np.argmax(of_class[::-1]))
    if best in (0, len(values)):
        return -np.inf if best == 0 else np.inf
    below, above = values[best - 1], values[best]
    halfway = below / 2 + above / 2
    # Between neighbours there is no other number: above the lower one is below the higher one.
    return float(halfway if below <= halfway < above else below)


def mean_threshold(ood_scores: np.ndarray) -> float:
    """Returns the mean score of OOD images less one standard deviation, for few such images.

    Of a confidence, the lower the more OOD, this is the mean plus one standard deviation: most
    OOD images are less confident. A score is its negative.

    Args:
      ood_scores: [M] numbers, of 50 OOD images in the paper.

    Raises:
      InputError: if there are none, or one is not a finite number.

    References:
      LLC, appendix E, the second baseline.
    """
    _, ood_scores = ood.check_scores(np.zeros(1), ood_scores)
    return float(np.mean(ood_scores) - np.std(ood_scores))


def band(f1: np.ndarray, coverage: float = 0.95) -> Band:
    """Returns the mean F1 of a comparison at each count, and between what most repeats lie.

    Args:
      f1: float64[R, C], `tuned`, `fixed` or `codes` of a `Comparison`.
      coverage: the share of the repeats between `low` and `high`, above 0 and below 1.

    Raises:
      InputError: if the coverage is out of range.
    """
    if not 0 < coverage < 1:
        raise InputError(f"coverage is above 0 and below 1, not {coverage}.")
    low, high = np.quantile(f1, [(1 - coverage) / 2, (1 + coverage) / 2], axis=0)
    return Band(np.mean(f1, axis=0), low, high)


def samples_to_match(comparison: Comparison, share: float | None = None) -> int | None:
    """Returns how many OOD images a tuned threshold needs to reach the rule of codes.

    Args:
      comparison: of `compare`.
      share: of the repeats, in which the F1 of the tuned threshold is to be at least that of
        the rule, on the same test set; None compares the means of all repeats.

    Returns:
      The least of the counts at which it is; None where it is at none of them.

    Raises:
      InputError: if the share is out of range.

    References:
      LLC, appendix E: 3,000 for ImageNet-750.
    """
    if share is None:
        reached = comparison.tuned.mean(axis=0) >= comparison.codes.mean(axis=0)
    elif 0 < share <= 1:
        reached = np.mean(comparison.tuned >= comparison.codes, axis=0) >= share
    else:
        raise InputError(f"share is above 0 and at most 1, not {share}.")
    return min((int(count) for count in comparison.counts[reached]), default=None)


def _f1(called_id: np.ndarray, called_ood: np.ndarray, test: np.ndarray, positive: str) -> float:
    """Returns the F1 on a test set of what is called OOD, bool[N] and bool[M].

    Args:
      called_id: of each in-distribution image.
      called_ood: of each OOD image.
      test: which OOD images are in the test set.
      positive: "ood" or "id".
    """
    counts = np.sum(called_id), np.sum(called_ood[test])
    return getattr(ood.f1_of_counts(*counts, num_id=len(called_id), num_ood=len(test)), positive)


def _check_positive(positive: str) -> None:
    if positive not in ("ood", "id"):
        raise InputError(f"The positive class is 'ood' or 'id', not {positive!r}.")


def _check_numbers(name: str, numbers: list[int], most: int | None) -> None:
    if not numbers:
        raise InputError(f"{name} is empty: give one number or more.")
    for number in numbers:
        if not isinstance(number, int | np.integer) or number < 1:
            raise InputError(f"{name} is of whole numbers of at least 1, not {number}.")
        if most is not None and number > most:
            raise InputError(
                f"There are {most:,} OOD images, but {name} asks for {number:,}: lower it."
            )
