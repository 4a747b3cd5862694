"""A run of a backbone on the whole dataset, then of LLC and all its rivals on a part of it."""

import common
import jax
import numpy as np
import pytest
from ml_collections import ConfigDict

import llc_jax
from llc_jax.codes.codebook import Codebook
from llc_jax.errors import InputError
from llc_jax.experiment.evaluate import evaluate
from llc_jax.experiment.run import run
from tests import tiny

CLASSES, BITS = 5, 6


def tree(**changes):
    """The config: `changes` replaces stages."""
    config = tiny.get_config().unlock()
    config.num_bits = 8
    config.data.protocol.update({"name": "seeded", "classes": CLASSES, "per_class": 64})
    stages, sgd = ConfigDict(sort_keys=False), common.sgd(0.05)
    more = {"num_bits": BITS, "init_from": "backbone"}
    stages.backbone = common.linear(3, common.sgd(0.1))
    stages.backbone.whole_dataset = True
    stages.codebook = common.codebook(5, sgd, logit_scale=BITS**-0.5, **more)
    stages.instance = common.instance(5, sgd, num_bits=BITS)
    stages.hashnet = common.hashnet(5, sgd, **more)
    stages.greedy_hash = common.greedy_hash(5, sgd, **more)
    stages.csq = common.csq(5, sgd, **more)
    stages.orthohash = common.orthohash(5, sgd, **more)
    stages.real = common.real(5, sgd, num_bits=3, init_from="backbone")
    stages.class_number = common.class_number(5, sgd, num_bits=3, init_from="backbone")
    stages.update(changes)
    config.stages = stages
    return config.to_dict()


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """The workdir of the run, and its results."""
    workdir = tmp_path_factory.mktemp("rivals")
    return workdir, run(tree(), workdir, jax.devices()[:1])


@pytest.mark.slow
def test_every_stage_reports_what_it_can(finished):
    workdir, results = finished
    for name in ("linear", "greedy_hash/linear", "real/linear", "class_number/linear"):
        assert results[f"classification/{name}"] > 0.4, name
    for name in ("mhd", "csq/mhd", "orthohash/mhd"):
        assert 0 < results[f"classification/{name}"] <= 1
    assert not [name for name in results if "hashnet" in name or "greedy_hash/mhd" in name]
    for stage in ("instance", "csq", "orthohash"):
        codebook = Codebook.load(workdir / stage / "codebook.npz")
        assert (codebook.num_classes, codebook.num_bits) == (CLASSES, BITS)
    learnt, given = (
        Codebook.load(workdir / f"{name}/codebook.npz") for name in ("codebook", "instance")
    )
    np.testing.assert_array_equal(learnt.latent, given.latent)


@pytest.mark.slow
def test_a_stage_with_class_codes_is_a_model(finished):
    images = np.zeros((3, 8, 8, 3), np.uint8)
    for stage in ("instance", "orthohash"):
        model = llc_jax.load(finished[0] / stage)
        assert model.code_logits(images).shape == (3, BITS)
        assert len(model.codebook.class_names) == CLASSES
    with pytest.raises(InputError, match="The stage 'hashnet' of .* has no class codes"):
        llc_jax.load(finished[0] / "hashnet")


@pytest.mark.slow
def test_evaluates_the_last_stage_again(finished):
    workdir, results = finished
    found = evaluate(tree(), workdir, jax.devices()[:1])
    assert found == {key: results[key] for key in found}


@pytest.mark.parametrize(
    ("stage", "key", "value", "message"),
    [
        ("hashnet", "mixup", 0.5, "mixup is 0 for the objective 'hashnet', which compares"),
        ("hashnet", "num_bits", 0, "config.stages.hashnet.num_bits is at least 1, not 0"),
        ("real", "head", {"name": "code"}, "'linear' or 'bottleneck' or 'class_number' for the"),
        ("class_number", "num_bits", 2, "2 bits do not hold the numbers of 5 classes: 3 do"),
        ("instance", "num_bits", 5, "no stage with a codebook head before it, .* and 5 bits"),
        ("csq", "codebook", "svd", "no stage with a linear head before it, of the same classes"),
        ("csq", "codebook", "", "'learnt'"),
    ],
)
def test_a_wrong_stage_fails_before_anything_is_written(tmp_path, stage, key, value, message):
    config = tree()
    config["stages"][stage][key] = value
    if not value and key == "codebook":
        config["stages"] = {"csq": config["stages"]["csq"] | {"init_from": "scratch"}}
    with pytest.raises(InputError, match=message):
        run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
