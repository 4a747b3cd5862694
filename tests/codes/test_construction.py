import numpy as np
import pytest

from llc_jax.codes import construction
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError


def distances(latent):
    signs = latent >= 0
    return (signs[:, None] != signs[None]).sum(-1)


def least_distance(latent):
    return distances(latent)[~np.eye(len(latent), dtype=bool)].min()


@pytest.mark.parametrize(
    ("classes", "num_bits"), [(1, 1), (2, 1), (8, 3), (200, 8), (1000, 10), (1000, 20), (50, 100)]
)
def test_random_codes_are_different_where_they_can_be(classes, num_bits):
    latent = construction.random(classes, num_bits, seed=1)
    assert latent.shape == (classes, num_bits)
    assert latent.dtype == np.float32
    assert set(np.unique(latent)) <= {-1.0, 1.0}
    assert len(np.unique(latent, axis=0)) == classes
    np.testing.assert_array_equal(latent, construction.random(classes, num_bits, seed=1))
    assert num_bits < 8 or (latent != construction.random(classes, num_bits, seed=2)).any()


def test_random_codes_are_shared_evenly_where_they_must_be():
    _, counts = np.unique(construction.random(19, 3), axis=0, return_counts=True)
    assert sorted(counts) == [2] * 5 + [3] * 3


def test_random_codes_are_fair():
    latent = construction.random(20_000, 24)
    assert np.abs(latent.mean(axis=0)).max() < 0.03
    assert np.abs(latent.T @ latent / 20_000 - np.eye(24)).max() < 0.03


@pytest.mark.parametrize(("classes", "num_bits"), [(2, 1), (16, 8), (10, 16), (100, 64)])
def test_hadamard_codes_are_half_the_bits_apart(classes, num_bits):
    assert least_distance(construction.hadamard(classes, num_bits)) >= max(1, num_bits // 2)


def test_hadamard_codes_that_do_not_fit_are_balanced_and_far_apart():
    latent = construction.hadamard(100, 20)
    assert (latent.sum(axis=1) == 0).all()
    assert least_distance(latent) >= 6 > least_distance(construction.random(100, 20))


def test_many_hadamard_codes_are_balanced_and_different():
    latent = construction.hadamard(12_000, 21)
    assert ((latent > 0).sum(axis=1) == 10).all()
    assert len(np.unique(latent, axis=0)) == 12_000


def test_where_balanced_codes_are_too_few_hadamard_is_random():
    np.testing.assert_array_equal(construction.hadamard(14, 4), construction.random(14, 4))


@pytest.mark.parametrize(("classes", "dims"), [(30, 12), (12, 30)])
def test_svd_equals_numpy(classes, dims):
    weights = np.random.default_rng(0).normal(size=(classes, dims))
    u, s, _ = np.linalg.svd(weights, full_matrices=False)
    latent = construction.svd(weights, 5)
    np.testing.assert_allclose(np.abs(latent), np.abs((u * s)[:, :5]), atol=1e-5)
    assert (latent[np.abs(latent).argmax(0), np.arange(5)] > 0).all()


def test_svd_of_a_hierarchy_gives_its_branches_a_bit():
    # Two groups of classes, opposite in the strongest direction.
    rng = np.random.default_rng(0)
    weights = rng.normal(scale=0.1, size=(20, 6))
    weights[:, 0] += np.repeat([3, -3], 10)
    bits = construction.svd(weights, 1)[:, 0] >= 0
    assert bits[:10].all() != bits[10:].all()


def canonical_correlations(features, labels):
    """The textbook's solution: by an SVD of the product of the whitened blocks."""
    x = features - features.mean(0)
    y = np.eye(labels.max() + 1)[labels][:, :-1]
    y = y - y.mean(0)
    qx, qy = np.linalg.qr(x)[0], np.linalg.qr(y)[0]
    return np.linalg.svd(qx.T @ qy)[1], qx


def test_cca_finds_the_canonical_variates():
    rng = np.random.default_rng(0)
    labels = rng.permutation(np.repeat(np.arange(7), 40))
    features = rng.normal(size=(7, 9))[labels] + rng.normal(size=(280, 9))
    latent = construction.cca(features, labels, 6, regularisation=0)
    variates = latent[labels].astype(np.float64)
    # Uncorrelated, of mean zero and unit variance, and correlated with the features as
    # strongly as the textbook's solution is.
    np.testing.assert_allclose(variates.mean(0), 0, atol=1e-6)
    np.testing.assert_allclose(variates.T @ variates / 280, np.eye(6), atol=1e-5)
    expected, qx = canonical_correlations(features, labels)
    correlations = np.linalg.norm(qx.T @ variates, axis=0) / np.linalg.norm(variates, axis=0)
    np.testing.assert_allclose(correlations, expected[:6], atol=1e-5)


def test_moments_of_batches_add_up():
    rng = np.random.default_rng(0)
    features, labels = rng.normal(size=(60, 5)), np.arange(60) % 4
    total = construction.moments(features, labels, 4)
    batches = [construction.moments(features[i::2], labels[i::2], 4) for i in range(2)]
    for expected, first, second in zip(total, *batches, strict=True):
        np.testing.assert_allclose(first + second, expected)


def test_repair_moves_collisions_to_the_nearest_free_code():
    latent = np.array([[1, 1, 1], [0.5, 2, 3], [-1, 1, 1], [1, 0, 2], [-1, -1, -1]], np.float32)
    repaired = construction.repair(latent)
    assert len(np.unique(repaired >= 0, axis=0)) == 5
    np.testing.assert_array_equal(repaired[[0, 2, 4]], latent[[0, 2, 4]])
    # Class 1 with bit 0 flipped is class 2, so bit 1 is flipped; then class 3 flips bit 2.
    np.testing.assert_array_equal(repaired[1], [0.5, -2, 3])
    np.testing.assert_array_equal(repaired[3], [1, 0, -2])


@pytest.mark.parametrize("num_bits", [6, 40])
def test_repair_of_many_equal_codes(num_bits):
    latent = np.zeros((64, num_bits), np.float32)
    repaired = construction.repair(latent)
    codebook = Codebook.from_numpy(repaired)
    assert codebook.num_unique == 64
    moved = (np.sign(repaired) < 0).sum(1)
    expected = np.bitwise_count(np.arange(64)) if num_bits == 6 else np.minimum(moved, 2)
    assert sorted(moved) == sorted(expected)


def test_a_million_classes():
    latent = construction.random(1_000_000, 24)
    assert len(np.unique((latent >= 0) @ (1 << np.arange(24)))) == 1_000_000


def test_bad_input_is_named():
    with pytest.raises(InputError, match="at least 1 class, not 0"):
        construction.random(0, 8)
    with pytest.raises(InputError, match="at most 5 bits here, not 6"):
        construction.svd(np.ones((5, 8)), 6)
    with pytest.raises(InputError, match="at most 2 bits here, not 3"):
        construction.cca(np.ones((6, 8)), np.arange(6) % 3, 3)
    with pytest.raises(InputError, match="class 1 has none"):
        construction.cca(np.ones((6, 8)), np.arange(6) % 3 * 2, 2)
    with pytest.raises(InputError, match="one integer label for each of the 6"):
        construction.moments(np.ones((6, 8)), np.zeros(6), 1)
    with pytest.raises(InputError, match="matrix of finite numbers"):
        construction.svd(np.full((2, 2), np.nan), 1)
    with pytest.raises(InputError, match="9 classes cannot have different codes of 3 bits"):
        construction.repair(np.ones((9, 3)))
