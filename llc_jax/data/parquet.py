"""Embeddings and labels in Parquet files, of which only the columns that are asked for are read."""

import contextlib
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from llc_jax.errors import InputError

SPLIT_COLUMN = "split"
LABEL_COLUMNS = ("label", "labels", "class")
_VECTOR_COLUMNS = ("embedding", "embeddings", "vector")


def num_rows(path: pathlib.Path) -> int:
    """Returns the number of rows of a file."""
    with _opened(path) as file:
        return file.metadata.num_rows


def num_bytes(path: pathlib.Path) -> int:
    """Returns the bytes that the vectors of a file have in memory."""
    with _opened(path) as file:
        name, meta = _vector_column(file, path), file.metadata
        width = file.schema_arrow.field(name).type.value_type.bit_width // 8
        chunks = (
            meta.row_group(group).column(column)
            for group in range(meta.num_row_groups)
            for column in range(meta.num_columns)
        )
        return width * sum(c.num_values for c in chunks if c.path_in_schema.startswith(f"{name}."))


def vector_size(path: pathlib.Path) -> int:
    """Returns d of the vectors of a file that has some; only the first is read."""
    with _opened(path) as file:
        name = _vector_column(file, path)
        first = next(file.iter_batches(1, columns=[name]))[name][0].as_py()
        return len(first or ())


def read_vectors(path: pathlib.Path) -> np.ndarray:
    """Returns the vectors of a file, float[N, d].

    Raises:
      InputError: if there is not one column of vectors, or they have not one size.
    """
    import pyarrow

    with _opened(path) as file:
        name = _vector_column(file, path)
        column = file.read(columns=[name])[name]
    column = pyarrow.concat_arrays(column.chunks)
    values = column.flatten()
    sizes = np.unique(np.asarray(column.value_lengths().fill_null(0)))
    gaps = column.null_count + values.null_count
    if gaps or len(sizes) != 1:
        raise InputError(
            f"The embeddings in {path} are lists of one size without gaps; it has lists of "
            f"{', '.join(map(str, sizes[:5]))} numbers, and {gaps} gaps."
        )
    return values.to_numpy(zero_copy_only=False).reshape(len(column), int(sizes[0]))


def read_labels(path: pathlib.Path, name: str) -> np.ndarray:
    """Returns the labels of the rows of a file.

    Args:
      path: of the file.
      name: of their column; "" for one that is called as in LABEL_COLUMNS.

    Raises:
      InputError: if there is no such column, or a row has no label, or one of another kind.
    """
    with _opened(path) as file:
        names = file.schema_arrow.names
        known = (name,) if name else LABEL_COLUMNS
        found = next((candidate for candidate in known if candidate in names), None)
        if found is None:
            raise InputError(
                f"{path} has no column {' or '.join(known)}: name that of the labels, as "
                f"embeddings:PATH:COLUMN, of {', '.join(names)}."
            )
        return _text_or_numbers(file, found, path)


def read_text(path: pathlib.Path, names: Sequence[str]) -> list[str] | None:
    """Returns a column as text: the first that there is of some; None where there is none.

    Raises:
      InputError: if it is neither of text nor of whole numbers, or has gaps.
    """
    with _opened(path) as file:
        name = next((name for name in names if name in file.schema_arrow.names), None)
        return None if name is None else list(map(str, _text_or_numbers(file, name, path)))


def read_split(path: pathlib.Path) -> np.ndarray | None:
    """Returns the split of each row of a file; None where it has no such column."""
    with _opened(path) as file:
        if SPLIT_COLUMN not in file.schema_arrow.names:
            return None
        return _text_or_numbers(file, SPLIT_COLUMN, path)


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator:
    """Opens a file, of which reading can fail too."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise InputError(f"{path} needs pyarrow: pip install pyarrow.") from error
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            yield file
    except (OSError, pyarrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(f"{path} is no Parquet file that can be read: {reason}.") from error


def _vector_column(file, path: pathlib.Path) -> str:
    from pyarrow import types

    are_lists = (types.is_list, types.is_large_list, types.is_fixed_size_list)
    columns = [
        field.name
        for field in file.schema_arrow
        if any(is_list(field.type) for is_list in are_lists)
        and types.is_floating(field.type.value_type)
    ]
    named = [name for name in columns if name in _VECTOR_COLUMNS]
    if len(columns) != 1 and len(named) != 1:
        raise InputError(
            f"{path} has {len(columns)} columns of lists of floats; of several, one is called "
            f"embedding. Its columns: {', '.join(file.schema_arrow.names)}."
        )
    return named[0] if named else columns[0]


def _text_or_numbers(file, name: str, path: pathlib.Path) -> np.ndarray:
    from pyarrow import types

    column = file.read(columns=[name])[name]
    kind = column.type.value_type if types.is_dictionary(column.type) else column.type
    are_known = (types.is_integer, types.is_boolean, types.is_string, types.is_large_string)
    if not any(is_known(kind) for is_known in are_known):
        raise InputError(f"The column {name} of {path} has whole numbers or text, not {kind}.")
    values = column.to_pylist()
    if None in values:
        raise InputError(
            f"The row {values.index(None)} of {path} has no {name}: {column.null_count:,} of "
            f"{len(values):,} rows have none; leave them out."
        )
    return np.array(values)
