import numpy as np
import pytest

from llc_jax.codes import decoders, packing
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError


@pytest.mark.parametrize(("classes", "num_bits"), [(1, 1), (5, 1), (10, 8), (100, 20), (40, 33)])
def test_ed_and_mhd_equal_brute_force(classes, num_bits):
    rng = np.random.default_rng(num_bits)
    codebook = Codebook.from_numpy(rng.normal(size=(classes, num_bits)))
    logits = rng.normal(size=(64, num_bits)).astype(np.float32)
    logits[:32] = codebook.latent[rng.integers(classes, size=32)]
    distances = ((logits >= 0)[:, None] != (codebook.latent >= 0)[None]).sum(-1)
    nearest, least = distances.argmin(1), distances.min(1)
    for given in (logits, packing.pack(logits)):
        labels, found = decoders.make("mhd", codebook)(given)
        np.testing.assert_array_equal(labels, nearest)
        np.testing.assert_array_equal(found, least)
        labels, found = decoders.make("ed", codebook)(given)
        np.testing.assert_array_equal(labels, np.where(least == 0, nearest, -1))
        np.testing.assert_array_equal(found, least)


def test_a_tie_goes_to_the_lowest_class():
    codebook = Codebook.from_numpy(np.array([[-1, -1.0], [1, -1], [-1, 1], [1, -1]]))
    labels, distances = decoders.make("mhd", codebook)(np.array([[1.0, 1.0], [1.0, -1.0]], "f"))
    assert labels.tolist() == [1, 1]
    assert distances.tolist() == [1, 0]


def test_bad_input_is_named():
    codebook = Codebook.from_numpy(np.ones((3, 20)))
    with pytest.raises(InputError, match="no decoder 'nearest'; there are ed, mhd"):
        decoders.make("nearest", codebook)
    with pytest.raises(InputError, match=r"20 bits: give uint32\[N, 1\] or float\[N, 20\]"):
        decoders.make("mhd", codebook)(np.zeros((4, 2), np.uint32))
