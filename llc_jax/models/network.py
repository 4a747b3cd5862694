"""A backbone and a head as three pure functions over plain trees of arrays."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from llc_jax.models.heads import Output

Tree = Any

# Per channel, for pixels from 0 to 255; the values that ImageNet models share.
_MEAN = np.array([123.675, 116.28, 103.53], np.float32)
_STD = np.array([58.395, 57.12, 57.375], np.float32)


class Network(nnx.Module):
    """Normalisation, backbone and head in a row."""

    def __init__(self, backbone: nnx.Module, head: nnx.Module):
        self.backbone = backbone
        self.head = head

    def __call__(self, images: jax.Array) -> Output:
        """Maps uint8[B, H, W, 3] to the head's logits."""
        return self.head(self.features(images))

    def features(self, images: jax.Array) -> jax.Array:
        """Maps uint8[B, H, W, 3] to the backbone's features, float32[B, d]."""
        if images.ndim != 4 or images.shape[-1] != 3 or images.dtype != jnp.uint8:
            raise TypeError(f"Images are uint8[B, H, W, 3], not {images.dtype}{images.shape}.")
        normalised = (images.astype(jnp.float32) - _MEAN[None, None, None]) / _STD[None, None, None]
        return self.backbone(normalised)


@dataclasses.dataclass(frozen=True)
class PureNetwork:
    """A network without state of its own.

    Attributes:
      init: key -> (params, batch_stats), float32 trees.
      train: (params, batch_stats, images) -> (Output, batch_stats after the batch).
      evaluate: (params, batch_stats, images) -> Output.
      features: (params, batch_stats, images) -> float32[B, d], those of `evaluate`.
    """

    init: Callable[[jax.Array], tuple[Tree, Tree]]
    train: Callable[[Tree, Tree, jax.Array], tuple[Output, Tree]]
    evaluate: Callable[[Tree, Tree, jax.Array], Output]
    features: Callable[[Tree, Tree, jax.Array], jax.Array]


def purify(create: Callable[[nnx.Rngs], Network]) -> PureNetwork:
    """Makes pure functions of an NNX module.

    Args:
      create: builds the module from its random streams; called abstractly here,
        and for real inside `init`.
    """
    module = nnx.eval_shape(lambda: create(nnx.Rngs(0)))
    graphs = {}
    for mode in ("train", "eval"):
        getattr(module, mode)()
        graphs[mode], *_ = nnx.split(module, nnx.Param, nnx.BatchStat)

    def init(key):
        _, params, stats = nnx.split(create(nnx.Rngs(key)), nnx.Param, nnx.BatchStat)
        return nnx.to_pure_dict(params), nnx.to_pure_dict(stats)

    def train(params, stats, images):
        merged = nnx.merge(graphs["train"], params, stats)
        output = merged(images)
        return output, nnx.to_pure_dict(nnx.state(merged, nnx.BatchStat))

    def evaluate(params, stats, images):
        return nnx.merge(graphs["eval"], params, stats)(images)

    def features(params, stats, images):
        return nnx.merge(graphs["eval"], params, stats).features(images)

    return PureNetwork(init, train, evaluate, features)
