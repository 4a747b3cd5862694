import itertools

import numpy as np
import pytest

import llc_jax
from llc_jax.errors import InputError
from llc_jax.evaluation import metrics


def by_hand(relevance, total, k, form):
    """Average precision of one ranking, in plain Python."""
    hits, precision_sum = 0, 0.0
    for rank, relevant in enumerate(relevance[:k], start=1):
        if relevant:
            hits += 1
            precision_sum += hits / rank
    divisor = min(total, k) if form == "cmap" else hits
    return precision_sum / divisor if divisor else 0.0


def every_order(distances, relevance):
    """The relevance along each ranking that the distances allow, all equally likely."""
    groups = [
        [bool(r) for d, r in zip(distances, relevance, strict=True) if d == distance]
        for distance in sorted(set(distances))
    ]
    for orders in itertools.product(*(itertools.permutations(group) for group in groups)):
        yield [relevant for order in orders for relevant in order]


@pytest.mark.parametrize(
    ("relevance", "reported", "corrected"),
    [([1, 0, 0, 0, 0], 1.0, 0.2), ([1, 0, 0, 1, 1], 0.7, 0.42)],
)
def test_the_example_of_appendix_b(relevance, reported, corrected):
    assert llc_jax.metrics.average_precision(relevance, 10, 5, form="rmap") == pytest.approx(
        reported
    )
    assert llc_jax.metrics.average_precision(relevance, 10, 5) == pytest.approx(corrected)
    without_ties = llc_jax.metrics.tie_aware_average_precision(np.arange(5), relevance, 10, 5)
    assert without_ties == pytest.approx([corrected] * 3)


@pytest.mark.parametrize("form", metrics.FORMS)
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_average_precision_equals_that_by_hand(k, form):
    rng = np.random.default_rng(k)
    relevance = rng.random((3, 40, 60)) < rng.choice([0, 0.02, 0.5, 1], size=(3, 40, 1))
    total = relevance.sum(axis=-1) + rng.integers(3, size=(3, 40))
    values = metrics.average_precision(relevance, total, k, form)
    expected = [
        [by_hand(*query, k, form) for query in zip(*queries, strict=True)]
        for queries in zip(relevance.tolist(), total.tolist(), strict=True)
    ]
    np.testing.assert_allclose(values, expected, rtol=1e-12)
    assert values.shape == (3, 40)


def test_ties_are_averaged_over_all_orders():
    rng = np.random.default_rng(0)
    for case in range(60):
        size = int(rng.integers(1, 7))
        distances = rng.integers(3, size=size)
        relevance = rng.random(size) < rng.choice([0.0, 0.3, 0.7, 1.0])
        total = int(relevance.sum()) + int(rng.integers(2))
        k = int(rng.integers(1, 9))
        orders = every_order(distances.tolist(), relevance.tolist())
        values = [by_hand(order, total, k, "cmap") for order in orders]
        tie_aware = metrics.tie_aware_average_precision(distances, relevance, total, k)
        expected = (np.mean(values), min(values), max(values))
        np.testing.assert_allclose(tie_aware, expected, atol=1e-12, err_msg=str(case))


@pytest.mark.parametrize("k", [1, 5, 30, 1000])
def test_ties_are_averaged_over_random_orders(k):
    rng = np.random.default_rng(k)
    distances, relevance = rng.integers(4, size=50), rng.random(50) < 0.3
    tie_aware = metrics.tie_aware_average_precision(distances, relevance, relevance.sum(), k)
    orders = np.lexsort((rng.random((10_000, 50)), np.tile(distances, (10_000, 1))), axis=1)
    values = metrics.average_precision(
        relevance[orders], np.full(10_000, relevance.sum()), k, "cmap"
    )
    error = values.std() / 100
    assert abs(values.mean() - tie_aware.expected) < 5 * error + 1e-12
    assert tie_aware.least - 1e-12 <= values.min()
    assert values.max() <= tie_aware.most + 1e-12


