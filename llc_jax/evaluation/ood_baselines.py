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
from llc_jax.evaluation.ood_detection import Detected

COUNTS = (50, 100, 200, 500, 1000, 2000, 3000, 5000, 10_000)

Positive = Literal["ood", "id"]


class Scores(NamedTuple):
    """A score of the images of both kinds.

    Attributes:
      id: [N] numbers, of the in-distribution images.
      ood: [M] numbers, of the OOD images.
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
class Setting:
    """A setting of appendix E; an InputError says which value is out of range.

    All in-distribution images are in the validation set and in the test set. If the validation
    set is not representative (figure 5), n OOD images are in it, for each n of `counts`, and
    `num_test` in the test set. If it is (figure 6), n are in each.

    In each repeat the OOD images are shuffled; the first are in the test set and the last in the
    validation set, so the sets share images only where there are too few. The paper does not
    say whether its sets do; with 10,000 of 18,000 images in each they must.

    Attributes:
      representative: whether the validation set is.
      counts: n, the numbers of OOD images in the validation set.
      num_test: OOD images in the test set, where the validation set is not representative.
      num_fixed: OOD images for the second baseline.
      positive: the positive class of the F1 that is tuned and measured, "ood" or "id".
      repeats: R, how many.
      seed: of the shuffling; repeat r is the same whatever R is.
    """

    representative: bool = False
    counts: Sequence[int] = COUNTS
    num_test: int = 10_000
    num_fixed: int = 50
    positive: Positive = "ood"
    repeats: int = 100
    seed: int = 0

    def __post_init__(self):
        _check_positive(self.positive)
        if not len(self.counts):
            raise InputError("counts is empty: give one number of OOD images or more.")
        for name, numbers in {**self._images, "repeats": (self.repeats,)}.items():
            for number in numbers:
                if not isinstance(number, int | np.integer) or number < 1:
                    raise InputError(f"{name} is of whole numbers of at least 1, not {number}.")

    @property
    def _images(self) -> dict[str, tuple[int, ...]]:
        """How many OOD images are drawn at a time, by the option that says it."""
        images = {"counts": tuple(self.counts), "num_fixed": (self.num_fixed,)}
        return images if self.representative else images | {"num_test": (self.num_test,)}

    def check_enough(self, num_ood: int) -> None:
        """Raises an InputError if more OOD images are drawn at a time than there are."""
        for name, numbers in self._images.items():
            if max(numbers) > num_ood:
                raise InputError(
                    f"There are {num_ood:,} OOD images, but {name} asks for {max(numbers):,}: "
                    "lower it."
                )


@dataclasses.dataclass(frozen=True)
class Comparison:
    """F1 on test sets, of R repeats with C numbers of OOD images each, float64[R, C].

    Attributes:
      counts: int64[C], OOD images in the validation set.
      tuned: of the threshold that has the best F1 on the validation set.
      fixed: of the threshold one standard deviation from the mean of a few OOD images.
      codes: of the rule of codes.
    """

    counts: np.ndarray
    tuned: np.ndarray
    fixed: np.ndarray
    codes: np.ndarray


def compare(
    scores: Scores, distances: Scores, setting: Setting | None = None, radius: int = 0
) -> Comparison:
    """Compares the rule of codes with both baselines.

    Args:
      scores: of the baselines, the higher the more OOD; minus the maximum softmax probability
        of a linear classifier in the paper.
      distances: of the same images in the same order, from the code to the nearest class
        code, in bits.
      setting: None for the first of appendix E, with the numbers of the paper.
      radius: of the rule of codes, in bits.

    Raises:
      InputError: if the images do not fit, there are too few, or the radius is not a whole
        number from 0.
    """
    setting = setting or Setting()
    scores, distances = Scores(*ood.check_scores(*scores)), Scores(*ood.check_scores(*distances))
    sizes = [tuple(map(len, of_images)) for of_images in (scores, distances)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"Scores and distances are of the same images, not of {sizes[0]} and {sizes[1]}, "
            "in-distribution and OOD."
        )
    hamming.check_radius(radius)
    setting.check_enough(len(scores.ood))
    by_codes = Scores(*(values > radius for values in distances))
    repeats = [_compare_once(scores, by_codes, setting, r) for r in range(setting.repeats)]
    return Comparison(np.array(setting.counts), *np.moveaxis(np.array(repeats), -1, 0))


def compare_detected(
    found: Detected, name: str, *, representative: bool, num_test: int | None = None
) -> Comparison:
    """Compares the codes of a run with thresholds of its linear classifier: figure 5 or 6.

    The thresholds are of `softmax_probability`, the radius is 0, and n is each of the paper's
    numbers that the set has images for.

    Args:
      found: the scores of known and of unknown images.
      name: of the set of unknown images, `<group>/<name>`.
      representative: whether the validation set is, as in figure 6 and not in figure 5.
      num_test: OOD images in the test set of figure 5, or all where there are fewer; by default a
        fifth of the known images, as the paper's 10,000 are beside 50,000.

    Raises:
      InputError: if there is no such set, or it has no such scores.
    """
    pairs = []
    for score in ("softmax_probability", "nearest_distance"):
        if score not in found.known or score not in found.unknown.get(name, {}):
            raise InputError(
                f"There is no {score} of unknown images {name}: the run needs a linear stage, a "
                "stage of codes, and this set in config.ood."
            )
        pairs.append(Scores(found.known[score], found.unknown[name][score]))
    most = len(pairs[0].ood)
    num_test = max(1, len(pairs[0].id) // 5) if num_test is None else num_test
    counts = tuple(count for count in COUNTS if count <= most)
    return compare(*pairs, Setting(representative, counts, min(num_test, most)))


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


def _compare_once(
    scores: Scores, by_codes: Scores, setting: Setting, repeat: int
) -> list[list[float]]:
    """Returns the F1 of both baselines and of the codes, [C, 3].

    Args:
      scores: of the baselines.
      by_codes: whether the codes call each image OOD, bool[N] and bool[M].
      setting: of the comparison.
      repeat: its number, from 0.
    """
    order = np.random.default_rng([setting.seed, repeat]).permutation(len(scores.ood))
    fixed = mean_threshold(scores.ood[order[-setting.num_fixed :]])
    by_mean = Scores(*(values > fixed for values in scores))
    figures = []
    for count in setting.counts:
        test = order[: count if setting.representative else setting.num_test]
        tuned = tune_threshold(scores.id, scores.ood[order[-count:]], setting.positive)
        by_tuning = Scores(*(values > tuned for values in scores))
        outcomes = (by_tuning, by_mean, by_codes)
        figures.append([_f1(called, test, setting.positive) for called in outcomes])
    return figures


def _f1(called: Scores, test: np.ndarray, positive: Positive) -> float:
    """Returns the F1 of what is called OOD, bool[N] and bool[M], where `test` are the OOD images.

    All in-distribution images are in the test set.
    """
    counts = np.sum(called.id), np.sum(called.ood[test])
    return getattr(ood.f1_of_counts(*counts, num_id=len(called.id), num_ood=len(test)), positive)


def _check_positive(positive: str) -> None:
    if positive not in ("ood", "id"):
        raise InputError(f"The positive class is 'ood' or 'id', not {positive!r}.")
