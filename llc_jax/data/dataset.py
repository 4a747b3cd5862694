"""The images of a run: opened, split, and ready to come in batches."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from llc_jax.config import bind, choose
from llc_jax.data.augment import pad_crop_flip
from llc_jax.data.pipeline import Images, InMemory, Streamed
from llc_jax.data.splits import open_splits
from llc_jax.data.transforms import Crop, RandomCrop


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images for training and for evaluation.

    Attributes:
      train: the training images.
      evaluation: the evaluation images.
      class_names: L names.
      augment: (key, uint8[B, H, W, 3]) -> the same shape, on the devices.
    """

    train: Images
    evaluation: Images
    class_names: tuple[str, ...]
    augment: Callable[[jax.Array, jax.Array], jax.Array]


def open_dataset(
    *,
    source: str,
    eval_source: str,
    holdout: float,
    image_size: int,
    crop_fraction: float,
    exif_orientation: bool,
    in_memory: bool,
    augment: Mapping[str, Any],
    workers: int,
    on_error: str,
    seed: int,
) -> Dataset:
    """Opens the images that a config names; see `config.DataConfig` for the arguments."""
    skip = choose(on_error, {"stop": False, "skip": True}, "config.data.on_error")
    splits = open_splits(source, eval_source, holdout=holdout, seed=seed)
    classes = splits.train.class_names
    crop = Crop(image_size, crop_fraction, exif_orientation)
    if in_memory:
        on_device = bind(pad_crop_flip, augment, "config.data.augment, in memory,")
        images = (InMemory.load(split, crop, skip) for split in splits)
        return Dataset(*images, classes, on_device)
    options = {"size": image_size, "exif_orientation": exif_orientation}
    random_crop = bind(RandomCrop, augment, "config.data.augment, not in memory,")(**options)
    train = Streamed(splits.train, random_crop, workers, skip)
    return Dataset(train, Streamed(splits.evaluation, crop, workers, skip), classes, _unchanged)


def _unchanged(key: jax.Array, images: jax.Array) -> jax.Array:
    """Leaves images alone that were cropped when they were read."""
    del key
    return images
