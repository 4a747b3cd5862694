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


@pytest.mark.parametrize("num_bits", BITS)
def test_bytes_are_those_of_numpy(num_bits):
    logits = np.random.default_rng(num_bits).normal(size=(9, num_bits)).astype(np.float32)
    codes = np.asarray(packing.pack(logits))
    for order in packing.BIT_ORDERS:
        expected = np.packbits(logits > 0, axis=1, bitorder=order)
        code_bytes = packing.to_bytes(codes, num_bits, order)
        assert code_bytes.dtype == np.uint8
        np.testing.assert_array_equal(code_bytes, expected)
        back = packing.from_bytes(expected, num_bits, order)
        assert back.dtype == np.uint32
        np.testing.assert_array_equal(back, codes)
    little = packing.to_bytes(codes, num_bits, "little")
    np.testing.assert_array_equal(packing.to_bytes(codes, num_bits), little)
    assert packing.from_bytes(expected[:0], num_bits).shape == (0, -(-num_bits // 32))


def test_bytes_by_hand():
    # Bits 0 and 9 of 12.
    codes = np.array([[1 | 1 << 9]], np.uint32)
    np.testing.assert_array_equal(packing.to_bytes(codes, 12), [[0b1, 0b10]])
    np.testing.assert_array_equal(packing.to_bytes(codes, 12, "big"), [[0b10000000, 0b01000000]])


def test_reads_what_sentence_transformers_quantizes():
    # As it documents the precisions: `ubinary` is np.packbits(embeddings > 0), and `binary`
    # that minus 128 as int8.
    embeddings = np.random.default_rng(0).normal(size=(30, 96)).astype(np.float32)
    ubinary = np.packbits(embeddings > 0).reshape(30, -1)
    binary = (ubinary - 128).astype(np.int8)
    codes = packing.from_bytes(ubinary, 96, bit_order="big")
    np.testing.assert_array_equal(codes, packing.pack(embeddings))
    np.testing.assert_array_equal(packing.to_bytes(codes, 96, bit_order="big"), ubinary)
    with pytest.raises(InputError, match=r"are uint8\[N, 12\], not int8\[30, 12\]"):
        packing.from_bytes(binary, 96, bit_order="big")


@pytest.mark.parametrize("num_bits", [20, 64])
def test_faiss_finds_the_same_distances_among_bytes_of_either_order(num_bits):
    faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
    signs = np.random.default_rng(1).choice(np.array([-1, 1], np.int8), (200, num_bits))
    codes = np.asarray(packing.pack(signs))
    expected = np.sort((signs[:10, None] != signs[None]).sum(axis=2), axis=1)
    for order in packing.BIT_ORDERS:
        code_bytes = packing.to_bytes(codes, num_bits, order)
        index = faiss.IndexBinaryFlat(8 * code_bytes.shape[1])
        index.add(code_bytes)
        np.testing.assert_array_equal(index.search(code_bytes[:10], 200)[0], expected)


def test_bad_bytes_are_named():
    codes = np.zeros((4, 1), np.uint32)
    for function, argument in ((packing.to_bytes, codes), (packing.from_bytes, codes[:, :0])):
        with pytest.raises(InputError, match="bit_order is one of big, little, not 'bigger'. Did"):
            function(argument, 20, "bigger")
        with pytest.raises(InputError, match="between 1 and 1024 bits, not 0"):
            function(argument, 0)
    with pytest.raises(InputError, match=r"33 bits are uint32\[N, 2\], not uint32\[4, 1\]"):
        packing.to_bytes(codes, 33)
    with pytest.raises(InputError, match="bits set beyond the first 20"):
        packing.to_bytes(codes | 2**20, 20)
    for wrong in (np.zeros((4, 4), np.uint8), np.zeros(3, np.uint8), np.zeros((4, 3), np.uint32)):
        with pytest.raises(InputError, match=r"bytes of codes of 20 bits are uint8\[N, 3\], not"):
            packing.from_bytes(wrong, 20)
    for order, byte in (("little", 0b10000), ("big", 0b1000)):
        code_bytes = np.array([[0, 0, 0], [0, 0, byte]], np.uint8)
        with pytest.raises(InputError, match=f"beyond the first 20 of a code, read .*'{order}'"):
            packing.from_bytes(code_bytes, 20, order)
        packing.from_bytes(code_bytes, 21, order)


def test_bad_input_is_named():
    with pytest.raises(InputError, match="bits == 1"):
        packing.pack(np.ones((2, 8), np.uint8))
    with pytest.raises(InputError, match="between 1 and 1024 bits, not 1025"):
        packing.pack(np.ones((2, 1025), np.int8))
    with pytest.raises(InputError, match=r"33 bits are uint32\[..., 2\], not uint32\[4, 1\]"):
        packing.unpack(np.zeros((4, 1), np.uint32), 33)
