"""What a run of the tiny config has left in its workdir."""

import jax
import numpy as np
import orbax.checkpoint as ocp

from llc_jax.training import logging

STAGES = ["linear", "codebook", "instance"]


def weights(workdir, stage):
    """Returns the arrays of a stage's final state, by path."""
    steps = [int(p.name) for p in (workdir / stage / "checkpoints").iterdir() if p.name.isdigit()]
    path = workdir / stage / "checkpoints" / str(max(steps)) / "default"
    with ocp.PyTreeCheckpointer() as checkpointer:
        shapes = checkpointer.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), shapes)
        state = checkpointer.restore(path, restore_args=as_numpy)
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {jax.tree_util.keystr(key): np.asarray(value) for key, value in leaves}


def records(workdir):
    """Returns the metrics of a run, less what a clock wrote."""
    found = logging.read_metrics(workdir)
    return [{k: v for k, v in record.items() if k != "images_per_second"} for record in found]


def assert_same_weights(workdir, other, stages=STAGES, **tolerance):
    for stage in stages:
        mine, theirs = weights(workdir, stage), weights(other, stage)
        assert mine.keys() == theirs.keys()
        for key, value in mine.items():
            np.testing.assert_allclose(value, theirs[key], err_msg=key, **tolerance)
