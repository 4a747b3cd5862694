"""The stages that tell what a backbone separates, after the usual three of the tiny config."""

import common
import jax
import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.experiment.config import parse
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.run import run
from llc_jax.mesh import make_mesh
from tests import tiny
from tests.workdirs import weights

MORE = ("probe", "projection", "last_2")


def tree():
    """The config of all stages."""
    config = tiny.get_config().unlock()
    common.separability(config, 20, common.adamw(1e-2), 2)
    return config.to_dict()


def backbone(workdir, stage, blocks=""):
    """The arrays of a stage's backbone by path, or those of some of its blocks."""
    return {
        path: value
        for path, value in weights(workdir, stage).items()
        if "['backbone']" in path
        and "['opt_state']" not in path
        and (not blocks or any(f"['blocks']['{block}']" in path for block in blocks))
    }


def assert_same(arrays, others):
    assert arrays
    assert arrays.keys() == others.keys()
    for path, value in arrays.items():
        np.testing.assert_array_equal(value, others[path], err_msg=path)


def test_the_stages_start_from_the_backbones_that_they_tell_of(tmp_path):
    plan = plan_run(parse(tree()), tmp_path / "run", make_mesh())
    stages = {stage.name: stage for stage in plan.stages}
    assert tuple(stages)[3:] == MORE
    starts = {"probe": "instance"} | dict.fromkeys(MORE[1:], "linear")
    for name, start in starts.items():
        stage = stages[name]
        assert stage.initial_weights == stages[start].trained_weights
        assert (stage.frozen is not None) == (name in ("probe", "projection"))
        assert (stage.initial_codebook is not None) == (name != "probe")
        assert stage.figures.class_logits == f"{name}/linear"
        assert stage.figures.codes == f"{name}/"


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of the run, and its results."""
    workdir = tmp_path_factory.mktemp("separability")
    return workdir, run(tree(), workdir, jax.devices()[:1])


@pytest.mark.slow
def test_what_is_frozen_stays_as_it_was(finished):
    workdir, _ = finished
    assert_same(backbone(workdir, "probe"), backbone(workdir, "instance"))
    assert_same(backbone(workdir, "projection"), backbone(workdir, "linear"))
    assert_same(backbone(workdir, "last_2", "0"), backbone(workdir, "linear", "0"))
    before, after = backbone(workdir, "linear", "12"), backbone(workdir, "last_2", "12")
    assert before.keys() == after.keys()
    assert not any(np.array_equal(value, after[path]) for path, value in before.items())


@pytest.mark.slow
def test_each_frozen_backbone_encodes_once(finished):
    assert len(list((finished[0] / "features").glob("*.npy"))) == 4


@pytest.mark.slow
def test_codes_are_fitted_to_the_codebook_that_was_learnt(finished):
    workdir, _ = finished
    learnt = Codebook.load(workdir / "codebook" / "codebook.npz").latent
    for name in MORE[1:]:
        given = Codebook.load(workdir / name / "codebook.npz").latent
        np.testing.assert_array_equal(given >= 0, learnt >= 0)
    assert not (workdir / "probe" / "codebook.npz").exists()


@pytest.mark.slow
def test_the_figures_have_the_names_of_their_stages(finished):
    _, results = finished
    assert results["classification/probe/linear"] > 0.7
    for name in MORE[1:]:
        assert 0 < results[f"classification/{name}/ed"] <= results[f"classification/{name}/mhd"]
        assert results[f"classification/{name}/soft"] > 0.5
