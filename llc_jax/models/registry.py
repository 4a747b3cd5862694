"""Backbones by name, and networks from their descriptions in a config."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
from flax import nnx

from llc_jax.models.alexnet import AlexNet
from llc_jax.models.cnn import CNN
from llc_jax.models.efficientnet import EfficientNetLite
from llc_jax.models.heads import HEADS
from llc_jax.models.inputs import ImageInput, VectorInput
from llc_jax.models.mlp import MLP, Identity
from llc_jax.models.mobilenet import MobileNetV1
from llc_jax.models.network import Network, PureNetwork, functionalize
from llc_jax.models.resnet import ResNet
from llc_jax.models.vit import VisionTransformer
from llc_jax.options import bind, choose


class Backbone(NamedTuple):
    """A backbone's constructor, and what it takes.

    Attributes:
      build: the constructor; the module has the attribute `num_features`, d. One of vectors
        takes their size, as `num_inputs`.
      input: images or vectors.
    """

    build: Callable[..., nnx.Module]
    input: ImageInput | VectorInput


# Options of the residual networks. Names with `_small` are for images of 32 pixels; those
# of 6n + 2 layers have three stages of n blocks (He et al., section 4.2).
RESNETS = {
    "resnet18": {"depths": (2, 2, 2, 2), "width": 64},
    "resnet34": {"depths": (3, 4, 6, 3), "width": 64},
    "resnet50": {"depths": (3, 4, 6, 3), "width": 64, "bottleneck": True},
    "resnet18_small": {"depths": (2, 2, 2, 2), "width": 64, "small_images": True},
    **{
        f"resnet{6 * n + 2}_small": {"depths": (n, n, n), "width": 16, "small_images": True}
        for n in (1, 2, 3, 5, 7, 9, 18)
    },
}

# Width and depth of the sizes of EfficientNet-Lite, and the side of their images in pixels.
EFFICIENTNETS = {
    "efficientnet_lite0": (1.0, 1.0, 224),
    "efficientnet_lite1": (1.0, 1.1, 240),
    "efficientnet_lite2": (1.1, 1.2, 260),
    "efficientnet_lite3": (1.2, 1.4, 280),
    "efficientnet_lite4": (1.4, 1.8, 300),
}


def _resnet(options: dict[str, Any]) -> Backbone:
    input_size = 32 if options.get("small_images") else 224
    return Backbone(functools.partial(ResNet, **options), ImageInput(input_size))


def _vit(*, depth: int, width: int) -> Backbone:
    return Backbone(functools.partial(VisionTransformer, depth=depth, width=width), ImageInput(224))


def _efficientnet(width: float, depth: float, size: int) -> Backbone:
    build = functools.partial(EfficientNetLite, width=width, depth=depth)
    return Backbone(build, ImageInput(size, "efficientnet_lite"))


BACKBONES = {
    "alexnet": Backbone(AlexNet, ImageInput(224)),
    "cnn": Backbone(CNN, ImageInput(8)),
    **{name: _efficientnet(*sizes) for name, sizes in EFFICIENTNETS.items()},
    "identity": Backbone(Identity, VectorInput()),
    "mlp": Backbone(MLP, VectorInput()),
    "mobilenet_v1": Backbone(MobileNetV1, ImageInput(224)),
    **{name: _resnet(options) for name, options in RESNETS.items()},
    "vit_tiny_patch16": _vit(depth=12, width=192),
    "vit_small_patch16": _vit(depth=12, width=384),
    "vit_base_patch16": _vit(depth=12, width=768),
}

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def backbone(model: Mapping[str, Any]) -> Backbone:
    """Returns the backbone that a model's description names."""
    return choose(model.get("name"), BACKBONES, "config.model.name")


def build(
    model: Mapping[str, Any],
    head: Mapping[str, Any],
    *,
    num_classes: int,
    num_bits: int,
    num_inputs: int | None = None,
    trainable_blocks: int | None = None,
) -> PureNetwork:
    """Builds a network from its description.

    Args:
      model: `name` of the backbone, its options, `dtype` of its arithmetic and
        `normalization` of its images, where it has those; the default replaces what is None.
      head: `name` of the head, and its options.
      num_classes: L.
      num_bits: k.
      num_inputs: the numbers of each vector, where the backbone takes vectors.
      trainable_blocks: as in `network.functionalize`.

    Raises:
      InputError: if a name or an option is unknown, or there are fewer blocks.
    """
    build_backbone, form = backbone(model)
    model = {key: value for key, value in model.items() if value is not None}
    preparation = {}
    if isinstance(form, VectorInput):
        build_backbone = functools.partial(build_backbone, num_inputs)
    elif "normalization" in model:
        preparation["normalization"] = model.pop("normalization")
    prepare = form.preparation(**preparation)
    make_backbone = _bind_options(build_backbone, model, "The backbone")
    head_class = choose(head.get("name"), HEADS, "The head's name")
    make_head = _bind_options(head_class, head, "The head")

    def create(rngs: nnx.Rngs) -> Network:
        backbone_module = make_backbone(rngs=rngs)
        sizes = {"num_classes": num_classes, "num_bits": num_bits}
        head_module = make_head(backbone_module.num_features, **sizes, rngs=rngs)
        return Network(backbone_module, head_module, prepare)

    return functionalize(create, trainable_blocks)


def _bind_options(constructor: Callable, description: Mapping[str, Any], kind: str) -> Callable:
    """Binds the options in a module's description to its constructor."""
    items = description.items()
    options = {key: value for key, value in items if key != "name" and value is not None}
    if "dtype" in options:
        options["dtype"] = choose(options["dtype"], DTYPES, "config.model.dtype")
    return bind(constructor, options, f"{kind} {description['name']}")
