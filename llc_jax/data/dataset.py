"""The images of a run: opened, split, and ready to be read in batches."""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from llc_jax.data import embeddings, protocols
from llc_jax.data.augment import pad_crop_flip
from llc_jax.data.fingerprint import Fingerprint
from llc_jax.data.pipeline import Images, InMemory, Streamed
from llc_jax.data.sources import Source
from llc_jax.data.splits import Splits, open_source, open_splits
from llc_jax.data.transforms import Crop, RandomCrop, Transform, shape
from llc_jax.data.unknown import open_unknown
from llc_jax.data.vectors import Vectors, VectorSource
from llc_jax.errors import InputError
from llc_jax.options import bind, choose, keyword_options

# Images that are looked at to learn how large the images of a dataset are.
_SAMPLES = 25


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Images for training and for evaluation.

    Attributes:
      train: the training images, or embeddings.
      plain: the training images, cropped as those for evaluation are.
      evaluation: the evaluation images; in retrieval, the queries.
      database: the images that queries search: the training images, unless a protocol
        chooses others.
      find_self_indices: computes `self_indices`.
      class_names: L names.
      augment: (key, uint8[B, H, W, 3]) -> the same shape, on the devices.
      unseen: the images of the classes that are held out of training; None without such.
      without_protocol: all images of all classes that are not held out, whatever the protocol
        selects; None where it was not requested, or there is neither a protocol nor a
        held-out class.
      fingerprint: of all images, whatever the protocol; None of a part of a dataset.
      unknown: images of no class that is trained, by set.
    """

    train: Images
    plain: Images
    evaluation: Images
    database: Images
    find_self_indices: Callable[[], np.ndarray]
    class_names: tuple[str, ...]
    augment: Callable[[jax.Array, jax.Array], jax.Array]
    unseen: "Dataset | None"
    without_protocol: "Dataset | None" = None
    fingerprint: Fingerprint | None = None
    unknown: Mapping[str, Images] = dataclasses.field(default_factory=dict)

    @property
    def self_indices(self) -> np.ndarray:
        """The index in the database of each query's own image, int64[Q]; -1 where it is not there.

        It is computed at each use, because it compares the names of all images.
        """
        return self.find_self_indices()


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
    embedding_size: int | None = None,
    without_protocol: bool = False,
    class_names: tuple[str, ...] | None = None,
    unknown: Mapping[str, str] | None = None,
) -> Dataset:
    """Opens the images that a config names.

    Args: those of `config.DataConfig`, and
      seed: of the random split and the random choice of held-out classes.
      without_protocol: whether to open the dataset without the protocol too.
      class_names: that the labels index, where the data may lack some; by default its own.
      unknown: sets of unknown images to open too, and where they are; see `data.unknown`.
    """
    skip = choose(on_error, {"stop": False, "skip": True}, "config.data.on_error")
    all_splits = open_splits(source, eval_source, holdout=holdout, seed=seed)
    splits = protocols.apply(all_splits, protocol)
    splits = protocols.hold_out(splits, held_out_classes, seed)
    if class_names is not None:
        splits = splits.relabel(class_names)
    crop = Crop(image_size, crop_fraction, exif_orientation)
    _check_embeddings(splits, embedding_size)
    if isinstance(splits.train, VectorSource):
        options = (_open_vectors, crop, crop, _unchanged)
    elif in_memory:
        load = functools.partial(InMemory.load, skip=skip)
        options = (load, crop, crop, _bind_augmentation(augment, in_memory))
    else:
        train_crop = _bind_augmentation(augment, in_memory)(image_size, exif_orientation)
        stream = functools.partial(Streamed, workers=workers, skip=skip)
        options = (stream, train_crop, crop, _unchanged)
    unknown_images = open_unknown(unknown or {}, splits, crop, workers=workers, skip=skip)
    data = dataclasses.replace(
        _make_dataset(splits, *options),
        fingerprint=Fingerprint.of(all_splits),
        unknown=unknown_images,
    )
    if without_protocol and splits is not all_splits:
        held_out = splits.unseen.train.class_names if splits.unseen else ()
        names = tuple(name for name in all_splits.train.class_names if name not in held_out)
        data = dataclasses.replace(
            data, without_protocol=_make_dataset(all_splits.restrict(names), *options)
        )
    return data


def embedding_size(source: str) -> int:
    """Returns the numbers of each embedding of a dataset of embeddings.

    Raises:
      InputError: if they cannot be opened.
    """
    return embeddings.size_of(source)


def typical_side(source: str) -> int:
    """Returns the median of the shorter sides, in pixels, of some images of a dataset.

    Args:
      source: as in `open_splits`; of a dataset that is split, the training images count.

    Raises:
      InputError: if the data cannot be opened, or none of these images can be decoded.
    """
    images = open_source(source)
    images = images.train if isinstance(images, Splits) else images
    sides, damage = [], None
    for index in np.unique(np.linspace(0, len(images) - 1, _SAMPLES).astype(int)):
        try:
            sides.append(min(shape(images.read(index), images.names[index])))
        except InputError as error:
            damage = error  # Whether it stops the run is decided where all images are read.
    if not sides:
        raise damage
    return sorted(sides)[len(sides) // 2]


def _bind_augmentation(options: Mapping[str, Any], in_memory: bool) -> Callable:
    """Binds the options of the augmentation that goes with the way in which images are read."""
    ways = {True: ("in memory", pad_crop_flip), False: ("not in memory", RandomCrop)}
    way, augmentation = ways[in_memory]
    try:
        return bind(augmentation, options, f"config.data.augment, {way},")
    except InputError as error:
        other = ", ".join(keyword_options(ways[not in_memory][1]))
        raise InputError(
            f"{error} With --config.data.in_memory={not in_memory} it has {other}."
        ) from error


def _make_dataset(
    splits: Splits,
    open_images: Callable[[Source, Transform], Images],
    train_crop: Transform,
    crop: Transform,
    augment: Callable[[jax.Array, jax.Array], jax.Array],
) -> Dataset:
    train = open_images(splits.train, train_crop)
    # Those that are streamed note damaged images in one place.
    plain = train if crop == train_crop else dataclasses.replace(train, transform=crop)
    database_source = splits.database or splits.train
    shared = database_source is splits.train
    database = plain if shared else open_images(database_source, crop)
    evaluation = open_images(splits.evaluation, crop)
    # `InMemory` has left damaged images out by now; `Streamed` keeps their rows, masked.
    queries = (splits.evaluation, frozenset(evaluation.damaged))
    searched = (database_source, frozenset(database.damaged))
    return Dataset(
        train=train,
        plain=plain,
        evaluation=evaluation,
        database=database,
        find_self_indices=functools.partial(_self_indices, queries, searched),
        class_names=splits.train.class_names,
        augment=augment,
        unseen=splits.unseen
        and _make_dataset(splits.unseen, open_images, train_crop, crop, augment),
    )


def _self_indices(
    queries: tuple[Source, frozenset[int]], database: tuple[Source, frozenset[int]]
) -> np.ndarray:
    """Returns the index of each query's own image in the database, int64[Q], or -1.

    Args:
      queries, database: the images, and the indices of those that were skipped.
    """
    query_names = _unique_names(*queries)
    indices = dict.fromkeys(query_names, -1)
    for index, name in enumerate(_unique_names(*database)):
        if name in indices:
            indices[name] = index
    return np.array([indices[name] for name in query_names], np.int64)


def _unique_names(source: Source, skipped: frozenset[int]) -> list[str]:
    """Returns a name of each image that no other image has, whatever its source."""
    origin, names = source.origin, enumerate(source.names)
    return [f"{origin}/{name}" for index, name in names if index not in skipped]


def _check_embeddings(splits: Splits, size: int | None) -> None:
    """Raises an InputError if there are images and embeddings, or embeddings of two sizes."""
    train, evaluation = splits.train, splits.evaluation
    kinds = ["embeddings" if isinstance(s, VectorSource) else "images" for s in (train, evaluation)]
    if kinds[0] != kinds[1]:
        raise InputError(
            f"The training data are {kinds[0]} and the evaluation data {kinds[1]}: "
            "config.data.source and config.data.eval_source are of one kind."
        )
    if kinds[0] == "images":
        return
    if size not in (None, train.size):
        raise InputError(
            f"The embeddings in {train.origin} have {train.size} numbers, not {size}, as those "
            "that the run was begun with."
        )
    if evaluation.size != train.size:
        raise InputError(
            f"The embeddings for evaluation, {evaluation.origin}, have {evaluation.size} numbers, "
            f"and those for training {train.size}: both are of one encoder."
        )


def _open_vectors(source: VectorSource, transform: Transform) -> Vectors:
    """Returns vectors, which have no transform."""
    del transform
    return Vectors(source)


def _unchanged(key: jax.Array, images: jax.Array) -> jax.Array:
    """Returns the images as they are: `RandomCrop` has augmented them."""
    del key
    return images
