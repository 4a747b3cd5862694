"""The features of a run as a file of embeddings, which holds what the run has computed."""

import numpy as np
import pytest

from llc_jax.data.embeddings import open_embeddings
from llc_jax.data.splits import open_splits
from llc_jax.experiment.config import as_json, parse
from llc_jax.files import write_json
from llc_jax.reproduce import features
from tests.tiny import tree


@pytest.fixture
def begun(tmp_path):
    """Returns the workdir of a run that has not trained."""

    def begin(**changes):
        write_json(tmp_path / "config.json", as_json(parse(tree(**changes))))
        return tmp_path

    return begin


def test_the_file_has_the_features_of_all_images(begun):
    workdir = begun(stages__linear__trainable_blocks=0)
    assert features.main([str(workdir), str(workdir / "features.npz")]) == 0
    train, evaluation = open_embeddings(f"embeddings:{workdir / 'features.npz'}")
    digits = open_splits("digits", "", holdout=0.5, seed=0)
    kept = {len(array): array for array in map(np.load, (workdir / "features").glob("*.npy"))}
    for source, images in ((train, digits.train), (evaluation, digits.evaluation)):
        np.testing.assert_array_equal(source.labels, images.labels)
        assert source.class_names == images.class_names
        np.testing.assert_array_equal(source.gather(np.arange(len(source))), kept[len(images)])


def test_features_that_change_are_refused(begun, capsys):
    assert features.main([str(begun()), "features.npz"]) == 2
    assert "is not frozen" in capsys.readouterr().err
