"""The features of a run's images as embeddings, which other runs can be trained on."""

import os
import pathlib

import numpy as np

from llc_jax.data.splits import Splits
from llc_jax.data.vectors import VectorSource
from llc_jax.errors import InputError
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.workdir import read_config
from llc_jax.files import write_arrays
from llc_jax.mesh import make_mesh
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest


def features_of_run(workdir: str | os.PathLike) -> Splits:
    """Returns the features that the frozen backbone of a run has computed, or computes now.

    Raises:
      InputError: if there is no such run, its data have moved, or the backbone of its first stage
        is not frozen.
    """
    workdir = pathlib.Path(workdir).expanduser().absolute()
    stage = plan_run(read_config(workdir), workdir, make_mesh()).stages[0]
    if stage.frozen is None:
        raise InputError(
            f"The backbone of {workdir} is not frozen, so its features change: give a run with "
            "config.frozen_backbone=True."
        )
    dataset = on_features(stage, RunLog(workdir), StopRequest()).dataset
    return Splits(dataset.train.source, dataset.evaluation.source)


def write_features(workdir: str | os.PathLike, path: str | os.PathLike) -> None:
    """Writes the features of a run as labelled embeddings, an .npz that runs take as their data.

    Args:
      workdir: of the run.
      path: of the file: `embeddings`, float16[N, d]; `labels`, int32[N]; `names`, those of the
        classes; `split`, "train" or "test" of each.

    Raises:
      InputError: as `features_of_run`.
      WriteFailed: if it cannot be written.
    """
    splits = features_of_run(workdir)
    parts = {"train": splits.train, "test": splits.evaluation}
    arrays = {
        "embeddings": [_read(part) for part in parts.values()],
        "labels": [part.labels for part in parts.values()],
        "split": [np.repeat(name, len(part)) for name, part in parts.items()],
    }
    joined = {name: np.concatenate(of_parts) for name, of_parts in arrays.items()}
    write_arrays(path, {**joined, "names": np.array(splits.train.class_names)})


def _read(source: VectorSource) -> np.ndarray:
    """Returns all features as a run keeps them, float16[N, d]."""
    return source.gather(np.arange(len(source))).astype(np.float16)
