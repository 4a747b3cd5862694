"""ImageNet (ILSVRC 2012) read from its original tars, without unpacking them."""

import importlib.util
import pathlib

from llc_jax.data import sources
from llc_jax.data.sources import FileSource
from llc_jax.data.stores import Tar
from llc_jax.errors import InputError

TRAIN_TAR, EVAL_TAR = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar"

# The number of images and of classes in each tar.
COUNTS = {TRAIN_TAR: (1_281_167, 1000), EVAL_TAR: (50_000, 1000)}

# A file of tensorflow-datasets: the classes of the validation images, in the order of the images.
_EVAL_CLASSES_FILE = "datasets/imagenet2012/validation_labels.txt"


def has_tars(path: pathlib.Path) -> bool:
    """Whether a folder has one of the tars."""
    return any((path / name).exists() for name in COUNTS)


def open_tars(folder: pathlib.Path) -> tuple[FileSource, FileSource]:
    """Opens the training and the validation images.

    Returns:
      Two sources whose classes are wnids, in the order of an unpacked folder: by wnid, then
      by file name.

    Raises:
      InputError: if a tar is missing or incomplete.
    """
    for name in COUNTS:
        if not (folder / name).is_file():
            raise InputError(f"{folder} has no {name}: ImageNet needs both {' and '.join(COUNTS)}.")
    train, evaluation = Tar(folder / TRAIN_TAR), Tar(folder / EVAL_TAR)
    all_classes = _eval_classes()
    files = evaluation.files()
    try:
        numbers = [int(pathlib.PurePath(name).stem.split("_")[-1]) for name in files]
        classes = [all_classes[number - 1] for number in numbers]
    except (ValueError, IndexError) as error:
        raise InputError(
            f"{folder / EVAL_TAR} is not ImageNet's: its files are not "
            "ILSVRC2012_val_00000001.JPEG and so on."
        ) from error
    by_class = sorted(zip(classes, files, strict=True))
    images = (
        sources.label_by_directory(train, train.files(), 0),
        sources.label(evaluation, [file for _, file in by_class], [name for name, _ in by_class]),
    )
    for name, source in zip(COUNTS, images, strict=True):
        _check_counts(folder / name, source, *COUNTS[name])
    return images


def _check_counts(path: pathlib.Path, source: FileSource, images: int, classes: int) -> None:
    counts = (len(source), len(source.class_names))
    if counts != (images, classes):
        raise InputError(
            f"{path} holds {counts[0]:,} images of {counts[1]:,} classes, not {images:,} of "
            f"{classes:,}: it is incomplete; download it again."
        )


def _eval_classes() -> list[str]:
    """Returns the class (wnid) of validation image n at index n - 1."""
    package = importlib.util.find_spec("tensorflow_datasets")
    folder = pathlib.Path(package.submodule_search_locations[0])
    return (folder / _EVAL_CLASSES_FILE).read_text().split()
