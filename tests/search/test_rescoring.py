import numpy as np
import pytest

import llc_jax
from llc_jax.errors import InputError
from llc_jax.search import rescoring

BITS = [1, 12, 20, 32, 33, 64, 100]


def random_items(rng, count, num_bits, distinct=None):
    """Signs of +1 and -1, int8[count, num_bits], of `distinct` different codes."""
    signs = rng.choice(np.array([-1, 1], np.int8), size=(distinct or count, num_bits))
    return signs if distinct is None else signs[rng.integers(distinct, size=count)]


def random_logits(rng, count, num_bits):
    """Multiples of 1/4, so that sums are exact and many inner products are equal."""
    return rng.integers(-8, 9, size=(count, num_bits)).astype(np.float32) / 4


def make_index(signs, ids=None):
    index = llc_jax.HammingIndex(signs.shape[1])
    index.add(llc_jax.pack(signs), ids)
    return index


def oracle(logits, signs, ids, k, oversample, products):
    """One query and one item at a time: distances, ids and scores."""
    distances = np.full((len(logits), k), -1, np.int32)
    found = np.full((len(logits), k), -1, np.int64)
    scores = np.full((len(logits), k), -np.inf, np.float32)
    for q, query in enumerate(np.where(logits >= 0, 1, -1)):
        items = [(int(np.sum(query != code)), row) for row, code in enumerate(signs)]
        shortlist = sorted(items)[: k * oversample]
        best = sorted((-products[q, row], distance, row) for distance, row in shortlist)[:k]
        for slot, (negative, distance, row) in enumerate(best):
            distances[q, slot], found[q, slot], scores[q, slot] = distance, ids[row], -negative
    return distances, found, scores


def assert_same(results, expected):
    for array, expected_array in zip(results, expected, strict=True):
        np.testing.assert_array_equal(array, expected_array)
        assert array.dtype == expected_array.dtype


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("distinct", [None, 30])
def test_equals_brute_force(num_bits, distinct):
    rng = np.random.default_rng(num_bits)
    signs = random_items(rng, 400, num_bits, distinct)
    logits = random_logits(rng, 9, num_bits)
    ids = rng.permutation(10**6)[:400] + 5
    index = make_index(signs, ids)
    products = logits @ signs.T.astype(np.float32)
    for k, oversample in [(1, 1), (10, 1), (10, 4), (7, 20), (100, 3), (401, 1)]:
        expected = oracle(logits, signs, ids, k, oversample, products)
        assert_same(index.rescore(logits, k, oversample), expected)
    everything = index.rescore(logits, 10, 10**12)
    for q in range(len(logits)):
        order = np.lexsort((np.arange(400), -products[q]))[:10]
        np.testing.assert_array_equal(everything[2][q], products[q, order])
    # An inner product of a code with a code is k - 2 distances.
    distances, found, scores = index.rescore(signs[:3], 10, 1)
    assert_same((distances, found), index.search(llc_jax.pack(signs[:3]), 10))
    np.testing.assert_array_equal(scores, num_bits - 2.0 * distances)


def test_an_order_by_hand():
    # Bit 2 of the query is uncertain, bit 0 is not.
    signs = np.array([[-1, 1, 1], [1, 1, -1], [1, 1, -1], [-1, -1, -1]], np.int8)
    index = make_index(signs, np.array([40, 30, 20, 10]))
    distances, ids, scores = index.rescore(np.array([[4, 2, 0.5]]), k=5)
    np.testing.assert_array_equal(ids, [[30, 20, 40, 10, -1]])
    np.testing.assert_array_equal(distances, [[1, 1, 1, 3, -1]])
    np.testing.assert_array_equal(scores, [[5.5, 5.5, -1.5, -6.5, -np.inf]])
    # Equal scores are by distance: here that of the shortlist, although 0 counts as +1.
    distances, ids, scores = index.rescore(np.array([[0, 0, 0]], np.float32), k=4)
    np.testing.assert_array_equal(distances, [[1, 1, 1, 3]])
    np.testing.assert_array_equal(ids, [[40, 30, 20, 10]])
    np.testing.assert_array_equal(scores, np.zeros((1, 4)))


