"""ImageNet (ILSVRC 2012) as its original tars: nothing is unpacked."""

import importlib.util
import pathlib

from llc_jax.data import sources
from llc_jax.data.sources import FileSource
from llc_jax.data.stores import Tar
from llc_jax.errors import InputError

TRAIN_TAR, EVAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

# Images and classes in each.
WHOLE = {TRAIN_TAR: (1_281_167, 1000), EVAL_TAR: (50_000, 1000)}

# The classes of the validation images, by their numbers; a file of tensorflow-datasets.
_EVAL_CLASSES = "datasets/imagenet2012/validation_labels.txt"


def is_here(path: pathlib.Path) -> bool:
    """Whether a folder holds one of the tars."""
    return any((path / name).exists() for name in WHOLE)


def open_tars(folder: pathlib.Path) -> tuple[FileSource, FileSource]:
    """Opens the training and the validation images.

    Returns:
      Two sources whose classes are wnids, in the order of an unpacked folder: by wnid, then
      by file name.

    Raises:
      InputError: if a tar is missing, or not whole.
    """
    for name in WHOLE:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: ImageNet needs both {' and '.join(WHOLE)}.")
    train, evaluation = Tar(folder / TRAIN_TAR), Tar(folder / EVAL_TAR)
    by_number = _eval_classes()
    files = evaluation.files()
    try:
        classes = [by_number[int(pathlib.PurePath(name).stem.split("_")[-1]) - 1] for name in files]
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{folder / EVAL_TAR} is not ImageNet's: its files are not "
            "ILSVRC2012_val_00000001.JPEG and so on."
        ) from error
    ordered = sorted(zip(classes, files, strict=True))
    opened = (
        sources.label_by_directory(train, train.files(), 0),
        sources.label(evaluation, [file for _, file in ordered], [name for name, _ in ordered]),
    )
    for name, source in zip(WHOLE, opened, strict=True):
        _check(folder / name, source, *WHOLE[name])
    return opened


def _check(path: pathlib.Path, source: FileSource, images: int, classes: int) -> None:
    found = (len(source), len(source.class_names))
    if found != (images, classes):
        raise InputError(
            f"{path} holds {found[0]:,} images of {found[1]:,} classes, not {images:,} of "
            f"{classes:,}: it is not whole; get it again."
        )


def _eval_classes() -> list[str]:
    package = importlib.util.find_spec("tensorflow_datasets")
    folder = pathlib.Path(package.submodule_search_locations[0])
    return (folder / _EVAL_CLASSES).read_text().split()
