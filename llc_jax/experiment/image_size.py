"""What a config leaves to the size of the images: the network, and how images are read.

Small images keep their size and are decoded once; a network without the strides of an
ImageNet stem is trained on them. Large images are cropped as they are read, for a network of
224 pixels.
"""

import dataclasses
import pathlib
from typing import Any

from llc_jax.data.dataset import typical_side
from llc_jax.experiment.config import RunConfig
from llc_jax.experiment.network import input_size
from llc_jax.experiment.workdir import CONFIG_FILE, read_config

AUTO = "auto"

# The longest side, in pixels, of images that are small, and the side of those that are not.
SMALL, LARGE = 64, 224


def complete(config: RunConfig, workdir: pathlib.Path) -> RunConfig:
    """Returns a config with a value wherever it leaves the choice to the size of the images.

    Their size is `config.data.image_size` or that of the named backbone, or is found by looking
    at some of them. A run that continues keeps the size that it began with.

    Args:
      config: whose `model.name` may be "auto", and whose `model.dtype`, `data.in_memory`,
        `data.crop_fraction` and options of `data.augment` may be None.
      workdir: of the run; it need not exist.

    Raises:
      InputError: if the images have to be looked at, and cannot be.
    """
    side = _side(config, workdir)
    small = side <= SMALL
    model, data = dict(config.model), config.data
    if model.get("name") == AUTO:
        model["name"] = "resnet20_small" if small else "resnet18"
        # The size of large images stays that of the backbone.
        data = dataclasses.replace(data, image_size=side if small else data.image_size)
    if "dtype" in model and model["dtype"] is None:
        model["dtype"] = "float32" if small else "bfloat16"
    in_memory = small if data.in_memory is None else data.in_memory
    crop_fraction = (1.0 if small else 0.875) if data.crop_fraction is None else data.crop_fraction
    data = dataclasses.replace(
        data,
        in_memory=in_memory,
        crop_fraction=crop_fraction,
        augment=_complete_augmentation(data.augment, side, in_memory),
    )
    return dataclasses.replace(config, model=model, data=data)


def _side(config: RunConfig, workdir: pathlib.Path) -> int:
    """Returns the side of the network's images, in pixels."""
    if config.data.image_size is not None or config.model.get("name") != AUTO:
        return input_size(config)
    if (workdir / CONFIG_FILE).exists():
        return input_size(read_config(workdir))
    side = typical_side(config.data.source)
    return side if side <= SMALL else LARGE


def _complete_augmentation(augment: dict[str, Any], side: int, in_memory: bool) -> dict[str, Any]:
    """Replaces options that are None; those that are of the other way of reading are left out."""
    if in_memory:
        chosen = {"pad": max(1, side // 8), "flip": True}
    else:
        chosen = {"scale": (0.25, 1.0), "flip": True, "randaugment": None}
    return {
        name: chosen[name] if value is None else value
        for name, value in augment.items()
        if value is not None or name in chosen
    }
