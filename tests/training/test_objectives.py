import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.models.heads import Output
from llc_jax.training import objectives

B, L, K = 6, 5, 9


def example():
    rng = np.random.default_rng(0)
    f = rng.normal(size=(B, K)).astype(np.float32)
    codes = rng.choice([-1, 1], size=(L, K)).astype(np.int8)
    return f, codes, rng.integers(L, size=B).astype(np.int32)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("name", ["softmax", "codebook"])
def test_softmax_cross_entropy_by_hand(name, smoothing):
    f, codes, labels = example()
    logits = f @ codes.T
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    target = (1 - smoothing) * np.eye(L)[labels] + smoothing / L
    figures = objectives.OBJECTIVES[name].function(
        Output(None, jnp.asarray(logits)), labels, label_smoothing=smoothing
    )
    np.testing.assert_allclose(figures["loss"], -(target * log_p).sum(1), rtol=1e-5)
    np.testing.assert_array_equal(figures["accuracy"], logits.argmax(1) == labels)
    if name == "codebook":
        np.testing.assert_allclose(figures["logit_scale"], logits.std(1), rtol=1e-5)


def test_instance_is_the_mean_binary_cross_entropy_by_hand():
    f, codes, labels = example()
    probability = 1 / (1 + np.exp(-f))
    target = (codes[labels] + 1) / 2
    loss = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    output = Output(jnp.asarray(f), None)
    figures = objectives.instance(output, jnp.asarray(labels), packing.pack(codes))
    np.testing.assert_allclose(figures["loss"], loss.mean(1), rtol=1e-5)
    expected = (np.where(f >= 0, 1, -1) == codes[labels]).mean(1)
    np.testing.assert_allclose(figures["bits_right"], expected, rtol=1e-6)


def test_instance_gradient_by_hand():
    f, codes, labels = example()

    def loss(f):
        output = Output(f, None)
        return objectives.instance(output, jnp.asarray(labels), packing.pack(codes))["loss"].sum()

    expected = (1 / (1 + np.exp(-f)) - (codes[labels] + 1) / 2) / K
    np.testing.assert_allclose(jax.grad(loss)(jnp.asarray(f)), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", sorted(objectives.OBJECTIVES))
def test_reports_what_it_says_for_each_example(name):
    f, codes, labels = example()
    objective = objectives.OBJECTIVES[name]
    output = Output(jnp.asarray(f), jnp.asarray(f @ codes.T))
    codes = packing.pack(codes) if objective.fixed_codebook else None
    known = {"mask": jnp.ones(B, bool), "progress": jnp.float32(0.5)}
    given = {need: known[need] for need in objective.needs}
    figures = objective.function(output, jnp.asarray(labels), codes, **given)
    assert set(figures) == set(objective.figures)
    assert all(values.shape == (B,) for values in figures.values())


def test_extreme_logits_stay_finite():
    labels = jnp.zeros(2, jnp.int32)
    huge = jnp.array([[1e4, -1e4], [-1e4, 1e4]])
    codes = packing.pack(np.ones((2, 2), np.int8))
    assert jnp.isfinite(objectives.softmax(Output(None, huge), labels)["loss"]).all()
    assert jnp.isfinite(objectives.instance(Output(huge, None), labels, codes)["loss"]).all()


def test_nested_losses_are_the_mean_over_prefixes():
    f, codes, labels = example()
    codes_whole = packing.pack(codes)
    vectors = 0.3 * codes.astype(np.float32)
    whole = Output(jnp.asarray(f), jnp.asarray(f @ vectors.T), jnp.asarray(vectors))
    for name, prefixes in [("codebook", (2, 5)), ("instance", (4,))]:
        function = objectives.OBJECTIVES[name].function
        losses = []
        for bits in (K, *prefixes):
            part = Output(whole.code_logits[:, :bits], f[:, :bits] @ vectors[:, :bits].T)
            losses.append(function(part, labels, packing.pack(codes[:, :bits]))["loss"])
        found = function(whole, jnp.asarray(labels), codes_whole, prefixes=prefixes)
        np.testing.assert_allclose(found["loss"], np.mean(losses, axis=0), rtol=1e-5)
        plain = function(whole, jnp.asarray(labels), codes_whole)
        for other in plain.keys() - {"loss"}:
            np.testing.assert_array_equal(found[other], plain[other])
