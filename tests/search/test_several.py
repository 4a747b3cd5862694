import numpy as np
import pytest

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.search.index import HammingIndex
from llc_jax.search.several import SeveralIndexes


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).standard_normal((90, 12)).astype(np.float32)


def make(logits, cuts):
    """One index of all codes, and several of consecutive ones."""
    codes, ids = packing.pack_on_host(logits), np.arange(len(logits)) * 7
    whole = HammingIndex(12)
    whole.add(codes, ids)
    parts = []
    for rows in np.split(np.arange(len(logits)), cuts):
        parts.append(HammingIndex(12))
        parts[-1].add(codes[rows], ids[rows])
    return whole, SeveralIndexes(parts)


@pytest.mark.parametrize("cuts", [[], [30, 60], [1, 1, 88]])
def test_as_one_index(logits, cuts):
    whole, several = make(logits, cuts)
    assert len(several) == 90
    queries = packing.pack_on_host(logits[:20] + 0.4)
    for k in (1, 5, 90, 100):
        for found, expected in zip(
            several.search(queries, k), whole.search(queries, k), strict=True
        ):
            np.testing.assert_array_equal(found[:, :90], expected[:, :90])
    # With a shortlist of all there is nothing that one could miss.
    for found, expected in zip(
        several.rescore(logits[:20], 10, 9), whole.rescore(logits[:20], 10, 9), strict=True
    ):
        np.testing.assert_array_equal(found, expected)


def test_indexes_in_files(logits, tmp_path):
    whole, _ = make(logits, [])
    other = HammingIndex(13)
    for name, index in (("a", whole), ("b", whole), ("c", other)):
        index.save(tmp_path / name)
    assert len(SeveralIndexes.load([tmp_path / "a", tmp_path / "b"])) == 180
    with pytest.raises(InputError, match="of 13 bits, but .* of 12: search them apart"):
        SeveralIndexes.load([tmp_path / "a", tmp_path / "c"])
