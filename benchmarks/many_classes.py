"""Measures the time of a step of phase 2 as the number of classes grows.

  python benchmarks/many_classes.py

Phase 2 reads only the codes of the labels in its batch, so a step with a million classes
should take as long as one with a thousand. Steps with the three numbers of classes alternate,
with the same network and images. It prints the median times; the last line is JSON.
"""

import json
import statistics
import time

import jax
import numpy as np
import optax

from llc_jax.codes.codebook import Codebook
from llc_jax.mesh import batch_sharding, make_mesh, replicated_sharding
from llc_jax.models import registry
from llc_jax.training import objectives, optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps

CLASSES = (1_000, 100_000, 1_000_000)
BITS = 64
BATCH = 64
ROUNDS = 60


def main() -> None:
    """Times the steps and prints them."""
    mesh = make_mesh()
    replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
    model = {"name": "resnet8_small", "dtype": "float32", "width": 16}
    network = registry.build(model, {"name": "code"}, num_classes=1, num_bits=BITS)
    sgd = optimizer.sgd(
        optax.constant_schedule(0.01),
        momentum=0.9,
        nesterov=False,
        weight_decay=5e-4,
        codebook_rate=1.0,
    )
    objective = objectives.OBJECTIVES["instance"]
    step = steps.make_step(network, objective.function, sgd, lambda key, images: images)
    step = steps.compile_step(step, mesh)
    state = states.create_on(
        replicated, lambda: states.create(network, sgd, objective.metrics, jax.random.key(0))
    )
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (BATCH, 32, 32, 3), np.uint8)
    codes, batches, times = {}, {}, {classes: [] for classes in CLASSES}
    for classes in CLASSES:
        codes[classes] = jax.device_put(Codebook.random(classes, BITS).packed, replicated)
        labels = rng.integers(classes, size=BATCH).astype(np.int32)
        batch = {"input": images, "label": labels, "mask": np.ones(BATCH, bool)}
        batches[classes] = jax.device_put(batch, batched)
        state, _ = step(state, batches[classes], codes[classes])
    for _ in range(ROUNDS):
        for classes in CLASSES:
            jax.block_until_ready(state)
            start = time.perf_counter()
            state, _ = step(state, batches[classes], codes[classes])
            jax.block_until_ready(state)
            times[classes].append(time.perf_counter() - start)
    medians = {classes: statistics.median(seconds) for classes, seconds in times.items()}
    for classes, seconds in medians.items():
        ratio = seconds / medians[CLASSES[0]]
        print(f"L = {classes:>9,}   {1000 * seconds:8.2f} ms a step   {ratio:.3f} x")
    print(json.dumps({str(classes): seconds for classes, seconds in medians.items()}))


if __name__ == "__main__":
    main()
