import importlib.util
import sys

import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.covariance import EmpiricalCovariance
from sklearn.neighbors import NearestNeighbors

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.evaluation import ood_scores


def virtual_logit(features, train_features, **options):
    """ViM with a classifier of three numbers and two classes, whose weights are all 1."""
    return ood_scores.virtual_logit(
        features,
        np.ones((len(features), 2)),
        train_features=train_features,
        train_class_logits=np.ones((len(train_features), 2)),
        weights=np.ones((3, 2)),
        biases=np.ones(2),
        **options,
    )


@pytest.fixture(params=[5, 32, 40])
def codes(request):
    """Code logits float32[200, k], class codes as packed words and as signs."""
    rng = np.random.default_rng(request.param)
    signs = rng.choice([-1, 1], size=(30, request.param))
    near = signs[rng.integers(30, size=200)] * rng.choice([-1, 1, 1, 1], (200, request.param))
    logits = (near * rng.exponential(2, size=near.shape)).astype(np.float32)
    logits[0] = signs[3] * 0.5
    return logits, np.asarray(packing.pack(signs)), signs


def test_scores_of_codes_equal_those_by_hand(codes):
    logits, class_codes, signs = codes
    scores = ood_scores.code_scores(logits, class_codes, radius=2)
    different = (logits >= 0)[:, None] != (signs > 0)
    distances = different.sum(axis=2).min(axis=1)
    np.testing.assert_array_equal(scores["nearest_distance"], distances)
    np.testing.assert_array_equal(scores["outside_radius"], distances > 2)
    weighted = np.where(different, np.abs(logits)[:, None], 0).sum(axis=2).min(axis=1)
    np.testing.assert_allclose(scores["weighted_distance"], weighted, rtol=1e-5)
    assert scores["weighted_distance"][0] == 0
    soft = logits.astype(np.float64) @ signs.T
    np.testing.assert_allclose(scores["max_soft_logit"], -soft.max(axis=1), rtol=1e-9)
    expected = -np.log(np.exp(soft).sum(axis=1))
    np.testing.assert_allclose(scores["soft_energy"], expected, rtol=1e-9)
    probability = scipy.special.expit(logits.astype(np.float64))
    entropy = scipy.stats.entropy(np.stack([probability, 1 - probability]), base=2).mean(axis=1)
    np.testing.assert_allclose(scores["bit_entropy"], entropy, rtol=1e-9)


def test_entropy_of_bits_that_are_certain_and_that_are_not():
    logits = np.array([[0.0, 0.0], [1e4, -1e4], [30.0, 0.0]], np.float32)
    np.testing.assert_allclose(ood_scores.bit_entropy(logits), [1, 0, 0.5], atol=1e-11)


def test_scores_of_class_logits_equal_those_by_hand():
    logits = np.random.default_rng(0).normal(scale=4, size=(100, 150)).astype(np.float32)
    scores = ood_scores.class_logit_scores(logits)
    probabilities = np.exp(logits.astype(np.float64))
    total = probabilities.sum(axis=1)
    probabilities /= total[:, None]
    np.testing.assert_allclose(scores["softmax_probability"], -probabilities.max(axis=1))
    np.testing.assert_array_equal(scores["max_logit"], -logits.max(axis=1))
    np.testing.assert_allclose(scores["energy"], -np.log(total))
    largest = np.sort(probabilities, axis=1)[:, 50:]
    expected = np.sum(largest**0.1 * (1 - largest) ** 0.1, axis=1)
    np.testing.assert_allclose(scores["generalized_entropy"], expected)
    few = ood_scores.generalized_entropy(logits[:, :7], gamma=0.5)
    probabilities = scipy.special.softmax(logits[:, :7].astype(np.float64), axis=1)
    np.testing.assert_allclose(few, np.sqrt(probabilities * (1 - probabilities)).sum(axis=1))


def test_all_scores_are_higher_the_less_certain_the_network_is():
    # All classes have +1 or all -1 in the eight bits; the second image is between them.
    class_codes = packing.pack(np.repeat([[1], [-1]], 8, axis=1))
    sure, unsure = np.full(8, 3.0), np.tile([0.5, -0.4], 4)
    for scores in (
        ood_scores.code_scores(np.stack([sure, unsure]), np.asarray(class_codes)),
        ood_scores.class_logit_scores(np.array([[9.0, 0, 0], [1, 1, 0.5]])),
    ):
        for name, (of_sure, of_unsure) in scores.items():
            assert of_unsure > of_sure, name


def test_large_logits_are_finite():
    scores = ood_scores.class_logit_scores(np.array([[1e4, -1e4], [-1e4, -1e4]], np.float32))
    np.testing.assert_allclose(scores["energy"], [-1e4, 1e4 - np.log(2)])
    np.testing.assert_allclose(scores["softmax_probability"], [-1, -0.5])
    np.testing.assert_allclose(scores["generalized_entropy"], [0, 2 * 0.25**0.1])


@pytest.fixture(params=["faiss", "matrix products"])
def way(request, monkeypatch):
    """Whether distances are by FAISS."""
    if request.param == "matrix products":
        monkeypatch.setitem(sys.modules, "faiss", None)
    elif not importlib.util.find_spec("faiss"):
        pytest.skip("pip install faiss-cpu")


