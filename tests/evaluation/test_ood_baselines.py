import numpy as np
import pytest
from sklearn.metrics import f1_score

from llc_jax.errors import InputError
from llc_jax.evaluation import ood, ood_baselines
from llc_jax.evaluation.ood_baselines import Scores, Setting


def images(num_id=2000, num_ood=600):
    """Scores and distances of images."""
    rng = np.random.default_rng(0)
    scores = Scores(-rng.beta(5, 1, num_id), -rng.beta(2, 2, num_ood))
    return scores, Scores(rng.binomial(20, 0.02, num_id), rng.binomial(20, 0.15, num_ood))


def test_a_threshold_by_hand():
    # From the top: two OOD, an ID, an OOD, three ID. Above 2.5: F1 6/7 with OOD positive.
    assert ood_baselines.tune_threshold([4, 1, 0, 0], [6, 5, 3]) == 2
    # Above 4.5: precision 4/5 and recall 1 with ID positive, 8/9.
    assert ood_baselines.tune_threshold([4, 1, 0, 0], [6, 5, 3], "id") == 4.5
    assert ood_baselines.tune_threshold([0, 1], [2, 3]) == 1.5
    assert ood_baselines.tune_threshold([2, 3], [0, 1, 1, 1]) == -np.inf
    assert ood_baselines.tune_threshold([0, 0, 0], [0], "id") == np.inf
    assert ood_baselines.tune_threshold([0], [0]) == -np.inf


@pytest.mark.parametrize("positive", ["ood", "id"])
@pytest.mark.parametrize("levels", [3, 12, 1000])
def test_no_threshold_is_better_than_the_tuned_one(positive, levels):
    for seed in range(20):
        rng = np.random.default_rng(seed)
        id_scores = rng.integers(levels, size=rng.integers(1, 40))
        ood_scores = rng.integers(levels, size=rng.integers(1, 40)) + levels // 4
        threshold = ood_baselines.tune_threshold(id_scores, ood_scores, positive)
        labels = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
        scores = np.concatenate([id_scores, ood_scores])
        label = {"ood": 1, "id": 0}[positive]
        f1 = {
            t: f1_score(labels, scores > t, pos_label=label, zero_division=0)
            for t in (*(np.unique(scores) - 0.5), np.inf, threshold)
        }
        assert f1[threshold] == pytest.approx(max(f1.values()))
        # Of several that are best it calls the fewest images OOD.
        fewer = [t for t in f1 if np.sum(scores > t) < np.sum(scores > threshold)]
        assert all(f1[t] < f1[threshold] - 1e-12 for t in fewer)


def test_a_threshold_between_neighbouring_numbers_divides_them():
    for low in (1.0, 0.1, 1e300, -5e-324, 0.0):
        high = np.nextafter(low, np.inf)
        threshold = ood_baselines.tune_threshold([low], [high])
        assert low <= threshold < high


def test_one_standard_deviation_from_the_mean():
    # The confidences 0.2 and 0.6 have mean 0.4 and standard deviation 0.2: OOD is below 0.6.
    assert ood_baselines.mean_threshold([-0.2, -0.6]) == pytest.approx(-0.6)


def test_a_comparison_by_hand():
    # Each OOD image has the same score and so each sample of them has the same figures.
    scores = Scores([0.0] * 6 + [2.0] * 2, [1.0] * 10)
    distances = Scores([0] * 7 + [1], [1] * 8 + [0] * 2)
    setting = Setting(counts=(1, 2, 10), num_test=10, num_fixed=3, repeats=4)
    comparison = ood_baselines.compare(scores, distances, setting)
    # All above 0.5 are called OOD: all 10 are found, and 2 others.
    np.testing.assert_allclose(comparison.tuned, np.full((4, 3), 20 / 22))
    # The threshold is 1 + 0: images that have it are not called OOD, but 2 others are.
    np.testing.assert_allclose(comparison.fixed, 0)
    np.testing.assert_allclose(comparison.codes, np.full((4, 3), 16 / 19))
    assert ood_baselines.samples_to_match(comparison) == 1
    wider = ood_baselines.compare(scores, distances, setting, radius=1)
    np.testing.assert_allclose(wider.codes, 0)
    known = Setting(counts=(1,), num_test=10, num_fixed=3, repeats=1, positive="id")
    comparison = ood_baselines.compare(scores, distances, known)
    np.testing.assert_allclose(comparison.codes, 14 / (9 + 8))
    # Validated with one OOD image, it is best to call none OOD; tested with ten it is not.
    np.testing.assert_allclose(comparison.tuned, 16 / (18 + 8))


