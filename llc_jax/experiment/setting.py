"""What all stages of a run share, and where each keeps what it makes."""

import dataclasses
import pathlib
from collections.abc import Iterator

import jax
import numpy as np
from jax.sharding import Mesh, Sharding

from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset
from llc_jax.errors import InputError
from llc_jax.experiment.config import RunConfig, bits_of
from llc_jax.mesh import batch_sharding, replicated_sharding
from llc_jax.models import registry
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training.checkpoint import Checkpoints, restore_weights
from llc_jax.weights import pretrained

CODEBOOK_FILE = "codebook.npz"


@dataclasses.dataclass(frozen=True)
class Setting:
    """A run's config, where it is kept, its images, its devices."""

    config: RunConfig
    workdir: pathlib.Path
    data: Dataset
    mesh: Mesh

    @property
    def whole(self) -> Sharding:
        """The sharding of what every device holds."""
        return replicated_sharding(self.mesh)

    @property
    def rows(self) -> Sharding:
        """The sharding of batches."""
        return batch_sharding(self.mesh)

    def dataset(self, stage: str) -> Dataset:
        """Returns the images of a stage."""
        whole = self.config.stages[stage].whole_dataset
        return self.data.without_protocol or self.data if whole else self.data

    def eval_batches(self, images: pipeline.Images) -> Iterator[dict[str, jax.Array]]:
        """Yields every image once, in order, in batches on the devices; the last is padded."""
        part = pipeline.ProcessShard.of(self.rows, self.config.batch_size)
        return pipeline.on_devices(pipeline.eval_batches(images, part), self.rows)

    def num_bits(self, stage: str) -> int:
        """Returns k of a stage."""
        return bits_of(self.config, stage)

    def network(self, stage: str) -> PureNetwork:
        """Builds the network of a stage."""
        return build_network(self.config, stage, len(self.dataset(stage).class_names))

    def check_network(self, stage: str) -> None:
        """Raises an InputError if the network of a stage does not take the run's images."""
        network, size = self.network(stage), input_size(self.config)
        shapes = abstract_weights(network)
        images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
        try:
            jax.eval_shape(network.features, shapes["params"], shapes["batch_stats"], images)
        except (TypeError, ValueError) as error:
            raise InputError(
                f"{self.config.model['name']} does not take images of {size} pixels: {error}"
            ) from error

    def checkpoints(self, stage: str) -> Checkpoints:
        """Opens the checkpoints of a stage."""
        directory = checkpoint_directory(self.workdir, stage)
        return Checkpoints(directory, self.config.checkpoint.keep)

    def trained_weights(self, stage: str) -> Tree:
        """Returns the `params` and `batch_stats` that an earlier stage has ended with."""
        directory = checkpoint_directory(self.workdir, stage)
        return load_weights(directory, self.network(stage), self.whole)

    def pretrained_weights(self, stage: str, path: str) -> Tree:
        """Returns the `params` and `batch_stats` of a stage's network from a PyTorch file."""
        return pretrained.from_torch(
            pretrained.read_state_dict(path),
            abstract_weights(self.network(stage)),
            self.config.model["name"],
            drop_head=self.config.drop_head,
            source=path,
        )

    def position(self, stage: str) -> int:
        """Returns the stage's place among the stages, from 0."""
        return list(self.config.stages).index(stage)

    def seed(self, stage: str) -> int:
        """Returns the seed of what a stage draws on the host."""
        words = [self.config.seed, self.position(stage)]
        return int(np.random.SeedSequence(words).generate_state(1)[0])

    def last_before(self, stage: str, head: str) -> str | None:
        """Returns the last stage with such a head before a stage, if there is one.

        It has the same classes and, where the head learns a codebook, as many bits.
        """
        stages = self.config.stages

        def fits(name: str) -> bool:
            same_bits = head != "codebook" or self.num_bits(name) == self.num_bits(stage)
            same_data = stages[name].whole_dataset == stages[stage].whole_dataset
            return stages[name].head.get("name") == head and same_bits and same_data

        named = [name for name in list(stages)[: self.position(stage)] if fits(name)]
        return named[-1] if named else None


def input_size(config: RunConfig) -> int:
    """Returns the side of the images that the network sees, in pixels."""
    return config.data.image_size or registry.backbone(config.model).input_size


def checkpoint_directory(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Returns where the checkpoints of a stage are."""
    return workdir / stage / "checkpoints"


def codebook_file(workdir: pathlib.Path, stage: str) -> pathlib.Path:
    """Returns where the codebook is that a stage has learnt, or was trained with."""
    return workdir / stage / CODEBOOK_FILE


def build_network(config: RunConfig, stage: str, num_classes: int) -> PureNetwork:
    """Builds the network of a stage."""
    return registry.build(
        config.model,
        config.stages[stage].head,
        num_classes=num_classes,
        num_bits=bits_of(config, stage),
        trainable_blocks=config.stages[stage].trainable_blocks,
    )


def load_weights(directory: pathlib.Path, network: PureNetwork, sharding: Sharding) -> Tree:
    """Returns the `params` and `batch_stats` of a network from its newest checkpoint."""
    return restore_weights(directory, with_sharding(abstract_weights(network), sharding))


def abstract_weights(network: PureNetwork) -> Tree:
    """Returns the shapes of a network's `params` and `batch_stats`."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return dict(zip(("params", "batch_stats"), shapes, strict=True))


def with_sharding(tree: Tree, sharding: Sharding) -> Tree:
    """Returns the abstract tree with a sharding on every leaf."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree
    )
