import jax
import jax.numpy as jnp
import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.decoding import decoders
from llc_jax.decoding import table as tables
from llc_jax.errors import InputError

# name -> bits, classes, different class codes at most, type of the keys, type of the ties.
TABLES = {
    "one bit": (1, 5, 2, np.uint8, np.uint8),
    "one class, one bit": (1, 1, 1, np.uint8, np.uint8),
    "one class": (16, 1, 1, np.uint8, np.uint8),
    "5 bits": (5, 9, 5, np.uint8, np.uint8),
    "16 bits, collisions": (16, 500, 60, np.uint16, np.uint8),
    "16 bits, all equal": (16, 300, 1, np.uint16, np.uint16),
    "16 bits, many classes": (16, 40_000, 2**16, np.uint32, np.uint8),
    "20 bits": (20, 1000, 2**20, np.uint16, np.uint8),
    "20 bits, collisions": (20, 1000, 50, np.uint16, np.uint16),
}


def make_case(name, queries=400):
    """Returns a codebook, and codes: random ones, then class codes."""
    num_bits, classes, different, *_ = TABLES[name]
    rng = np.random.default_rng(num_bits)
    pool = rng.integers(2**num_bits, size=different)
    class_codes = pool[rng.integers(different, size=classes)]
    codebook = Codebook.from_numpy(np.where(class_codes[:, None] >> np.arange(num_bits) & 1, 1, -1))
    codes = rng.integers(2**num_bits, size=queries)
    codes[queries // 2 :] = class_codes[rng.integers(classes, size=queries - queries // 2)]
    return codebook, codes.astype(np.uint32)[:, None]


def brute_force(codebook, codes):
    """Labels, distances and ties from the distances to all classes."""
    class_bits = (np.asarray(codebook.latent) >= 0) @ (1 << np.arange(codebook.num_bits))
    labels, distances, ties = [], [], []
    for code in codes[:, 0].astype(np.int64):
        to_classes = np.bitwise_count(class_bits ^ code)
        labels.append(to_classes.argmin())
        distances.append(to_classes.min())
        ties.append((to_classes == to_classes.min()).sum())
    return labels, distances, ties


def assert_results(results, expected, array_type=np.ndarray):
    assert len(results) == len(expected)
    for result, values in zip(results, expected, strict=True):
        assert isinstance(result, array_type)
        assert result.dtype == np.int32
        np.testing.assert_array_equal(result, values)


@pytest.mark.parametrize("name", TABLES)
def test_equals_brute_force(name):
    codebook, codes = make_case(name)
    decoder = decoders.make("table", codebook)
    expected = brute_force(codebook, codes)
    assert_results(decoder.details(codes), expected)
    assert_results(decoder(codes), expected[:2])
    assert_results(
        decoder(np.asarray(packing.unpack(codes, codebook.num_bits), float)), expected[:2]
    )
    assert_results(decoder.details(jnp.asarray(codes)), expected, jax.Array)
    assert_results(decoder(jnp.asarray(codes)), expected[:2], jax.Array)


@pytest.mark.parametrize("name", TABLES)
def test_takes_no_more_bytes_than_its_entries_need(name):
    codebook, _ = make_case(name, queries=2)
    *_, key_type, ties_type = TABLES[name]
    table = tables.build(codebook.packed, codebook.num_bits)
    assert table.key.dtype == key_type
    assert table.ties.dtype == ties_type
    bytes_per_code = np.dtype(key_type).itemsize + np.dtype(ties_type).itemsize
    nbytes = decoders.make("table", codebook).nbytes
    assert nbytes == bytes_per_code * 2**codebook.num_bits + table.label_bits.nbytes


@pytest.mark.parametrize("queries", [0, 1, 99, 100, 199, 200, 201, 1000])
def test_pieces_in_threads_make_one_answer(monkeypatch, queries):
    monkeypatch.setattr(tables, "_PIECE", 100)
    codebook, codes = make_case("20 bits", queries)
    decoder = decoders.make("table", codebook)
    assert_results(decoder.details(codes), brute_force(codebook, codes))
    if queries:
        codes[-1] = 2**20
        with pytest.raises(InputError, match="bits set beyond the first 20"):
            decoder(codes)


def test_layouts():
    codebook, codes = make_case("20 bits, collisions")
    decoder = decoders.make("table", codebook)
    expected = brute_force(codebook, codes)
    read_only = codes.copy()
    read_only.flags.writeable = False
    unaligned = np.zeros(codes.nbytes + 1, np.uint8)[1:].view(np.uint32).reshape(codes.shape)
    unaligned[:] = codes
    for same in (
        read_only,
        np.repeat(codes, 3, axis=0)[::3],
        np.repeat(codes, 2, axis=1)[:, :1],
        codes[::-1].copy()[::-1],
        np.asfortranarray(codes),
        unaligned,
    ):
        assert_results(decoder.details(same), expected)
        assert_results(decoder(same), expected[:2])
    assert codes.flags.writeable
    assert all(result.flags.writeable for result in decoder(codes))
    assert_results(decoder.details(codes[:0]), ([], [], []))
    assert_results(decoder(np.zeros((0, 20), np.float32)), ([], []))


@pytest.mark.parametrize("name", ["one bit", "5 bits", "20 bits"])
@pytest.mark.parametrize("stray", ["lowest", "highest"])
def test_bits_beyond_the_code_are_refused(name, stray):
    codebook, codes = make_case(name)
    decoder = decoders.make("table", codebook)
    codes[137] |= np.uint32(1 << (codebook.num_bits if stray == "lowest" else 31))
    message = f"bits set beyond the first {codebook.num_bits}"
    with pytest.raises(InputError, match=message):
        decoder(codes)
    with pytest.raises(InputError, match=message):
        decoder.details(codes)


def test_24_bits_fit_the_default_limit_with_the_widest_entries():
    assert (4 + 4) * 2**24 <= tables.MEMORY_LIMIT < (4 + 4) * 2**25
