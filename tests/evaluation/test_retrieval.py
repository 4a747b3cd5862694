import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.data import pipeline
from llc_jax.errors import InputError
from llc_jax.evaluation import metrics
from llc_jax.evaluation.retrieval import Retrieval, evaluate_ranker
from llc_jax.evaluation.score_rankings import dot_ranker
from llc_jax.mesh import batch_sharding, make_mesh

BITS = 12


def table(seed=0, count=500):
    """Code logits around one code a class, in steps that sum exactly, and labels."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(6, size=count).astype(np.int32)
    codes = rng.choice([-1, 1], size=(6, BITS))
    logits = np.round(64 * (codes[labels] + rng.normal(size=(count, BITS)))) / 64
    return logits.astype(np.float32), labels


def batches(examples, labels, damaged=()):
    """Batches of images that carry the number of their example; damaged ones are masked."""
    batched = batch_sharding(make_mesh())
    images = np.stack([examples % 256, examples // 256, 0 * examples], -1).astype(np.uint8)
    host_batches = pipeline.eval_batches(
        pipeline.InMemory(images[:, None, None, :], labels[examples]),
        pipeline.ProcessShard.of(batched, 64),
    )
    for step, batch in enumerate(host_batches):
        batch["mask"] &= ~np.isin(np.arange(64) + 64 * step, damaged)
        yield {name: jax.device_put(array, batched) for name, array in batch.items()}


def lookup(vectors):
    vectors = jnp.asarray(vectors)

    def embed(images):
        pixels = images[:, 0, 0].astype(jnp.int32)
        return vectors[pixels[:, 0] + 256 * pixels[:, 1]]

    return jax.jit(embed)


def oracle(distances, relevant, k):
    """The figures at a cutoff, from all distances and relevance, by sorting."""
    total = relevant.sum(axis=1)
    order = np.argsort(distances, axis=1, kind="stable")
    relevance = np.take_along_axis(relevant, order, axis=1)
    tie_aware = metrics.tie_aware_average_precision(distances, relevant, total, k)
    hits = relevance[:, :k].sum(axis=1)
    values = {
        "cmap": metrics.average_precision(relevance, total, k, "cmap"),
        "rmap": metrics.average_precision(relevance, total, k, "rmap"),
        "cmap_tie": tie_aware.expected,
        "cmap_min": tie_aware.least,
        "cmap_max": tie_aware.most,
        "precision": hits / min(k, relevant.shape[1]),
        "recall": hits / np.maximum(total, 1),
        "ndcg": metrics.ndcg(relevance, k, total),
    }
    return {f"{name}@{k}": column.mean() for name, column in values.items()}


def hamming(queries, items):
    return ((queries >= 0)[:, None] != (items >= 0)[None]).sum(axis=2)


@pytest.mark.parametrize("on_mesh", [False, True])
def test_figures_are_those_by_sorting(on_mesh, monkeypatch):
    monkeypatch.setattr("llc_jax.evaluation.retrieval._MAX_QUERIES", 37)
    f, labels = table()
    query_indices, database_indices = np.arange(100), np.arange(100, 500)
    retrieval = Retrieval(
        lookup(f), (1, 20, 1000), prefixes=(5,), mesh=make_mesh() if on_mesh else None
    )
    figures, curves = retrieval.run(
        batches(query_indices, labels), batches(database_indices, labels)
    )
    relevant = labels[query_indices][:, None] == labels[database_indices][None]
    queries, items = f[query_indices], f[database_indices]
    signs = np.where(items >= 0, 1, -1).astype(np.float32)
    norms = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(items, axis=1)[None]
    distances = {
        "": hamming(queries, items),
        "asymmetric/": -(queries @ signs.T),
        "prefix_5/": hamming(queries[:, :5], items[:, :5]),
        "prefix_5/asymmetric/": -(queries[:, :5] @ signs[:, :5].T),
        "cosine/": -(queries @ items.T) / norms,
        "dot/": -(queries @ items.T),
    }
    for name, values in distances.items():
        error = 1e-3 if name == "cosine/" else 1e-12  # Cosines that are nearly equal may swap.
        for k in (1, 20, 1000):
            for key, expected in oracle(values, relevant, k).items():
                assert figures.pop(name + key) == pytest.approx(expected, abs=error), name + key
    within = distances[""] <= 2
    hits = (within & relevant).sum(axis=1) / np.maximum(within.sum(axis=1), 1)
    assert figures.pop("precision_radius_2") == pytest.approx(hits.mean())
    assert 0 < figures.pop("prefix_5/precision_radius_2") < 1
    assert not figures
    nonempty = within.any(axis=1)
    assert curves["radius/found"][2] == pytest.approx(nonempty.mean())
    assert curves["radius/precision"][2] == pytest.approx(hits[nonempty].mean())
    assert curves["radius/recall"][-1] == pytest.approx(1)
    assert len(curves["radius/found"]) == BITS + 1
    assert curves["cosine/rank/recall"][-1] == pytest.approx(1)
    assert len(curves["dot/rank/precision"]) == 400


def test_queries_exclude_themselves():
    f, labels = table(count=200)
    everything = np.arange(200)
    damaged = np.array([7, 150])
    result = Retrieval(lookup(f), (50,)).run(
        batches(everything, labels, damaged), batches(everything, labels, damaged), everything
    )
    queries = np.delete(everything, damaged)
    database = queries[np.nonzero(queries[None] != queries[:, None])[1]].reshape(198, 197)
    relevant = labels[database] == labels[queries][:, None]
    distances = ((f[database] >= 0) != (f[queries] >= 0)[:, None]).sum(axis=2)
    for key, expected in oracle(distances, relevant, 50).items():
        assert result.figures[key] == pytest.approx(expected)


def test_real_features_alone():
    f, labels = table()
    result = Retrieval(lookup(f), (10,), codes=False).run(
        batches(np.arange(100), labels), batches(np.arange(100, 500), labels)
    )
    assert result.figures.keys() == {
        f"{kind}/{name}@10"
        for kind in ("cosine", "dot")
        for name in ("cmap", "rmap", "cmap_tie", "cmap_min", "cmap_max", "precision", "recall")
    } | {"cosine/ndcg@10", "dot/ndcg@10"}


def test_what_cannot_be_ranked_is_an_error():
    f, labels = table()
    f[3, 2] = np.nan
    with pytest.raises(InputError, match="not finite for images of the queries"):
        Retrieval(lookup(f), (10,)).run(
            batches(np.arange(9), labels), batches(np.arange(9, 20), labels)
        )
    empty = np.zeros(0, np.int64)
    with pytest.raises(InputError, match="no queries"):
        evaluate_ranker(dot_ranker(f, labels), f[:0], labels[:0], empty, (10,))
