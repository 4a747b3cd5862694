import numpy as np
import pytest

import llc_jax
from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.search import buckets, scan, sharded

BITS = [1, 7, 10, 16, 20, 24, 25, 31, 32, 33, 48, 64, 100, 130]


def random_codes(rng, count, num_bits, distinct=None):
    """Packed codes, drawn from `distinct` different ones."""
    signs = rng.choice(np.array([-1, 1], np.int8), size=(distinct or count, num_bits))
    codes = np.array(packing.pack(signs))
    return codes if distinct is None else codes[rng.integers(distinct, size=count)]


def near_queries(rng, codes, count):
    """Random codes of the database, every second with one bit flipped."""
    queries = codes[rng.integers(len(codes), size=count)].copy()
    queries[::2, 0] ^= 1
    return queries


def distances_QN(queries, codes):
    return np.bitwise_count(queries[:, None] ^ codes[None]).sum(axis=-1).astype(np.int32)


def brute_force(queries, codes, ids, top):
    """Distances and ids by (distance, row), padded with -1."""
    distances = distances_QN(queries, codes)
    order = np.argsort(distances, axis=1, kind="stable")[:, :top]
    missing = ((0, 0), (0, top - order.shape[1]))
    nearest = np.take_along_axis(distances, order, axis=1)
    return (
        np.pad(nearest, missing, constant_values=-1),
        np.pad(ids[order], missing, constant_values=-1),
    )


def make_index(num_bits, codes, ids=None):
    index = llc_jax.HammingIndex(num_bits)
    index.add(codes, ids)
    return index


def assert_same(results, expected):
    for array, expected_array in zip(results, expected, strict=True):
        np.testing.assert_array_equal(array, expected_array)
        assert array.dtype == expected_array.dtype


@pytest.mark.parametrize("num_bits", BITS)
@pytest.mark.parametrize("distinct", [None, 40])
def test_equals_brute_force(num_bits, distinct):
    rng = np.random.default_rng(num_bits)
    codes = random_codes(rng, 3001, num_bits, distinct)
    queries = np.concatenate([near_queries(rng, codes, 12), random_codes(rng, 12, num_bits)])
    ids = rng.permutation(10**6)[:3001] - 500_000
    ids[ids == -1] = 10**12
    index = make_index(num_bits, codes[:1000], ids[:1000])
    index.add(codes[1000:], ids[1000:])
    assert len(index) == 3001
    for top in (1, 10, 700, 3001, 3010):
        assert_same(index.search(queries, top), brute_force(queries, codes, ids, top))


@pytest.mark.parametrize(("num_bits", "count"), [(12, 200_000), (20, 200_000), (40, 200_000)])
@pytest.mark.parametrize("distinct", [None, 3])
def test_equals_brute_force_among_many(num_bits, count, distinct):
    rng = np.random.default_rng(count)
    codes = random_codes(rng, count, num_bits, distinct)
    # With 20 bits, random queries need too many probes: buckets give up, and all are scanned.
    random = random_codes(rng, 20 if num_bits == 20 else 3, num_bits)
    queries = np.concatenate([near_queries(rng, codes, 3), random])
    index = make_index(num_bits, codes)
    for top in (10, 1000):
        expected = brute_force(queries, codes, np.arange(count), top)
        assert_same(index.search(queries, top), expected)
        assert_same(index.search(queries[:1], top), [array[:1] for array in expected])


@pytest.mark.parametrize("order", ["near first", "far first", "near in the sample"])
def test_any_order_of_insertion(order):
    rng = np.random.default_rng(0)
    count = 16 * scan._SAMPLE + 100
    codes, query = random_codes(rng, count, 48), random_codes(rng, 1, 48)
    if order == "near in the sample":
        codes[::16][:100] = query
    else:
        codes = codes[np.argsort(distances_QN(query, codes)[0])]
        codes = codes[::-1] if order == "far first" else codes
    index = make_index(48, codes)
    for top in (10, 1000, 3000):
        assert_same(index.search(query, top), brute_force(query, codes, np.arange(count), top))


