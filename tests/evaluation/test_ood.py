import itertools

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, f1_score, roc_auc_score, roc_curve

from llc_jax.errors import InputError
from llc_jax.evaluation import ood


def labelled(id_scores, ood_scores):
    """The labels of all images, 1 for OOD, and their scores."""
    labels = np.repeat([0, 1], [len(id_scores), len(ood_scores)])
    return labels, np.concatenate([id_scores, ood_scores])


def by_scikit_learn(id_scores, ood_scores):
    """The metrics as scikit-learn counts them."""
    labels, scores = labelled(id_scores, ood_scores)
    fpr, tpr, _ = roc_curve(labels, scores, drop_intermediate=False)
    return {
        "auroc": roc_auc_score(labels, scores),
        "aupr_in": average_precision_score(1 - labels, -scores),
        "aupr_out": average_precision_score(labels, scores),
        "fpr95": fpr[np.argmax(tpr >= 0.95)],
    }


def every_order(id_scores, ood_scores):
    """The metrics of each order of ties, all equally likely: ties are broken by ranks."""
    labels, scores = labelled(id_scores, ood_scores)
    groups = [np.flatnonzero(scores == value) for value in np.unique(scores)]
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        ranks = np.argsort(np.concatenate(orders))
        yield by_scikit_learn(ranks[labels == 0], ranks[labels == 1])


@pytest.mark.parametrize("levels", [1, 2, 8, 10**6])
def test_metrics_equal_scikit_learns(levels):
    rng = np.random.default_rng(levels)
    for num_id, num_ood in [(1, 1), (1, 40), (300, 20), (57, 400), (2000, 1000)]:
        id_scores = rng.integers(levels, size=num_id)
        ood_scores = rng.integers(levels, size=num_ood) + rng.integers(2, size=num_ood)
        figures = ood.measure(id_scores, ood_scores.astype(np.float32))
        for name, value in by_scikit_learn(id_scores, ood_scores).items():
            assert figures[name] == pytest.approx(value, abs=1e-12), name
            assert figures[f"{name}_min"] <= figures[f"{name}_tie"] <= figures[f"{name}_max"]
            assert figures[f"{name}_min"] <= figures[name]
        assert figures["values"] == len(np.unique(np.concatenate([id_scores, ood_scores])))
        for function, name in [
            (ood.auroc, "auroc"),
            (ood.aupr_in, "aupr_in"),
            (ood.aupr_out, "aupr_out"),
            (ood.fpr_at_tpr, "fpr95"),
        ]:
            metric = function(id_scores, ood_scores)
            names = (name, f"{name}_tie", f"{name}_min", f"{name}_max")
            assert metric == tuple(figures[name] for name in names)


def test_metrics_without_ties_have_one_value():
    rng = np.random.default_rng(0)
    id_scores, ood_scores = np.split(rng.permutation(30_000), [20_000])
    figures = ood.measure(id_scores, ood_scores)
    for name in ("auroc", "aupr_in", "aupr_out", "fpr95"):
        assert len({figures[name + suffix] for suffix in ("", "_tie", "_min", "_max")}) == 1


def test_bounds_and_means_are_those_of_all_orders():
    rng = np.random.default_rng(0)
    for case in range(40):
        id_scores = rng.integers(3, size=rng.integers(1, 4))
        ood_scores = rng.integers(3, size=rng.integers(1, 4))
        figures = ood.measure(id_scores, ood_scores)
        orders = list(every_order(id_scores, ood_scores))
        for name in ("auroc", "aupr_in", "aupr_out", "fpr95"):
            values = [order[name] for order in orders]
            expected = [np.mean(values), min(values), max(values)]
            found = [figures[f"{name}_{of}"] for of in ("tie", "min", "max")]
            np.testing.assert_allclose(found, expected, atol=1e-12, err_msg=f"{case} {name}")


def test_the_mean_fpr_is_that_of_random_orders():
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.integers(4, size=60), rng.integers(1, 5, size=45)
    metric = ood.fpr_at_tpr(id_scores, ood_scores)
    values = []
    for _ in range(2000):
        noise_id, noise_ood = rng.random(60) / 2, rng.random(45) / 2
        values.append(ood.fpr_at_tpr(id_scores + noise_id, ood_scores + noise_ood).value)
    assert metric.least <= min(values)
    assert max(values) <= metric.most
    assert abs(np.mean(values) - metric.expected) < 5 * np.std(values) / 2000**0.5


