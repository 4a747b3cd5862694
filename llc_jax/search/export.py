"""Codes with their ids, written in the formats of other search programs.

Bit j of a code is bit j % 8 of byte j // 8, or bit 7 - j % 8 where `bit_order` is "big"; it
is character j of a bit string, and number j of a vector of +1 and -1. Unused bits are 0, so
distances are the same.
"""

import dataclasses
import os
import pathlib
from collections.abc import Callable

import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.copies import as_path, local
from llc_jax.decoding import decoders
from llc_jax.errors import InputError
from llc_jax.files import atomic_write, read_arrays
from llc_jax.search import code_shards, coordinates
from llc_jax.search.index import HammingIndex
from llc_jax.search.packages import import_package

# Rows that are converted to text, or to numbers, at once.
_CHUNK = 2**16


@dataclasses.dataclass(frozen=True)
class CodeTable:
    """A table of codes, one row an item.

    Attributes:
      num_bits: k.
      codes: uint32[N, ceil(k / 32)], packed.
      ids: int64[N].
      paths: N paths of images; None where they are not known.
      labels: N names of true classes, None where one is not known; None where none is.
      predictions: N names of the classes that were found; None where they are not known.
      code_logits: float[N, k], of which the codes are the signs; None where they are not known.
    """

    num_bits: int
    codes: np.ndarray
    ids: np.ndarray
    paths: tuple[str, ...] | None = None
    labels: tuple[str | None, ...] | None = None
    predictions: tuple[str, ...] | None = None
    code_logits: np.ndarray | None = None

    @property
    def code_bytes(self) -> np.ndarray:
        """The codes without the unused bytes of their words, uint8[N, ceil(k / 8)]."""
        return packing.to_bytes(self.codes, self.num_bits)


def read(path: str | os.PathLike) -> CodeTable:
    """Reads codes that `llc encode` wrote, or a saved index.

    Args:
      path: an `.npz` of codes and paths, whose ids are its row numbers; it may have `labels`,
        N names, and `code_logits`, float[N, k]. Or the folder of the codes of a corpus, or
        Parquet files of it. Or an index, which has any other suffix.

    Raises:
      InputError: if there is no such file, it is neither, or what it has is not of N codes.
    """
    if code_shards.is_folder(path):
        return _read_shards(path)
    path = local(path)
    if path.suffix != ".npz":
        index = HammingIndex.load(path)
        return CodeTable(index.num_bits, index.codes, index.ids)
    try:
        arrays = read_arrays(path)
        num_bits = int(arrays["num_bits"])
        codes = packing.checked(arrays["codes"].astype(np.uint32, casting="safe"), num_bits)
        paths = tuple(map(str, arrays["paths"]))
        labels = tuple(map(str, arrays["labels"])) if "labels" in arrays else None
        code_logits = arrays.get("code_logits")
    except FileNotFoundError as error:
        raise InputError(f"There are no codes at {path}.") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} holds no codes as `llc encode` writes them: {error}.") from error
    for what, values in (("paths", paths), ("labels", labels)):
        if values is not None and len(values) != len(codes):
            raise InputError(f"{path} has {len(codes)} codes but {len(values)} {what}.")
    if code_logits is not None:
        _check_code_logits(code_logits, (len(codes), num_bits), path)
    ids = np.arange(len(codes))
    return CodeTable(num_bits, codes, ids, paths, labels, code_logits=code_logits)


def _read_shards(source: str | os.PathLike) -> CodeTable:
    """Returns all codes of a corpus."""
    columns = ("key", "logits", "predicted")
    shards = [shard for shard in code_shards.read_all(source, *columns) if len(shard.ids)]
    if not shards:
        raise InputError(f"The codes in {source} are of no items.")
    first = shards[0]
    logits, predictions = first.code_logits, first.predictions
    return CodeTable(
        first.num_bits,
        np.concatenate([shard.codes for shard in shards]),
        np.concatenate([shard.ids for shard in shards]),
        tuple(key for shard in shards for key in shard.keys),
        predictions=predictions and tuple(p for shard in shards for p in shard.predictions),
        code_logits=None if logits is None else np.concatenate([s.code_logits for s in shards]),
    )


