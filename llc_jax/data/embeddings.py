"""Files of labelled embeddings: .npz, .npy, Parquet, and the output of clip-retrieval.

`embeddings:PATH` or `embeddings:PATH:LABELS` names them. PATH is

  FILE.npz             `embeddings` [N, d] and `labels` [N]; `names`, those of the classes that
                       the labels number, and `split`, train or test of each, where there are
  FILE.npy             [N, d]; LABELS is a .npy, or a .csv with a label on each line
  FILE.parquet         a column of lists of numbers, one of labels, which LABELS names, and
                       `split` where there is one; or a folder of such files
  a folder             what clip-retrieval wrote: img_emb/*.npy and metadata/*.parquet
  a folder             train and one of val, validation and test, of one of these forms
"""

import os
import pathlib
import re
import zipfile
from collections import Counter
from typing import NamedTuple

import numpy as np

from llc_jax.copies import local
from llc_jax.data import npz, parquet
from llc_jax.data.vectors import Shard, VectorSource
from llc_jax.errors import InputError
from llc_jax.files import read_arrays, volume
from llc_jax.objects import URL, is_url

PREFIX = "embeddings:"
EVAL_NAMES = ("val", "validation", "test")
_SUFFIXES = (".npz", ".npy", ".parquet")
# Vectors of more bytes than these are not all read at the start to find NaN: a sample is.
_READ_WHOLE, _SAMPLED = 2**26, 1024


class _Table(NamedTuple):
    """The content of a file: shards, N labels, the names that they number, and N splits."""

    shards: tuple[Shard, ...]
    labels: np.ndarray
    names: np.ndarray | None = None
    split: np.ndarray | None = None


def locate(source: str) -> str:
    """Returns `embeddings:PATH:LABELS` with an absolute path."""
    path, labels = _split(source)
    if isinstance(path, URL):
        return source
    located = PREFIX + os.path.realpath(path)
    if _names_file(labels):
        labels = os.path.realpath(_label_file(path, labels))
    return f"{located}:{labels}" if labels else located


def path_of(source: str) -> pathlib.Path | URL:
    """Returns the path or URL in `embeddings:PATH:LABELS`."""
    return _split(source)[0]


def _split(source: str) -> tuple[pathlib.Path | URL, str]:
    """Returns PATH and LABELS; of a path that has colons, as much as there is."""
    text = source.removeprefix(PREFIX)
    if is_url(text):
        path, labels = re.fullmatch(r"(.*?://[^:]*):?(.*)", text, re.DOTALL).groups()
        return URL(path), labels
    ends = [len(text), *reversed([match.start() for match in re.finditer(":", text)])]
    paths = [os.path.expanduser(text[:end]) for end in ends]
    found = next((n for n, path in enumerate(paths) if path and os.path.exists(path)), -1)
    return pathlib.Path(paths[found]), text[ends[found] + 1 :]


def _names_file(labels: str) -> bool:
    return pathlib.Path(labels).suffix in (".npy", ".csv")


def _label_file(path: pathlib.Path, labels: str) -> pathlib.Path:
    """Returns the file of labels that is named; it may lie beside the embeddings."""
    if is_url(labels):
        return local(labels)
    file = pathlib.Path(labels).expanduser()
    return file if file.exists() else path.parent / file


def size_of(source: str) -> int:
    """Returns d, the numbers of each embedding; of the embeddings themselves little is read.

    Raises:
      InputError: as `open_embeddings`, as far as it is found.
    """
    path = _existing(source)
    path = next(iter(_find_parts(path)), path)
    if path.is_dir() and (path / "img_emb").is_dir():
        files = sorted((path / "img_emb").glob("*.npy"), key=_by_number)
    elif path.is_dir():
        files = sorted(path.glob("*.parquet"), key=_by_number)
    else:
        files = [path]
    for file in files:
        if file.suffix == ".parquet":
            size = parquet.vector_size(file) if parquet.num_rows(file) else 0
        elif file.suffix == ".npz":
            size = npz.vector_size(file, "embeddings")
        else:
            size = _map_npy(file).array.shape[1]
        if size:
            return size
    # Whatever is wrong is said there.
    return open_embeddings(source)[0].size