def test_every_order_lies_between_the_worst_and_the_best():
    rng = np.random.default_rng(1)
    for k, levels in itertools.product([1, 7, 50, 200], [1, 3, 20, 1000]):
        distances = rng.integers(levels, size=(200, 120))
        relevance = rng.random((200, 120)) < rng.choice([0, 0.1, 0.9, 1], size=(200, 1))
        total = relevance.sum(axis=1)
        order = np.argsort(distances, axis=1, kind="stable")
        value_of_order = metrics.average_precision(
            np.take_along_axis(relevance, order, axis=1), total, k
        )
        expected, least, most = metrics.tie_aware_average_precision(distances, relevance, total, k)
        for value in (value_of_order, expected):
            assert (least <= value + 1e-12).all()
            assert (value <= most + 1e-12).all()


def test_items_beyond_the_cutoff_may_be_missing():
    rng = np.random.default_rng(0)
    distances, relevance = np.sort(rng.integers(6, size=80)), rng.random(80) < 0.4
    all_items = metrics.tie_aware_average_precision(distances, relevance, relevance.sum(), 20)
    near = distances <= distances[19]
    near_items = metrics.tie_aware_average_precision(
        distances[near], relevance[near], relevance.sum(), 20
    )
    np.testing.assert_allclose(near_items, all_items, rtol=1e-12)


def test_nothing_and_everything_relevant():
    for k in (1, 4, 9):
        nothing = metrics.tie_aware_average_precision([0, 1, 1, 2], [0, 0, 0, 0], 0, k)
        assert tuple(nothing) == (0, 0, 0)
        everything = metrics.tie_aware_average_precision([0, 1, 1, 2], [1, 1, 1, 1], 4, k)
        assert everything == pytest.approx([1, 1, 1])
        assert metrics.average_precision([0, 0, 0, 0], 3, k, "rmap") == 0
        assert metrics.average_precision([0, 0, 0, 0], 0, k, "cmap") == 0


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_precision_recall_and_gain(k):
    from sklearn.metrics import ndcg_score

    rng = np.random.default_rng(k)
    relevance = rng.random((50, 30)) < 0.3
    relevance[0] = False
    total, size = relevance.sum(axis=1), np.full(50, 30)
    hits = relevance[:, :k].sum(axis=1)
    np.testing.assert_allclose(metrics.precision(relevance, k, size), hits / min(k, 30))
    np.testing.assert_allclose(metrics.recall(relevance, k, total), hits / np.maximum(total, 1))
    scores = np.tile(-np.arange(30.0), (50, 1))
    expected = [ndcg_score(r[None], s[None], k=k) for r, s in zip(relevance, scores, strict=True)]
    np.testing.assert_allclose(metrics.ndcg(relevance, k, total), expected)


def test_precision_and_recall_within_a_radius():
    group_sizes = np.array([[0, 2, 2], [1, 0, 3]])
    group_relevant = np.array([[0, 1, 2], [0, 0, 0]])
    np.testing.assert_allclose(
        metrics.precision_within(group_sizes, group_relevant), [[0, 1 / 2, 3 / 4], [0, 0, 0]]
    )
    np.testing.assert_allclose(
        metrics.recall_within(group_relevant, np.array([3, 0])), [[0, 1 / 3, 1], [0, 0, 0]]
    )


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: metrics.average_precision([1, 0], 1, 0), "cut at rank 1 or later, not 0"),
        (lambda: metrics.average_precision([1, 0], 1, 2, "map"), "cmap or rmap, not 'map'"),
        (lambda: metrics.average_precision([1, 1], 1, 2), "More items are relevant"),
        (lambda: metrics.average_precision([1, 1], [2], 2), r"is of shape \[\], not \[1\]"),
        (
            lambda: metrics.tie_aware_average_precision([1, 1, 2], [1, 1], 2, 2),
            r"distances\[3\] and relevance\[2\] have one shape",
        ),
    ],
)
def test_wrong_arguments_are_errors(call, message):
    with pytest.raises(InputError, match=message):
        call()
