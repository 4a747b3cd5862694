"""The shards of a corpus: what there is to encode, in pieces that are opened one by one.

An input file is a shard, in the order of the patterns that name the files; a folder of images
becomes shards of 10,000 images. Files at URLs are copied as they are opened, and images in folders
at URLs are read one by one. Nothing here depends on which task, or how many, encode them.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from llc_jax import objects
from llc_jax.copies import borrowed
from llc_jax.data import embeddings, parquet, webdataset
from llc_jax.data.bucket import Bucket
from llc_jax.data.readers import Inputs
from llc_jax.data.stores import Folder, Store, Tar, Zip
from llc_jax.data.vectors import Shard
from llc_jax.errors import InputError
from llc_jax.objects import URL, is_url

# Columns of Parquet files that name the items, or have the paths of images.
_KEYS = ("key", "id", "path")
_PATHS = ("path", "image_path", "file", "file_name", "filename")
_FOLDER_SHARD = 10_000

Place = pathlib.Path | URL


class Items(NamedTuple):
    """The content of a shard.

    Attributes:
      keys: N names.
      inputs: N images or embeddings, as a model takes them.
    """

    keys: Sequence[str]
    inputs: Inputs


# Opens a file; given, too, the folder that it, or that of which it is a copy, lies in.
Opener = Callable[[pathlib.Path, Place], Items]


@dataclasses.dataclass(frozen=True)
class InputShard:
    """A shard of a corpus.

    Attributes:
      name: of the file, from the folder that all shards have in common; of a part of a folder
        with the range of its images.
      size: bytes of the file, or images of the folder.
      digest: of the names of the images of a folder, else "".
      open: opens it for as long as its items are read; raises an InputError if it cannot be read.
    """

    name: str
    size: int
    digest: str
    open: Callable[[], contextlib.AbstractContextManager[Items]]


@dataclasses.dataclass(frozen=True)
class StoredFile:
    """A file in an archive."""

    store: Store
    name: str

    def read_bytes(self) -> bytes:
        """Returns its content; raises an InputError if it cannot be read."""
        return self.store.read(self.name)

    def __str__(self) -> str:
        return f"{self.name} in {self.store.root}"


@dataclasses.dataclass(frozen=True)
class Rows:
    """The embeddings of a file, as an array whose rows are read when they are asked for."""

    shard: Shard

    @property
    def dtype(self) -> np.dtype:
        """That of the numbers."""
        return self.shard.array.dtype

    @property
    def shape(self) -> tuple[int, int]:
        """(N, d)."""
        return self.shard.array.shape

    def __len__(self) -> int:
        return len(self.shard.array)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns float[n, d]; raises an InputError if the file has changed."""
        return self.shard.read(np.arange(len(self))[rows])


def find(patterns: Sequence[str], kind: str) -> list[InputShard]:
    """Returns the shards of a corpus.

    Args:
      patterns: paths or URLs of files and folders; with braces and wildcards, as
        `webdataset.expand` takes them.
      kind: of the inputs, images or embeddings.

    Raises:
      InputError: if a pattern matches nothing, or a file is of another kind.
    """
    paths = [path for pattern in patterns for path in webdataset.expand(pattern)]
    places = list(map(_place, paths))
    root = os.path.commonpath(list(map(os.path.dirname, places)))
    size_of, shards = _sizes(), []
    for path, place in zip(paths, places, strict=True):
        name, size = os.path.relpath(place, root), size_of(path)
        if kind == "images" and size is None:
            shards += _of_folder(path, name)
            continue
        opener = _opener(path, kind, is_folder=size is None)
        shards.append(InputShard(name, size, "", functools.partial(_open_copy, path, opener)))
    return shards


def open_file(path: pathlib.Path, kind: str) -> Items:
    """Opens a file of images or of embeddings.

    Raises:
      InputError: if it is of another kind, or cannot be read.
    """
    return _opener(path, kind, path.is_dir())(path, path.parent)


