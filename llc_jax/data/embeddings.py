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
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from llc_jax.data.vectors import Shard, VectorSource
from llc_jax.errors import InputError
from llc_jax.files import read_arrays

PREFIX = "embeddings:"
EVAL_NAMES = ("val", "validation", "test")
_SUFFIXES = (".npz", ".npy", ".parquet")
_LABEL_COLUMNS = ("label", "labels", "class")
_VECTOR_COLUMNS = ("embedding", "embeddings", "vector")


class _Table(NamedTuple):
    """The content of a file: shards, N labels, the names that they number, and N splits."""

    shards: tuple[Shard, ...]
    labels: np.ndarray
    names: np.ndarray | None = None
    split: np.ndarray | None = None


def locate(source: str) -> str:
    """Returns `embeddings:PATH:LABELS` with an absolute path."""
    path, colon, labels = source.removeprefix(PREFIX).partition(":")
    is_file = pathlib.Path(labels).suffix in (".npy", ".csv")
    labels = os.path.realpath(os.path.expanduser(labels)) if is_file else labels
    return PREFIX + os.path.realpath(os.path.expanduser(path)) + colon + labels


def path_of(source: str) -> pathlib.Path:
    """Returns the path in `embeddings:PATH:LABELS`."""
    return pathlib.Path(source.removeprefix(PREFIX).partition(":")[0]).expanduser()


def open_embeddings(source: str) -> tuple[VectorSource, ...]:
    """Opens embeddings.

    Args:
      source: `embeddings:PATH` or `embeddings:PATH:LABELS`; see above.

    Returns:
      One source; or two where they are split, those for training and those for evaluation.

    Raises:
      InputError: if they are missing, empty, or not as above.
    """
    path, labels = path_of(source), source.removeprefix(PREFIX).partition(":")[2]
    if not path.exists():
        raise InputError(f"There are no embeddings at {path}.")
    parts = _find_parts(path) if path.is_dir() else []
    if parts:
        return tuple(_label(_read(part, labels), part)[0] for part in parts)
    return _label(_read(path, labels), path)


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
    if len(table.labels) != count or table.labels.ndim != 1:
        shape = list(table.labels.shape)
        raise InputError(f"{path} has {count:,} embeddings, but labels of the shape {shape}.")
    labels, class_names = _classes(table.labels, table.names, path)
    source = VectorSource(table.shards, np.arange(count), labels, class_names, str(path.resolve()))
    if table.split is None:
        return (source,)
    splits = np.char.lower(table.split.astype(str))
    is_train = splits == "train"
    unknown = sorted(set(splits[~is_train]) - set(EVAL_NAMES))
    if len(splits) != count or unknown or is_train.all() or not is_train.any():
        raise InputError(
            f"The split of {path} says train or test of each of the {count:,} embeddings, and has "
            f"both; not {unknown or sorted(set(splits))} for {len(splits):,}."
        )
    return tuple(source.select(np.flatnonzero(mask)) for mask in (is_train, ~is_train))