def test_by_hand():
    # From the top: OOD, then ID and OOD tied, then ID, then ID.
    id_scores, ood_scores = [3, 1, 0], [5, 3]
    assert ood.auroc(id_scores, ood_scores) == pytest.approx((5.5 / 6, 5.5 / 6, 5 / 6, 1))
    assert ood.aupr_out(id_scores, ood_scores) == pytest.approx((5 / 6, 11 / 12, 5 / 6, 1))
    assert ood.fpr_at_tpr(id_scores, ood_scores) == pytest.approx((1 / 3, 1 / 6, 0, 1 / 3))
    assert ood.fpr_at_tpr(id_scores, ood_scores, tpr=0.5) == (0, 0, 0, 0)
    # Above 3 is one OOD image: precision 1, recall 1/2; ID: precision 3/4, recall 1.
    assert ood.f1(id_scores, ood_scores, 3) == pytest.approx((2 / 3, 6 / 7))


def test_a_rule_of_two_values_has_wide_bounds():
    figures = ood.measure([False] * 90 + [True] * 10, [True] * 94 + [False] * 6)
    # The rule finds 94 of 100: the 95th ties with 90 images.
    assert (figures["fpr95"], figures["fpr95_min"]) == (1, 0.1)
    assert figures["fpr95_tie"] == pytest.approx(0.1 + 0.9 / 7)
    assert figures["values"] == 2


def test_all_scores_equal():
    figures = ood.measure(np.zeros(30), np.zeros(10))
    assert [figures[f"auroc{of}"] for of in ("", "_min", "_max")] == [0.5, 0, 1]
    assert (figures["aupr_out"], figures["aupr_in"]) == (0.25, 0.75)
    assert (figures["aupr_out_max"], figures["aupr_in_max"]) == pytest.approx((1, 1))
    assert (figures["fpr95"], figures["fpr95_min"]) == (1, 0)


def by_openood(id_scores, ood_scores):
    """FPR at 95% TPR and AUROC as OpenOOD v1.5 computes them, with OOD as the positive class."""
    fpr, tpr, _ = roc_curve(*labelled(id_scores, ood_scores))
    return fpr[np.argmax(tpr >= 0.95)], auc(fpr, tpr)


def test_real_scores_are_measured_as_in_openood():
    rng = np.random.default_rng(0)
    for num_id, num_ood in [(50, 30), (1000, 60), (900, 2000)]:
        id_scores, ood_scores = rng.normal(size=num_id), rng.normal(1, 2, size=num_ood)
        fpr, area = by_openood(id_scores, ood_scores)
        assert ood.fpr_at_tpr(id_scores, ood_scores).value == fpr
        assert ood.auroc(id_scores, ood_scores).value == pytest.approx(area, abs=1e-12)
    # Its curve lacks points between others on a straight line.
    ten = np.arange(100) // 10
    assert by_openood(ten, ten)[0] == 1
    assert ood.fpr_at_tpr(ten, ten, tpr=0.9).value == 0.9


@pytest.mark.parametrize("threshold", [-np.inf, -1, 0, 0.5, 2, 3, np.inf])
def test_f1_equals_scikit_learns(threshold):
    rng = np.random.default_rng(0)
    id_scores, ood_scores = rng.integers(3, size=50), rng.integers(4, size=20)
    labels, scores = labelled(id_scores, ood_scores)
    called = scores > threshold
    expected = [f1_score(labels, called, pos_label=label, zero_division=0) for label in (1, 0)]
    assert ood.f1(id_scores, ood_scores, threshold) == pytest.approx(tuple(expected))


@pytest.mark.parametrize(
    ("id_scores", "ood_scores", "message"),
    [
        ([], [1.0], "There are no scores of in-distribution images: both kinds are needed"),
        ([1.0], [], "There are no scores of OOD images"),
        ([1.0], [1.0, np.nan], "Score 1 of the OOD images is nan: leave out images"),
        ([-np.inf], [1.0], "Score 0 of the in-distribution images is -inf"),
        ([[1.0]], [1.0], r"in-distribution images are a number for each, not float64\[1, 1\]"),
        ([1.0], ["a"], "scores of OOD images are a number for each, not <U1"),
    ],
)
def test_bad_scores_are_one_sentence(id_scores, ood_scores, message):
    for function in (ood.measure, ood.auroc, ood.aupr_in, ood.aupr_out, ood.fpr_at_tpr):
        with pytest.raises(InputError, match=message):
            function(id_scores, ood_scores)
    with pytest.raises(InputError, match=message):
        ood.f1(id_scores, ood_scores, 0)


def test_bad_options_are_one_sentence():
    for tpr in (0, 1.1, np.nan):
        with pytest.raises(InputError, match="tpr is above 0 and at most 1"):
            ood.fpr_at_tpr([0], [1], tpr)
    with pytest.raises(InputError, match="The threshold is NaN"):
        ood.f1([0], [1], np.nan)
