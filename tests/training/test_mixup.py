import functools

import jax
import numpy as np
import optax
import pytest
from scipy.special import expit, log_softmax

from llc_jax.codes import packing
from llc_jax.models import registry
from llc_jax.training import mixup, objectives
from llc_jax.training import state as states
from llc_jax.training import step as steps

HEADS = {"softmax": "linear", "codebook": "codebook", "instance": "code"}
ALPHA = 0.8
CODES = np.random.default_rng(1).choice([-1, 1], size=(10, 8))


def batch(size=12):
    rng = np.random.default_rng(0)
    return {
        "input": rng.integers(0, 256, (size, 8, 8, 3), np.uint8),
        "label": rng.integers(10, size=size).astype(np.int32),
        "mask": np.arange(size) % 5 != 4,
    }


@functools.cache
def network(objective):
    backbone = {"name": "cnn", "dtype": "float32", "width": 2}
    return registry.build(backbone, {"name": HEADS[objective]}, num_classes=10, num_bits=8)


def step_figures(objective, mixup_alpha):
    """The state before a step on the batch, and the figures of the step."""
    spec, sgd = objectives.OBJECTIVES[objective], optax.sgd(0.1)
    create = functools.partial(states.create, network(objective), sgd, spec.metrics)
    state = jax.jit(create)(jax.random.key(0))
    step = steps.make_step(
        network(objective), spec.function, sgd, lambda key, images: images, mixup_alpha
    )
    codes = packing.pack(CODES) if objective == "instance" else None
    return state, jax.jit(step)(state, batch(), codes)[1]


def by_hand(objective, state):
    """The figures of a step, with soft targets in NumPy; and the share."""
    images, labels, mask = batch().values()
    key = jax.random.fold_in(jax.random.wrap_key_data(state["rng"]), state["step"])
    share = float(jax.random.beta(jax.random.fold_in(key, 2**31 + 1), ALPHA, ALPHA))
    shares = np.array([share if mask[row] and mask[row - 1] else 1 for row in range(len(mask))])
    mixed = np.stack([s * images[r] + (1 - s) * images[r - 1] for r, s in enumerate(shares)])
    output, _ = jax.jit(network(objective).train)(
        state["params"], state["batch_stats"], np.rint(mixed).astype(np.uint8), key
    )
    classes = np.stack(
        [
            s * np.eye(10)[labels[r]] + (1 - s) * np.eye(10)[labels[r - 1]]
            for r, s in enumerate(shares)
        ]
    )
    if objective == "instance":
        bits, ones = classes @ (CODES > 0), expit(np.float64(output.code_logits))
        losses = -(bits * np.log(ones) + (1 - bits) * np.log(1 - ones)).mean(axis=1)
        right = np.where(output.code_logits >= 0, bits, 1 - bits).mean(axis=1)
        figures = {"loss": losses, "bits_right": right}
    else:
        logits = np.float64(output.class_logits)
        losses = -(classes * log_softmax(logits, axis=1)).sum(axis=1)
        right = classes[np.arange(len(mask)), logits.argmax(axis=1)]
        figures = {"loss": losses, "accuracy": right}
    if objective == "codebook":
        figures["logit_scale"] = np.std(output.class_logits, axis=1)
    return {name: values[mask].mean() for name, values in figures.items()}, share


@pytest.mark.parametrize("objective", HEADS)
def test_a_step_is_that_on_soft_targets(objective):
    state, figures = step_figures(objective, ALPHA)
    expected, share = by_hand(objective, state)
    assert 0.05 < share < 0.95
    assert figures.keys() == expected.keys()
    for name, value in expected.items():
        assert float(figures[name]) == pytest.approx(float(value), rel=1e-5), name


@pytest.mark.parametrize("objective", HEADS)
def test_a_share_of_1_is_no_mixup(objective, monkeypatch):
    _, plain = step_figures(objective, 0.0)
    _, mixed = step_figures(objective, ALPHA)
    assert mixed["loss"] != plain["loss"]
    monkeypatch.setattr(jax.random, "beta", lambda key, a, b: np.float32(1))
    _, whole = step_figures(objective, ALPHA)
    for name, value in plain.items():
        assert float(whole[name]) == pytest.approx(float(value), rel=1e-6)


def test_what_is_masked_is_no_partner():
    mask = np.array([True, True, False, True, True, False])
    shares = np.asarray(mixup.sample_lambdas(jax.random.key(0), mask, 1.0))
    assert shares.dtype == np.float32
    np.testing.assert_array_equal(shares == 1, [True, False, True, True, False, True])
    images = batch(6)["input"]
    mixed = np.asarray(mixup.mix_inputs(images, shares))
    np.testing.assert_array_equal(mixed[shares == 1], images[shares == 1])
    between = shares[1] * images[1].astype(float) + (1 - shares[1]) * images[0]
    assert np.abs(mixed[1] - between).max() <= 0.5001


def test_each_step_draws_a_new_share_from_the_beta_distribution():
    def share(step):
        key = jax.random.fold_in(jax.random.key(0), step)
        return mixup.sample_lambdas(key, np.ones(2, bool), 0.2)[0]

    shares = np.asarray(jax.vmap(share)(np.arange(4000)))
    assert np.isfinite(shares).all()
    assert len(np.unique(shares)) > 3000
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * 0.2 + 1)), rel=0.05)
