import numpy as np
import pytest

from llc_jax.report.examples import Examples, choose, figures, shown
from tests.made_runs import make_examples


@pytest.fixture(scope="module")
def code_logits():
    return np.random.default_rng(1).normal(size=(200, 12)).astype(np.float32)


def test_sides_of_a_bit_have_its_most_certain_images(code_logits):
    choice = choose(code_logits)
    for bit, logits in enumerate(code_logits.T):
        order = np.argsort(logits)
        np.testing.assert_array_equal(choice.sides[bit, 0], order[:8])
        np.testing.assert_array_equal(choice.sides[bit, 1], order[::-1][:8])
        expected = 1 / (1 + np.exp(-np.abs(logits[choice.sides[bit]])))
        np.testing.assert_allclose(choice.probabilities[bit], expected, rtol=1e-5)
        assert choice.balance[bit] == np.mean(logits >= 0)


def test_queries_find_the_nearest_other_images(code_logits):
    choice = choose(code_logits)
    assert len(set(choice.queries.tolist())) == 12
    signs = code_logits >= 0
    for query, found, distances in zip(choice.queries, choice.found, choice.distances, strict=True):
        expected = (signs != signs[query]).sum(axis=1)
        np.testing.assert_array_equal(expected[found], distances)
        others = np.delete(expected, query)
        np.testing.assert_array_equal(distances, np.sort(others)[:10])
        assert query not in found


def test_equal_codes_are_found_in_any_order():
    found = choose(np.ones((100, 4), np.float32)).found
    # The first images of the data would be of one class.
    assert found.max() > 50


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_images_are_enough(count):
    logits = np.linspace(-1, 1, 3 * count, dtype=np.float32).reshape(count, 3)
    choice = choose(logits)
    assert choice.found.shape == (count, count - 1)
    on_sides = np.sort(choice.sides[0][choice.sides[0] >= 0])
    np.testing.assert_array_equal(on_sides, np.arange(count))


def test_only_images_that_are_shown_are_kept(code_logits):
    choice = choose(code_logits)
    indices, among = shown(choice)
    for name in ("queries", "found"):
        np.testing.assert_array_equal(indices[getattr(among, name)], getattr(choice, name))
    np.testing.assert_array_equal(among.sides < 0, choice.sides < 0)
    used = np.concatenate([choice.sides.ravel(), choice.queries, choice.found.ravel()])
    assert set(indices.tolist()) == set(used.tolist()) - {-1}


def test_examples_are_read_as_they_were_written(tmp_path):
    examples = make_examples(["a", "<b>", "c\udcff"], 7)
    np.savez(tmp_path / "examples.npz", **examples.as_arrays())
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as arrays:
        again = Examples.from_arrays(arrays)
    assert again.thumbnails == examples.thumbnails
    assert again.class_names == examples.class_names
    assert figures(again) == figures(examples)


def test_many_bits_are_bounded():
    choice = choose(np.random.default_rng(0).normal(size=(50, 300)).astype(np.float32))
    assert choice.sides.shape == (64, 2, 8)
    assert choice.distances.max() > 64  # All bits count in the search.
