"""Measures the Python overhead of a train step, against the minimum that JAX needs.

  python benchmarks/step_overhead.py

The state is that of a ResNet-50 with one number in place of each array, and the step adds 1
to each leaf. The time is therefore almost only that of handling the tree. Three variants
alternate: bare leaves (one jitted call on a flat tuple, the minimum), our step (the tree,
with shardings) and our loop (batches, step, checks, progress). It prints the median over the
rounds of the mean time of a step; for the loop, of the median time of a step.
"""

import dataclasses
import gc
import json
import statistics
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from llc_jax.data.pipeline import InMemory, ProcessShard, train_batches
from llc_jax.mesh import batch_sharding, make_mesh, replicated_sharding
from llc_jax.models import registry
from llc_jax.training import loop, optimizer
from llc_jax.training import state as states
from llc_jax.training import step as steps
from llc_jax.training.checkpoint import Checkpoints
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest

STEPS = 200
ROUNDS = 15
BATCH = 8


@dataclasses.dataclass(frozen=True)
class Timed(InMemory):
    """Images that record the time of each batch."""

    times: list[float] = dataclasses.field(default_factory=list)

    def batches(self, order, part, steps):
        """Yields the batches."""
        for batch in super().batches(order, part, steps):
            self.times.append(time.perf_counter())
            yield batch


def resnet50_tree():
    """Returns the state of a ResNet-50 with one number in place of each array."""
    network = registry.build(
        {"name": "resnet50", "dtype": "bfloat16"}, {"name": "linear"}, num_classes=2, num_bits=2
    )
    sgd = optimizer.sgd(
        optax.constant_schedule(0.1),
        momentum=0.9,
        nesterov=False,
        weight_decay=0.0,
        codebook_rate=1.0,
    )
    metrics = ("loss", "accuracy")
    shapes = jax.eval_shape(lambda: states.create(network, sgd, metrics, jax.random.key(0)))
    return jax.tree.map(lambda leaf: np.zeros((), leaf.dtype), shapes)


def add_one(state, batch, class_codes):
    """Adds 1 to each leaf, in place of a train step."""
    del batch, class_codes
    return jax.tree.map(lambda leaf: leaf + 1, state), {"loss": jnp.float32(0)}


def main() -> None:
    """Measures the three variants and prints their times."""
    mesh = make_mesh()
    replicated, batched = replicated_sharding(mesh), batch_sharding(mesh)
    tree = resnet50_tree()
    leaves = tuple(jax.tree.leaves(tree))
    bare = jax.jit(lambda leaves: tuple(leaf + 1 for leaf in leaves), donate_argnums=0)
    ours = steps.compile_step(add_one, mesh)
    images = Timed(np.zeros((64, 8, 8, 3), np.uint8), np.zeros(64, np.int32))
    shard = ProcessShard.of(batched, BATCH)
    batch = jax.device_put(next(train_batches(images, shard, range(1), seed=0)), batched)

    def time_bare():
        state = jax.device_put(leaves)
        return _per_step(lambda state: bare(state), state)

    def time_ours():
        state = jax.device_put(tree, replicated)
        return _per_step(lambda state: ours(state, batch, None)[0], state)

    def time_loop():
        with tempfile.TemporaryDirectory() as workdir, Checkpoints(workdir) as checkpoints:
            training = _training(tree, ours, images, replicated, batched)
            images.times.clear()
            log = RunLog(workdir, primary=False)
            loop.train(
                training,
                lambda: jax.device_put(tree, replicated),
                class_codes=None,
                evaluate=dict,
                checkpoints=checkpoints,
                log=log,
                stop_request=StopRequest(),
            )
            return statistics.median(np.diff(images.times)) * 1e3

    variants = {"bare leaves": time_bare, "our step": time_ours, "our loop": time_loop}
    times = {name: [] for name in variants}
    for _ in range(ROUNDS + 1):
        for name, measure in variants.items():
            times[name].append(measure())
    medians = {name: statistics.median(values[1:]) for name, values in times.items()}
    devices = f"{mesh.size} {jax.default_backend()} device(s)"
    print(f"{len(leaves)} arrays, {devices}, JAX {jax.__version__}")
    for name, value in medians.items():
        print(f"{name:<12} {value:6.3f} ms a step   +{value - medians['bare leaves']:.3f} ms")
    print(json.dumps({"arrays": len(leaves), "ms_per_step": medians}))


def _per_step(step, state) -> float:
    """Returns the milliseconds of a step; waits for the device after the last step.

    As in our loop, the garbage collector ignores the objects that exist before the first step.
    """
    gc.collect()
    gc.freeze()
    start = time.perf_counter()
    for _ in range(STEPS):
        state = step(state)
    jax.block_until_ready(state)
    gc.unfreeze()
    return (time.perf_counter() - start) / STEPS * 1e3


def _training(tree, step, images, replicated, batched) -> loop.Training:
    """Returns a stage of one epoch; its last checkpoint is saved outside the measured time."""
    return loop.Training(
        name="overhead",
        timetable=loop.Timetable(STEPS * BATCH + 1, BATCH, 1),
        create=lambda: jax.tree.map(jnp.asarray, tree),
        step=step,
        images=images,
        shard=ProcessShard.of(batched, BATCH),
        replicated=replicated,
        batched=batched,
        seed=0,
        learning_rate=lambda step: 0.0,
    )


if __name__ == "__main__":
    main()
