"""The codes of a corpus: a folder of Parquet files, one for each shard, and a manifest.

The folder is on a disk or at a URL.

  manifest.json    which shards there are, and which model makes their codes
  000012.parquet   the codes of shard 12, by columns:

  id          int64, 2^32 times the number of the shard, plus the number of the item in it
  key         text, the name of the item
  code        ceil(k / 8) bytes; bit j of a code is bit j % 8 of byte j // 8
  logits      k float16, of which the codes are the signs; where they were asked for
  predicted   text, the class, null where there is none; where it was asked for
  distance    int32, in bits, to the code of that class; with it

A file is there when it is whole. Items that could not be read are not in it: its metadata name
them (`damaged`), and their ids stay unused, so ids depend on nothing but the corpus.
"""

import glob
import io
import json
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from llc_jax import objects
from llc_jax.codes import packing
from llc_jax.copies import as_path, borrowed, local
from llc_jax.errors import InputError
from llc_jax.files import atomic_write, read_json
from llc_jax.objects import URL, StoreFailed, is_url
from llc_jax.search.packages import import_package

MANIFEST = "manifest.json"
MAX_ITEMS = 2**32

_ROW_GROUP = 2**16
# Bytes at the end of an object that have its metadata, if few items are damaged.
_END = 2**16
# float16's smallest number, and its largest.
_LEAST, _LARGEST = np.float16(6e-8), np.float16(65504)

Place = pathlib.Path | URL


class CodeShard(NamedTuple):
    """The codes of a shard.

    Attributes:
      num_bits: k.
      ids: int64[N].
      keys: N names; None where they are not read.
      codes: uint32[N, ceil(k / 32)], packed.
      code_logits: float[N, k], or None.
      predictions: N names of classes, None where there is none; or None.
      distances: int32[N], or None.
    """

    num_bits: int
    ids: np.ndarray
    keys: Sequence[str] | None
    codes: np.ndarray
    code_logits: np.ndarray | None = None
    predictions: Sequence[str | None] | None = None
    distances: np.ndarray | None = None


def item_ids(number: int, rows: np.ndarray) -> np.ndarray:
    """Returns the ids of some items of a shard, int64[N]."""
    return number * MAX_ITEMS + rows.astype(np.int64)


def file_of(folder: Place, number: int) -> Place:
    """Returns the file of the codes of a shard."""
    return folder / f"{number:06}.parquet"


def write(path: Place, shard: CodeShard, metadata: dict[str, Any]) -> None:
    """Writes the codes of a shard, atomically.

    Args:
      path: of the file, or its URL.
      shard: with keys.
      metadata: what else the file says, as JSON.

    Raises:
      WriteFailed: if it cannot be written.
    """
    arrow, parquet = _arrow()
    code_bytes = packing.to_bytes(shard.codes, shard.num_bits)
    width = arrow.binary(code_bytes.shape[1])
    buffers = [None, arrow.py_buffer(np.ascontiguousarray(code_bytes))]
    columns = {
        "id": arrow.array(shard.ids, arrow.int64()),
        "key": arrow.array([_valid(key) for key in shard.keys], arrow.string()),
        "code": arrow.Array.from_buffers(width, len(code_bytes), buffers),
    }
    if shard.code_logits is not None:
        values = arrow.array(_as_float16(shard.code_logits).ravel())
        columns["logits"] = arrow.FixedSizeListArray.from_arrays(values, shard.num_bits)
    if shard.predictions is not None:
        columns["predicted"] = arrow.array(shard.predictions, arrow.string())
        columns["distance"] = arrow.array(shard.distances, arrow.int32())
    texts = {"num_bits": shard.num_bits, "bit_order": "little", **metadata}
    table = arrow.table(columns).replace_schema_metadata(
        {name: json.dumps(value) for name, value in texts.items()}
    )
    with atomic_write(path) as temporary:
        parquet.write_table(
            table,
            temporary,
            row_group_size=_ROW_GROUP,
            compression="zstd",
            use_dictionary=["predicted"],
            write_page_checksum=True,
        )