def _classes(
    labels: np.ndarray, names: np.ndarray | None, path: pathlib.Path
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Returns labels from 0, int32[N], and the names of the classes."""
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    if labels.dtype.kind not in "iubU":
        raise InputError(f"The labels of {path} are whole numbers or text, not {labels.dtype}.")
    classes, indices = np.unique(labels, return_inverse=True)
    if names is not None and labels.dtype.kind != "U":
        if classes[0] < 0 or classes[-1] >= len(names):
            raise InputError(
                f"The labels of {path} go from {classes[0]} to {classes[-1]}, but it has the names "
                f"of {len(names)} classes."
            )
        classes = names[classes]
    return indices.astype(np.int32), tuple(str(name) for name in classes)


def _read(path: pathlib.Path, labels: str) -> _Table:
    """Reads a file or a folder that is not split."""
    if path.is_dir() and (path / "img_emb").is_dir():
        return _read_clip_retrieval(path, labels)
    if path.is_dir():
        files = sorted(path.glob("*.parquet"), key=_by_number)
        if files:
            return _read_parquet(files, labels)
    elif path.suffix == ".npz":
        return _read_npz(path)
    elif path.suffix == ".npy":
        return _Table((_map_npy(path),), _read_labels(path, labels))
    elif path.suffix == ".parquet":
        return _read_parquet([path], labels)
    raise InputError(
        f"{path} holds no embeddings: expected an .npz, .npy or .parquet file, a folder of Parquet "
        "files, or the output of clip-retrieval."
    )


def _read_npz(path: pathlib.Path) -> _Table:
    try:
        mapped = _map_stored(path, "embeddings")
        arrays = read_arrays(path, skip=("embeddings",) if mapped is not None else ())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} is no .npz file that can be read: {error}.") from error
    vectors = arrays.get("embeddings") if mapped is None else mapped
    missing = [name for name in ("labels",) if name not in arrays]
    if vectors is None or missing:
        name = "embeddings" if vectors is None else missing[0]
        raise InputError(f"{path} has no array {name!r}: it needs embeddings and labels.")
    shard = Shard(path, _checked(vectors, path), mapped is not None)
    return _Table((shard,), arrays["labels"], arrays.get("names"), arrays.get("split"))


def _map_stored(path: pathlib.Path, name: str) -> np.ndarray | None:
    """Maps an array of an .npz; None if it is compressed, or there is none."""
    with zipfile.ZipFile(path) as archive:
        if f"{name}.npy" not in archive.namelist():
            return None
        info = archive.getinfo(f"{name}.npy")
        if info.compress_type != zipfile.ZIP_STORED:
            return None
        with archive.open(info) as member:
            version = np.lib.format.read_magic(member)
            read = np.lib.format.read_array_header_1_0
            if version != (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(member)
            header = member.tell()
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_size, extra_size = np.frombuffer(file.read(4), "<u2").astype(int)
    offset = info.header_offset + 30 + name_size + extra_size + header
    if fortran or dtype.hasobject or 0 in shape or info.file_size - header != _bytes(shape, dtype):
        return None
    return np.memmap(path, dtype, "r", offset, shape)


def _bytes(shape: Sequence[int], dtype: np.dtype) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.itemsize


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


def _read_labels(path: pathlib.Path, labels: str) -> np.ndarray:
    """Reads the labels of an .npy file."""
    if labels:
        file = pathlib.Path(labels).expanduser()
        file = path.parent / file if not file.exists() else file
    else:
        names = (f"{path.stem}_labels", "labels")
        files = [path.parent / f"{name}{suffix}" for name in names for suffix in (".npy", ".csv")]
        file = next((file for file in files if file.exists()), None)
    if file is None or not file.exists():
        raise InputError(
            f"There are no labels for {path}: give their file as embeddings:{path}:LABELS.npy, or "
            "as a .csv with a label on each line."
        )
    try:
        if file.suffix == ".npy":
            return np.load(file, allow_pickle=False)
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"The labels in {file} cannot be read: {error}.") from error
    lines = [line for line in lines if line]
    lines = lines[1:] if lines and lines[0].lower() in _LABEL_COLUMNS else lines
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
    tables = [_read_table([file]) for file in metadata]
    columns = [_text_or_numbers(table[_label_column(table, labels, folder)]) for table in tables]
    shards = tuple(_map_npy(file) for file in embeddings)
    for shard, column in zip(shards, columns, strict=True):
        if len(shard.array) != len(column):
            raise InputError(
                f"{shard.path} has {len(shard.array):,} embeddings, but its metadata "
                f"{len(column):,} rows."
            )
    return _Table(shards, np.concatenate(columns))


def _by_number(path: pathlib.Path) -> tuple[int, str]:
    """Returns the last number in the name of a file, by which shards are sorted."""
    numbers = re.findall(r"\d+", path.stem)
    return (int(numbers[-1]) if numbers else -1, path.name)


def _read_parquet(files: list[pathlib.Path], labels: str) -> _Table:
    _check_memory(files)
    shards, columns, splits = [], [], []
    for file in files:
        table = _read_table([file])
        shards.append(Shard(file, _checked(_vectors(table, file), file), is_mapped=False))
        columns.append(_text_or_numbers(table[_label_column(table, labels, file)]))
        if "split" in table.column_names:
            splits.append(_text_or_numbers(table["split"]))
    if splits and len(splits) < len(files):
        raise InputError(
            f"Some of the files beside {files[0]} have no column `split`: all or none."
        )
    split = np.concatenate(splits) if splits else None
    return _Table(tuple(shards), np.concatenate(columns), split=split)


def _check_memory(files: list[pathlib.Path]) -> None:
    """Raises an InputError if Parquet files are larger than the memory that is free."""
    size = sum(file.stat().st_size for file in files)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 2 * size > free:
        raise InputError(
            f"The embeddings beside {files[0]} have {size / 1e9:.1f} GB, and Parquet is read whole "
            f"into memory, of which {free / 1e9:.1f} GB are free: convert them to .npy files, "
            "which are mapped."
        )


def _read_table(files: list[pathlib.Path]):
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{files[0]} needs pyarrow: pip install pyarrow.") from error
    try:
        return pyarrow.concat_tables([pyarrow.parquet.read_table(file) for file in files])
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{files[0]} is no Parquet file that can be read: {reason}.") from error


def _vectors(table, file: pathlib.Path) -> np.ndarray:
    """Returns the column of vectors of a Parquet table, float[N, d]."""
    import pyarrow

    columns = [
        field.name
        for field in table.schema
        if (pyarrow.types.is_list(field.type) or pyarrow.types.is_fixed_size_list(field.type))
        and pyarrow.types.is_floating(field.type.value_type)
    ]
    named = [name for name in columns if name in _VECTOR_COLUMNS]
    if len(columns) != 1 and len(named) != 1:
        raise InputError(
            f"{file} has {len(columns)} columns of lists of floats; of several, one is called "
            f"embedding. Its columns: {', '.join(table.column_names)}."
        )
    column = table[named[0] if named else columns[0]].combine_chunks()
    if isinstance(column, pyarrow.ChunkedArray):
        column = pyarrow.concat_arrays(column.chunks) if column.num_chunks else column
    values = column.flatten()
    sizes = np.unique(np.asarray(column.value_lengths())) if len(column) else np.array([1])
    if column.null_count or values.null_count or len(sizes) != 1:
        raise InputError(
            f"The embeddings in {file} are lists of one size without gaps; it has lists of "
            f"{sizes.tolist()[:5]} numbers, and {column.null_count + values.null_count} gaps."
        )
    return values.to_numpy(zero_copy_only=False).reshape(len(column), int(sizes[0]))


def _label_column(table, labels: str, path: pathlib.Path) -> str:
    names = (labels,) if labels else _LABEL_COLUMNS
    found = next((name for name in names if name in table.column_names), None)
    if found is None:
        raise InputError(
            f"{path} has no column {' or '.join(names)}: name that of the labels, as "
            f"embeddings:PATH:COLUMN, of {', '.join(table.column_names)}."
        )
    return found


def _text_or_numbers(column) -> np.ndarray:
    values = column.to_pylist()
    return np.array(values if None not in values else [str(value) for value in values])