@pytest.mark.parametrize("num_bits", [10, 40])
def test_removed_items_are_gone(num_bits, tmp_path):
    rng = np.random.default_rng(num_bits)
    signs, logits = random_items(rng, 500, num_bits, 60), random_logits(rng, 5, num_bits)
    index = make_index(signs[:300])
    index.add(llc_jax.pack(signs[300:]))
    removed = rng.choice(500, 220, replace=False)
    index.remove(removed)
    kept = np.setdiff1d(np.arange(500), removed)
    products = logits @ signs[kept].T.astype(np.float32)
    expected = oracle(logits, signs[kept], kept, 10, 4, products)
    assert_same(index.rescore(logits), expected)
    index.save(tmp_path / "some.index")
    assert_same(llc_jax.HammingIndex.load(tmp_path / "some.index").rescore(logits), expected)
    vectors = rng.integers(-3, 4, size=(280, 5)).astype(np.float32)
    query_vectors = rng.integers(-3, 4, size=(5, 5)).astype(np.float32)
    expected = oracle(logits, signs[kept], kept, 10, 4, query_vectors @ vectors.T)
    results = index.rescore(logits, vectors=vectors, query_vectors=query_vectors)
    assert_same(results, expected)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int8, ">f4"])
@pytest.mark.parametrize("length", [1, 6, 129])
def test_vectors_equal_brute_force(dtype, length, tmp_path, monkeypatch):
    rng = np.random.default_rng(length)
    signs, logits = random_items(rng, 300, 24, 50), random_logits(rng, 8, 24)
    # Whole numbers: inner products are exact, and short vectors have many equal ones.
    vectors = rng.integers(-3, 4, size=(300, length)).astype(dtype)
    query_vectors = rng.integers(-3, 4, size=(8, length)).astype(np.float32)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    ids = np.arange(300) * 3
    products = query_vectors @ vectors.T.astype(np.float32)
    index = make_index(signs, ids)
    for given, numbers in [(vectors, 2**22), (mapped, 2**22), (mapped, 100)]:
        monkeypatch.setattr(rescoring, "_NUMBERS", numbers)
        for k, oversample in [(10, 4), (100, 2), (301, 1)]:
            expected = oracle(logits, signs, ids, k, oversample, products)
            results = index.rescore(logits, k, oversample, given, query_vectors)
            assert_same(results, expected)


def test_equal_vectors_have_equal_scores_wherever_they_are():
    rng = np.random.default_rng(0)
    vectors = np.repeat(rng.normal(size=(2, 131)).astype(np.float32), 150, axis=0)
    query_vectors = rng.normal(size=(4, 131)).astype(np.float32)
    order = rng.permutation(300)
    index = make_index(random_items(rng, 300, 16, 8))
    logits = rng.normal(size=(4, 16)).astype(np.float32)
    results = index.rescore(logits, 300, 1, vectors[order], query_vectors)
    exact = query_vectors.astype(np.float64) @ vectors[[0, 150]].T.astype(np.float64)
    for q in range(4):
        assert set(results[2][q]) == set(exact[q].astype(np.float32))
        first_rows = results[1][q, :150]
        keys = list(zip(results[0][q, :150], first_rows, strict=True))
        assert keys == sorted(keys)
        assert len(set(order[first_rows] < 150)) == 1
    assert_same(index.rescore(logits, 300, 1, vectors[order], query_vectors), results)