def read_metadata(path: Place) -> dict[str, Any] | None:
    """Returns what `write` was told of a file; None where there is no such file, or none whole.

    Raises:
      StoreFailed: if an object store does not answer.
    """
    arrow, _ = _arrow()
    try:
        texts = _parquet_metadata(path).metadata or {}
        return {
            name.decode(): json.loads(text)
            for name, text in texts.items()
            if name != b"ARROW:schema"
        }
    except StoreFailed:
        raise
    except (OSError, ValueError, arrow.ArrowException):
        return None


def _parquet_metadata(path: Place):
    """Returns what Parquet says of a file; of an object the end is read, where that is enough."""
    arrow, parquet = _arrow()
    if not isinstance(path, URL):
        return parquet.read_metadata(path)
    try:
        return parquet.read_metadata(io.BytesIO(objects.read_end(path, _END)))
    except arrow.ArrowException:
        return parquet.read_metadata(io.BytesIO(objects.read(path)))


def read_manifest(folder: Place) -> dict[str, Any] | None:
    """Returns the manifest of the codes of a corpus; None where there is none.

    Raises:
      InputError: if it is damaged, or cannot be read.
    """
    path = folder / MANIFEST
    is_there = objects.find(path) if isinstance(path, URL) else path.exists()
    return read_json(local(path)) if is_there else None


def read(path: Place, *columns: str) -> CodeShard:
    """Reads the ids and codes of a shard.

    Args:
      path: of the file, or its URL.
      columns: that are read too, of key, logits, predicted and distance; those that are not
        there are None.

    Raises:
      InputError: if there is no such file, or it is damaged.
    """
    arrow, parquet = _arrow()
    try:
        with (
            borrowed(path) as copy,
            parquet.ParquetFile(copy, page_checksum_verification=True) as file,
        ):
            there = file.schema_arrow.names
            wanted = ["id", "code", *(name for name in columns if name in there)]
            table = file.read(wanted)
        num_bits = json.loads(table.schema.metadata[b"num_bits"])
        codes = packing.from_bytes(_code_bytes(table["code"]), num_bits)
    except StoreFailed:
        raise
    except (OSError, ValueError, KeyError, TypeError, arrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0]
        raise InputError(
            f"{path} holds no codes of a shard that can be read ({reason}): remove it, and let "
            "llc encode --shards write it again."
        ) from error
    found = {name: table[name] for name in wanted[2:]}
    logits = found.get("logits")
    if logits is not None:
        logits = logits.combine_chunks().flatten().to_numpy().reshape(-1, num_bits)
    distances = found.get("distance")
    return CodeShard(
        num_bits,
        table["id"].to_numpy(),
        found["key"].to_pylist() if "key" in found else None,
        codes,
        logits,
        found["predicted"].to_pylist() if "predicted" in found else None,
        None if distances is None else distances.to_numpy(),
    )


def is_folder(path: str | os.PathLike) -> bool:
    """Whether a path or URL names the codes of a corpus, or files of them, and no other codes."""
    text = os.fspath(path)
    return _is_directory(text) or glob.has_magic(text) or text.endswith(".parquet")


def _is_directory(text: str) -> bool:
    """Whether this is a folder; a URL that has no suffix is taken for one."""
    if not is_url(text):
        return os.path.isdir(text)
    url = URL(text)
    return not glob.has_magic(text) and (not url.suffix or bool(objects.find(url / MANIFEST)))