@pytest.mark.parametrize("num_bits", [8, 20, 64])
def test_finds_all_within_a_radius(num_bits):
    rng = np.random.default_rng(num_bits)
    codes = random_codes(rng, 5000, num_bits, distinct=900)
    queries = near_queries(rng, codes, 9)
    index = make_index(num_bits, codes, np.arange(5000) * 3)
    for radius in (0, 2, num_bits // 2, num_bits + 5):
        offsets, distances, ids = index.range_search(queries, radius)
        assert offsets.dtype == ids.dtype == np.int64
        assert distances.dtype == np.int32
        expected = brute_force(queries, codes, np.arange(5000) * 3, 5000)
        for q in range(len(queries)):
            within = expected[0][q] <= radius
            results = slice(offsets[q], offsets[q + 1])
            np.testing.assert_array_equal(distances[results], expected[0][q, within])
            np.testing.assert_array_equal(ids[results], expected[1][q, within])
        assert offsets[-1] == len(ids)


@pytest.mark.parametrize("num_bits", [10, 33])
def test_removed_items_are_gone_and_the_order_stays(num_bits, tmp_path):
    rng = np.random.default_rng(num_bits)
    codes, ids = random_codes(rng, 3000, num_bits, distinct=200), np.arange(3000)
    queries = near_queries(rng, codes, 10)
    index = make_index(num_bits, codes)
    index.search(queries)
    removed = rng.choice(3000, 1234, replace=False)
    index.remove(np.concatenate([removed, removed[:10]]))
    kept = np.setdiff1d(ids, removed)
    assert len(index) == 3000 - 1234
    expected = brute_force(queries, codes[kept], kept, 50)
    assert_same(index.search(queries, 50), expected)
    np.testing.assert_array_equal(index.ids, kept)
    np.testing.assert_array_equal(index.codes, codes[kept])
    index.save(tmp_path / "some.index")
    for verify in (True, False):
        loaded = llc_jax.HammingIndex.load(tmp_path / "some.index", verify=verify)
        assert loaded.num_bits == num_bits
        assert_same(loaded.search(queries, 50), expected)
    loaded.add(codes[removed], removed)
    ids = np.concatenate([kept, removed])
    assert_same(loaded.search(queries, 50), brute_force(queries, codes[ids], ids, 50))
    loaded.remove(kept)
    loaded.remove(removed)
    assert (loaded.search(queries, 3)[1] == -1).all()


def test_an_id_is_not_given_twice(tmp_path):
    index = make_index(20, np.zeros((5, 1), np.uint32))
    index.remove(np.array([4]))
    index.save(tmp_path / "some.index")
    index = llc_jax.HammingIndex.load(tmp_path / "some.index")
    index.add(np.zeros((1, 1), np.uint32))
    index.add(np.zeros((1, 1), np.uint32), np.array([100]))
    index.add(np.zeros((1, 1), np.uint32), np.array([4]))
    index.add(np.zeros((1, 1), np.uint32))
    np.testing.assert_array_equal(index.ids, [0, 1, 2, 3, 5, 100, 4, 101])


@pytest.mark.parametrize("num_bits", [9, 40])
def test_one_mask_on_all_codes_changes_nothing(num_bits):
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 2500, num_bits, distinct=800)
    queries, mask = near_queries(rng, codes, 8), random_codes(rng, 1, num_bits)
    expected = make_index(num_bits, codes).search(queries, 100)
    assert_same(make_index(num_bits, codes ^ mask).search(queries ^ mask, 100), expected)


@pytest.mark.parametrize("num_bits", [9, 40])
def test_a_permutation_changes_only_the_order_of_ties(num_bits):
    rng = np.random.default_rng(0)
    codes = random_codes(rng, 2500, num_bits, distinct=800)
    queries, order = near_queries(rng, codes, 8), rng.permutation(2500)
    distances, ids = make_index(num_bits, codes).search(queries, 2500)
    index = make_index(num_bits, codes[order], order)
    permuted_distances, permuted_ids = index.search(queries, 2500)
    np.testing.assert_array_equal(permuted_distances, distances)
    rows = np.argsort(order)
    for q in range(len(queries)):
        expected = ids[q, np.lexsort((rows[ids[q]], distances[q]))]
        np.testing.assert_array_equal(permuted_ids[q], expected)


def test_an_empty_index_finds_nothing(tmp_path):
    index = llc_jax.HammingIndex(40)
    index.add(np.zeros((0, 2), np.uint32))
    index.save(tmp_path / "empty.index")
    queries = np.zeros((3, 2), np.uint32)
    for empty in (index, llc_jax.HammingIndex.load(tmp_path / "empty.index")):
        assert len(empty) == 0
        distances, ids = empty.search(queries, 4)
        np.testing.assert_array_equal(distances, np.full((3, 4), -1))
        np.testing.assert_array_equal(ids, np.full((3, 4), -1))
        np.testing.assert_array_equal(empty.range_search(queries, 40)[0], [0, 0, 0, 0])
    assert make_index(40, queries).search(queries[:0])[1].shape == (0, 10)