@pytest.mark.parametrize("representative", [False, True])
def test_the_settings(representative):
    scores, distances = images()
    counts = (50, 200, 600)
    setting = Setting(representative, counts, num_test=300, repeats=3, seed=5)
    comparison = ood_baselines.compare(scores, distances, setting)
    assert comparison.tuned.shape == comparison.fixed.shape == comparison.codes.shape == (3, 3)
    for repeat in range(3):
        order = np.random.default_rng([5, repeat]).permutation(600)
        last_50 = -scores.ood[order[-50:]]  # Confidences.
        for column, count in enumerate(counts):
            test = order[: count if representative else 300]
            labels = np.repeat([0, 1], [2000, len(test)])
            tuned = ood_baselines.tune_threshold(scores.id, scores.ood[order[-count:]])
            called = [
                np.concatenate([scores.id, scores.ood[test]]) > tuned,
                -np.concatenate([scores.id, scores.ood[test]]) < last_50.mean() + last_50.std(),
                np.concatenate([distances.id, distances.ood[test]]) > 0,
            ]
            found = [
                figures[repeat, column]
                for figures in (comparison.tuned, comparison.fixed, comparison.codes)
            ]
            assert found == pytest.approx([f1_score(labels, c) for c in called])
    if not representative:
        assert (np.ptp(comparison.codes, axis=1) == 0).all()


def test_the_seed_is_all_that_is_random():
    scores, distances = images()
    few, many, other = (
        ood_baselines.compare(
            scores, distances, Setting(counts=(50, 100), num_test=300, repeats=r, seed=seed)
        )
        for r, seed in [(2, 0), (5, 0), (2, 1)]
    )
    np.testing.assert_array_equal(few.tuned, many.tuned[:2])
    assert (few.tuned != other.tuned).any()


def test_bands_are_quantiles_of_the_repeats():
    f1 = np.arange(101.0)[:, None] / 100
    mean, low, high = ood_baselines.band(f1, coverage=0.9)
    np.testing.assert_allclose([mean, low, high], [[0.5], [0.05], [0.95]])
    assert all(len(values) == 3 for values in ood_baselines.band(np.ones((1, 3))))


def test_how_many_images_a_tuned_threshold_needs():
    counts, codes = np.array([50, 500, 5000]), np.full((4, 3), 0.8)
    tuned = np.array([[0.5, 0.9, 0.9], [0.5, 0.9, 0.9], [0.5, 0.9, 0.9], [0.5, 0.7, 0.8]])
    comparison = ood_baselines.Comparison(counts, tuned, tuned, codes)
    assert ood_baselines.samples_to_match(comparison) == 500
    assert ood_baselines.samples_to_match(comparison, share=0.75) == 500
    assert ood_baselines.samples_to_match(comparison, share=1) == 5000
    never = ood_baselines.Comparison(counts, tuned, tuned, codes + 0.2)
    assert ood_baselines.samples_to_match(never) is None
    unordered = ood_baselines.Comparison(counts[::-1], tuned[:, ::-1], tuned, codes)
    assert ood_baselines.samples_to_match(unordered) == 500


def test_tuned_thresholds_are_no_better_on_tests_than_the_best():
    scores, distances = images()
    setting = Setting(True, counts=(600,), repeats=1)
    # Validation and test are the same images here.
    comparison = ood_baselines.compare(scores, distances, setting)
    best = max(ood.f1(*scores, t).ood for t in np.unique(np.concatenate(scores)))
    np.testing.assert_allclose(comparison.tuned, best)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Setting(counts=()), "counts is empty"),
        (lambda: Setting(counts=(50, 0)), "counts is of whole numbers of at least 1, not 0"),
        (lambda: Setting(repeats=0), "repeats is of whole numbers of at least 1, not 0"),
        (lambda: Setting(num_test=1.5), "num_test is of whole numbers .* not 1.5"),
        (lambda: Setting(positive="OOD"), "positive class is 'ood' or 'id', not 'OOD'"),
        (lambda: ood_baselines.tune_threshold([0], [1], "in"), "'ood' or 'id', not 'in'"),
        (lambda: ood_baselines.tune_threshold([], [1]), "no scores of in-distribution images"),
        (lambda: ood_baselines.mean_threshold([]), "no scores of OOD images"),
        (lambda: ood_baselines.band(np.ones((2, 2)), 1.0), "coverage is above 0 and below 1"),
        (
            lambda: ood_baselines.compare(*images()),
            "There are 600 OOD images, but counts asks for 10,000: lower it",
        ),
        (
            lambda: ood_baselines.compare(*images(), Setting(counts=[50])),
            "but num_test asks for 10,000",
        ),
        (
            lambda: ood_baselines.compare(*images(), Setting(True, [50], num_fixed=601)),
            "but num_fixed asks for 601",
        ),
        (
            lambda: ood_baselines.compare(images()[0], images(num_id=3)[1]),
            r"same images, not of \(2000, 600\) and \(3, 600\)",
        ),
        (
            lambda: ood_baselines.compare(*images(), Setting(True, [50]), radius=-1),
            "whole number of at least 0 bits, not -1",
        ),
        (
            lambda: ood_baselines.samples_to_match(
                ood_baselines.compare(*images(), Setting(True, [50], repeats=1)), share=0
            ),
            "share is above 0 and at most 1, not 0",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
