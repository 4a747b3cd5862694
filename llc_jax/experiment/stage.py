"""A stage of a plan: one record that holds all that training and evaluation need of it."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import jax
from jax.sharding import Mesh, Sharding

from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.data import pipeline
from llc_jax.data.dataset import Dataset
from llc_jax.models.heads import Output
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training.loop import Training


class FigureNames(NamedTuple):
    """How the figures of a stage are called in `results.json`.

    Attributes:
      class_logits: the accuracy of its class logits: "linear", "class_code" (of B(C) f), or
        "<stage>/linear".
      codes: the prefix of what its codes achieve: "", or "<stage>/".
      codebook: the prefix of the figures of its class codes, likewise.
      retrieval: the prefix of the figures of retrieval with its codes or features.
    """

    class_logits: str
    codes: str
    codebook: str
    retrieval: str


class Trained(Protocol):
    """What the training of a stage has left: in its directory, or in memory.

    Attributes:
      path: the directory of the stage; of one in memory its name.
    """

    path: pathlib.Path

    def load_weights(self, network: PureNetwork, sharding: Sharding) -> Tree:
        """Returns the stage's newest `params` and `batch_stats`."""

    def load_codebook(self) -> Codebook | None:
        """Returns the stage's class codes, None where it has none."""


class Evaluations(NamedTuple):
    """What is measured of a stage.

    Attributes:
      prefixes: shorter codes that are evaluated too: the first so many bits.
      decoders: names that `decoders.make` takes.
      cutoffs: the ranks at which retrieval is cut; () where it is not measured.
      examples: whether what the report shows of its network is kept.
    """

    prefixes: tuple[int, ...]
    decoders: tuple[str, ...]
    cutoffs: tuple[int, ...]
    examples: bool


class Frozen(NamedTuple):
    """How a stage trains its head on the features of a backbone that stays as it is.

    Attributes:
      size: d, the numbers of a feature.
      model: the description of the backbone.
      views: V, the augmented versions of each training image; 1 is the image as it is.
      augmentation: the description of the augmentation.
      seed: of the views.
      on_features: makes the stage that does so of a dataset of features.
    """

    size: int
    model: str
    views: int
    augmentation: str
    seed: int
    on_features: Callable[[Dataset], "Stage"]


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
      name: of the stage.
      directory: what its training leaves.
      mesh: its devices.
      dataset: its images.
      example: the form of a batch of one input of the network.
      head: the name of its head in `models.heads.HEADS`.
      network: the backbone and the head.
      num_bits: k.
      training: how it is trained.
      initial_weights: loads the weights that it starts from, `params` and `batch_stats`; None
        where it starts from scratch.
      initial_codebook: makes the codebook that it is trained with, or that a learnt one starts
        from; None where there is none, or it is drawn.
      fixed_codebook: whether that codebook stays as it is.
      has_binary_codes: whether the signs of its code logits, if it has any, are codes.
      evaluations: what is measured of it.
      figures: how its figures are called.
      checkpoints_kept: how many of its checkpoints are kept.
      frozen: how it trains on features; None where it trains on inputs.
      teacher: the stage whose class probabilities have a part in the targets of the bits; None
        where the labels alone do.
    """

    name: str
    directory: Trained
    mesh: Mesh
    dataset: Dataset
    example: jax.ShapeDtypeStruct
    head: str
    network: PureNetwork
    num_bits: int
    training: Training
    initial_weights: Callable[[], Tree] | None
    initial_codebook: Callable[[], Codebook] | None
    fixed_codebook: bool
    has_binary_codes: bool
    evaluations: Evaluations
    figures: FigureNames
    checkpoints_kept: int
    frozen: Frozen | None = None
    teacher: "Stage | None" = None

    @property
    def workdir(self) -> pathlib.Path:
        """The directory of the run."""
        return self.directory.path.parent

    @property
    def replicated(self) -> Sharding:
        """The sharding of weights."""
        return self.training.replicated

    @property
    def batched(self) -> Sharding:
        """The sharding of batches."""
        return self.training.batched

    @property
    def num_classes(self) -> int:
        """L, the number of classes."""
        return len(self.dataset.class_names)

    @functools.cached_property
    def encode(self) -> Callable[[Tree, Tree, jax.Array], Output]:
        """Maps `params`, `batch_stats` and B inputs to the head's output, compiled."""
        shardings = (self.replicated, self.replicated, self.batched)
        return jit_network(self.network.evaluate, in_shardings=shardings)

    def eval_batches(self, images: pipeline.Images) -> Iterator[dict[str, jax.Array]]:
        """Yields every image once, in order, in batches on the devices; the last is padded."""
        batches = pipeline.eval_batches(images, self.training.shard)
        return pipeline.on_devices(batches, self.batched)

    def some_batches(self, images: pipeline.Images, count: int) -> Iterator[dict[str, jax.Array]]:
        """Yields batches as `eval_batches`, of about `count` random images if there are more."""
        if len(images.labels) <= count:
            return self.eval_batches(images)
        steps = range(count // self.training.shard.batch_size)
        batches = pipeline.train_batches(images, self.training.shard, steps, self.training.seed)
        return pipeline.on_devices(batches, self.batched)

    def trained_weights(self) -> Tree:
        """Returns the `params` and `batch_stats` of its newest checkpoint."""
        return self.directory.load_weights(self.network, self.replicated)
