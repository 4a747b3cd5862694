import dataclasses

import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.config import parse
from llc_jax.experiment.plan import plan_evaluation, plan_run
from llc_jax.experiment.stage import FigureNames
from llc_jax.mesh import make_mesh
from tests.tiny import tree


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The plan's stages: the usual three, and two more instance stages with other codebooks."""
    usual = tree()["stages"]
    more = {
        "svd": usual["instance"] | {"codebook": "svd", "init_from": "linear"},
        "random": usual["instance"] | {"codebook": "random", "num_bits": 3},
    }
    config = tree(stages=usual | more, retrieval=(10,), decoders=("ed",))
    workdir = tmp_path_factory.mktemp("plan") / "run"
    plan = plan_run(parse(config), workdir, make_mesh())
    assert not workdir.exists()
    assert plan.summary[-1] == "3 bits are too few for the classes: some will share a code"
    return {stage.name: stage for stage in plan.stages}


def test_a_stage_is_complete(stages):
    assert [stage.num_bits for stage in stages.values()] == [8, 8, 8, 8, 3]
    assert [stage.head for stage in stages.values()] == ["linear", "codebook", *("code",) * 3]
    assert len({stage.training.seed for stage in stages.values()}) == 5
    for name, stage in stages.items():
        assert stage.directory.path == stage.workdir / name
        assert stage.num_classes == 10
        assert stage.training.name == name
        with pytest.raises(dataclasses.FrozenInstanceError):
            stage.num_bits = 9


def test_a_stage_knows_where_its_weights_and_its_codebook_come_from(stages):
    assert stages["linear"].initial_weights is None
    assert stages["linear"].initial_codebook is None
    assert stages["codebook"].initial_weights == stages["linear"].trained_weights
    assert stages["codebook"].initial_codebook is None
    assert stages["svd"].initial_weights == stages["linear"].trained_weights
    drawn = stages["random"].initial_codebook()
    expected = Codebook.random(10, 3, stages["random"].training.seed)
    np.testing.assert_array_equal(drawn.latent, expected.latent)
    assert drawn.class_names == tuple("0123456789")
    with pytest.raises(InputError, match=r"There is no codebook in .*/codebook\."):
        stages["instance"].initial_codebook()


def test_the_first_stage_of_a_kind_names_its_figures_without_a_prefix(stages):
    assert {name: stage.figures for name, stage in stages.items()} == {
        "linear": FigureNames("linear", "", "", "linear/"),
        "codebook": FigureNames("class_code", "codebook/", "", "codebook/"),
        "instance": FigureNames("linear", "", "", ""),
        "svd": FigureNames("svd/linear", "svd/", "svd/", "svd/"),
        "random": FigureNames("random/linear", "random/", "random/", "random/"),
    }


def test_an_evaluation_is_of_the_last_stage_as_the_workdir_has_it(tmp_path):
    plan = plan_evaluation(parse(tree()), tmp_path / "run", make_mesh())
    (stage,) = plan.stages
    assert (stage.name, stage.initial_codebook()) == ("instance", None)
    assert "newest checkpoint" in plan.summary[-1]
    with pytest.raises(InputError, match="There is no checkpoint in"):
        stage.initial_weights()
    assert not (tmp_path / "run").exists()
