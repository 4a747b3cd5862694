import dataclasses

import pytest

from llc_jax.experiment.config import parse
from llc_jax.experiment.training_plan import fit_to_size
from tests.tiny import tree


@pytest.mark.parametrize(
    ("examples", "devices", "batch_size", "epochs"),
    [
        # Enough examples: 64 a batch, and 3 epochs of 100 steps each.
        (6400, 1, 64, (3, 3, 3)),
        # A quarter of 160, and 300 steps of 40 are 75 epochs.
        (160, 1, 40, (75, 75, 75)),
        # 16 at least, where there are so many.
        (20, 1, 16, (240, 240, 240)),
        (5, 1, 5, (300, 300, 300)),
        # Divided among the devices.
        (100, 8, 24, (72, 72, 72)),
    ],
)
def test_few_examples_get_small_batches_and_more_epochs(examples, devices, batch_size, epochs):
    config = parse(tree(min_steps=300))
    stages = {name: dataclasses.replace(s, epochs=3) for name, s in config.stages.items()}
    config = dataclasses.replace(config, stages=stages)
    fitted = fit_to_size(config, examples, devices)
    assert fitted.batch_size == batch_size
    assert tuple(stage.epochs for stage in fitted.stages.values()) == epochs
    halved = dataclasses.replace(config, num_microbatches=2)
    assert fit_to_size(halved, examples, devices).batch_size % (2 * devices) == 0
    unchanged = dataclasses.replace(config, min_steps=0)
    assert fit_to_size(unchanged, examples, devices) == unchanged