def classify(table: CodeTable, codebook: Codebook) -> CodeTable:
    """Returns a table with the class of each item, by the nearest class code.

    Where labels are not known, an item has the name of its folder for a label, if this is one
    of the classes.

    Args:
      table: codes, ids, paths.
      codebook: of the same bits.

    Raises:
      InputError: if it is of other bits.
    """
    if codebook.num_bits != table.num_bits:
        raise InputError(
            f"The codes have {table.num_bits} bits, but those of the run's classes "
            f"{codebook.num_bits}: name the run that made the codes."
        )
    names = codebook.class_names
    predictions = tuple(names[label] for label in decoders.make("mhd", codebook)(table.codes)[0])
    labels = table.labels
    if labels is None and table.paths is not None:
        folders = (pathlib.PurePath(path).parent.name for path in table.paths)
        known = frozenset(names)
        labels = tuple(folder if folder in known else None for folder in folders)
        labels = labels if any(labels) else None
    return dataclasses.replace(table, labels=labels, predictions=predictions)


def _check_code_logits(code_logits: np.ndarray, shape: tuple[int, int], path: pathlib.Path) -> None:
    """Raises an InputError unless code logits are finite numbers of that shape."""
    if code_logits.shape != shape or code_logits.dtype.kind != "f":
        raise InputError(
            f"The code_logits in {path} are float{list(shape)}, one for each bit of each code, "
            f"not {code_logits.dtype}{list(code_logits.shape)}."
        )
    if not np.isfinite(code_logits).all():
        raise InputError(f"The code_logits in {path} have NaN or inf: leave those images out.")


def write(table: CodeTable, to: str, path: str | os.PathLike, bit_order: str | None = None) -> None:
    """Writes codes in a format that another program reads.

    Args:
      table: codes, ids, paths.
      to: a name of `FORMATS`.
      path: the file; for pgvector the `.sql` file, with the data in a `.tsv` beside it.
      bit_order: of the bytes, "little" (the default) or "big", as in `llc_jax.to_bytes`;
        only for the formats that hold bytes as such, npy and parquet.

    Raises:
      InputError: if the format is unknown or has no choice of the order of bits, the file has
        another suffix, or a package is missing.
      WriteFailed: if the file cannot be written.
    """
    if to not in FORMATS:
        raise InputError(f"There is no form {to!r}: choose one of {', '.join(FORMATS)}.")
    suffix, writer = FORMATS[to]
    path = as_path(path)
    if path.suffix != suffix:
        raise InputError(f"Codes for {to} are a {suffix} file, not {path}.")
    if bit_order is None:
        writer(table, path)
    elif to in _OF_BYTES:
        writer(table, path, bit_order)
    else:
        raise InputError(
            f"The form {to} has its bits in one order: choose another only for "
            f"{' or '.join(_OF_BYTES)}."
        )


def _write_npy(table: CodeTable, path: pathlib.Path, bit_order: str = "little") -> None:
    """Writes uint8[N, ceil(k / 8)]; the ids are lost."""
    code_bytes = packing.to_bytes(table.codes, table.num_bits, bit_order)
    with atomic_write(path) as temporary:
        np.save(temporary, code_bytes, allow_pickle=False)


def _write_float(table: CodeTable, path: pathlib.Path) -> None:
    """Writes float32[N, k] of +1 and -1; the ids are lost."""
    header = {
        "descr": "<f4",
        "fortran_order": False,
        "shape": (len(table.codes), table.num_bits),
    }
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, len(table.codes), _CHUNK):
            signs = packing.unpack(table.codes[start : start + _CHUNK], table.num_bits)
            file.write(np.asarray(signs).astype("<f4").tobytes())


def _write_faiss(table: CodeTable, path: pathlib.Path) -> None:
    """Writes an `IndexBinaryIDMap` of an `IndexBinaryFlat`."""
    faiss = import_package("faiss", "faiss-cpu")
    code_bytes = table.code_bytes
    flat = faiss.IndexBinaryFlat(8 * code_bytes.shape[1])
    index = faiss.IndexBinaryIDMap(flat)
    index.add_with_ids(code_bytes, np.ascontiguousarray(table.ids, np.int64))
    with atomic_write(path) as temporary:
        faiss.write_index_binary(index, str(temporary))


