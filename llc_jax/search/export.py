"""Codes with their ids, written for other programs that search.

All of them see a code as bits or bytes in one order: bit j of a code is bit j % 8 of byte
j // 8, and character j of a string of bits. Unused bits are 0, so distances are the same.
"""

import dataclasses
import importlib
import os
import pathlib
import zipfile
from collections.abc import Callable
from types import ModuleType

import numpy as np

from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.files import atomic_write
from llc_jax.search.index import HammingIndex

# Rows that are turned into text at once.
_ROWS = 2**16


@dataclasses.dataclass(frozen=True)
class Items:
    """What there is to write.

    Attributes:
      num_bits: k.
      codes: uint32[N, ceil(k / 32)], packed.
      ids: int64[N].
      paths: N paths of images; None where they are not known.
    """

    num_bits: int
    codes: np.ndarray
    ids: np.ndarray
    paths: tuple[str, ...] | None = None

    @property
    def octets(self) -> np.ndarray:
        """The codes in as few bytes as hold them, uint8[N, ceil(k / 8)]."""
        octets = packing.to_little_endian(self.codes).view(np.uint8)
        return np.ascontiguousarray(octets[:, : -(-self.num_bits // 8)])


def read(path: str | os.PathLike) -> Items:
    """Reads codes that `llc encode` wrote, or a saved index.

    Args:
      path: an `.npz` of codes and paths, whose ids are the numbers of its rows; any other
        is an index.

    Raises:
      InputError: if there is no such file, or it holds something else.
    """
    path = pathlib.Path(path)
    if path.suffix != ".npz":
        index = HammingIndex.load(path)
        return Items(index.num_bits, index.codes, index.ids)
    try:
        with np.load(path, allow_pickle=False) as file:
            num_bits = int(file["num_bits"])
            codes = packing.checked(file["codes"].astype(np.uint32, casting="safe"), num_bits)
            paths = tuple(str(name) for name in file["paths"])
    except FileNotFoundError as error:
        raise InputError(f"There are no codes at {path}.") from error
    except (OSError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} holds no codes as `llc encode` writes them: {error}.") from error
    if len(paths) != len(codes):
        raise InputError(f"{path} has {len(codes)} codes but {len(paths)} paths.")
    return Items(num_bits, codes, np.arange(len(codes)), paths)


def write(items: Items, to: str, path: str | os.PathLike) -> None:
    """Writes codes in a form that another program reads.

    Args:
      items: codes, ids, paths.
      to: a name of `FORMATS`.
      path: the file; for pgvector the `.sql` file, with the data in a `.tsv` beside it.

    Raises:
      InputError: if the form is unknown, the file has another suffix or cannot be written,
        or a package is missing.
    """
    if to not in FORMATS:
        raise InputError(f"There is no form {to!r}: choose one of {', '.join(FORMATS)}.")
    suffix, writer = FORMATS[to]
    path = pathlib.Path(path)
    if path.suffix != suffix:
        raise InputError(f"Codes for {to} are a {suffix} file, not {path}.")
    try:
        writer(items, path)
    except OSError as error:
        raise InputError(f"Cannot write {path}: {error.strerror or error}.") from error


def _write_npy(items: Items, path: pathlib.Path) -> None:
    """Writes uint8[N, ceil(k / 8)]; the ids are lost."""
    with atomic_write(path) as temporary:
        np.save(temporary, items.octets, allow_pickle=False)


def _write_faiss(items: Items, path: pathlib.Path) -> None:
    """Writes an `IndexBinaryIDMap` of an `IndexBinaryFlat`."""
    faiss = _package("faiss", "faiss-cpu")
    octets = items.octets
    flat = faiss.IndexBinaryFlat(8 * octets.shape[1])
    index = faiss.IndexBinaryIDMap(flat)
    index.add_with_ids(octets, np.ascontiguousarray(items.ids, np.int64))
    with atomic_write(path) as temporary:
        faiss.write_index_binary(index, str(temporary))


def _write_parquet(items: Items, path: pathlib.Path) -> None:
    """Writes columns `id`, `code` (a list of bytes) and, where they are known, `path`."""
    arrow, parquet = _package("pyarrow", "pyarrow"), _package("pyarrow.parquet", "pyarrow")
    octets = items.octets
    width = octets.shape[1]
    ends = np.arange(0, octets.size + 1, width, dtype=np.int64)
    columns = {
        "id": arrow.array(items.ids, arrow.int64()),
        "code": arrow.LargeListArray.from_arrays(ends, arrow.array(octets.ravel())),
    }
    if items.paths is not None:
        columns["path"] = arrow.array(items.paths, arrow.string())
    table = arrow.table(columns).replace_schema_metadata({"num_bits": str(items.num_bits)})
    with atomic_write(path) as temporary:
        parquet.write_table(table, temporary)


def _write_pgvector(items: Items, path: pathlib.Path) -> None:
    """Writes the statements, and the rows in the text form of COPY."""
    data = path.with_suffix(".tsv")
    with atomic_write(data) as temporary, temporary.open("w", encoding="utf-8") as file:
        for start in range(0, len(items.ids), _ROWS):
            part = slice(start, start + _ROWS)
            rows = [items.ids[part].tolist(), _bit_strings(items.octets[part], items.num_bits)]
            if items.paths is not None:
                rows.append([_escaped(name) for name in items.paths[part]])
            file.writelines("\t".join(map(str, row)) + "\n" for row in zip(*rows, strict=True))
    with atomic_write(path) as temporary:
        temporary.write_text(_statements(items, data.name), encoding="utf-8")


def _statements(items: Items, data: str) -> str:
    """Returns SQL that makes a table, fills it and shows a search."""
    k = items.num_bits
    name, also = (",\n  path text", ", path") if items.paths is not None else ("", "")
    quoted = data.replace("'", "''")
    return f"""\
-- {len(items.ids)} codes of {k} bits. In the folder of this file:
--   psql --set=ON_ERROR_STOP=1 --file={data.removesuffix(".tsv")}.sql DATABASE
-- The nearest ten of a code, with the extension pgvector (0.7 or newer):
--   SELECT id{also}, code <~> B'{"01" * (k // 2) + "0" * (k % 2)}' AS distance
--   FROM codes ORDER BY distance, id LIMIT 10;
BEGIN;
CREATE EXTENSION IF NOT EXISTS vector;
CREATE TABLE codes (
  id bigint PRIMARY KEY,
  code bit({k}) NOT NULL{name}
);
\\copy codes (id, code{also}) FROM '{quoted}'
COMMIT;
"""


def _bit_strings(octets: np.ndarray, num_bits: int) -> list[str]:
    """Returns codes as strings of 0 and 1."""
    bits = np.unpackbits(octets, axis=1, count=num_bits, bitorder="little") + ord("0")
    return [row.tobytes().decode() for row in bits]


def _escaped(text: str) -> str:
    """Returns text as COPY reads it."""
    for character, escape in (("\\", "\\\\"), ("\t", "\\t"), ("\n", "\\n"), ("\r", "\\r")):
        text = text.replace(character, escape)
    return text


def _package(module: str, name: str) -> ModuleType:
    """Imports a package that only this form needs."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise InputError(f"This needs {name}: pip install {name}.") from error


FORMATS: dict[str, tuple[str, Callable[[Items, pathlib.Path], None]]] = {
    "faiss": (".faiss", _write_faiss),
    "npy": (".npy", _write_npy),
    "parquet": (".parquet", _write_parquet),
    "pgvector": (".sql", _write_pgvector),
}
