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


def test_instance_with_the_targets_of_a_teacher_by_hand():
    f, codes, labels = example()
    probability, of_teacher = 1 / (1 + np.exp(-f)), np.random.default_rng(1).random((B, K))
    target = 0.3 * (codes[labels] + 1) / 2 + 0.7 * of_teacher
    loss = -(target * np.log(probability) + (1 - target) * np.log(1 - probability))
    output = Output(jnp.asarray(f), None)
    arguments = (output, jnp.asarray(labels), packing.pack(codes))
    figures = objectives.instance(*arguments, targets=of_teacher, label_share=0.3, prefixes=(4,))
    np.testing.assert_allclose(figures["loss"], (loss.mean(1) + loss[:, :4].mean(1)) / 2, rtol=1e-5)
    of_labels = objectives.instance(*arguments)["bits_right"]
    np.testing.assert_array_equal(figures["bits_right"], of_labels)


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
    assert set(figures) == set(objective.metrics)
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


def mask_and_progress(progress=0.5, masked=()):
    mask = ~np.isin(np.arange(B), masked)
    return {"mask": jnp.asarray(mask), "progress": jnp.float32(progress)}


@pytest.mark.parametrize("masked", [(), (1, 4)])
@pytest.mark.parametrize(("progress", "beta"), [(0.0, 1.0), (0.039, 2**0.5), (1.0, 51**0.5)])
def test_hashnet_by_pairs(masked, progress, beta):
    f, _, labels = example()
    labels[:3] = labels[3]
    valid = [row for row in range(B) if row not in masked]
    losses = {True: [], False: []}
    for i in valid:
        for j in valid:
            if i != j:
                product = 10 / K * np.tanh(beta * f[i]) @ np.tanh(beta * f[j])
                same = bool(labels[i] == labels[j])
                probability = 1 / (1 + np.exp(-product))
                losses[same].append(-np.log(probability if same else 1 - probability))
    figures = objectives.hashnet(
        Output(jnp.asarray(f), None), jnp.asarray(labels), **mask_and_progress(progress, masked)
    )
    expected = np.mean(losses[True]) + np.mean(losses[False])
    np.testing.assert_allclose(np.mean(figures["loss"][np.array(valid)]), expected, rtol=1e-5)
    np.testing.assert_allclose(figures["beta"], beta, rtol=1e-6)


def test_hashnet_forgets_masked_examples():
    f, _, labels = example()

    def loss(f, labels):
        figures = objectives.hashnet(Output(f, None), labels, **mask_and_progress(0.2, (2,)))
        return jnp.where(jnp.arange(B) == 2, 0.0, figures["loss"]).sum()

    other_f, other_labels = f.copy(), labels.copy()
    other_f[2], other_labels[2] = 5.0, (labels[2] + 1) % L
    value, gradient = jax.value_and_grad(loss)(jnp.asarray(f), jnp.asarray(labels))
    assert value == loss(jnp.asarray(other_f), jnp.asarray(other_labels))
    assert not gradient[2].any()
    assert gradient[0].any()


def test_hashnet_beta_grows_in_stages():
    f, _, labels = example()

    def beta(progress):
        known = mask_and_progress(progress)
        output = Output(jnp.asarray(f), None)
        figures = objectives.hashnet(
            output, jnp.asarray(labels), growth=3.0, power=1.0, stages=4, **known
        )
        return float(figures["beta"][0])

    found = [beta(progress) for progress in (0, 0.2, 0.25, 0.49, 0.5, 0.99)]
    assert found == pytest.approx([1, 1, 1.75, 1.75, 2.5, 3.25])


@pytest.mark.parametrize("classes", [[0] * B, list(range(B))])
def test_hashnet_of_pairs_of_one_kind(classes):
    f, _, _ = example()
    known = mask_and_progress(1.0)
    figures = objectives.hashnet(Output(jnp.asarray(1e4 * f), None), jnp.array(classes), **known)
    assert jnp.isfinite(figures["loss"]).all()
    assert figures["loss"].mean() > 0


def test_greedy_hash_by_hand():
    f, codes, labels = example()
    logits = np.where(f >= 0, 1, -1) @ codes.T.astype(np.float32)
    figures = objectives.greedy_hash(
        Output(jnp.asarray(f), jnp.asarray(logits)), labels, penalty=0.3
    )
    for row in range(B):
        cross_entropy = np.log(np.exp(logits[row]).sum()) - logits[row, labels[row]]
        cubes = [abs(abs(value) - 1) ** 3 for value in f[row]]
        expected = cross_entropy + 0.3 * sum(cubes) / K
        assert figures["loss"][row] == pytest.approx(expected, rel=1e-5)
        assert figures["penalty"][row] == pytest.approx(sum(cubes) / K, rel=1e-5)


def test_csq_by_hand():
    f, codes, labels = example()
    figures = objectives.csq(
        Output(jnp.asarray(f), None), jnp.asarray(labels), packing.pack(codes), penalty=0.3
    )
    for row in range(B):
        entropy, penalty = 0.0, 0.0
        for h, centre in zip(np.tanh(f[row]), codes[labels[row]], strict=True):
            entropy -= np.log((1 + h) / 2 if centre > 0 else (1 - h) / 2)
            penalty += np.log(np.cosh(abs(h) - 1))
        assert figures["loss"][row] == pytest.approx((entropy + 0.3 * penalty) / K, rel=1e-4)
    expected = (np.where(f >= 0, 1, -1) == codes[labels]).mean(1)
    np.testing.assert_allclose(figures["bits_right"], expected, rtol=1e-6)


def test_orthohash_by_hand():
    f, codes, labels = example()
    figures = objectives.orthohash(
        Output(jnp.asarray(f), None),
        jnp.asarray(labels),
        packing.pack(codes),
        scale=5.0,
        margin=0.3,
    )
    for row in range(B):
        cosines = [f[row] @ code / np.linalg.norm(f[row]) / np.linalg.norm(code) for code in codes]
        exponents = [
            np.exp(5 * (cosine - 0.3 * (c == labels[row]))) for c, cosine in enumerate(cosines)
        ]
        expected = -np.log(exponents[labels[row]] / sum(exponents))
        assert figures["loss"][row] == pytest.approx(expected, rel=1e-5)
        assert figures["accuracy"][row] == (np.argmax(cosines) == labels[row])


@pytest.mark.parametrize("scale", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("name", ["hashnet", "greedy_hash", "csq", "orthohash"])
def test_gradients_of_rivals_are_finite(name, scale):
    f, codes, labels = example()
    objective = objectives.OBJECTIVES[name]
    given = {need: mask_and_progress(1.0)[need] for need in objective.needs}

    def loss(f):
        output = Output(f, f @ codes.T.astype(np.float32))
        packed = packing.pack(codes) if objective.fixed_codebook else None
        return objective.function(output, jnp.asarray(labels), packed, **given)["loss"].sum()

    assert jnp.isfinite(jax.grad(loss)(jnp.asarray(scale * f))).all()