def _write_parquet(table: CodeTable, path: pathlib.Path, bit_order: str = "little") -> None:
    """Writes columns `id`, `code` (a list of bytes), `bits` (a text of 0 and 1), `x` and `y`.

    Where they are known, `path`, `label` and `predicted` too.
    """
    arrow = import_package("pyarrow", "pyarrow")
    parquet = import_package("pyarrow.parquet", "pyarrow")
    code_bytes = packing.to_bytes(table.codes, table.num_bits, bit_order)
    offsets = np.arange(0, code_bytes.size + 1, code_bytes.shape[1], dtype=np.int64)
    x, y = coordinates.project(table.codes, table.num_bits, table.code_logits).T
    columns = {
        "id": arrow.array(table.ids, arrow.int64()),
        "code": arrow.LargeListArray.from_arrays(offsets, arrow.array(code_bytes.ravel())),
        "bits": arrow.array(_bit_strings(table.code_bytes, table.num_bits), arrow.string()),
        "x": arrow.array(x, arrow.float32()),
        "y": arrow.array(y, arrow.float32()),
    }
    names = {"path": table.paths, "label": table.labels, "predicted": table.predictions}
    for column, values in names.items():
        if values is not None:
            columns[column] = arrow.array(values, arrow.string())
    metadata = {"num_bits": str(table.num_bits), "bit_order": bit_order}
    with atomic_write(path) as temporary:
        parquet.write_table(arrow.table(columns).replace_schema_metadata(metadata), temporary)


def _write_pgvector(table: CodeTable, path: pathlib.Path) -> None:
    """Writes the SQL statements, and beside them the rows in COPY's text format."""
    data_path, code_bytes = path.with_suffix(".tsv"), table.code_bytes
    with atomic_write(data_path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(table.ids), _CHUNK):
            chunk = slice(start, start + _CHUNK)
            columns = [table.ids[chunk].tolist(), _bit_strings(code_bytes[chunk], table.num_bits)]
            if table.paths is not None:
                columns.append([_escaped(image_path) for image_path in table.paths[chunk]])
            file.writelines("\t".join(map(str, row)) + "\n" for row in zip(*columns, strict=True))
    with atomic_write(path) as temporary:
        temporary.write_text(_statements(table, data_path.name), encoding="utf-8")


def _statements(table: CodeTable, data_name: str) -> str:
    """Returns SQL that creates a table, fills it, and shows a search in a comment."""
    k = table.num_bits
    path_definition, path_name = "", ""
    if table.paths is not None:
        path_definition, path_name = ",\n  path text", ", path"
    quoted_name = data_name.replace("'", "''")
    return f"""\
-- {len(table.ids)} codes of {k} bits. In the folder of this file:
--   psql --set=ON_ERROR_STOP=1 --file={data_name.removesuffix(".tsv")}.sql DATABASE
-- The nearest ten of a code, with the extension pgvector (0.7 or newer):
--   SELECT id{path_name}, code <~> B'{"01" * (k // 2) + "0" * (k % 2)}' AS distance
--   FROM codes ORDER BY distance, id LIMIT 10;
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE codes (
  id bigint PRIMARY KEY,
  code bit({k}) NOT NULL{path_definition}
);
\\copy codes (id, code{path_name}) FROM '{quoted_name}'
COMMIT;
"""


def _bit_strings(code_bytes: np.ndarray, num_bits: int) -> list[str]:
    """Returns codes as strings of 0 and 1."""
    bits = np.unpackbits(code_bytes, axis=1, count=num_bits, bitorder="little") + ord("0")
    return [row.tobytes().decode() for row in bits]


def _escaped(text: str) -> str:
    """Returns text with the escapes of COPY's text format."""
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text


FORMATS: dict[str, tuple[str, Callable[..., None]]] = {
    "faiss": (".faiss", _write_faiss),
    "float": (".npy", _write_float),
    "npy": (".npy", _write_npy),
    "parquet": (".parquet", _write_parquet),
    "pgvector": (".sql", _write_pgvector),
}

# The formats whose bytes can have their bits in either order.
_OF_BYTES = ("npy", "parquet")
