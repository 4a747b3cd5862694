"""The split of a dataset into training and evaluation images."""

import os
from typing import NamedTuple

import numpy as np

from llc_jax.copies import local
from llc_jax.data import embeddings, image_list, imagenet, sources, tfds, webdataset
from llc_jax.data.bucket import Bucket
from llc_jax.data.sources import Source
from llc_jax.data.stores import Folder, Store, Tar, Zip
from llc_jax.errors import InputError
from llc_jax.objects import URL, is_url

TRAIN_FOLDER = "train"
EVAL_FOLDERS = ("val", "validation", "test")


class Splits(NamedTuple):
    """Sources with the same classes.

    Attributes:
      train: the training images.
      evaluation: the evaluation images; in retrieval, the queries.
      database: the images that the queries search; None for the training images.
      unseen: the images of the classes that are held out of training, or None.
    """

    train: Source
    evaluation: Source
    database: Source | None = None
    unseen: "Splits | None" = None

    def restrict(self, class_names: tuple[str, ...]) -> "Splits":
        """Returns the images of some classes; labels index `class_names`."""
        images = (self.train, self.evaluation, self.database)
        return Splits(*(source and source.restrict(class_names) for source in images))

    def relabel(self, class_names: tuple[str, ...]) -> "Splits":
        """Returns the same images with labels that index other names, which include theirs.

        Raises:
          InputError: if there are images of other classes.
        """
        unknown = sorted(set(self.train.class_names) - set(class_names))
        if unknown:
            raise InputError(
                "The images have classes that the run was not trained on: "
                f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}."
            )
        return self.restrict(class_names)._replace(unseen=self.unseen)


def open_splits(source: str, eval_source: str, *, holdout: float, seed: int) -> Splits:
    """Opens the data of a run.

    A folder or archive with `train/<class>/` and one of `val/`, `validation/` or
    `test/<class>/` is split accordingly, and so is a folder with ImageNet's original tars. A
    folder or archive of `<class>/` directories, a CSV, a list or `digits` is split at random,
    `holdout` of each class for evaluation, unless `eval_source` names the evaluation images.

    Args:
      source: "digits", "tfds:NAME" or "tfds:NAME:SPLIT", "embeddings:PATH" or
        "embeddings:PATH:LABELS", "webdataset:PATTERN" or a pattern of tars, a path to a
        folder, a .zip, a .tar or a .csv, or a list of images, "LIST.txt" or "LIST.txt:FOLDER";
        see `webdataset` and `image_list`.
      eval_source: the same for the evaluation images alone, or "".
      holdout: fraction of each class kept for evaluation where the data has no split.
      seed: of the random split.

    Raises:
      InputError: if the data are missing, empty, of one class, or if evaluation
        has a class that training has not.
    """
    data = open_source(source)
    if eval_source:
        evaluation = open_source(eval_source)
        if isinstance(data, Splits):
            data = data.train
        if isinstance(evaluation, Splits):
            evaluation = evaluation.evaluation
        splits = Splits(data, evaluation)
    elif isinstance(data, Splits):
        splits = data
    else:
        splits = split_at_random(data, holdout, seed)
    return _with_same_classes(splits, source)


def split_at_random(source: Source, holdout: float, seed: int) -> Splits:
    """Splits off a fraction of every class for evaluation: at least one image where it has two."""
    if not 0 < holdout < 1:
        raise InputError(f"data.holdout is a fraction between 0 and 1, not {holdout}.")
    rng = np.random.default_rng(seed)
    eval_mask = np.zeros(len(source), bool)
    for label in range(len(source.class_names)):
        of_class = rng.permutation(np.flatnonzero(source.labels == label))
        count = max(1, round(holdout * len(of_class))) if len(of_class) > 1 else 0
        eval_mask[of_class[:count]] = True
    train, evaluation = np.flatnonzero(~eval_mask), np.flatnonzero(eval_mask)
    return Splits(source.select(train), source.select(evaluation))