def _existing(source: str) -> pathlib.Path:
    """Returns the path of the embeddings, or of the copy of a URL and of its labels."""
    path, labels = _split(source)
    if isinstance(path, URL):
        return local(path, beside=[labels] if _names_file(labels) else _label_names(path))
    if not os.path.exists(path):
        raise InputError(f"There are no embeddings at {path}.")
    return path


def open_embeddings(source: str) -> tuple[VectorSource, ...]:
    """Opens embeddings.

    Args:
      source: `embeddings:PATH` or `embeddings:PATH:LABELS`; see above.

    Returns:
      One source; or two where they are split, those for training and those for evaluation.

    Raises:
      InputError: if they are missing, empty, or not as above.
    """
    path, labels = _existing(source), _split(source)[1]
    parts = _find_parts(path) if path.is_dir() else []
    if not parts:
        return _label(_read(path, labels), path)
    if _names_file(labels):
        raise InputError(
            f"{path} is split, so one file of labels, {labels}, does not do: those of train.npy "
            "are in train_labels.npy or .csv, and likewise for evaluation."
        )
    sources = tuple(source for part in parts for source in _label(_read(part, labels, True), part))
    if len(sources) > len(parts):
        raise InputError(f"{path} is split, but so is a file in it: leave out its `split`.")
    return sources


def _find_parts(folder: pathlib.Path) -> list[pathlib.Path]:
    """Returns the files or folders of a folder that is split, or nothing."""
    found = {}
    for name in ("train", *EVAL_NAMES):
        candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in _SUFFIXES)]
        found[name] = next((path for path in candidates if path.exists()), None)
    evaluation = next((found[name] for name in EVAL_NAMES if found[name]), None)
    return [found["train"], evaluation] if found["train"] and evaluation else []


def _label(table: _Table, path: pathlib.Path) -> tuple[VectorSource, ...]:
    """Makes sources of the content of a file, one for each split."""
    sizes = {shard.array.shape[1] for shard in table.shards}
    if len(sizes) > 1:
        raise InputError(f"The embeddings in {path} have {sorted(sizes)} numbers: one size only.")
    count = sum(len(shard.array) for shard in table.shards)
    if not count:
        raise InputError(f"There are no embeddings in {path}.")
    if table.labels.shape != (count,):
        shape = list(table.labels.shape)
        raise InputError(f"{path} has {count:,} embeddings, but labels of the shape {shape}.")
    labels, class_names = _classes(table.labels, table.names, path)
    source = VectorSource(table.shards, np.arange(count), labels, class_names, str(path.resolve()))
    _check_finite(source)
    if table.split is None:
        return (source,)
    if table.split.shape != (count,):
        raise InputError(
            f"{path} has {count:,} embeddings, but a split of the shape {list(table.split.shape)}."
        )
    splits = np.char.lower(table.split.astype(str))
    is_train = splits == "train"
    unknown = sorted(set(splits[~is_train]) - set(EVAL_NAMES))
    if unknown or is_train.all() or not is_train.any():
        raise InputError(
            f"The split of {path} says train or test of each embedding, and has both; not "
            f"{', '.join(unknown or sorted(set(splits)))}."
        )
    return tuple(source.select(np.flatnonzero(mask)) for mask in (is_train, ~is_train))


def _check_finite(source: VectorSource) -> None:
    """Reads the vectors, or a sample of many, so that NaN is not found in an hour only."""
    whole = len(source) * source.size * 4 <= _READ_WHOLE
    count = len(source) if whole else _SAMPLED
    source.gather(np.unique(np.linspace(0, len(source) - 1, count).astype(np.int64)))


