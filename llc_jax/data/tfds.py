"""TensorFlow Datasets that are prepared as ArrayRecord, read without TensorFlow.

`tfds:imagenet2012` names a dataset, `tfds:imagenet2012:train[:50000]` a split of it. The
directory is TFDS's own: `~/tensorflow_datasets`, or $TFDS_DATA_DIR, which may be a URL.
"""

import dataclasses
import functools
import os
import pathlib
import re
from collections.abc import Sequence

import numpy as np

from llc_jax.copies import local
from llc_jax.data import stores
from llc_jax.data.sources import Source
from llc_jax.errors import InputError
from llc_jax.objects import URL, is_url

PREFIX = "tfds:"
FORMAT = "array_record"
TRAIN, EVALUATION = "train", ("validation", "test")

# Features that can name an image, in the order of preference.
_NAME_KEYS = ("file_name", "filename", "id")


@dataclasses.dataclass(frozen=True)
class TfdsSource(Source):
    """Encoded images of a prepared dataset.

    Attributes:
      directory: of the dataset's version.
      split: in TFDS's notation.
      records: int64[N], the indices of the images' records in the split.
    """

    directory: str
    split: str
    records: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str]

    @property
    def origin(self) -> str:
        """The directory and the split."""
        return f"{self.directory}/{self.split}"

    def read(self, index: int) -> bytes:
        """Returns an encoded image file."""
        records, image_key, _ = _open_records(self.directory, self.split)
        return records[int(self.records[index])][image_key]

    def select(self, indices: np.ndarray) -> "TfdsSource":
        """Returns the source of the images at `indices`, in that order."""
        return dataclasses.replace(super().select(indices), records=self.records[indices])


def open_dataset(spec: str) -> list[TfdsSource]:
    """Opens `tfds:NAME` or `tfds:NAME:SPLIT`.

    Returns:
      The source of SPLIT, or without it those of the training and the evaluation split. Where
      the dataset has file names, images are ordered by class and then by file name, as in a
      folder.

    Raises:
      InputError: if there is no such dataset or split, it is not prepared, not as
        ArrayRecord, or does not classify images.
    """
    name, _, split = spec.removeprefix(PREFIX).partition(":")
    builder = array_record_builder(name)
    available = list(builder.info.splits)
    if split:
        splits = [split]
    else:
        splits = [TRAIN, next((split for split in EVALUATION if split in available), None)]
        if TRAIN not in available or None in splits:
            raise InputError(
                f"{spec} has the splits {', '.join(available)}: name one for training as "
                f"{PREFIX}{name}:SPLIT, and one for evaluation as config.data.eval_source."
            )
    return [_open_split(str(builder.data_path), split, spec) for split in splits]


def array_record_builder(name: str):
    """Returns TFDS's builder of a dataset that is prepared as ArrayRecord.

    Raises:
      InputError: if there is no such dataset, or it is not prepared as ArrayRecord.
    """
    import tensorflow_datasets as tfds

    builder = prepared_builder(name)
    if tfds.core.FileFormat(FORMAT) not in builder.info.available_file_formats():
        raise InputError(
            f"{builder.data_path} is prepared as {builder.info.file_format.value}, which has no "
            f"random access: `llc prepare array_record {name}` adds {FORMAT}."
        )
    return builder


def prepared_builder(name: str):
    """Returns TFDS's builder of a dataset that is prepared, in whatever format.

    Raises:
      InputError: if there is no such dataset, or it is not prepared.
    """
    import tensorflow_datasets as tfds

    builder = declared_builder(name)
    path = pathlib.Path(builder.data_path)
    if not path.is_dir():
        versions = sorted(version.name for version in path.parent.glob("*.*.*"))
        if versions:
            raise InputError(
                f"The dataset {name!r} is prepared as version {', '.join(versions)}, and the "
                f"installed tensorflow-datasets makes {path.name}: prepare it again, or install "
                f"a tensorflow-datasets that makes {versions[-1]}."
            )
        remedy = "`llc prepare imagenet FOLDER` does it"
        if builder.name != "imagenet2012":
            remedy = f'prepare it with file_format="{FORMAT}"'
        raise InputError(f"The dataset {name!r} is not prepared: there is no {path}; {remedy}.")
    # `tfds.builder` does not read the alternative formats of a dataset; this does.
    return tfds.builder_from_directory(path)


def declared_builder(name: str):
    """Returns TFDS's builder of a dataset, prepared or not.

    Raises:
      InputError: if there is no such dataset.
    """
    import tensorflow_datasets as tfds

    directory = os.environ.get("TFDS_DATA_DIR")
    if directory and is_url(directory):
        directory = local(URL(directory) / re.split("[:/]", name)[0]).parent
    try:
        return tfds.builder(name, data_dir=directory)
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"TFDS has no dataset {name!r}: {reason}") from error


def _open_split(directory: str, split: str, spec: str) -> TfdsSource:
    import tensorflow_datasets as tfds

    info = _open_directory(directory).info
    try:
        files = [file.filename for file in info.splits[split].file_instructions]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{spec} has no split {split!r}; it has {', '.join(info.splits)}."
        ) from error
    image_key, label_key = info.supervised_keys or ("image", "label")
    features = dict(info.features)
    classes = getattr(features.get(label_key), "names", None)
    if not isinstance(features.get(image_key), tfds.features.Image) or not classes:
        raise InputError(f"{spec} has no images with one class each.")

    name_key = next((key for key in _NAME_KEYS if key in features), None)

    def read_labels_and_names() -> dict[str, np.ndarray]:
        records, _, label_key = _open_records(directory, split)
        labels, names = [], []
        for index in range(len(records)):
            record = records[index]
            labels.append(record[label_key])
            names.append(record[name_key].decode() if name_key else f"{split}[{index}]")
        return {"labels": np.array(labels, np.int32), "names": np.array(names, np.str_)}

    paths = [pathlib.Path(file) for file in files]
    columns = stores.cached(f"{directory}:{split}", paths, read_labels_and_names)
    labels, names = columns["labels"], columns["names"]
    order = np.lexsort((names, labels)) if name_key else np.arange(len(labels))
    return TfdsSource(directory, split, order, labels[order], tuple(classes), names[order].tolist())


@functools.lru_cache(maxsize=8)
def _open_records(directory: str, split: str):
    """Returns the records of a split, and the keys of their image and their label."""
    import tensorflow_datasets as tfds

    builder = _open_directory(directory)
    image_key, label_key = builder.info.supervised_keys or ("image", "label")
    decoders = {image_key: tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=decoders), image_key, label_key


def _open_directory(directory: str):
    """Returns the builder of a dataset's version, set to read ArrayRecord."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    if builder.info.file_format != tfds.core.FileFormat(FORMAT):
        # `builder_from_directory` chooses the main format; ArrayRecord is an alternative here.
        builder.info.set_file_format(FORMAT, override=True, override_if_initialized=True)
    return builder