def open_source(source: str) -> Source | Splits:
    """Opens a dataset as it comes: as `Splits` where it is split, else as one source.

    Args:
      source: as for `open_splits`.

    Raises:
      InputError: if the data are missing, empty, or of a kind that cannot be read.
    """
    if not source:
        raise InputError(
            "The config names no data: give a folder, a .zip, a .tar, a .csv or a .txt, "
            "as --config=NAME:PATH or --config.data.source=PATH."
        )
    if source == "digits":
        return sources.load_digits()
    if source.startswith(tfds.PREFIX):
        tfds_splits = tfds.open_dataset(source)
        return tfds_splits[0] if len(tfds_splits) == 1 else Splits(*tfds_splits)
    if source.startswith(embeddings.PREFIX):
        parts = embeddings.open_embeddings(source)
        return parts[0] if len(parts) == 1 else Splits(*parts)
    if webdataset.is_named(source):
        return webdataset.open_shards(source)
    if is_url(source):
        url = URL(source)
        if url.suffix.lower() == ".csv":
            return sources.read_csv(url)
        if url.suffix.lower() not in (".zip", ".tar"):
            return _open_tree(Bucket(url))
    listed = image_list.find(source)
    path = local(os.path.expanduser(source)) if listed is None else listed.path
    if not os.path.exists(path):
        raise InputError(
            f"There is no data at {path} (data.source: a folder, a .zip, a .tar, a .csv or a .txt)."
        )
    if imagenet.has_tars(path):
        return Splits(*imagenet.open_tars(path))
    if path.is_dir():
        return _open_tree(Folder(path))
    if listed is not None:
        return image_list.read(listed)
    if path.suffix.lower() == ".csv":
        return sources.read_csv(path)
    if path.suffix.lower() == ".zip":
        return _open_tree(Zip(path))
    if path.suffix.lower() == ".tar":
        return _open_tree(Tar(path))
    raise InputError(f"{path} is neither a folder nor a .zip nor a .tar nor a .csv nor a .txt.")


def _open_tree(store: Store) -> Source | Splits:
    """Opens a tree of class directories, with or without directories of splits above them."""
    files = store.files()
    if not files:
        raise InputError(f"There are no images in {store.root}.")
    paths = [name.split("/") for name in files]
    depth = 0
    while all(len(path) > depth + 2 for path in paths) and len({p[depth] for p in paths}) == 1:
        depth += 1  # Archives often have a single top-level folder.
    folders = {path[depth] for path in paths if len(path) > depth + 1}
    eval_folder = next((name for name in EVAL_FOLDERS if name in folders), None)
    is_split = TRAIN_FOLDER in folders and eval_folder is not None
    if isinstance(store, Folder):
        last = depth + 1 if is_split else depth
        places = ["/".join(path[depth : last + 1]) for path in paths]
        sources.warn_of_repeated_files(store, files, places)
    if not is_split:
        return _label_by_class_folder(store, files, depth, "<class>/<image>")
    splits = []
    for split in (TRAIN_FOLDER, eval_folder):
        in_split = [name for name, p in zip(files, paths, strict=True) if p[depth] == split]
        layout = f"{split}/<class>/<image>"
        splits.append(_label_by_class_folder(store, in_split, depth + 1, layout))
    return Splits(*splits)


def _label_by_class_folder(store: Store, files: list[str], depth: int, layout: str) -> Source:
    unlabelled = next((name for name in files if name.count("/") <= depth), None)
    if unlabelled is not None:
        raise InputError(
            f"{store.root} has the image {unlabelled} outside any class: expected {layout}, "
            "one directory a class."
        )
    return sources.label_by_directory(store, files, depth)


def _with_same_classes(splits: Splits, source: str) -> Splits:
    """Checks the classes, and makes the evaluation labels index the training classes."""
    train, evaluation = splits.train, splits.evaluation
    if len(train.class_names) < 2:
        raise InputError(
            f"{source} has one class ({train.class_names[0]}): codes need at least two, "
            "one directory a class."
        )
    unknown = sorted(set(evaluation.class_names) - set(train.class_names))
    if unknown:
        raise InputError(
            f"{len(unknown)} classes of the evaluation images have no training images: "
            f"{', '.join(unknown[:5])}{', ...' if len(unknown) > 5 else ''}."
        )
    if not len(evaluation):
        raise InputError(f"{source} leaves no image for evaluation; raise data.holdout.")
    return Splits(train, evaluation.restrict(train.class_names))
