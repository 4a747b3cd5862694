"""The images of a run: opened, split, and ready to come in batches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llc_jax.data import protocols
from llc_jax.data.augment import pad_crop_flip
from llc_jax.data.pipeline import Images, InMemory, Streamed
from llc_jax.data.sources import Source
from llc_jax.data.splits import Splits, open_splits
from llc_jax.data.transforms import Crop, RandomCrop, Transform
from llc_jax.options import bind, choose


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images for training and for evaluation.

    Attributes:
      train: the training images.
      evaluation: the evaluation images; in retrieval, the queries.
      database: what queries search: the training images, or a protocol's choice.
      find_own: gives `own`.
      class_names: L names.
      augment: (key, uint8[B, H, W, 3]) -> the same shape, on the devices.
      unseen: the images of the classes that are held out of training.
      whole: all classes but those, and all their images, whatever the protocol; where that
        was asked for and is more.
    """

    train: Images
    evaluation: Images
    database: Images
    find_own: Callable[[], np.ndarray]
    class_names: tuple[str, ...]
    augment: Callable[[jax.Array, jax.Array], jax.Array]
    unseen: "Dataset | None"
    without_protocol: "Dataset | None" = None

    @property
    def self_indices(self) -> np.ndarray:
        """The place in the database of each evaluation image itself, int64[Q]; -1 for nowhere.

        It takes a look at every name, so it is found only where it is asked for.
        """
        return self.find_own()


def open_dataset(
    *,
    source: str,
    eval_source: str,
    holdout: float,
    protocol: Mapping[str, Any],
    held_out_classes: int,
    image_size: int,
    crop_fraction: float,
    exif_orientation: bool,
    in_memory: bool,
    augment: Mapping[str, Any],
    workers: int | None,
    on_error: str,
    seed: int,
    without_protocol: bool = False,
) -> Dataset:
    """Opens the images that a config names.

    Args: those of `config.DataConfig`, and
      seed: of what is chosen by chance.
      whole: whether to have the dataset without the protocol too.
    """
    skip = choose(on_error, {"stop": False, "skip": True}, "config.data.on_error")
    everything = open_splits(source, eval_source, holdout=holdout, seed=seed)
    splits = protocols.apply(everything, protocol)
    splits = protocols.hold_out(splits, held_out_classes, seed)
    crop = Crop(image_size, crop_fraction, exif_orientation)
    if in_memory:
        on_device = bind(pad_crop_flip, augment, "config.data.augment, in memory,")

        def load(source: Source, transform: Transform) -> Images:
            return InMemory.load(source, transform, skip)

        how = (load, crop, crop, on_device)
    else:
        options = {"size": image_size, "exif_orientation": exif_orientation}
        random_crop = bind(RandomCrop, augment, "config.data.augment, not in memory,")(**options)

        def stream(source: Source, transform: Transform) -> Images:
            return Streamed(source, transform, workers, skip)

        how = (stream, random_crop, crop, _unchanged)
    data = _prepare(splits, *how)
    if without_protocol and splits is not everything:
        held_out = splits.unseen.train.class_names if splits.unseen else ()
        names = tuple(name for name in everything.train.class_names if name not in held_out)
        data = dataclasses.replace(
            data, without_protocol=_prepare(everything.restrict(names), *how)
        )
    return data


def _prepare(
    splits: Splits,
    images: Callable[[Source, Transform], Images],
    train_crop: Transform,
    crop: Transform,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
) -> Dataset:
    train = images(splits.train, train_crop)
    searched = splits.database or splits.train
    same = searched is splits.train and crop == train_crop
    database = train if same else images(searched, crop)
    evaluation = images(splits.evaluation, crop)
    # Those that are skipped already are not among the images; what is streamed all are.
    both = ((splits.evaluation, evaluation), (searched, database))
    named = [(source, frozenset(part.damaged)) for source, part in both]
    return Dataset(
        train=train,
        evaluation=evaluation,
        database=database,
        find_own=functools.partial(_own_places, *named),
        class_names=splits.train.class_names,
        augment=augment,
        unseen=splits.unseen and _prepare(splits.unseen, images, train_crop, crop, augment),
    )


def _own_places(
    queries: tuple[Source, frozenset[int]], database: tuple[Source, frozenset[int]]
) -> np.ndarray:
    """Returns where each query is in the database, int64[Q], -1 for nowhere.

    Args:
      queries, database: the images, and the numbers of those that are left out.
    """
    asked = _names(*queries)
    place = dict.fromkeys(asked, -1)
    place |= {name: index for index, name in enumerate(_names(*database)) if name in place}
    return np.array([place[name] for name in asked], np.int64)


def _names(source: Source, left_out: frozenset[int]) -> list[str]:
    """Returns what tells each image from all others."""
    origin, names = source.origin, enumerate(source.names)
    return [f"{origin}/{name}" for index, name in names if index not in left_out]


def _unchanged(key: jax.Array, images: jax.Array) -> jax.Array:
    """Leaves images alone that were cropped when they were read."""
    del key
    return images
