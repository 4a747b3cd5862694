import numpy as np
import pytest

from llc_jax.codes import hamming, packing


def signs(rng, rows, num_bits):
    return rng.choice(np.array([-1, 1], np.int8), size=(rows, num_bits))


def distances_NL(queries, codes):
    return (queries[:, None, :] != codes[None, :, :]).sum(-1)


@pytest.mark.parametrize("num_bits", [1, 20, 32, 33, 64, 1000])
def test_distance_counts_different_bits(num_bits):
    rng = np.random.default_rng(0)
    a, b = signs(rng, 9, num_bits), signs(rng, 5, num_bits)
    packed_a, packed_b = packing.pack(a), packing.pack(b)
    distances = hamming.distance(packed_a[:, None, :], packed_b[None, :, :])
    np.testing.assert_array_equal(distances, distances_NL(a, b))


@pytest.mark.parametrize(
    ("classes", "num_bits"), [(1, 1), (2, 1), (100, 4), (1000, 20), (1024, 33), (3001, 12)]
)
def test_nearest_equals_brute_force(classes, num_bits):
    rng = np.random.default_rng(classes)
    queries, codes = signs(rng, 50, num_bits), signs(rng, classes, num_bits)
    queries[:5] = codes[rng.integers(classes, size=5)]
    nearest = hamming.nearest(packing.pack(queries), packing.pack(codes))
    expected = distances_NL(queries, codes)
    np.testing.assert_array_equal(nearest.distance, expected.min(1))
    np.testing.assert_array_equal(nearest.index, expected.argmin(1))
    np.testing.assert_array_equal(nearest.ties, (expected == expected.min(1)[:, None]).sum(1))


def test_nearest_among_equal_codes_is_the_first_of_all():
    codes = packing.pack(np.ones((2500, 20), np.int8))
    nearest = hamming.nearest(packing.pack(-np.ones((3, 20), np.int8)), codes)
    np.testing.assert_array_equal(nearest.index, 0)
    np.testing.assert_array_equal(nearest.distance, 20)
    np.testing.assert_array_equal(nearest.ties, 2500)


@pytest.mark.parametrize(
    ("classes", "num_bits"), [(1, 7), (2, 1), (2, 33), (300, 20), (700, 64), (50, 1000)]
)
def test_least_distance_equals_brute_force(classes, num_bits):
    codes = signs(np.random.default_rng(classes), classes, num_bits)
    distances = distances_NL(codes, codes)[~np.eye(classes, dtype=bool)]
    expected = distances.min(initial=num_bits)
    assert hamming.least_distance(np.asarray(packing.pack(codes)), num_bits) == expected


def test_least_distance_of_a_pair_among_many():
    codes = signs(np.random.default_rng(0), 3000, 64)
    codes[1234] = codes[77]
    codes[1234, [3, 40, 63]] *= -1
    assert hamming.least_distance(np.asarray(packing.pack(codes)), 64) == 3


def test_more_codes_than_a_key_can_number(monkeypatch):
    monkeypatch.setattr(hamming, "_KEY_BITS", 13)  # 64 codes at a time
    rng = np.random.default_rng(0)
    queries, codes = signs(rng, 57, 40), signs(rng, 997, 40)
    queries[:20], codes[900:] = codes[950], codes[30:127]
    nearest = hamming.nearest(packing.pack(queries), packing.pack(codes))
    expected = distances_NL(queries, codes)
    np.testing.assert_array_equal(nearest.distance, expected.min(1))
    np.testing.assert_array_equal(nearest.index, expected.argmin(1))
    np.testing.assert_array_equal(nearest.ties, (expected == expected.min(1)[:, None]).sum(1))