def files(source: str | os.PathLike) -> list[pathlib.Path] | list[URL]:
    """Returns the files of the codes of a corpus, in the order of the shards.

    Args:
      source: the folder; or some of its files, as a path or with wildcards; or the URL of these.

    Raises:
      InputError: if there are none, or the codes of a shard are missing in the folder.
    """
    text, folder = os.fspath(source), as_path(source)
    if not _is_directory(text):
        is_there = list(objects.glob(text)) if is_url(text) else sorted(glob.glob(text))
        if not is_there:
            raise InputError(f"There are no codes at {source}.")
        return list(map(as_path, is_there))
    manifest = read_manifest(folder)
    if manifest is None:
        raise InputError(
            f"{folder} has no {MANIFEST}: expected a folder that llc encode --shards wrote."
        )
    wanted = [file_of(folder, number) for number in range(len(manifest.get("shards", ())))]
    is_there = set(objects.find(folder) if isinstance(folder, URL) else folder.iterdir())
    missing = [path.name for path in wanted if path not in is_there]
    if missing:
        raise InputError(
            f"{len(missing):,} of {len(wanted):,} shards in {folder} are not encoded yet, "
            f"{missing[0]} the first: run llc encode --shards again; or name files, as "
            f"'{folder}/*.parquet'."
        )
    return wanted


def read_all(source: str | os.PathLike, *columns: str) -> Iterator[CodeShard]:
    """Yields the codes of a corpus, one shard after the other.

    Args:
      source: as for `files`.
      columns: as for `read`.

    Raises:
      InputError: as `files` and `read`, and if the codes are of several sizes or models.
    """
    model = None
    for path in files(source):
        shard = read(path, *columns)
        made_by = ((read_metadata(path) or {}).get("model"), shard.num_bits)
        if model is not None and made_by != model:
            raise InputError(f"{path} holds codes of another model than the files before it.")
        model = made_by
        yield shard


def keys(source: str | os.PathLike, ids: np.ndarray) -> dict[int, str]:
    """Returns the names of some items by their ids; only the files that have them are read.

    Args:
      source: as for `files`.
      ids: int64[N].

    Raises:
      InputError: as `files` and `read`, and if there is no item with one of the ids.
    """
    by_number = {int(path.stem): path for path in files(source) if path.stem.isdecimal()}
    found = {}
    for number in np.unique(ids // MAX_ITEMS).tolist():
        wanted = np.unique(ids[ids // MAX_ITEMS == number])
        shard = read(by_number[number], "key") if number in by_number else None
        rows = np.searchsorted(shard.ids, wanted) if shard else np.zeros(0, np.int64)
        if shard is None or not np.isin(wanted, shard.ids).all():
            raise InputError(f"{source} has no item {wanted[0]}: the index is of other codes.")
        found |= {
            item: shard.keys[row] for item, row in zip(wanted.tolist(), rows.tolist(), strict=True)
        }
    return found


def _as_float16(logits: np.ndarray) -> np.ndarray:
    """Returns code logits as float16, whose signs are those of the logits."""
    with np.errstate(over="ignore"):
        halves = np.clip(logits.astype(np.float16), -_LARGEST, _LARGEST)
    return np.where((halves == 0) & (logits < 0), -_LEAST, halves)


def _code_bytes(column) -> np.ndarray:
    """Returns a column of binary values of one size, uint8[N, size]."""
    arrow, _ = _arrow()
    if not arrow.types.is_fixed_size_binary(column.type):
        raise ValueError(f"its column code has {column.type}, not bytes of one size")
    width = column.type.byte_width
    chunks = [
        np.frombuffer(chunk.buffers()[1], np.uint8)[
            chunk.offset * width : (chunk.offset + len(chunk)) * width
        ]
        for chunk in column.chunks
        if len(chunk)
    ]
    return np.concatenate([np.zeros(0, np.uint8), *chunks]).reshape(-1, width)


def _valid(key: str) -> str:
    """Returns a name as valid UTF-8: those of files may not be."""
    return key.encode(errors="surrogateescape").decode(errors="replace")


def _arrow() -> tuple[Any, Any]:
    return import_package("pyarrow", "pyarrow"), import_package("pyarrow.parquet", "pyarrow")
