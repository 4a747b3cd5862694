import numpy as np
import pytest
import scipy.stats

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.evaluation import bits


def example(num_bits, classes=9, images=200, seed=0):
    """Code logits of images, their labels, and the codebook; some classes share a code."""
    rng = np.random.default_rng(seed)
    codes = rng.choice([-1, 1], (classes, num_bits))
    codes[-1] = codes[0]
    labels = rng.integers(classes, size=images)
    logits = (codes[labels] + rng.normal(scale=1.2, size=(images, num_bits))).astype(np.float32)
    return logits, labels, Codebook.from_numpy(codes)


def accuracy_by_hand(logits, labels, codes, decoder):
    """The share of images that are right, with a part of each where classes tie."""
    total = 0.0
    for f, label in zip(logits, labels, strict=True):
        if decoder == "mhd":
            scores = [-int(np.sum(np.where(f >= 0, 1, -1) != code)) for code in codes]
            best = [score == max(scores) for score in scores]
        else:
            winner = codes[np.argmax([code @ f.astype(np.float64) for code in codes])]
            best = [np.array_equal(code, winner) for code in codes]
        total += best[label] / sum(best)
    return total / len(labels)


@pytest.mark.parametrize("decoder", ["mhd", "soft"])
@pytest.mark.parametrize("num_bits", [1, 5, 33])
def test_removal_equals_decoding_without_each_bit(decoder, num_bits, monkeypatch):
    monkeypatch.setattr(bits, "_CHUNK", 64)
    logits, labels, codebook = example(num_bits, images=130)
    found = bits.removal(logits, labels, codebook, decoder)
    codes = np.sign(codebook.latent)
    assert found.accuracy == pytest.approx(accuracy_by_hand(logits, labels, codes, decoder))
    for bit in range(num_bits):
        kept = np.arange(num_bits) != bit
        expected = accuracy_by_hand(logits[:, kept], labels, codes[:, kept], decoder)
        assert found.without[bit] == pytest.approx(expected, abs=1e-6)
    np.testing.assert_array_equal(found.cost, found.accuracy - found.without)


def test_a_bit_that_tells_nothing_costs_nothing():
    codes = np.array([[1, 1, 1], [1, -1, 1], [1, 1, -1], [1, -1, -1]])
    found = bits.removal(codes.astype(float), np.arange(4), Codebook.from_numpy(codes))
    assert found.accuracy == 1
    np.testing.assert_allclose(found.cost, [0, 0.5, 0.5])


@pytest.mark.parametrize("chunk", [7, 1000])
def test_statistics_equal_numpys(chunk, monkeypatch):
    monkeypatch.setattr(bits, "_CHUNK", chunk)
    logits, _, _ = example(12)
    logits[:, 3] = logits[:, 1] * 2
    logits[:, 4] = -logits[:, 1]
    signs = np.where(logits >= 0, 1, -1)
    found = bits.statistics(logits)
    np.testing.assert_allclose(found.balance, (signs > 0).mean(axis=0))
    np.testing.assert_allclose(found.correlation, np.corrcoef(signs.T), atol=1e-12)
    entropy = [scipy.stats.entropy([share, 1 - share], base=2) for share in found.balance]
    np.testing.assert_allclose(found.entropy, entropy)
    of_signs = bits.statistics(signs)
    for values, others in zip(found, of_signs, strict=True):
        np.testing.assert_array_equal(values, others)


def test_a_bit_that_never_changes_has_no_entropy():
    found = bits.statistics(np.array([[0.0, 1], [2.0, -1]]))
    assert found.balance.tolist() == [1, 0.5]
    assert found.entropy.tolist() == [0, 1]
    assert found.correlation.tolist() == [[1, 0], [0, 1]]


def test_a_hyperplane_has_the_most_certain_images_first():
    logits = np.array([[0.0, 0], [-2, 0], [60, 0], [1, 0], [70, 0], [-0.5, 0], [-3, 0]])
    found = bits.hyperplane(logits, 0, count=3)
    assert found.positive.indices.tolist() == [4, 2, 3]
    assert found.negative.indices.tolist() == [6, 1, 5]
    np.testing.assert_allclose(found.positive.probabilities, [1, 1, 1 / (1 + np.exp(-1))])
    np.testing.assert_allclose(
        found.negative.probabilities, 1 / (1 + np.exp(-np.array([3, 2, 0.5])))
    )
    flat = bits.hyperplane(logits, 1)
    assert flat.positive.indices.tolist() == list(range(7))  # The sign of 0 is +1.
    assert flat.positive.probabilities.tolist() == [0.5] * 7
    assert flat.negative.indices.size == 0


def test_bad_input_is_named():
    logits, labels, codebook = example(5)
    for arguments, message in [
        ((logits, labels, codebook, "ed"), "The decoder is one of mhd, soft, not 'ed'"),
        ((logits[:, :4], labels, codebook), r"has 5 bits: give float\[N, 5\]"),
        ((logits, labels[:3], codebook), r"not \[200, 5\] and \[3\]"),
        ((logits, labels + 1, codebook), "Labels are from 0 to 8"),
        ((logits[:0], labels[:0], codebook), "of one image or more"),
        ((packing.pack(logits), labels, codebook), "Code logits are real"),
        ((np.full_like(logits, np.nan), labels, codebook), "not finite"),
    ]:
        with pytest.raises(InputError, match=message):
            bits.removal(*arguments)
    with pytest.raises(InputError, match="There are the bits 0 to 4, not 5"):
        bits.hyperplane(logits, 5)
    with pytest.raises(InputError, match="at least 1 image on each side, not 0"):
        bits.hyperplane(logits, 0, 0)
