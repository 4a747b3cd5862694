import jax
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.evaluation import metrics
from llc_jax.evaluation.mesh_search import MeshHammingSearch
from llc_jax.evaluation.score_search import asymmetric_search, cosine_search, dot_search
from llc_jax.evaluation.search import HammingSearch
from llc_jax.mesh import make_mesh

QUERIES, ITEMS = 21, 203


def by_hand(distances, relevant, excluded, k):
    """The figures of one query from its distances to all items, by sorting."""
    kept = np.arange(len(distances)) != excluded
    distances, relevant = distances[kept], relevant[kept]
    ranking = relevant[np.argsort(distances, kind="stable")]
    total = relevant.sum()
    tied = metrics.tie_aware_average_precision(distances, relevant, total, k)
    return {
        "rmap": metrics.average_precision(ranking, total, k, "rmap"),
        "cmap": metrics.average_precision(ranking, total, k, "cmap"),
        "tied": tied,
        "first": ranking[:k],
        "total": total,
        "size": kept.sum(),
    }


def problem(seed, dimensions, near):
    """Labels, vectors around one of each class, and which item each query leaves out."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, dimensions))
    labels = rng.integers(5, size=ITEMS).astype(np.int32)
    # The last class is not in the database.
    query_labels = rng.integers(6, size=QUERIES).astype(np.int32)
    queries, items = (
        (near * centres[some] + rng.normal(size=(len(some), dimensions))).astype(np.float32)
        for some in (query_labels, labels)
    )
    exclude = np.where(rng.random(QUERIES) < 0.5, rng.integers(ITEMS, size=QUERIES), -1)
    return queries, query_labels, items, labels, exclude


def assert_ranks(search, given, distances, problem, k):
    """Compares a search with all orders of the distances, [Q, N]."""
    _, query_labels, _, labels, exclude = problem
    found = search.rank(given, query_labels, exclude, k)
    tied = metrics.grouped_average_precision(found.items, found.relevant, found.total_relevant, k)
    for row in range(QUERIES):
        relevant = labels == query_labels[row]
        expected = by_hand(distances[row], relevant, exclude[row], k)
        first, total = found.first[row], found.total_relevant[row]
        assert (total, found.size[row]) == (expected["total"], expected["size"])
        np.testing.assert_array_equal(first[: len(expected["first"])], expected["first"])
        for form in metrics.FORMS:
            value = metrics.average_precision(first, total, k, form)
            assert value == pytest.approx(expected[form], abs=1e-12)
        np.testing.assert_allclose([part[row] for part in tied], expected["tied"], atol=1e-12)
    return found


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("num_bits", [1, 2, 8, 20, 31, 32, 33, 64, 70])
def test_codes_are_ranked_as_by_sorting(num_bits, k):
    given = problem(num_bits, num_bits, near=0.5)
    queries, _, items, labels, _ = given
    codes = [np.asarray(packing.pack(vectors)) for vectors in (queries, items)]
    distances = ((queries >= 0)[:, None] != (items >= 0)[None]).sum(axis=2)
    assert_ranks(HammingSearch(codes[1], labels, num_bits), codes[0], distances, given, k)


@pytest.mark.parametrize(("num_bits", "k", "devices"), [(3, 50, 8), (40, 1000, 8), (8, 5, 1)])
def test_a_mesh_ranks_as_the_host_does(num_bits, k, devices, monkeypatch):
    monkeypatch.setattr("llc_jax.evaluation.mesh_search._DISTANCES", 200)
    queries, query_labels, items, labels, exclude = problem(num_bits, num_bits, near=0.5)
    codes = [np.asarray(packing.pack(vectors)) for vectors in (queries, items)]
    mesh = make_mesh(jax.devices()[:devices])
    spread = MeshHammingSearch(codes[1], labels, num_bits, mesh)
    host = HammingSearch(codes[1], labels, num_bits)
    found = spread.rank(codes[0], query_labels, exclude, k)
    expected = host.rank(codes[0], query_labels, exclude, k)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
        assert ours.dtype == theirs.dtype


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_vectors_are_ranked_as_by_sorting(k, monkeypatch):
    monkeypatch.setattr("llc_jax.evaluation.score_search._SCORES", 1000)
    given = problem(0, 4, near=1.0)
    queries, _, items, labels, _ = given
    # Small whole numbers: exact products, and ties.
    queries, items = np.round(2 * queries), np.round(2 * items)
    items[3] = queries[4] = 0
    assert_ranks(dot_search(items, labels), queries, -(queries @ items.T), given, k)
    lengths = [np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, items)]
    directions = [
        vectors / np.where(length > 0, length, 1).astype(np.float32)
        for vectors, length in zip((queries, items), lengths, strict=True)
    ]
    cosines = directions[0] @ directions[1].T
    assert_ranks(cosine_search(items, labels), queries, -cosines, given, k)


@pytest.mark.parametrize("num_bits", [1, 6, 40])
def test_logits_rank_codes(num_bits):
    given = problem(num_bits, num_bits, near=0.7)
    queries, _, items, labels, _ = given
    # Multiples of 1/8, so that sums are exact in any order.
    queries = np.round(8 * queries) / 8
    scores = queries @ np.where(items >= 0, 1, -1).astype(np.float32).T
    search = asymmetric_search(np.asarray(packing.pack(items)), labels, num_bits)
    found = assert_ranks(search, queries, -scores, given, 20)
    if num_bits == 1:
        assert (found.items[:, 0] > 20).all()


def test_a_database_of_one_that_is_left_out():
    labels = np.zeros(1, np.int32)
    codes, vectors = np.zeros((1, 1), np.uint32), np.ones((1, 3), np.float32)
    for search, queries in [
        (HammingSearch(codes, labels, 8), codes),
        (MeshHammingSearch(codes, labels, 8, make_mesh()), codes),
        (dot_search(vectors, labels), vectors),
    ]:
        found = search.rank(queries, labels, np.zeros(1, np.int64), 10)
        assert found.items.sum() == found.relevant.sum() == found.first.sum() == 0
        assert found.size == found.total_relevant == 0
