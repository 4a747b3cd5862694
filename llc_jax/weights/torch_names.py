"""What the parts of our backbones are called in PyTorch: by torchvision, or by timm.

Each function maps a path in a backbone's tree, without its last name, to the prefix
of the keys there; `("blocks", 0, "convs", 1)` of a ResNet to `layer1.0.conv2`.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

from llc_jax.errors import InputError
from llc_jax.models import registry

Path = tuple[str | int, ...]


def resnet(path: Path, *, depths: Sequence[int]) -> str:
    """torchvision's ResNet of so many blocks in each stage."""
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
    parts = {
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
        case ("blocks", block, part):
            return f"{blocks[block]}.{parts[part]}"
    raise KeyError(path)


def vit(path: Path) -> str:
    """timm's vision transformers."""
    parts = {
        "attention_norm": "norm1",
        "dense_norm": "norm2",
        "qkv": "attn.qkv",
        "projection": "attn.proj",
        "widen": "mlp.fc1",
        "narrow": "mlp.fc2",
    }
    whole = {"class_token": "cls_token", "position": "pos_embed"}
    match path:
        case ("patch",):
            return "patch_embed.proj"
        case ("final_norm",):
            return "norm"
        case (("class_token" | "position") as name,):
            return whole[name]
        case ("blocks", block, part):
            return f"blocks.{block}.{parts[part]}"
    raise KeyError(path)


class TorchNaming(NamedTuple):
    """The keys of a backbone's weights in a PyTorch state dict.

    Attributes:
      prefix: path in the backbone's tree, without its last name -> prefix of the key.
      classifier: prefix of the linear classifier.
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
}


def torch_naming(backbone: str) -> TorchNaming:
    """Returns the PyTorch keys of a backbone of the registry.

    Raises:
      InputError: if there are none, or there is no such backbone.
    """
    registry.backbone({"name": backbone})
    if backbone not in BACKBONES:
        raise InputError(
            f"The backbone {backbone} has no PyTorch form: weights cannot go there or come."
        )
    return BACKBONES[backbone]
