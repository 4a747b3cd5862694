"""A run in memory: the stages of a config, trained one after the other without a workdir."""

import pathlib
from collections.abc import Iterator
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import Sharding

from llc_jax.codes.codebook import Codebook
from llc_jax.data.dataset import Dataset
from llc_jax.data.pipeline import InMemory
from llc_jax.experiment.config import RunConfig
from llc_jax.experiment.plan import plan_stages
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.stage_run import train_stage
from llc_jax.experiment.training_plan import fit_to_size
from llc_jax.mesh import make_mesh
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training.loop import Log
from llc_jax.training.preemption import StopRequest
from llc_jax.training.state import State


class StageMemory:
    """What the training of a stage has left, in memory; there are no checkpoints.

    Attributes:
      path: the name of the stage.
      weights: `params` and `batch_stats`, None until it is trained.
      codebook: its class codes, or None.
    """

    latest_step = None

    def __init__(self, name: str):
        self.path = pathlib.Path(name)
        self.weights: Tree | None = None
        self.codebook: Codebook | None = None

    def load_weights(self, network: PureNetwork, sharding: Sharding) -> Tree:
        """Returns the weights of the stage."""
        del network
        return jax.device_put(self.weights, sharding)

    def load_codebook(self) -> Codebook | None:
        """Returns the stage's class codes, None where it has none."""
        return self.codebook

    def check_space(self, abstract: State) -> None:
        """There is nothing to be written."""

    def save(self, step: int, state: State) -> None:
        """Keeps nothing before the end of the stage."""

    def wait(self) -> None:
        """There is nothing to wait for."""


def dataset_of(vectors: np.ndarray, labels: np.ndarray, class_names: tuple[str, ...]) -> Dataset:
    """Returns vectors and their labels as a dataset, to train on and to evaluate.

    Args:
      vectors: float[N, d].
      labels: int32[N].
      class_names: L names.
    """
    images = InMemory(vectors, labels)
    return Dataset(
        train=images,
        plain=images,
        evaluation=images,
        database=images,
        find_self_indices=lambda: np.arange(len(labels)),
        class_names=class_names,
        augment=lambda key, inputs: inputs,
        unseen=None,
    )


class TrainedStage(NamedTuple):
    """A stage after its training.

    Attributes:
      stage: the stage.
      weights: its `params` and `batch_stats`, in NumPy arrays.
      codebook: its class codes, None where it has none.
    """

    stage: Stage
    weights: Tree
    codebook: Codebook | None


def train_stages(config: RunConfig, dataset: Dataset, log: Log) -> Iterator[TrainedStage]:
    """Trains all stages on one device, and yields each when it is trained.

    Args:
      config: of the run; what it says of the data is not used, but for their size.
      dataset: to train on.
      log: takes what there is to say.

    Raises:
      InputError: if the config cannot be used.
      Stopped: if the process is told to stop.
      Diverged: if a loss or a weight is no longer finite.
    """
    memories = {name: StageMemory(name) for name in config.stages}
    mesh = make_mesh(jax.local_devices()[:1])
    config = fit_to_size(config, len(dataset.train.labels), mesh.size)
    for stage in plan_stages(config, dataset, mesh, memories.__getitem__):
        memory = memories[stage.name]
        codebook = stage.initial_codebook() if stage.initial_codebook else None
        state, memory.codebook = train_stage(stage, codebook, memory, log, StopRequest())
        memory.weights = jax.device_get({key: state[key] for key in ("params", "batch_stats")})
        yield TrainedStage(stage, memory.weights, memory.codebook)


def train(config: RunConfig, dataset: Dataset, log: Log) -> TrainedStage:
    """Trains all stages, as `train_stages` does, and returns the last."""
    for trained in train_stages(config, dataset, log):
        last = trained
    return last