def test_arrays_that_were_added_may_be_changed():
    codes, ids = np.arange(5, dtype=np.uint32)[:, None], np.arange(5)
    index = make_index(20, codes, ids)
    codes[:], ids[:] = 0, 9
    distances, found_ids = index.search(np.array([[4]], np.uint32), 1)
    assert (distances.item(), found_ids.item()) == (0, 4)


def test_takes_jax_arrays():
    codes = packing.pack(np.eye(20, dtype=np.float32) - 0.5)
    distances, ids = make_index(20, codes).search(codes[:2], 2)
    np.testing.assert_array_equal(distances, [[0, 2], [0, 2]])
    np.testing.assert_array_equal(ids, [[0, 1], [1, 0]])


def test_of_a_large_bucket_the_first_rows_are_found():
    codes = np.repeat(np.arange(16, dtype=np.uint32), 3000)[:, None]
    codes = codes[np.random.default_rng(0).permutation(len(codes))]
    queries = np.arange(16, dtype=np.uint32)[:, None]
    assert buckets.worthwhile(4, len(codes))
    index = make_index(4, codes)
    for top in (5, 3001, 14_000, 40_000):
        expected = brute_force(queries, codes, np.arange(len(codes)), top)
        assert_same(index.search(queries, top), expected)


def test_the_same_items_give_the_same_file(tmp_path):
    codes = random_codes(np.random.default_rng(0), 1000, 33)
    added_at_once = make_index(33, codes)
    added_at_once.search(codes[:2])
    added_at_once.save(tmp_path / "a.index")
    added_in_two = make_index(33, codes[:10])
    added_in_two.add(codes[10:])
    added_in_two.save(tmp_path / "b.index")
    llc_jax.HammingIndex.load(tmp_path / "b.index").save(tmp_path / "c.index")
    files = [path.read_bytes() for path in sorted(tmp_path.glob("*.index"))]
    assert files == [files[0]] * 3


def test_bad_input_is_named():
    index = make_index(20, np.zeros((2, 1), np.uint32), np.array([5, 9]))
    for num_bits in (0, 20.0):
        with pytest.raises(InputError, match=f"between 1 and 1024 bits, not {num_bits}"):
            llc_jax.HammingIndex(num_bits)
    with pytest.raises(InputError, match=r"20 bits are uint32\[N, 1\], not uint32\[3, 2\]"):
        index.search(np.zeros((3, 2), np.uint32))
    with pytest.raises(InputError, match=r"not int64\[3, 1\]: llc_jax.pack"):
        index.add(np.zeros((3, 1), np.int64))
    with pytest.raises(InputError, match="bits set beyond the first 20"):
        index.search(np.full((1, 1), 2**20, np.uint32))
    with pytest.raises(InputError, match="at least 1 item, not 0"):
        index.search(np.zeros((1, 1), np.uint32), 0)
    with pytest.raises(InputError, match="a whole number of at least 1 item, not 2.5"):
        index.search(np.zeros((1, 1), np.uint32), 2.5)
    with pytest.raises(InputError, match="at most 2,147,483,647 items, not 1,000,000,000,000"):
        index.search(np.zeros((1, 1), np.uint32), 10**12)
    with pytest.raises(InputError, match="30,000,000 queries for 2,147,483,647 items .* fit into"):
        sharded.empty_results(30_000_000, 2**31 - 1)
    for radius in (-1, 2.5):
        with pytest.raises(InputError, match=f"at least 0 bits, not {radius}"):
            index.range_search(np.zeros((1, 1), np.uint32), radius)
    code = np.zeros((1, 1), np.uint32)
    with pytest.raises(InputError, match="an item with the id 9 in the index already"):
        index.add(code, np.array([9]))
    with pytest.raises(InputError, match="The id 3 is given more than once"):
        index.add(np.zeros((2, 1), np.uint32), np.array([3, 3]))
    with pytest.raises(InputError, match="There are 1 codes but 2 ids"):
        index.add(code, np.array([1, 2]))
    with pytest.raises(InputError, match=r"Ids are int64\[N\], not float64\[1\]"):
        index.add(code, np.array([1.5]))
    with pytest.raises(InputError, match="cannot be an id"):
        index.add(code, np.array([-1]))
    with pytest.raises(InputError, match="no item with the id 6"):
        index.remove(np.array([5, 6]))
    assert len(index) == 2
