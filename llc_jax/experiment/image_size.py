"""What a config leaves to the size of the images: the network, and how images are read.

Small images keep their size and are decoded once; a network without the strides of an
ImageNet stem is trained on them. Large images are cropped as they are read, for a network of
224 pixels, or shrunk for a network of small images that is named.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Callable
from typing import Any

import jax

from llc_jax.data.dataset import embedding_size, typical_side
from llc_jax.data.embeddings import PREFIX as EMBEDDINGS
from llc_jax.experiment.config import SCRATCH, RunConfig
from llc_jax.experiment.network import input_size, takes_embeddings
from llc_jax.experiment.workdir import CONFIG_FILE, read_config
from llc_jax.models import registry
from llc_jax.models.inputs import ImageInput

AUTO = "auto"

# The longest side, in pixels, of images that are small.
SMALL = 64


def complete(config: RunConfig, workdir: pathlib.Path) -> RunConfig:
    """Returns a config with a value wherever it leaves the choice to the images or the backbone.

    The size of the images is `config.data.image_size`. Where a config leaves a choice and that is
    None, and the backbone is "auto" or one for small images, some of the images are looked at: the
    size of small ones is kept. A run that continues keeps what it began with. Images are
    normalised as the pretrained weights of the backbone expect.

    Args:
      config: whose `model.name` may be "auto", and whose `model.dtype`, `model.normalization`,
        `data.in_memory`, `data.crop_fraction`, `frozen_backbone` and options of `data.augment`
        may be None.
      workdir: of the run; it need not exist.

    Raises:
      InputError: if the images have to be looked at, and cannot be.
    """
    before = read_config(workdir) if (workdir / CONFIG_FILE).exists() else None
    config = _complete_freezing(config, before)
    if config.data.source.startswith(EMBEDDINGS):
        return _complete_for_embeddings(config)
    if config.model.get("name") != AUTO and takes_embeddings(config):
        return config  # The plan refuses images for such a backbone.
    median_side = functools.cache(functools.partial(typical_side, config.data.source))
    image_size = _image_size(config, before, median_side)
    model, data = dict(config.model), dataclasses.replace(config.data, image_size=image_size)
    if model.get("name") == AUTO:
        small = image_size is not None and image_size <= SMALL
        model["name"] = "resnet20_small" if small else "resnet18"
    config = dataclasses.replace(config, model=model, data=data)
    side = input_size(config)
    small = side <= SMALL
    if "dtype" in model and model["dtype"] is None:
        model["dtype"] = _dtype(small, before)
    form = registry.backbone(model).input
    if model.get("normalization", "") is None and isinstance(form, ImageInput):
        model["normalization"] = form.normalization
    in_memory = small if data.in_memory is None else data.in_memory
    data = dataclasses.replace(
        data,
        in_memory=in_memory,
        crop_fraction=_crop_fraction(config, before, median_side),
        augment=_complete_augmentation(data.augment, side, in_memory),
    )
    return dataclasses.replace(config, model=model, data=data)


def _complete_freezing(config: RunConfig, before: RunConfig | None) -> RunConfig:
    """Returns a config whose stages say whether they train the backbone."""
    frozen, stages = config.frozen_backbone, config.stages
    if frozen is None:
        on_cpu = jax.default_backend() == "cpu" and config.init_from != SCRATCH
        frozen = on_cpu if before is None else before.frozen_backbone
    if frozen:
        stages = {
            name: dataclasses.replace(stage, trainable_blocks=stage.trainable_blocks or 0)
            for name, stage in stages.items()
        }
    return dataclasses.replace(config, frozen_backbone=frozen, stages=stages)


def _dtype(small: bool, before: RunConfig | None) -> str:
    """Returns the type of a backbone's arithmetic; a CPU has none that is faster than float32."""
    if before is not None and before.model.get("dtype"):
        return before.model["dtype"]
    return "float32" if small or jax.default_backend() == "cpu" else "bfloat16"


def _crop_fraction(
    config: RunConfig, before: RunConfig | None, median_side: Callable[[], int]
) -> float:
    """Returns `data.crop_fraction`; images not larger than those of the network stay whole."""
    side = input_size(config)
    if config.data.crop_fraction is not None:
        return config.data.crop_fraction
    if before is not None and before.data.crop_fraction is not None:
        return before.data.crop_fraction
    return 1.0 if side <= SMALL or median_side() <= side else 0.875


def _complete_for_embeddings(config: RunConfig) -> RunConfig:
    """Returns the config of a run of embeddings, with their size."""
    if config.model.get("name") == AUTO:
        config = dataclasses.replace(config, model={"name": "identity"})
    size = config.data.embedding_size or embedding_size(config.data.source)
    data = dataclasses.replace(config.data, embedding_size=size, augment={})
    return dataclasses.replace(config, data=data)


def _image_size(
    config: RunConfig, before: RunConfig | None, median_side: Callable[[], int]
) -> int | None:
    """Returns `data.image_size`, with that of small images; None is what the backbone has."""
    choices = (config.data.in_memory, config.data.crop_fraction, config.model.get("dtype", ""))
    if config.model.get("name") == AUTO:
        is_open = True
    else:
        is_open = None in choices and input_size(config) <= SMALL
    if config.data.image_size is not None or not is_open:
        return config.data.image_size
    if before is not None:
        return before.data.image_size
    side = median_side()
    return side if side <= SMALL else None


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
