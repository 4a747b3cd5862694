"""The network of a stage, as a config describes it, and its weights from a PyTorch file."""

import pathlib

import jax
import numpy as np
from jax.sharding import Sharding

from llc_jax.errors import InputError
from llc_jax.experiment.config import RunConfig, StageConfig, bits_of
from llc_jax.mesh import with_sharding
from llc_jax.models import registry
from llc_jax.models.network import PureNetwork, Tree
from llc_jax.training.checkpoint import restore_weights
from llc_jax.weights import pretrained


def build_network(config: RunConfig, stage: StageConfig, num_classes: int) -> PureNetwork:
    """Builds the network of a stage for L classes."""
    return registry.build(
        config.model,
        stage.head,
        num_classes=num_classes,
        num_bits=bits_of(config, stage),
        trainable_blocks=stage.trainable_blocks,
    )


def input_size(config: RunConfig) -> int:
    """Returns the side of the images that the network sees, in pixels."""
    return config.data.image_size or registry.backbone(config.model).input_size


def abstract_weights(network: PureNetwork) -> Tree:
    """Returns the shapes of a network's `params` and `batch_stats`."""
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    return dict(zip(("params", "batch_stats"), shapes, strict=True))


def check_image_size(config: RunConfig, network: PureNetwork) -> None:
    """Raises an InputError if a network does not take the run's images."""
    size, weights = input_size(config), abstract_weights(network)
    images = jax.ShapeDtypeStruct((1, size, size, 3), np.uint8)
    try:
        jax.eval_shape(network.features, weights["params"], weights["batch_stats"], images)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{config.model['name']} does not take images of {size} pixels: {error}"
        ) from error


def load_weights(checkpoints: pathlib.Path, network: PureNetwork, sharding: Sharding) -> Tree:
    """Returns a network's `params` and `batch_stats` of the newest checkpoint in a directory."""
    return restore_weights(checkpoints, with_sharding(abstract_weights(network), sharding))


def read_pretrained(config: RunConfig, network: PureNetwork, path: str) -> Tree:
    """Returns a network's `params` and `batch_stats` from a PyTorch file.

    Raises:
      InputError: if there is no such file, or it does not fit.
    """
    return pretrained.from_torch(
        pretrained.read_state_dict(path),
        abstract_weights(network),
        config.model["name"],
        drop_head=config.drop_head,
        source=path,
    )
