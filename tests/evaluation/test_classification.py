import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.data import pipeline
from llc_jax.evaluation.classification import Classification
from llc_jax.mesh import batch_sharding, make_mesh
from llc_jax.models.heads import Output


def oracle(f, codes, labels):
    """Every figure for one example at a time, in plain Python."""
    rows = []
    for logits, label in zip(f, labels, strict=True):
        g = np.where(logits >= 0, 1, -1)
        distances = [int((g != code).sum()) for code in codes]
        exact = [c for c, d in enumerate(distances) if d == 0]
        nearest = [c for c, d in enumerate(distances) if d == min(distances)]
        scores = codes @ logits
        rows.append(
            {
                "ed_official": float(label in exact),
                "ed": 1 / len(exact) if label in exact else 0.0,
                "mhd": 1 / len(nearest) if label in nearest else 0.0,
                "mhd_first": float(nearest[0] == label),
                "soft": float(scores.argmax() == label),
                "soft_top5": float(label in np.argsort(-scores, kind="stable")[:5]),
                "bits_right": len(g) - distances[label],
            }
        )
    return {name: np.mean([row[name] for row in rows]) for name in rows[0]}


def evaluate(f, labels, encode, class_codes, devices=8, batch_size=16, prefixes=()):
    """Returns the figures of examples that carry their index as their image."""
    return classify(f, labels, encode, class_codes, devices, batch_size, prefixes).figures


def classify(f, labels, encode, class_codes, devices=8, batch_size=16, prefixes=()):
    """Classifies examples that carry their index as their image."""
    mesh = make_mesh(jax.devices()[:devices])
    batched = batch_sharding(mesh)
    index = np.arange(len(f))
    images = np.stack([index % 256, index // 256, 0 * index], -1).astype(np.uint8)
    images = pipeline.InMemory(images[:, None, None, :], labels)
    shard = pipeline.ProcessShard.of(batched, batch_size)
    batches = pipeline.on_devices(pipeline.eval_batches(images, shard), batched)
    return Classification(encode, class_codes, prefixes).run(batches)


def lookup(table, images):
    return table[images[:, 0, 0, 0].astype(jnp.int32) + 256 * images[:, 0, 0, 1].astype(jnp.int32)]


@pytest.mark.parametrize("num_bits", [1, 3, 8, 20, 33])
@pytest.mark.parametrize("collisions", [False, True])
def test_code_figures_equal_the_oracle(num_bits, collisions):
    rng = np.random.default_rng(num_bits)
    classes, examples = 12, 301
    codes = rng.choice([-1, 1], size=(classes, num_bits))
    if collisions:
        codes[6:] = codes[:6]
    labels = rng.integers(classes, size=examples).astype(np.int32)
    f = (codes[labels] + rng.normal(scale=1.2, size=(examples, num_bits))).astype(np.float32)
    table = jnp.asarray(f)
    figures = evaluate(f, labels, lambda x: Output(lookup(table, x), None), packing.pack(codes))
    expected = oracle(f, codes, labels)
    assert set(figures) == set(expected)
    for name, value in expected.items():
        assert figures[name] == pytest.approx(value, abs=1e-6), name


def test_every_example_counts_once_on_any_mesh():
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 1], size=(10, 8))
    labels = rng.integers(10, size=333).astype(np.int32)
    f = (codes[labels] + rng.normal(size=(333, 8))).astype(np.float32)
    table = jnp.asarray(f)
    results = [
        evaluate(
            f, labels, lambda x: Output(lookup(table, x), None), packing.pack(codes), devices, size
        )
        for devices, size in [(1, 7), (1, 333), (2, 16), (8, 64), (8, 400)]
    ]
    for result in results[1:]:
        assert result == pytest.approx(results[0], abs=1e-7)


def test_ed_and_ed_official_agree_where_codes_are_unique():
    codes = np.array([[1, 1, 1], [1, 1, -1], [-1, 1, 1], [-1, -1, -1]])
    labels = np.array([0, 1, 2, 3, 0, 1, 2, 3], np.int32)
    f = codes[[0, 1, 2, 3, 1, 0, 3, 2]].astype(np.float32)
    table = jnp.asarray(f)
    figures = evaluate(
        f, labels, lambda x: Output(lookup(table, x), None), packing.pack(codes), batch_size=8
    )
    assert figures["ed"] == figures["ed_official"] == figures["mhd"] == 0.5
    assert "soft_top5" not in figures


def test_class_logits():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(100, 7)).astype(np.float32)
    labels = rng.integers(7, size=100).astype(np.int32)
    table = jnp.asarray(logits)
    figures = evaluate(logits, labels, lambda x: Output(None, lookup(table, x)), None)
    order = np.argsort(-logits, axis=1)
    assert figures == pytest.approx(
        {
            "class_logits": (order[:, 0] == labels).mean(),
            "class_logits_top5": (order[:, :5] == labels[:, None]).any(1).mean(),
        }
    )


def test_prefixes_are_codes_of_their_own():
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 1], size=(12, 40))
    labels = rng.integers(12, size=200).astype(np.int32)
    f = (codes[labels] + rng.normal(scale=1.2, size=(200, 40))).astype(np.float32)
    table = jnp.asarray(f)
    figures = evaluate(
        f, labels, lambda x: Output(lookup(table, x), None), packing.pack(codes), prefixes=(5, 33)
    )
    for bits in (5, 33):
        for name, value in oracle(f[:, :bits], codes[:, :bits], labels).items():
            assert figures[f"prefix_{bits}/{name}"] == pytest.approx(value, abs=1e-6), name
    assert figures["mhd"] == pytest.approx(oracle(f, codes, labels)["mhd"], abs=1e-6)


def test_every_example_gets_a_class():
    rng = np.random.default_rng(0)
    codes = rng.choice([-1, 1], size=(12, 8))
    labels = rng.integers(12, size=203).astype(np.int32)
    f = (codes[labels] + rng.normal(scale=1.2, size=(203, 8))).astype(np.float32)
    signs = np.where(f >= 0, 1, -1)
    nearest = (signs[:, None] != codes).sum(axis=2).argmin(axis=1)
    table = jnp.asarray(f)
    by_code = classify(f, labels, lambda x: Output(lookup(table, x), None), packing.pack(codes))
    np.testing.assert_array_equal(by_code.labels, labels)
    np.testing.assert_array_equal(by_code.predictions, nearest)
    by_logits = classify(f, labels % 8, lambda x: Output(None, lookup(table, x)), None)
    np.testing.assert_array_equal(by_logits.predictions, f.argmax(axis=1))
    assert classify(f, labels, lambda x: Output(lookup(table, x), None), None).predictions is None
