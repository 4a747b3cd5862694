"""TensorFlow Datasets that are prepared as ArrayRecord, read without TensorFlow.

`tfds:imagenet2012` names a dataset, `tfds:imagenet2012:train[:50000]` a split of it. The
directory is TFDS's own: `~/tensorflow_datasets`, or $TFDS_DATA_DIR.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from llc_jax.data import stores
from llc_jax.data.sources import Source
from llc_jax.errors import InputError

PREFIX = "tfds:"
FORMAT = "array_record"
TRAIN, EVALUATION = "train", ("validation", "test")

# Features that name an image, in the order of preference.
_NAMES = ("file_name", "filename", "id")


@dataclasses.dataclass(frozen=True)
class TfdsSource(Source):
    """Encoded images of a prepared dataset.

    Attributes:
      directory: of the dataset's version.
      split: as TFDS spells it.
      records: int64[N], which records of the split.
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
        records, image, _ = _open_records(self.directory, self.split)
        return records[int(self.records[index])][image]

    def select(self, indices: np.ndarray) -> "TfdsSource":
        """Returns the source of some of the images, in the order given."""
        return dataclasses.replace(super().select(indices), records=self.records[indices])


def open_dataset(given: str) -> list[TfdsSource]:
    """Opens `tfds:NAME` or `tfds:NAME:SPLIT`.

    Returns:
      The source of the split; of all that are named, training and evaluation. Where the
      dataset names its files, by class and then by file name, as in a folder.

    Raises:
      InputError: if there is no such dataset or split, it is not prepared, not as
        ArrayRecord, or does not classify images.
    """
    name, _, split = given.removeprefix(PREFIX).partition(":")
    builder = array_record_builder(name)
    there = list(builder.info.splits)
    if split:
        wanted = [split]
    else:
        wanted = [TRAIN, next((one for one in EVALUATION if one in there), None)]
        if TRAIN not in there or None in wanted:
            raise InputError(
                f"{given} has the splits {', '.join(there)}: name one for training as "
                f"{PREFIX}{name}:SPLIT, and one for evaluation as config.data.eval_source."
            )
    return [_open_split(str(builder.data_path), one, given) for one in wanted]


def array_record_builder(name: str):
    """Returns TFDS's builder of a dataset that is prepared as ArrayRecord.

    Raises:
      InputError: if there is no such dataset, or it is not prepared so.
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
        others = sorted(other.name for other in path.parent.glob("*.*.*"))
        if others:
            raise InputError(
                f"The dataset {name!r} is prepared as version {', '.join(others)}, and the "
                f"tensorflow-datasets here makes {path.name}: prepare it anew, or install one that "
                f"makes {others[-1]}."
            )
        how = "`llc prepare imagenet FOLDER` does it"
        if builder.name != "imagenet2012":
            how = f'prepare it with file_format="{FORMAT}"'
        raise InputError(f"The dataset {name!r} is not prepared: there is no {path}; {how}.")
    # The builder that a name gives does not read of alternative formats; this one does.
    return tfds.builder_from_directory(path)


def declared_builder(name: str):
    """Returns TFDS's builder of a dataset, prepared or not.

    Raises:
      InputError: if there is no such dataset.
    """
    import tensorflow_datasets as tfds

    try:
        return tfds.builder(name, data_dir=os.environ.get("TFDS_DATA_DIR"))
    except (tfds.core.DatasetNotFoundError, ValueError, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"TFDS has no dataset {name!r}: {reason}") from error


def _open_split(directory: str, split: str, given: str) -> TfdsSource:
    import tensorflow_datasets as tfds

    info = _open_directory(directory).info
    try:
        files = [file.filename for file in info.splits[split].file_instructions]
    except (ValueError, KeyError) as error:
        raise InputError(
            f"{given} has no split {split!r}; it has {', '.join(info.splits)}."
        ) from error
    image, label = info.supervised_keys or ("image", "label")
    features = dict(info.features)
    classes = getattr(features.get(label), "names", None)
    if not isinstance(features.get(image), tfds.features.Image) or not classes:
        raise InputError(f"{given} has no images with one class each.")

    key = next((key for key in _NAMES if key in features), None)

    def read_through() -> dict[str, np.ndarray]:
        records, _, label = _open_records(directory, split)
        labels, names = [], []
        for number in range(len(records)):
            record = records[number]
            labels.append(record[label])
            names.append(record[key].decode() if key else f"{split}[{number}]")
        return {"labels": np.array(labels, np.int32), "names": np.array(names, np.str_)}

    paths = [pathlib.Path(file) for file in files]
    index = stores.keep(f"{directory}:{split}", paths, read_through)
    labels, names = index["labels"], index["names"]
    order = np.lexsort((names, labels)) if key else np.arange(len(labels))
    return TfdsSource(directory, split, order, labels[order], tuple(classes), names[order].tolist())


@functools.lru_cache(maxsize=8)
def _open_records(directory: str, split: str):
    """Returns the records of a split, and the names of their image and their label."""
    import tensorflow_datasets as tfds

    builder = _open_directory(directory)
    image, label = builder.info.supervised_keys or ("image", "label")
    skip = {image: tfds.decode.SkipDecoding()}
    return builder.as_data_source(split=split, decoders=skip), image, label


def _open_directory(directory: str):
    """Returns the builder of a dataset's version, set to read ArrayRecord."""
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(directory)
    if builder.info.file_format != tfds.core.FileFormat(FORMAT):
        # It is an alternative format; `builder_from_directory` cannot be asked for one.
        builder.info.set_file_format(FORMAT, override=True, override_if_initialized=True)
    return builder