def _classes(
    labels: np.ndarray, names: np.ndarray | None, path: pathlib.Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels from 0, int32[N], and the names of the classes."""
    if labels.dtype.kind == "S":
        try:
            labels = np.char.decode(labels, "utf-8")
        except UnicodeDecodeError as error:
            raise InputError(f"The labels of {path} are not UTF-8: {error}.") from error
    if names is not None and labels.dtype.kind == "b":
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubU":
        raise InputError(f"The labels of {path} are whole numbers or text, not {labels.dtype}.")
    classes, indices = np.unique(labels, return_inverse=True)
    if names is not None and labels.dtype.kind != "U":
        if names.ndim != 1 or names.dtype.kind not in "iuU":
            raise InputError(
                f"The names of {path} are a text for each class, not {names.dtype} of the shape "
                f"{list(names.shape)}."
            )
        if classes[0] < 0 or classes[-1] >= len(names):
            raise InputError(
                f"The labels of {path} go from {classes[0]} to {classes[-1]}, but it has the names "
                f"of {len(names)} classes."
            )
        classes = names[classes]
    class_names = tuple(str(name) for name in classes)
    repeated = next((name for name, count in Counter(class_names).items() if count > 1), None)
    if repeated is not None:
        raise InputError(
            f"Several classes of {path} have the name {repeated!r}: give each a name of its own."
        )
    return indices.astype(np.int32), class_names


def _read(path: pathlib.Path, labels: str, is_part: bool = False) -> _Table:
    """Reads a file or a folder that is not split; it may be a part of one that is."""
    if path.is_dir() and (path / "img_emb").is_dir():
        return _read_clip_retrieval(path, labels)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"), key=_by_number)
        if files:
            return _read_parquet(files, labels)
    elif path.suffix == ".npz":
        return _read_npz(path)
    elif path.suffix == ".npy":
        return _Table((_map_npy(path),), _read_labels(path, labels, is_part))
    elif path.suffix == ".parquet":
        return _read_parquet([path], labels)
    raise InputError(
        f"{path} holds no embeddings: expected an .npz, .npy or .parquet file, a folder of Parquet "
        "files, or the output of clip-retrieval."
    )


def open_vectors(path: pathlib.Path) -> Shard:
    """Opens the embeddings of an .npy, .npz or Parquet file, with labels or without.

    Raises:
      InputError: if there are none, or the file cannot be read.
    """
    if path.suffix == ".npy":
        return _map_npy(path)
    if path.suffix == ".parquet":
        _check_memory(path, parquet.num_bytes(path))
        return Shard(path, _checked(parquet.read_vectors(path), path), is_mapped=False)
    return _open_npz(path)[0]


def _read_npz(path: pathlib.Path) -> _Table:
    shard, arrays = _open_npz(path)
    if "labels" not in arrays:
        raise InputError(f"{path} has no array 'labels': it needs embeddings and labels.")
    return _Table((shard,), arrays["labels"], arrays.get("names"), arrays.get("split"))


def _open_npz(path: pathlib.Path) -> tuple[Shard, dict[str, np.ndarray]]:
    """Returns the embeddings of an .npz, and its other arrays."""
    try:
        mapped = npz.map_stored(path, "embeddings")
        if mapped is None:
            _check_memory(path, npz.num_bytes(path))
        arrays = read_arrays(path, skip=("embeddings",) if mapped is not None else ())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no .npz file that can be read: {error}.") from error
    vectors = arrays.pop("embeddings", None) if mapped is None else mapped
    if vectors is None:
        raise InputError(f"{path} has no array 'embeddings'.")
    return Shard(path, _checked(vectors, path), mapped is not None), arrays


def _map_npy(path: pathlib.Path) -> Shard:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = str(error).strip().splitlines()[0] if str(error) else "it is empty"
        raise InputError(f"{path} is no .npy file that can be read: {reason}.") from error
    return Shard(path, _checked(array, path), is_mapped=True)


def _checked(vectors: np.ndarray, path: pathlib.Path) -> np.ndarray:
    if vectors.ndim != 2 or vectors.dtype.kind != "f" or vectors.dtype.itemsize > 8:
        raise InputError(
            f"Embeddings are float16, float32 or float64 of the shape [N, d], but {path} has "
            f"{vectors.dtype} of the shape {list(vectors.shape)}."
        )
    if not vectors.shape[1]:
        raise InputError(f"The embeddings in {path} have no numbers.")
    return vectors


def _label_names(path: pathlib.PurePath, is_part: bool = False) -> list[str]:
    """Returns how the labels of an .npy file may be called, which lie beside it."""
    stems = (f"{path.stem}_labels", *(() if is_part else ("labels",)))
    return [f"{stem}{suffix}" for stem in stems for suffix in (".npy", ".csv")]


def _read_labels(path: pathlib.Path, labels: str, is_part: bool) -> np.ndarray:
    """Reads the labels of an .npy file; those of a part are called after it."""
    if labels:
        file = _label_file(path, labels)
    else:
        files = [path.parent / name for name in _label_names(path, is_part)]
        file = next((file for file in files if file.exists()), None)
    if file is None or not file.exists():
        remedy = f"give their file as embeddings:{path}:LABELS.npy"
        remedy = f"expected {path.stem}_labels.npy beside it" if is_part else remedy
        raise InputError(
            f"There are no labels for {path}: {remedy}, or a .csv with a label on each line."
        )
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"The labels in {file} cannot be read: {error}.") from error
    lines = [line for line in lines if line]
    lines = lines[1:] if lines and lines[0].lower() in parquet.LABEL_COLUMNS else lines
    is_number = all(re.fullmatch(r"-?\d{1,18}", line) for line in lines)
    return np.array(lines, np.int64 if is_number else np.str_)


def _read_clip_retrieval(folder: pathlib.Path, labels: str) -> _Table:
    embeddings = sorted((folder / "img_emb").glob("*.npy"), key=_by_number)
    metadata = sorted((folder / "metadata").glob("*.parquet"), key=_by_number)
    numbers = [[_by_number(file)[0] for file in files] for files in (embeddings, metadata)]
    if not embeddings or numbers[0] != numbers[1]:
        raise InputError(
            f"{folder} has {len(embeddings)} files img_emb/*.npy and {len(metadata)} files "
            "metadata/*.parquet: there is one of each for each shard."
        )
    shards, columns = [], []
    for shard, file in zip(map(_map_npy, embeddings), metadata, strict=True):
        rows = parquet.num_rows(file)
        if len(shard.array) != rows:
            raise InputError(
                f"{shard.path} has {len(shard.array):,} embeddings, but its metadata {rows:,} rows."
            )
        if rows:
            shards.append(shard)
            columns.append(parquet.read_labels(file, labels))
    return _Table(tuple(shards), np.concatenate(columns or [np.zeros(0)]))


def _by_number(path: pathlib.Path) -> tuple[int, str]:
    """Returns the last number in the name of a file, by which shards are sorted."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


def _read_parquet(files: list[pathlib.Path], labels: str) -> _Table:
    # Programs that write in parallel leave files without rows.
    files = [file for file in files if parquet.num_rows(file)]
    if files:
        _check_memory(files[0].parent, sum(map(parquet.num_bytes, files)))
    shards = [
        Shard(file, _checked(parquet.read_vectors(file), file), is_mapped=False) for file in files
    ]
    columns = [parquet.read_labels(file, labels) for file in files]
    splits = [split for split in map(parquet.read_split, files) if split is not None]
    if splits and len(splits) < len(files):
        raise InputError(
            f"Some of the files beside {files[0]} have no column `split`: all or none."
        )
    split = np.concatenate(splits) if splits else None
    return _Table(tuple(shards), np.concatenate(columns or [np.zeros(0)]), split=split)


def _check_memory(path: pathlib.Path, size: int) -> None:
    """Raises an InputError if embeddings that are read whole do not fit into memory."""
    try:
        # Not what is free: the system fills that with files, which it gives up when asked.
        lines = pathlib.Path("/proc/meminfo").read_text().splitlines()
        available = next(int(line.split()[1]) for line in lines if "MemAvailable" in line) * 1024
    except (OSError, StopIteration):
        return
    # They are there twice while they are read.
    if 2 * size > available:
        raise InputError(
            f"The embeddings in {path} take {volume(size)}, and compressed .npz and Parquet are "
            f"read whole into memory, of which {volume(available)} are available: convert them to "
            ".npy files, which are mapped."
        )
