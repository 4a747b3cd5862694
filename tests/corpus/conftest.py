"""A corpus of small images, and a run that encodes them."""

import numpy as np
import pytest

import llc_jax
from llc_jax.data.sources import load_digits
from tests import corpora
from tests.made_runs import make_encoder


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache of their own for the tests of a file."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that encodes images of 8 pixels."""
    return make_encoder(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def model(run):
    return llc_jax.load(run)


@pytest.fixture(scope="module")
def images():
    """The images of a corpus, a list for each shard; one has none."""
    counts = corpora.COUNTS
    return np.split(load_digits().images[: sum(counts)], np.cumsum(counts)[:-1])


@pytest.fixture
def tars(tmp_path, images):
    """The corpus as WebDataset."""
    return corpora.write_tars(tmp_path / "tars", images)