@pytest.mark.usefixtures("way")
def test_neighbor_distance_equals_scikit_learns(monkeypatch):
    monkeypatch.setattr(ood_scores, "_MAX_NUMBERS", 1000)
    rng = np.random.default_rng(0)
    train, features = rng.normal(size=(300, 16)), rng.normal(size=(70, 16)).astype(np.float32)
    train[0], features[0], features[1] = 0, 0, 2 * train[5]
    units = [
        x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-9) for x in (train, features)
    ]
    for k in (1, 50, 300):
        distances = ood_scores.neighbor_distance(features, train, k)
        expected, _ = NearestNeighbors(n_neighbors=k).fit(units[0]).kneighbors(units[1])
        np.testing.assert_allclose(distances, expected[:, -1], atol=1e-3)
        assert distances.shape == (70,)
        half = ood_scores.neighbor_distance(features.astype(np.float16) * 100, train, k)
        np.testing.assert_allclose(half, expected[:, -1], atol=5e-3)


def test_scores_do_not_depend_on_blocks(codes, monkeypatch):
    logits, class_codes, _ = codes
    whole = ood_scores.code_scores(logits, class_codes)
    monkeypatch.setattr(ood_scores, "_MAX_NUMBERS", 100)
    for name, scores in ood_scores.code_scores(logits, class_codes).items():
        np.testing.assert_allclose(scores, whole[name], rtol=1e-12, err_msg=name)
    assert all(len(scores) == 0 for scores in ood_scores.class_logit_scores(logits[:0]).values())


def by_openood(features, train, weights, biases, dimensions):
    """ViM as OpenOOD computes it, by scikit-learn's covariance; higher is more OOD."""
    origin = -np.linalg.pinv(weights.T) @ biases
    covariance = EmpiricalCovariance(assume_centered=True).fit(train - origin).covariance_
    values, vectors = np.linalg.eigh(covariance)
    null = vectors[:, np.argsort(-values)[dimensions:]]
    of_train, of_features = (
        (rows @ weights + biases, np.linalg.norm((rows - origin) @ null, axis=1))
        for rows in (train, features)
    )
    alpha = of_train[0].max(axis=1).mean() / of_train[1].mean()
    return alpha * of_features[1] - scipy.special.logsumexp(of_features[0], axis=1)


@pytest.mark.parametrize("dimensions", [None, 0, 2, 11])
def test_virtual_logit_equals_openoods(dimensions, monkeypatch):
    rng = np.random.default_rng(0)
    weights, biases = rng.normal(size=(12, 7)), rng.normal(size=7)
    train = rng.normal(size=(300, 12)) * np.linspace(0.1, 3, 12)
    features = rng.normal(size=(40, 12))
    arrays = {
        "train_features": train,
        "train_class_logits": train @ weights + biases,
        "weights": weights,
        "biases": biases,
    }
    expected = by_openood(features, train, weights, biases, 6 if dimensions is None else dimensions)
    for numbers in (2**23, 100):
        monkeypatch.setattr(ood_scores, "_MAX_NUMBERS", numbers)
        scores = ood_scores.virtual_logit(
            features, features @ weights + biases, **arrays, dimensions=dimensions
        )
        np.testing.assert_allclose(scores, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ood_scores.bit_entropy(np.zeros(3)), r"code logits are numbers, .* float64\[3\]"),
        (
            lambda: ood_scores.energy([[0.0, 1], [np.nan, 0]]),
            "class logits of image 1 are not finite",
        ),
        (lambda: ood_scores.generalized_entropy([[0.0]], gamma=1), "gamma is between 0 and 1"),
        (lambda: ood_scores.generalized_entropy([[0.0]], top=0), "top is a whole number"),
        (
            lambda: ood_scores.soft_energy(np.zeros((2, 40)), np.zeros((3, 1), np.uint32)),
            r"Codes of 40 bits are uint32\[N, 2\], not uint32\[3, 1\]",
        ),
        (
            lambda: ood_scores.max_soft_logit(np.zeros((2, 8)), np.zeros((0, 1), np.uint32)),
            "There are no class codes",
        ),
        (
            lambda: ood_scores.nearest_distance(np.zeros((2, 1), np.uint32), np.zeros((3, 1))),
            r"packed, uint32\[N, W\], not uint32\[2, 1\] with float64\[3, 1\]",
        ),
        (
            lambda: ood_scores.nearest_distance(*(np.zeros((3, w), np.uint32) for w in (1, 2))),
            r"Class codes for uint32\[3, 1\] are uint32\[L, 1\], not uint32\[3, 2\]",
        ),
        (
            lambda: ood_scores.outside_radius(*np.zeros((2, 3, 1), np.uint32), radius=-1),
            "whole number of at least 0 bits, not -1",
        ),
        (
            lambda: ood_scores.neighbor_distance(np.ones((2, 3)), np.ones((9, 4)), 2),
            "one length, not 3 and 4",
        ),
        (
            lambda: ood_scores.neighbor_distance(np.ones((2, 3)), np.ones((9, 3))),
            "k is from 1 to 9, the training images, not 50",
        ),
        (
            lambda: virtual_logit(np.ones((2, 4)), np.ones((9, 3))),
            "The classifier takes 3 numbers, the features have 4 and the training features 3",
        ),
        (
            lambda: virtual_logit(np.ones((2, 3)), np.ones((9, 3)), dimensions=3),
            "dimensions is from 0 to 2, not 3",
        ),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
