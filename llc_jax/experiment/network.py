"""The network of a stage, as a config describes it, and its weights from a PyTorch file."""

import pathlib

import jax
from jax.sharding import Sharding

from llc_jax.data import embeddings
from llc_jax.errors import InputError
from llc_jax.experiment.config import PRETRAINED, RunConfig, StageConfig, bits_of
from llc_jax.mesh import with_sharding
from llc_jax.models import registry
from llc_jax.models.inputs import ImageInput, VectorInput
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training.checkpoint import restore_weights
from llc_jax.weights import packages, pretrained


def build_network(config: RunConfig, stage: StageConfig, num_classes: int) -> PureNetwork:
    """Builds the network of a stage for L classes."""
    return registry.build(
        config.model,
        stage.head,
        num_classes=num_classes,
        num_bits=bits_of(config, stage),
        num_inputs=config.data.embedding_size,
        trainable_blocks=stage.trainable_blocks,
    )


def input_size(config: RunConfig) -> int:
    """Returns the side of the images that the network sees, in pixels, or the size of vectors."""
    if takes_embeddings(config):
        return config.data.embedding_size
    return config.data.image_size or registry.backbone(config.model).input.size


def takes_embeddings(config: RunConfig) -> bool:
    """Whether the network takes embeddings, and not images."""
    return isinstance(registry.backbone(config.model).input, VectorInput)


def abstract_input(config: RunConfig) -> jax.ShapeDtypeStruct:
    """Returns the form of a batch of one input of the network."""
    return registry.backbone(config.model).input.abstract(input_size(config))


def describe_input(config: RunConfig) -> str:
    """Returns in words what the network takes."""
    kind, size = registry.backbone(config.model).input.kind, input_size(config)
    return f"{kind} of {size} {'numbers' if takes_embeddings(config) else 'pixels'}"


def num_features(config: RunConfig, network: PureNetwork) -> int:
    """Returns d, the numbers of a feature of a network's backbone.

    Raises:
      InputError: if the network does not take inputs of the run's size.
    """
    example = abstract_input(config)
    try:
        features = jax.eval_shape(network.features, *network.abstract, example)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{config.model['name']} does not take {describe_input(config)}: {error}"
        ) from error
    return features.shape[1]


def abstract_weights(network: PureNetwork) -> Tree:
    """Returns the shapes of a network's `params` and `batch_stats`."""
    return dict(zip(("params", "batch_stats"), network.abstract, strict=True))


def check_kind(config: RunConfig) -> None:
    """Raises an InputError if the backbone does not take the run's kind of data."""
    is_embeddings = config.data.source.startswith(embeddings.PREFIX)
    kind = (VectorInput if is_embeddings else ImageInput).kind
    backbones = registry.BACKBONES
    if registry.backbone(config.model).input.kind != kind:
        others = [name for name, backbone in backbones.items() if backbone.input.kind == kind]
        raise InputError(
            f"The data are {kind}, which the backbone {config.model['name']!r} does not take: "
            f"config.model.name is one of {', '.join(sorted(others))} for them."
        )


def load_weights(checkpoints: pathlib.Path, network: PureNetwork, sharding: Sharding) -> Tree:
    """Returns a network's `params` and `batch_stats` of the newest checkpoint in a directory."""
    return restore_weights(checkpoints, with_sharding(abstract_weights(network), sharding))


def read_pretrained(config: RunConfig, network: PureNetwork, init_from: str) -> Tree:
    """Returns a network's `params` and `batch_stats` from a PyTorch file.

    Args:
      config: of the run.
      network: of the stage.
      init_from: the file; or "pretrained", for the backbone alone from an installed package.

    Raises:
      InputError: if there is no such file, or it does not fit.
    """
    name, drop_head = config.model["name"], config.drop_head
    if init_from == PRETRAINED:
        # Its head is of other classes.
        init_from, drop_head = str(packages.find_weights(name)), True
    return pretrained.from_torch(
        pretrained.read_state_dict(init_from),
        abstract_weights(network),
        name,
        drop_head=drop_head,
        source=init_from,
    )