def _place(path: Place) -> str:
    """Returns a path from the root of all; of a URL, what it names is the first folder."""
    return os.path.join("/", *path.parts) if isinstance(path, URL) else os.path.abspath(path)


def _sizes() -> Callable[[Place], int | None]:
    """Returns a function that gives the bytes of a file, None of a folder; it lists URLs once."""
    listed = functools.cache(objects.glob)

    def size_of(path: Place) -> int | None:
        if isinstance(path, URL):
            is_bucket = len(path.parts) == 2
            found = None if is_bucket else listed(str(path.parent / "*")).get(path)
            return found and found.size
        return None if path.is_dir() else path.stat().st_size

    return size_of


def _opener(path: Place, kind: str, is_folder: bool) -> Opener:
    """Returns what opens a file."""
    opener = _OPENERS[kind].get(path.suffix.lower())
    if opener is None or is_folder:
        known = ", ".join(_OPENERS[kind])
        known = f"a folder of images, or {known}" if kind == "images" else known
        raise InputError(
            f"{path} is no file of {kind}, which the run takes: expected {known}; those in a "
            f"folder are named as '{path if is_folder else path.parent}/*'."
        )
    return opener


@contextlib.contextmanager
def _open_copy(path: Place, opener: Opener) -> Iterator[Items]:
    """Opens a file, or the copy of one at a URL, which is kept while the body runs."""
    with borrowed(path) as copy:
        yield opener(copy, path.parent)


def _open_embeddings(path: pathlib.Path, _: Place) -> Items:
    """Opens embeddings; their names are a column of a Parquet file, or `FILE[ROW]`."""
    keys = None
    if path.suffix == ".parquet":
        keys = parquet.read_text(path, _KEYS)
        if not parquet.num_rows(path):
            return Items([], np.zeros((0, 0), np.float32))
    shard = embeddings.open_vectors(path)
    keys = [f"{path.name}[{row}]" for row in range(len(shard.array))] if keys is None else keys
    return Items(keys, Rows(shard))


def _of_folder(path: Place, name: str) -> list[InputShard]:
    """Returns the shards of a folder, each of some of its images in the order of their names."""
    files = (Bucket if isinstance(path, URL) else Folder)(path).files()
    if not files:
        raise InputError(f"There are no images in the folder {path}.")
    shards = []
    for start in range(0, len(files), _FOLDER_SHARD):
        some = files[start : start + _FOLDER_SHARD]
        # Names of files that are not UTF-8 have surrogates.
        names = "\0".join(some).encode(errors="surrogateescape")
        digest = hashlib.sha256(names).hexdigest()
        paths = [str(path / file) for file in some]
        shards.append(
            InputShard(
                f"{name}[{start}:{start + len(some)}]",
                len(some),
                digest,
                functools.partial(contextlib.nullcontext, Items(paths, paths)),
            )
        )
    return shards


def _open_tar(path: pathlib.Path, _: Place) -> Items:
    tar = Tar(path)
    images = webdataset.images(tar)
    return Items(list(images), [StoredFile(tar, name) for name in images.values()])


def _open_zip(path: pathlib.Path, _: Place) -> Items:
    archive = Zip(path)
    names = archive.files()
    return Items(names, [StoredFile(archive, name) for name in names])


def _open_paths(path: pathlib.Path, folder: Place) -> Items:
    """Opens images whose URLs, or paths from the folder of a Parquet file, are in it."""
    paths = parquet.read_text(path, _PATHS)
    if paths is None:
        raise InputError(f"{path} has no column of paths of images: {' or '.join(_PATHS)}.")
    return Items(paths, [URL(image) if is_url(image) else folder / image for image in paths])


_OPENERS: dict[str, dict[str, Opener]] = {
    "images": {".tar": _open_tar, ".zip": _open_zip, ".parquet": _open_paths},
    "embeddings": dict.fromkeys((".npy", ".npz", ".parquet"), _open_embeddings),
}
