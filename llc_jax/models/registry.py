"""The backbones by name."""

import functools
from collections.abc import Callable
from typing import NamedTuple

from flax import nnx

from llc_jax.models.cnn import CNN
from llc_jax.models.resnet import ResNet


class Backbone(NamedTuple):
    """How to build a backbone, and the side of the square images it is meant for."""

    build: Callable[..., nnx.Module]
    input_size: int


def _small_resnet(depth: int) -> Backbone:
    """The 6n + 2 layers of He et al., section 4.2: three stages of n blocks."""
    blocks = (depth - 2) // 6
    build = functools.partial(ResNet, depths=(blocks,) * 3, small_images=True)
    return Backbone(functools.partial(build, width=16), 32)


def _resnet(*depths: int, bottleneck: bool = False) -> Backbone:
    return Backbone(functools.partial(ResNet, depths=depths, width=64, bottleneck=bottleneck), 224)


BACKBONES = {
    "cnn": Backbone(CNN, 8),
    "resnet18": _resnet(2, 2, 2, 2),
    "resnet34": _resnet(3, 4, 6, 3),
    "resnet50": _resnet(3, 4, 6, 3, bottleneck=True),
    **{f"resnet{depth}_small": _small_resnet(depth) for depth in (8, 14, 20, 32, 44, 56, 110)},
    "resnet18_small": Backbone(
        functools.partial(ResNet, depths=(2, 2, 2, 2), width=64, small_images=True), 32
    ),
}
