import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.evaluation import ood, ood_scores
from llc_jax.evaluation.ood_detection import Classifier, Detected, OodDetection
from llc_jax.models.heads import Output

rng = np.random.default_rng(0)
FEATURES = rng.normal(size=(200, 6)).astype(np.float32)
WEIGHTS, BIASES = rng.normal(size=(6, 4)).astype(np.float32), np.arange(4, dtype=np.float32)
CODE_LOGITS = rng.normal(size=(200, 9)).astype(np.float32)
CLASS_CODES = np.asarray(packing.pack(rng.normal(size=(4, 9))))
KNOWN, NEAR, OTHER, FAR, TRAIN = np.split(np.arange(200), [40, 70, 75, 110])


def batches_of(rows, size=16):
    """Yields the rows in batches; the last is padded with rows that are masked."""
    for start in range(0, len(rows), size):
        part = rows[start : start + size]
        inputs = np.pad(part, (0, size - len(part)), constant_values=199)
        yield {
            "input": jnp.asarray(inputs),
            "label": jnp.zeros(size, jnp.int32),
            "mask": jnp.arange(size) < len(part),
        }


@jax.jit
def encode_linear(rows):
    features = jnp.asarray(FEATURES)[rows]
    return Output(None, features @ WEIGHTS + BIASES[None], features=features)


@jax.jit
def encode_codes(rows):
    return Output(jnp.asarray(CODE_LOGITS)[rows], jnp.zeros((len(rows), 4)), jnp.zeros((4, 9)))


def detect(encode, *options):
    unknown = {"near/a": batches_of(NEAR), "near/b": batches_of(OTHER), "far/a": batches_of(FAR)}
    detection = OodDetection(encode, *options)
    return detection.run(batches_of(KNOWN), unknown, batches_of(TRAIN))


def test_scores_of_codes():
    found = detect(encode_codes, CLASS_CODES)
    expected = ood_scores.code_scores(CODE_LOGITS, CLASS_CODES)
    assert list(found.known) == list(expected)
    for score, values in expected.items():
        np.testing.assert_allclose(found.known[score], values[KNOWN], rtol=1e-6)
        np.testing.assert_allclose(found.unknown["near/b"][score], values[OTHER], rtol=1e-6)
        np.testing.assert_allclose(found.unknown["far/a"][score], values[FAR], rtol=1e-6)


def test_scores_of_a_linear_classifier_and_its_features():
    found = detect(encode_linear, None, Classifier(WEIGHTS, BIASES))
    logits = FEATURES @ WEIGHTS + BIASES
    expected = ood_scores.class_logit_scores(logits)
    expected["neighbor_distance"] = ood_scores.neighbor_distance(FEATURES, FEATURES[TRAIN], 50)
    expected["virtual_logit"] = ood_scores.virtual_logit(
        FEATURES,
        logits,
        train_features=FEATURES[TRAIN],
        train_class_logits=logits[TRAIN],
        weights=WEIGHTS,
        biases=BIASES,
    )
    assert list(found.known) == list(expected)
    for score, values in expected.items():
        np.testing.assert_allclose(found.known[score], values[KNOWN], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(
            found.unknown["near/a"][score], values[NEAR], rtol=1e-4, atol=1e-5
        )
    # Without a classifier, as of the real numbers of a bottleneck, the training images stay unread.
    detection = OodDetection(lambda rows: Output(None, encode_linear(rows).class_logits))
    scores = detection.run(batches_of(KNOWN), {}, iter(()))
    assert list(scores.known) == list(ood_scores.class_logit_scores(logits))


def test_codes_without_class_codes_have_no_scores():
    found = detect(jax.jit(lambda rows: Output(jnp.asarray(CODE_LOGITS)[rows], None)))
    assert found.known == {}
    assert found.measure() == {}


def test_groups_have_plain_means_over_their_sets():
    known, unknown = np.arange(50.0), {"near/a": np.arange(20.0) + 9, "near/b": np.arange(4.0) + 80}
    unknown["far/c"] = np.arange(7.0) + 40
    measured = Detected(
        {"score": known}, {name: {"score": values} for name, values in unknown.items()}
    ).measure()["score"]
    assert list(measured) == ["near/a", "near/b", "near", "far/c", "far"]
    by_set = {name: ood.measure(known, values) for name, values in unknown.items()}
    assert measured["near/a"] == by_set["near/a"]
    assert measured["far"] == by_set["far/c"]
    for figure in ("auroc", "fpr95", "aupr_in"):
        mean = (by_set["near/a"][figure] + by_set["near/b"][figure]) / 2
        assert measured["near"][figure] == pytest.approx(mean)
