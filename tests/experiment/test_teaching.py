"""A linear stage that gives phase 2 the targets of its bits."""

import dataclasses

import jax
import numpy as np
import pytest
import scipy.special

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.errors import InputError
from llc_jax.experiment.config import parse
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.run import run
from llc_jax.experiment.teaching import with_targets
from llc_jax.mesh import make_mesh
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import Stopped, StopRequest
from tests.stops import StopAfter
from tests.tiny import tree
from tests.workdirs import assert_same_weights


def taught(**changes):
    return tree(**{"stages__instance__teacher": "linear", **changes})


@pytest.mark.parametrize("frozen", [False, True])
def test_targets_are_the_mean_bits_of_the_classes(tmp_path, frozen):
    config = taught(frozen_backbone=frozen)
    run(config, tmp_path, jax.devices()[:1])
    stages = plan_run(parse(config), tmp_path, make_mesh(jax.devices()[:2])).stages
    linear, instance = stages[0], stages[-1]
    codebook = Codebook.load(tmp_path / "codebook.npz")
    ready = on_features(instance, RunLog(tmp_path), StopRequest())
    images = with_targets(ready, codebook)
    weights = linear.trained_weights()
    inputs = linear.dataset.plain.images
    output = linear.network.evaluate(weights["params"], weights["batch_stats"], inputs)
    bits = np.asarray(packing.unpack(codebook.packed, 8)) > 0
    expected = scipy.special.softmax(np.float64(output.class_logits), axis=1) @ bits
    np.testing.assert_allclose(images.targets, expected, atol=2e-3)
    # Each image of a batch has its own.
    shard = pipeline.ProcessShard(16, np.arange(16))
    order = pipeline.Shuffled(len(images.labels), seed=3)
    (batch,) = images.batches(order, shard, range(2, 3))
    examples = order(np.arange(32, 48))
    np.testing.assert_array_equal(batch["label"], linear.dataset.plain.labels[examples])
    np.testing.assert_array_equal(batch["targets"], np.float32(images.targets)[examples])


def test_a_run_with_a_teacher_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    config, device = taught(), jax.devices()[:1]
    expected = run(config, tmp_path / "unbroken", device)
    with pytest.raises(Stopped):
        run(config, tmp_path / "stopped", device, stop_request=StopAfter(50))
    assert run(config, tmp_path / "stopped", device) == expected
    assert_same_weights(tmp_path / "stopped", tmp_path / "unbroken", rtol=0, atol=0)
    assert run(tree(), tmp_path / "labels", device) != expected


class Halves(pipeline.InMemory):
    """Images in memory of which every other one is masked, as a damaged one is."""

    def batches(self, order, shard, steps):
        for batch, step in zip(super().batches(order, shard, steps), steps, strict=True):
            odd = order(shard.positions(step)) % 2 == 1
            yield batch | {"mask": batch["mask"] & odd}


def test_damaged_images_have_no_targets(tmp_path):
    config = taught(batch_size=40)
    run(config, tmp_path, jax.devices()[:1])
    instance = plan_run(parse(config), tmp_path, make_mesh(jax.devices()[:1])).stages[-1]
    codebook = Codebook.load(tmp_path / "codebook.npz")
    whole = with_targets(instance, codebook).targets
    plain = instance.dataset.plain
    teacher = dataclasses.replace(
        instance.teacher,
        dataset=dataclasses.replace(instance.dataset, plain=Halves(plain.images, plain.labels)),
    )
    halves = with_targets(dataclasses.replace(instance, teacher=teacher), codebook).targets
    np.testing.assert_array_equal(halves[1::2], whole[1::2])
    assert not halves[::2].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages__instance__teacher": "codebook"}, "teacher is one of linear, not 'codebook'"),
        (
            {"stages__instance__mixup": 0.2},
            "'instance' without mixup, not 'instance' with mixup 0.2",
        ),
        ({"stages__codebook__teacher": "linear"}, "'instance' without mixup, not 'codebook'"),
    ],
)
def test_a_teacher_that_cannot_be_is_refused(tmp_path, changes, message):
    with pytest.raises(InputError, match=message):
        run(taught(**changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()
