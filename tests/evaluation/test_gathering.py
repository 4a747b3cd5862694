"""Several processes measure together what one measures alone."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from llc_jax.evaluation.gathering import add_up, gather, gather_blocks
from tests.processes import PIPES, ROOT, finish, free_address

# Code logits around one code a class, of images that carry the number of their example. Some are
# damaged. What a process has of the database comes in several blocks.
PROGRAM = """
import json, sys
from llc_jax.training.process import Process

address, count, index, file = sys.argv[1], *map(int, sys.argv[2:4]), sys.argv[4]
process = Process()
if count > 1:
    process.join(address, count, index, 60)
import jax, jax.numpy as jnp, numpy as np
from llc_jax.codes.codebook import Codebook
from llc_jax.data import pipeline
from llc_jax.evaluation import gathering
from llc_jax.evaluation.decoding import Decoding
from llc_jax.evaluation.retrieval import Retrieval
from llc_jax.mesh import batch_sharding, make_mesh
from llc_jax.models.heads import Output

gathering._BLOCK = 500
rng = np.random.default_rng(0)
labels = rng.integers(6, size=700).astype(np.int32)
codes = rng.choice([-1, 1], size=(6, 12))
logits = (codes[labels] + rng.normal(size=(700, 12))).astype(np.float32)
batched, vectors = batch_sharding(make_mesh()), jnp.asarray(logits)

def batches(examples):
    shard = pipeline.ProcessShard.of(batched, 48)
    images = pipeline.InMemory(examples.astype(np.float32)[:, None], labels[examples])
    def damaged():
        for batch in pipeline.eval_batches(images, shard):
            yield batch | {"mask": batch["mask"] & (batch["input"][:, 0] % 9 != 5)}
    return pipeline.on_devices(damaged(), batched)

@jax.jit
def embed(inputs):
    return vectors[inputs[:, 0].astype(jnp.int32)]

queries, database = np.arange(0, 250), np.arange(200, 700)
exclude = np.where(queries >= 200, queries - 200, -1)
mesh = make_mesh(jax.local_devices()) if len(jax.local_devices()) > 2 else None
result = Retrieval(embed, (1, 20, 1000), prefixes=(5,), mesh=mesh).run(
    batches(queries), batches(database), exclude
)
decoding = Decoding(
    lambda inputs: Output(embed(inputs), None), Codebook.from_numpy(codes), ("mhd", "soft", "ed")
).run(batches(queries))
figures = result.figures | {k: v for k, v in decoding.items() if "second" not in k}
figures |= {name: curve.tolist() for name, curve in result.curves.items()}
with open(file, "w") as out:
    json.dump(figures, out)
if count > 1:
    process.finish()
"""


def measure(count, devices, folder):
    """The figures as each of so many processes has them."""
    environment = os.environ | {
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": str(ROOT),
    }
    command = [sys.executable, "-c", PROGRAM, free_address(), str(count)]
    files = [folder / f"{count}_{index}.json" for index in range(count)]
    processes = [
        subprocess.Popen([*command, str(index), file], env=environment, cwd=ROOT, **PIPES)
        for index, file in enumerate(files)
    ]
    for process in processes:
        finish(process)
    return [json.loads(file.read_text()) for file in files]


@pytest.mark.slow
def test_processes_measure_as_one(tmp_path):
    (alone,) = measure(1, 2, tmp_path)
    assert 0 < alone["cmap@20"] < 1
    assert 0 < alone["mhd/accuracy"] < 1
    for count, devices in [(3, 1), (2, 3)]:
        for figures in measure(count, devices, tmp_path):
            assert figures == alone


def test_one_process_has_all():
    values, positions = np.arange(12).reshape(6, 2), np.arange(6)
    np.testing.assert_array_equal(gather(values, positions), values)
    ((block, of_block),) = gather_blocks(values, positions)
    np.testing.assert_array_equal(block, values)
    np.testing.assert_array_equal(of_block, positions)
    large = np.array([2**40, 3])
    assert add_up({"a": large, "b": np.int64(-1)})["a"].tolist() == large.tolist()
