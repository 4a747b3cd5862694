"""Random-access sources of labelled images.

A `Source` is N images, encoded or as pixels, their labels and their names. Sources can be
pickled, so that worker processes can read them. `splits.open_source` opens one by its name.
"""

import abc
import collections
import csv
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from absl import logging

from llc_jax.copies import local
from llc_jax.data.bucket import Bucket
from llc_jax.data.stores import Folder, Store
from llc_jax.errors import InputError
from llc_jax.objects import URL

# The most characters of a path that an error message shows.
_SHOWN = 200


class Source(abc.ABC):
    """N labelled images.

    Attributes:
      labels: int32[N], indices into `class_names`.
      class_names: L names.
      names: N names, unique in the source: paths, where the images are files.
      origin: the folder, archive or dataset of the names. Two sources have the same image
        where `<origin>/<name>` is the same.
    """

    labels: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str]
    origin: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    @abc.abstractmethod
    def read(self, index: int) -> bytes | np.ndarray:
        """Returns an encoded image file, or pixels uint8[H, W, 3]."""

    def sizes(self) -> np.ndarray:
        """Returns the bytes of each image's file, int64[N]; 0 where it is not known."""
        return np.zeros(len(self), np.int64)

    def identity(self) -> Iterator[bytes]:
        """Yields what identifies the images: their names, labels and the sizes of their files."""
        # Names of files that are not UTF-8 have surrogates.
        yield "\0".join(self.names).encode(errors="surrogateescape")
        yield self.labels.astype("<i4").tobytes()
        yield self.sizes().astype("<i8").tobytes()

    def select(self, indices: np.ndarray) -> "Source":
        """Returns the source of the images at `indices`, in that order."""
        names = [self.names[index] for index in indices]
        return dataclasses.replace(self, labels=self.labels[indices], names=names)

    def restrict(self, class_names: tuple[str, ...]) -> "Source":
        """Returns the source of the images of some classes; its labels index `class_names`."""
        new_labels = {name: label for label, name in enumerate(class_names)}
        relabel = np.array([new_labels.get(name, -1) for name in self.class_names], np.int32)
        labels = relabel[self.labels]
        subset = self if (labels >= 0).all() else self.select(np.flatnonzero(labels >= 0))
        return dataclasses.replace(subset, labels=labels[labels >= 0], class_names=class_names)


@dataclasses.dataclass(frozen=True)
class ArraySource(Source):
    """Images in memory, uint8[N, H, W, 3]."""

    images: np.ndarray
    labels: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str]

    def read(self, index: int) -> np.ndarray:
        """Returns pixels uint8[H, W, 3]."""
        return self.images[index]

    def select(self, indices: np.ndarray) -> "ArraySource":
        """Returns the source of the images at `indices`, in that order."""
        return dataclasses.replace(super().select(indices), images=self.images[indices])


@dataclasses.dataclass(frozen=True)
class FileSource(Source):
    """Encoded image files in a store; `names` are paths inside it."""

    store: Store
    labels: np.ndarray
    class_names: tuple[str, ...]
    names: Sequence[str]

    @property
    def origin(self) -> str:
        """The path of the store."""
        root = self.store.root
        return str(root if isinstance(root, URL) else root.resolve())

    def read(self, index: int) -> bytes:
        """Returns an encoded image file."""
        return self.store.read(self.names[index])

    def sizes(self) -> np.ndarray:
        """Returns the bytes of each image's file, int64[N]; 0 where it is not known."""
        return self.store.sizes(self.names)


def load_digits() -> ArraySource:
    """Returns scikit-learn's 1,797 handwritten digits, 8 x 8 pixels, as grey RGB."""
    import sklearn.datasets  # Slow to import, and only needed here.

    digits = sklearn.datasets.load_digits()
    grey = np.round(digits.images * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[..., None], 3, axis=-1)
    names = [f"digits[{index}]" for index in range(len(images))]
    classes = tuple(str(name) for name in digits.target_names)
    return ArraySource(images, digits.target.astype(np.int32), classes, names)


def label_by_directory(store: Store, files: Sequence[str], depth: int) -> FileSource:
    """Returns a source of files; the directory `depth` levels below the root is the class."""
    return label(store, files, [name.split("/")[depth] for name in files])


def read_csv(path: pathlib.Path | URL) -> FileSource:
    """Reads `file,label` lines (with or without that header); files are relative to the CSV.

    Raises:
      InputError: if the CSV cannot be read or has another form, or a file is missing.
    """
    try:
        with local(path).open(newline="", encoding="utf-8-sig") as lines:
            rows = [row for row in csv.reader(lines) if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"Cannot read {path}: {error}.") from error
    if rows and [cell.strip() for cell in rows[0]] == ["file", "label"]:
        rows = rows[1:]
    for number, row in enumerate(rows, start=1):
        if len(row) != 2 or not row[0].strip() or not row[1].strip():
            raise InputError(f"{path}, entry {number}: expected `file,label`, found {row}.")
    files, classes = ([row[column].strip() for row in rows] for column in (0, 1))
    return label_listed(path, path.parent, files, classes)


def label_listed(
    path: pathlib.Path | URL,
    folder: pathlib.Path | URL,
    files: Sequence[str],
    classes: Sequence[str],
) -> FileSource:
    """Returns a source of the files that a list names.

    Args:
      path: of the list.
      folder: that the files are relative to.
      files: N paths.
      classes: N class names.

    Raises:
      InputError: if there are no files, or one is missing.
    """
    store = Bucket(folder) if isinstance(folder, URL) else Folder(folder)
    for file in files:
        if not store.has(file):
            raise InputError(
                f"{path} names {shortened(file)}, but there is no {shortened(store.root / file)}."
            )
    if not files:
        raise InputError(f"There are no images in {path}.")
    warn_of_repeated_files(store, files, classes)
    return label(store, files, classes)


def shortened(path: str | os.PathLike) -> str:
    """Returns a path for an error message: of a very long one its beginning."""
    text = os.fspath(path)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}... ({len(text):,} characters)"


def warn_of_repeated_files(
    store: Folder | Bucket, files: Sequence[str], places: Sequence[str]
) -> None:
    """Warns where a file has several names, and above all where they are of several classes.

    Args:
      store: that has the files.
      files: N paths in the store.
      places: N classes, or splits and classes.
    """
    real_paths = store.real_paths(files)
    if len(set(real_paths)) == len(files):
        return
    groups = collections.defaultdict(list)
    for path, file, place in zip(real_paths, files, places, strict=True):
        groups[path].append((place, file))
    repeated = [sorted(group) for group in groups.values() if len(group) > 1]
    mixed = [group for group in repeated if group[0][0] != group[-1][0]]
    first, last = ((mixed or repeated)[0][end][1] for end in (0, -1))
    logging.warning(
        "Images in %s that have more than one name: %d; more than one class or split: %d. "
        "%s and %s are the same file: remove the links or lines that repeat it.",
        *(store.root, len(repeated), len(mixed), shortened(first), shortened(last)),
    )


def label(store: Store, files: Sequence[str], classes: Sequence[str]) -> FileSource:
    """Returns a source of files.

    Args:
      store: that has the files.
      files: N paths in the store.
      classes: N class names.

    Raises:
      InputError: if there are no files.
    """
    if not files:
        raise InputError(f"There are no images in {store.root}.")
    class_names = tuple(sorted(set(classes)))
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in classes], np.int32)
    return FileSource(store, labels, class_names, list(files))
