import jax
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.evaluation import metrics
from llc_jax.evaluation.mesh_rankings import MeshHammingRanker
from llc_jax.evaluation.rankings import HammingRanker
from llc_jax.evaluation.score_rankings import asymmetric_ranker, cosine_ranker, dot_ranker
from llc_jax.mesh import make_mesh

QUERIES, ITEMS = 21, 203


def by_hand(distances, relevant, excluded, k):
    """The figures of one query from its distances to all items, by sorting."""
    included = np.arange(len(distances)) != excluded
    distances, relevant = distances[included], relevant[included]
    relevance = relevant[np.argsort(distances, kind="stable")]
    total = relevant.sum()
    return {
        "rmap": metrics.average_precision(relevance, total, k, "rmap"),
        "cmap": metrics.average_precision(relevance, total, k, "cmap"),
        "tie_aware": metrics.tie_aware_average_precision(distances, relevant, total, k),
        "relevance": relevance[:k],
        "total_relevant": total,
        "database_size": included.sum(),
    }


def problem(seed, dimensions, separation):
    """Queries and items around a centre for each class, labels, and each query's excluded item."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(6, dimensions))
    labels = rng.integers(5, size=ITEMS).astype(np.int32)
    # The last class is not in the database.
    query_labels = rng.integers(6, size=QUERIES).astype(np.int32)
    queries, items = (
        (separation * centres[classes] + rng.normal(size=(len(classes), dimensions))).astype("f4")
        for classes in (query_labels, labels)
    )
    exclude = np.where(rng.random(QUERIES) < 0.5, rng.integers(ITEMS, size=QUERIES), -1)
    return queries, query_labels, items, labels, exclude


def assert_ranks(ranker, queries, distances, query_labels, labels, exclude, k):
    """Compares a ranker with sorting the distances, [Q, N]."""
    ranking = ranker.rank(queries, query_labels, exclude, k)
    tie_aware = metrics.grouped_average_precision(
        ranking.group_sizes, ranking.group_relevant, ranking.total_relevant, k
    )
    for row in range(QUERIES):
        expected = by_hand(distances[row], labels == query_labels[row], exclude[row], k)
        relevance, total = ranking.relevance[row], ranking.total_relevant[row]
        assert total == expected["total_relevant"]
        assert ranking.database_size[row] == expected["database_size"]
        depth = len(expected["relevance"])
        np.testing.assert_array_equal(relevance[:depth], expected["relevance"])
        for form in metrics.FORMS:
            value = metrics.average_precision(relevance, total, k, form)
            assert value == pytest.approx(expected[form], abs=1e-12)
        values = [column[row] for column in tie_aware]
        np.testing.assert_allclose(values, expected["tie_aware"], atol=1e-12)
    return ranking


@pytest.mark.parametrize("k", [1, 5, 1000])
@pytest.mark.parametrize("num_bits", [1, 2, 8, 20, 31, 32, 33, 64, 70])
def test_codes_are_ranked_as_by_sorting(num_bits, k):
    queries, query_labels, items, labels, exclude = problem(num_bits, num_bits, separation=0.5)
    query_codes, codes = (np.asarray(packing.pack(vectors)) for vectors in (queries, items))
    distances = ((queries >= 0)[:, None] != (items >= 0)[None]).sum(axis=2)
    ranker = HammingRanker(codes, labels, num_bits)
    assert_ranks(ranker, query_codes, distances, query_labels, labels, exclude, k)


@pytest.mark.parametrize(("num_bits", "k", "devices"), [(3, 50, 8), (40, 1000, 8), (8, 5, 1)])
def test_a_mesh_ranks_as_the_host_does(num_bits, k, devices, monkeypatch):
    monkeypatch.setattr("llc_jax.evaluation.mesh_rankings._MAX_DISTANCES", 200)
    queries, query_labels, items, labels, exclude = problem(num_bits, num_bits, separation=0.5)
    query_codes, codes = (np.asarray(packing.pack(vectors)) for vectors in (queries, items))
    mesh_ranker = MeshHammingRanker(codes, labels, num_bits, make_mesh(jax.devices()[:devices]))
    host_ranker = HammingRanker(codes, labels, num_bits)
    ranking = mesh_ranker.rank(query_codes, query_labels, exclude, k)
    expected = host_ranker.rank(query_codes, query_labels, exclude, k)
    for array, expected_array in zip(ranking, expected, strict=True):
        np.testing.assert_array_equal(array, expected_array)
        assert array.dtype == expected_array.dtype


@pytest.mark.parametrize("k", [1, 5, 1000])
def test_vectors_are_ranked_as_by_sorting(k, monkeypatch):
    monkeypatch.setattr("llc_jax.evaluation.score_rankings._MAX_SCORES", 1000)
    queries, query_labels, items, labels, exclude = problem(0, 4, separation=1.0)
    # Small whole numbers: exact products, and ties.
    queries, items = np.round(2 * queries), np.round(2 * items)
    items[3] = queries[4] = 0
    dots, cosines = dot_ranker(items, labels), cosine_ranker(items, labels)
    assert_ranks(dots, queries, -(queries @ items.T), query_labels, labels, exclude, k)
    lengths = [np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (queries, items)]
    directions = [
        vectors / np.where(length > 0, length, 1).astype(np.float32)
        for vectors, length in zip((queries, items), lengths, strict=True)
    ]
    distances = -(directions[0] @ directions[1].T)
    assert_ranks(cosines, queries, distances, query_labels, labels, exclude, k)


@pytest.mark.parametrize("num_bits", [1, 6, 40])
def test_logits_rank_codes(num_bits):
    queries, query_labels, items, labels, exclude = problem(num_bits, num_bits, separation=0.7)
    # Multiples of 1/8, so that sums are exact in any order.
    queries = np.round(8 * queries) / 8
    scores = queries @ np.where(items >= 0, 1, -1).astype(np.float32).T
    ranker = asymmetric_ranker(np.asarray(packing.pack(items)), labels, num_bits)
    ranking = assert_ranks(ranker, queries, -scores, query_labels, labels, exclude, 20)
    if num_bits == 1:
        assert (ranking.group_sizes[:, 0] > 20).all()


def test_a_database_whose_only_item_is_excluded():
    labels = np.zeros(1, np.int32)
    codes, vectors = np.zeros((1, 1), np.uint32), np.ones((1, 3), np.float32)
    for ranker, queries in [
        (HammingRanker(codes, labels, 8), codes),
        (MeshHammingRanker(codes, labels, 8, make_mesh()), codes),
        (dot_ranker(vectors, labels), vectors),
    ]:
        ranking = ranker.rank(queries, labels, np.zeros(1, np.int64), 10)
        assert all(array.sum() == 0 for array in ranking)
