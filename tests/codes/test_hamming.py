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
    found = hamming.distance(packed_a[:, None, :], packed_b[None, :, :])
    np.testing.assert_array_equal(found, distances_NL(a, b))


@pytest.mark.parametrize(
    ("classes", "num_bits"), [(1, 1), (2, 1), (100, 4), (1000, 20), (1024, 33), (3001, 12)]
)
def test_nearest_equals_brute_force(classes, num_bits):
    rng = np.random.default_rng(classes)
    queries, codes = signs(rng, 50, num_bits), signs(rng, classes, num_bits)
    queries[:5] = codes[rng.integers(classes, size=5)]
    found = hamming.nearest(packing.pack(queries), packing.pack(codes))
    expected = distances_NL(queries, codes)
    np.testing.assert_array_equal(found.distance, expected.min(1))
    np.testing.assert_array_equal(found.index, expected.argmin(1))
    np.testing.assert_array_equal(found.ties, (expected == expected.min(1)[:, None]).sum(1))


def test_nearest_among_equal_codes_is_the_first_of_all():
    codes = packing.pack(np.ones((2500, 20), np.int8))
    found = hamming.nearest(packing.pack(-np.ones((3, 20), np.int8)), codes)
    np.testing.assert_array_equal(found.index, 0)
    np.testing.assert_array_equal(found.distance, 20)
    np.testing.assert_array_equal(found.ties, 2500)
