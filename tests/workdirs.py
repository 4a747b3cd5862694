"""What a run of the tiny config has left in its workdir."""

import struct

import jax
import numpy as np
import orbax.checkpoint as ocp
from tensorboardX.proto.event_pb2 import Event

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


def read_events(workdir, stage):
    """Returns the whole events on the disk, each (tag, step, value) or (None, first step)."""
    events = []
    for path in sorted((workdir / "tensorboard" / stage).iterdir()):
        data = path.read_bytes()
        while len(data) >= 12:  # A record is its length, a checksum of it, itself, and a checksum.
            (size,) = struct.unpack("<Q", data[:8])
            if len(data) < 16 + size:
                break
            event, data = Event.FromString(data[12 : 12 + size]), data[16 + size :]
            events += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            events += [(None, event.step)] if event.HasField("session_log") else []
    return events


def read_scalars(workdir, stage):
    """Returns what TensorBoard shows of a stage: step -> tag -> value.

    Where a session starts, it forgets what earlier files have of that step and later ones.
    """
    shown = {}
    for tag, step, *value in read_events(workdir, stage):
        if tag is None:
            shown = {other: scalars for other, scalars in shown.items() if other < step}
        else:
            scalars = shown.setdefault(step, {})
            assert tag not in scalars, f"{tag} of step {step} is there twice"
            scalars[tag] = value[0]
    return shown


def assert_tensorboard_is_complete(workdir):
    """Checks that TensorBoard shows what `metrics.jsonl` has, of every stage and epoch."""
    metrics = logging.read_metrics(workdir)
    for stage in {record["stage"] for record in metrics}:
        epochs = (dict(record) for record in metrics if record["stage"] == stage)
        expected = {record.pop("step"): record for record in epochs}
        for record in expected.values():
            record.pop("stage")
        shown = read_scalars(workdir, stage)
        assert shown.keys() == expected.keys()
        for step, scalars in shown.items():
            assert scalars == {k: np.float32(v) for k, v in expected[step].items()}