def test_real_numbers_are_summed_well():
    rng = np.random.default_rng(0)
    signs = random_items(rng, 1000, 1024)
    logits = rng.normal(size=(3, 1024)).astype(np.float32)
    distances, ids, scores = make_index(signs).rescore(logits, 1000, 1)
    products = (logits.astype(np.float64) @ signs.T.astype(np.float64)).astype(np.float32)
    np.testing.assert_allclose(scores, np.take_along_axis(products, ids, axis=1), rtol=1e-6)
    assert (np.diff(scores, axis=1) <= 0).all()
    differing = (logits[:, None] >= 0) != (signs[None] > 0)
    expected = np.take_along_axis(differing.sum(axis=2), ids, axis=1)
    np.testing.assert_array_equal(distances, expected)


def test_parts_of_the_queries_change_nothing(monkeypatch):
    rng = np.random.default_rng(0)
    index = make_index(random_items(rng, 700, 20, 200))
    logits = rng.normal(size=(150, 20)).astype(np.float32)
    expected = index.rescore(logits)
    for shortlisted in (1, 400, 3000):
        monkeypatch.setattr(rescoring, "_SHORTLISTED", shortlisted)
        assert_same(index.rescore(logits), expected)
    assert_same(index.rescore(logits[70:71]), [array[70:71] for array in expected])


def test_an_empty_index_and_no_queries():
    index = llc_jax.HammingIndex(40)
    logits = np.ones((3, 40), np.float32)
    for vectors in ({}, {"vectors": np.ones((0, 4)), "query_vectors": np.ones((3, 4))}):
        distances, ids, scores = index.rescore(logits, 2, **vectors)
        np.testing.assert_array_equal(distances, np.full((3, 2), -1))
        np.testing.assert_array_equal(ids, np.full((3, 2), -1))
        np.testing.assert_array_equal(scores, np.full((3, 2), -np.inf))
    index.add(llc_jax.pack(logits))
    assert [array.shape for array in index.rescore(logits[:0])] == [(0, 10)] * 3


def test_bad_input_is_named():
    index = make_index(np.ones((6, 20), np.int8), np.arange(6) + 70)
    logits, vectors, query_vectors = np.ones((2, 20)), np.ones((6, 3)), np.ones((2, 3))
    for wrong in (logits[:, :19], logits[0], logits > 0, np.ones((2, 20), np.uint32)):
        with pytest.raises(InputError, match=r"^Code logits are float\[Q, 20\], not "):
            index.rescore(wrong)
    for value in (np.nan, np.inf, 1e39):
        wrong = logits.copy()
        wrong[1, 3] = value
        with pytest.raises(InputError, match="finite numbers, but those of query 1 are not"):
            index.rescore(wrong)
    for k in (0, 2.5):
        with pytest.raises(InputError, match=f"at least 1 item, not {k}"):
            index.rescore(logits, k)
    for oversample in (0, -1, 1.5, None):
        with pytest.raises(InputError, match=f"oversample is a whole .* least 1, not {oversample}"):
            index.rescore(logits, 10, oversample)
    for one in ({"vectors": vectors}, {"query_vectors": query_vectors}):
        with pytest.raises(InputError, match="vectors, of the items, and query_vectors are given"):
            index.rescore(logits, **one)
    for wrong in (vectors[:5], vectors[0], vectors.astype(np.uint8), vectors > 0):
        with pytest.raises(InputError, match=r"vectors of 6 items are float\[6, d\], .*, not"):
            index.rescore(logits, vectors=wrong, query_vectors=query_vectors)
    with pytest.raises(InputError, match=r"query_vectors are float\[Q, 3\], not float64\[2, 4\]"):
        index.rescore(logits, vectors=vectors, query_vectors=np.ones((2, 4)))
    with pytest.raises(InputError, match="code logits of 2 queries but 3 query_vectors"):
        index.rescore(logits, vectors=vectors, query_vectors=np.ones((3, 3)))
    with pytest.raises(InputError, match="query_vectors are finite .* of query 0 are not"):
        index.rescore(logits, vectors=vectors, query_vectors=query_vectors * np.nan)
    vectors[4, 1] = np.nan
    with pytest.raises(InputError, match="query 0 and of the item with the id 74 is not finite"):
        index.rescore(logits, vectors=vectors, query_vectors=query_vectors)
