"""Which images train and which evaluate."""

import pathlib
from typing import NamedTuple

import numpy as np

from llc_jax.data import imagenet, sources, tfds
from llc_jax.data.sources import Source
from llc_jax.data.stores import Folder, Store, Tar, Zip
from llc_jax.errors import InputError

TRAIN_FOLDER = "train"
EVAL_FOLDERS = ("val", "validation", "test")


class Splits(NamedTuple):
    """Sources with the same classes.

    Attributes:
      train: the training images.
      evaluation: the evaluation images; in retrieval, the queries.
      database: what the queries search, where that is not the training images.
      unseen: the images of classes that are kept from training.
    """

    train: Source
    evaluation: Source
    database: Source | None = None
    unseen: "Splits | None" = None

    def restrict(self, class_names: tuple[str, ...]) -> "Splits":
        """Returns the images of some classes, which are numbered in the order given."""
        images = (self.train, self.evaluation, self.database)
        return Splits(*(part and part.restrict(class_names) for part in images))


def open_splits(source: str, eval_source: str, *, holdout: float, seed: int) -> Splits:
    """Opens the data of a run.

    A folder or archive that holds `train/<class>/` and one of `val/`, `validation/` or
    `test/<class>/` is split so. One that holds `<class>/` directories, a CSV or
    `digits` is split by chance, `holdout` of each class for evaluation, unless
    `eval_source` names the evaluation images. A folder with ImageNet's original tars is
    split as they are.

    Args:
      source: "digits", "tfds:NAME" or "tfds:NAME:SPLIT", or a path to a folder, a .zip, a
        .tar or a .csv.
      eval_source: the same for the evaluation images alone, or "".
      holdout: fraction of each class kept for evaluation where the data has no split.
      seed: of that choice.

    Raises:
      InputError: if the data are missing, empty, of one class, or if evaluation
        has a class that training has not.
    """
    opened = open_source(source)
    if eval_source:
        evaluation = open_source(eval_source)
        if isinstance(opened, Splits):
            opened = opened.train
        if isinstance(evaluation, Splits):
            evaluation = evaluation.evaluation
        splits = Splits(opened, evaluation)
    elif isinstance(opened, Splits):
        splits = opened
    else:
        splits = split_by_chance(opened, holdout, seed)
    return _with_same_classes(splits, source)


def split_by_chance(source: Source, holdout: float, seed: int) -> Splits:
    """Keeps a fraction of every class, at least one image where it has two, for evaluation."""
    if not 0 < holdout < 1:
        raise InputError(f"data.holdout is a fraction between 0 and 1, not {holdout}.")
    rng = np.random.default_rng(seed)
    kept = np.zeros(len(source), bool)
    for label in range(len(source.class_names)):
        members = rng.permutation(np.flatnonzero(source.labels == label))
        count = max(1, round(holdout * len(members))) if len(members) > 1 else 0
        kept[members[:count]] = True
    return Splits(source.select(np.flatnonzero(~kept)), source.select(np.flatnonzero(kept)))


def open_source(source: str) -> Source | Splits:
    """Opens data as they are: in one part, or split; see `open_splits`."""
    if not source:
        raise InputError(
            "The config names no data: give a folder, a .zip, a .tar or a .csv, "
            "as --config=FILE:PATH or --config.data.source=PATH."
        )
    if source == "digits":
        return sources.load_digits()
    if source.startswith(tfds.PREFIX):
        opened = tfds.open_dataset(source)
        return opened[0] if len(opened) == 1 else Splits(*opened)
    path = pathlib.Path(source).expanduser()
    if not path.exists():
        raise InputError(
            f"There is no data at {path} (data.source: a folder, a .zip, a .tar or a .csv)."
        )
    if imagenet.is_here(path):
        return Splits(*imagenet.open_tars(path))
    if path.is_dir():
        return _open_tree(Folder(path))
    if path.suffix.lower() == ".csv":
        return sources.read_csv(path)
    if path.suffix.lower() == ".zip":
        return _open_tree(Zip(path))
    if path.suffix.lower() == ".tar":
        return _open_tree(Tar(path))
    raise InputError(f"{path} is neither a folder nor a .zip nor a .tar nor a .csv.")


def _open_tree(store: Store) -> Source | Splits:
    """Sorts the files of a tree into classes and, where it has them, splits."""
    files = store.files()
    if not files:
        raise InputError(f"There are no images in {store.root}.")
    parts = [name.split("/") for name in files]
    depth = 0
    while all(len(p) > depth + 2 for p in parts) and len({p[depth] for p in parts}) == 1:
        depth += 1  # A lone top folder, as archives have.
    tops = {p[depth] for p in parts if len(p) > depth + 1}
    evaluation = next((name for name in EVAL_FOLDERS if name in tops), None)
    if TRAIN_FOLDER not in tops or evaluation is None:
        return _by_class(store, files, depth, "<class>/<image>")
    return Splits(
        *(
            _by_class(
                store,
                [name for name, p in zip(files, parts, strict=True) if p[depth] == split],
                depth + 1,
                f"{split}/<class>/<image>",
            )
            for split in (TRAIN_FOLDER, evaluation)
        )
    )


def _by_class(store: Store, files: list[str], depth: int, layout: str) -> Source:
    stray = next((name for name in files if name.count("/") <= depth), None)
    if stray is not None:
        raise InputError(
            f"{store.root} has the image {stray} outside any class: expected {layout}, "
            "one directory a class."
        )
    return sources.label_by_directory(store, files, depth)


def _with_same_classes(splits: Splits, source: str) -> Splits:
    """Checks the classes, and numbers the evaluation labels as in training."""
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
