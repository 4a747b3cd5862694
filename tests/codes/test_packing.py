import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.errors import InputError

BITS = [1, 7, 20, 31, 32, 33, 64, 65, 1000, 1024]


def oracle(signs: np.ndarray) -> np.ndarray:
    """Bit j of a code is bit j % 32 of word j // 32, one bit at a time."""
    words = np.zeros((len(signs), -(-signs.shape[1] // 32)), np.uint32)
    for row, code in enumerate(signs):
        for j, value in enumerate(code):
            if value > 0:
                words[row, j // 32] |= np.uint32(1 << (j % 32))
    return words


@pytest.mark.parametrize("num_bits", BITS)
def test_equals_the_definition_and_inverts(num_bits):
    rng = np.random.default_rng(num_bits)
    logits = rng.normal(size=(5, num_bits)).astype(np.float32)
    signs = np.where(logits >= 0, 1, -1).astype(np.int8)
    expected = oracle(signs)
    for form in (logits, signs, signs.astype(np.int32), signs > 0):
        np.testing.assert_array_equal(packing.pack(form), expected)
    np.testing.assert_array_equal(packing.pack_on_host(logits), expected)
    np.testing.assert_array_equal(packing.unpack(expected, num_bits), signs)
    assert packing.unpack(expected, num_bits).dtype == np.int8


def test_zero_logits_are_plus_one_and_high_bits_are_zero():
    np.testing.assert_array_equal(packing.pack(np.zeros((1, 20), np.float32)), [[2**20 - 1]])


def test_any_leading_axes():
    signs = np.where(np.random.default_rng(0).normal(size=(2, 3, 40)) >= 0, 1, -1)
    packed = packing.pack(signs.astype(np.int8))
    assert packed.shape == (2, 3, 2)
    np.testing.assert_array_equal(packing.unpack(packed, 40), signs)
    assert packing.pack(np.ones(40, np.int8)).shape == (2,)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="bits == 1"):
        packing.pack(np.ones((2, 8), np.uint8))
    with pytest.raises(InputError, match="between 1 and 1024 bits, not 1025"):
        packing.pack(np.ones((2, 1025), np.int8))
    with pytest.raises(InputError, match=r"33 bits are uint32\[..., 2\], not uint32\[4, 1\]"):
        packing.unpack(np.zeros((4, 1), np.uint32), 33)
