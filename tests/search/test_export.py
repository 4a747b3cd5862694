import dataclasses
import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest

import llc_jax
from llc_jax import cli
from llc_jax.codes import packing
from llc_jax.errors import InputError
from llc_jax.search import coordinates, export
from tests import postgresql

PATHS = ("a.png", "with\ttab\\and\nline.png", "ü/'quote'.png")


def random_table(num_bits, count=300, paths=None):
    signs = np.random.default_rng(num_bits).choice(np.array([-1, 1], np.int8), (count, num_bits))
    codes = np.asarray(packing.pack(signs))
    ids = np.arange(count) if paths else np.arange(count) * 7 + 10**11
    return export.CodeTable(num_bits, codes, ids, paths)


def search_itself(table, top):
    index = llc_jax.HammingIndex(table.num_bits)
    index.add(table.codes, table.ids)
    return index.search(table.codes[:20], top)


def bit_matrix(table):
    return (np.asarray(packing.unpack(table.codes, table.num_bits)) > 0).astype(np.uint8)


@pytest.mark.parametrize("num_bits", [7, 20, 33, 64])
def test_faiss_finds_the_same_distances(num_bits, tmp_path):
    faiss = pytest.importorskip("faiss", reason="pip install faiss-cpu")
    table = random_table(num_bits)
    export.write(table, "faiss", tmp_path / "codes.faiss")
    index = faiss.read_index_binary(str(tmp_path / "codes.faiss"))
    distances, ids = index.search(table.code_bytes[:20], 300)
    expected, expected_ids = search_itself(table, 300)
    np.testing.assert_array_equal(distances, expected)
    for row, expected_row in zip(ids, expected_ids, strict=True):
        assert set(row) == set(expected_row)


@pytest.mark.parametrize("num_bits", [7, 20, 33, 64])
def test_npy_holds_the_bits_in_order(num_bits, tmp_path):
    table = random_table(num_bits)
    export.write(table, "npy", tmp_path / "codes.npy")
    code_bytes = np.load(tmp_path / "codes.npy")
    assert code_bytes.shape == (300, -(-num_bits // 8))
    bits = np.unpackbits(code_bytes, axis=1, bitorder="little")
    np.testing.assert_array_equal(bits[:, :num_bits], bit_matrix(table))
    assert not bits[:, num_bits:].any()


@pytest.mark.parametrize("num_bits", [7, 64])
def test_npy_holds_the_bits_as_numpy_packs_them(num_bits, tmp_path):
    table = random_table(num_bits)
    export.write(table, "npy", tmp_path / "codes.npy", bit_order="big")
    expected = np.packbits(bit_matrix(table), axis=1)
    np.testing.assert_array_equal(np.load(tmp_path / "codes.npy"), expected)


@pytest.mark.parametrize("num_bits", [7, 33])
def test_float_holds_signs(num_bits, tmp_path, monkeypatch):
    table = random_table(num_bits)
    monkeypatch.setattr(export, "_CHUNK", 128)
    export.write(table, "float", tmp_path / "codes.npy")
    vectors = np.load(tmp_path / "codes.npy", allow_pickle=False)
    assert vectors.dtype == np.float32
    np.testing.assert_array_equal(vectors, 2.0 * bit_matrix(table) - 1)
    distances, _ = search_itself(table, 300)
    products = vectors[:20] @ vectors.T
    np.testing.assert_array_equal(-np.sort(-products, axis=1), num_bits - 2 * distances)
    export.write(random_table(num_bits, 0), "float", tmp_path / "codes.npy")
    assert np.load(tmp_path / "codes.npy").shape == (0, num_bits)


@pytest.mark.parametrize("paths", [None, PATHS])
def test_parquet_holds_ids_codes_and_paths(paths, tmp_path):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    from pyarrow import parquet

    table = random_table(20, 3, paths)
    export.write(table, "parquet", tmp_path / "codes.parquet")
    loaded = parquet.read_table(tmp_path / "codes.parquet")
    assert loaded.schema.metadata == {b"num_bits": b"20", b"bit_order": b"little"}
    np.testing.assert_array_equal(loaded["id"], table.ids)
    np.testing.assert_array_equal(np.array(loaded["code"].to_pylist(), np.uint8), table.code_bytes)
    columns = ["id", "code", "bits", "x", "y", *(["path"] if paths else [])]
    assert loaded.column_names == columns
    bits = ["".join(map(str, row)) for row in bit_matrix(table)]
    assert loaded["bits"].to_pylist() == bits
    if paths:
        assert tuple(loaded["path"].to_pylist()) == paths
    export.write(table, "parquet", tmp_path / "codes.parquet", bit_order="big")
    loaded = parquet.read_table(tmp_path / "codes.parquet")
    assert loaded.schema.metadata[b"bit_order"] == b"big"
    code_bytes = np.array(loaded["code"].to_pylist(), np.uint8)
    np.testing.assert_array_equal(code_bytes, np.packbits(bit_matrix(table), axis=1))


@pytest.mark.parametrize("count", [2, 300])
@pytest.mark.parametrize("num_bits", [1, 2, 20])
@pytest.mark.parametrize("of_logits", [True, False])
def test_coordinates_are_those_of_the_principal_components(count, num_bits, of_logits, monkeypatch):
    table = random_table(num_bits, count)
    rng = np.random.default_rng(0)
    signs = 2.0 * bit_matrix(table) - 1
    vectors = signs * rng.gamma(2, size=signs.shape) if of_logits else signs
    logits = vectors.astype(np.float32) if of_logits else None
    found = coordinates.project(table.codes, num_bits, logits)
    assert found.shape == (count, 2)
    assert found.dtype == np.float32
    centred = vectors - vectors.mean(axis=0)
    directions = np.linalg.svd(centred, full_matrices=True)[2][:2]
    expected = np.zeros((count, 2))
    expected[:, : len(directions)] = centred @ directions.T
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-3)
    monkeypatch.setattr(coordinates, "_CHUNK", 128)
    again = coordinates.project(table.codes, num_bits, logits, seed=1)
    np.testing.assert_array_equal(again, coordinates.project(table.codes, num_bits, logits, seed=1))
    # Of a sample of the items, the spread along the components is nearly as large.
    assert again.std() >= 0.7 * found.std()


@pytest.mark.parametrize("count", [0, 1])
def test_coordinates_of_one_code_are_0(count):
    codes = random_table(20, count).codes
    np.testing.assert_array_equal(coordinates.project(codes, 20), np.zeros((count, 2)))


def test_parquet_tells_classes_where_they_are_known(tmp_path):
    pytest.importorskip("pyarrow", reason="pip install pyarrow")
    from pyarrow import parquet

    codebook = llc_jax.Codebook.random(3, 20)
    codebook = llc_jax.Codebook.from_numpy(codebook.latent, ["cat", "dog", "two words"])
    table = export.CodeTable(20, codebook.packed, np.arange(3))
    paths = ("photos/cat/1.png", "dog/2.png", "cat/new/3.png")

    def columns(table):
        export.write(export.classify(table, codebook), "parquet", tmp_path / "codes.parquet")
        return parquet.read_table(tmp_path / "codes.parquet").to_pydict()

    found = columns(table)
    assert found["predicted"] == ["cat", "dog", "two words"]
    assert not {"label", "path"} & set(found)
    found = columns(dataclasses.replace(table, paths=paths))
    assert found["label"] == ["cat", "dog", None]
    assert found["path"] == list(paths)
    found = columns(dataclasses.replace(table, paths=paths, labels=("x", "y", "z")))
    assert found["label"] == ["x", "y", "z"]
    assert "label" not in columns(dataclasses.replace(table, paths=("a", "b", "c")))
    with pytest.raises(InputError, match="codes have 20 bits, but those of the run's classes 19"):
        export.classify(table, codebook.prefix(19))


def test_embedding_atlas_opens_parquet(tmp_path):
    program = shutil.which("embedding-atlas")
    if program is None:
        pytest.skip("There is no embedding-atlas: pip install embedding-atlas.")
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
    paths = tuple(f"photos/{number}.png" for number in range(30))
    (tmp_path / "photos").mkdir()
    for number, path in enumerate(paths):
        (tmp_path / path).write_bytes(b"image %d" % number)
    table = dataclasses.replace(random_table(20, 30), paths=paths, labels=("cat",) * 30)
    export.write(table, "parquet", tmp_path / "codes.parquet")
    query = (
        "SELECT data.*, content AS image FROM data JOIN read_blob('photos/**') ON filename = path"
    )
    columns = ("--x=x", "--y=y", "--image=image", f"--query={query}")
    subprocess.run(
        [program, "codes.parquet", *columns, "--export-application=app"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": "", "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
        capture_output=True,
    )
    metadata = json.loads((tmp_path / "app/data/metadata.json").read_text())
    assert metadata["props"]["data"]["projection"] == {"x": "x", "y": "y"}
    rows = parquet.read_table(tmp_path / "app/data/dataset.parquet").to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(paths)
    for row in rows:
        assert row["image"] == b"image %d" % paths.index(row["path"])
        assert row["label"] == "cat"


def test_labels_and_code_logits_are_read(tmp_path):
    codes = random_table(20, 3).codes
    arrays = {"codes": codes, "num_bits": 20, "paths": PATHS}
    logits = np.random.default_rng(0).normal(size=(3, 20)).astype(np.float32)
    np.savez(tmp_path / "a.npz", **arrays, labels=["a", "b", "c"], code_logits=logits)
    table = export.read(tmp_path / "a.npz")
    assert table.labels == ("a", "b", "c")
    np.testing.assert_array_equal(table.code_logits, logits)
    for wrong, message in [
        ({"labels": ["a"]}, "has 3 codes but 1 labels"),
        (
            {"code_logits": logits[:2]},
            r"float\[3, 20\], one for each bit .* not float32\[2, 20",
        ),
        ({"code_logits": codes}, r"not uint32\[3, 1\]"),
        ({"code_logits": np.full_like(logits, np.nan)}, "have NaN or inf"),
    ]:
        np.savez(tmp_path / "b.npz", **arrays, **wrong)
        with pytest.raises(InputError, match=message):
            export.read(tmp_path / "b.npz")


def unescaped(text):
    """A field as COPY reads it."""
    escapes = {"t": "\t", "n": "\n", "r": "\r", "\\": "\\"}
    return re.sub(r"\\(.)", lambda match: escapes[match[1]], text)


@pytest.mark.parametrize("paths", [None, PATHS])
def test_rows_for_copy_hold_ids_codes_and_paths(paths, tmp_path):
    table = random_table(33, 3, paths)
    export.write(table, "pgvector", tmp_path / "it's.sql")
    statements = (tmp_path / "it's.sql").read_text(encoding="utf-8")
    assert "code bit(33) NOT NULL" in statements
    columns = re.search(r"^\\copy codes \((.*)\) FROM 'it''s\.tsv'$", statements, re.MULTILINE)
    assert columns[1] == ("id, code, path" if paths else "id, code")
    lines = (tmp_path / "it's.tsv").read_text(encoding="utf-8").removesuffix("\n").split("\n")
    for row, line in enumerate(lines):
        number, code, *path = map(unescaped, line.split("\t"))
        assert int(number) == table.ids[row]
        assert code == "".join(map(str, bit_matrix(table)[row]))
        assert path == ([paths[row]] if paths else [])
    assert len(lines) == 3


def test_rows_are_written_in_chunks(tmp_path, monkeypatch):
    table = random_table(20)
    export.write(table, "pgvector", tmp_path / "one_chunk.sql")
    monkeypatch.setattr(export, "_CHUNK", 64)
    export.write(table, "pgvector", tmp_path / "chunks.sql")
    assert (tmp_path / "one_chunk.tsv").read_bytes() == (tmp_path / "chunks.tsv").read_bytes()


@pytest.fixture
def psql():
    """Runs psql in a folder, against a server of its own; returns what it prints."""
    with postgresql.started() as server:
        yield server.psql


def test_postgresql_finds_the_same(psql, tmp_path):
    table = random_table(20, 300, tuple(f"{number}{PATHS[number % 3]}" for number in range(300)))
    export.write(table, "pgvector", tmp_path / "codes.sql")
    psql("--file=codes.sql", cwd=tmp_path)
    distances, ids = search_itself(table, 10)
    for row in range(20):
        code = "".join(map(str, bit_matrix(table)[row]))
        query = (
            f"SELECT json_agg(t) FROM (SELECT id, path, code <~> B'{code}' AS distance "
            "FROM codes ORDER BY distance, id LIMIT 10) t"
        )
        results = json.loads(psql("--tuples-only", "--no-align", "--command", query, cwd=tmp_path))
        assert [result["id"] for result in results] == ids[row].tolist()
        assert [result["distance"] for result in results] == distances[row].tolist()
        assert [result["path"] for result in results] == [table.paths[i] for i in ids[row]]


def test_reads_what_encode_wrote_and_an_index(tmp_path):
    table = random_table(20, 3, PATHS)
    np.savez(tmp_path / "codes.npz", codes=table.codes.astype("<u4"), num_bits=20, paths=PATHS)
    loaded = export.read(tmp_path / "codes.npz")
    assert (loaded.num_bits, loaded.paths) == (20, PATHS)
    np.testing.assert_array_equal(loaded.codes, table.codes)
    np.testing.assert_array_equal(loaded.ids, [0, 1, 2])
    assert cli.main(["index", f"--codes={tmp_path}/codes.npz", f"--out={tmp_path}/a.index"]) == 0
    for name in ("codes.npz", "a.index"):
        out = tmp_path / f"{name}.npy"
        arguments = [f"--codes={tmp_path / name}", "--to=npy", f"--out={out}"]
        assert cli.main(["export", *arguments]) == 0
        np.testing.assert_array_equal(np.load(out), table.code_bytes)
        assert cli.main(["export", *arguments, "--bit-order=big"]) == 0
        np.testing.assert_array_equal(np.load(out), np.packbits(bit_matrix(table), axis=1))


def test_bad_input_is_named(tmp_path, capsys):
    table = random_table(20, 3)
    with pytest.raises(InputError, match="no form 'csv': choose one of faiss, float, npy"):
        export.write(table, "csv", tmp_path / "a.csv")
    with pytest.raises(InputError, match="for npy are a .npy file, not"):
        export.write(table, "npy", tmp_path / "a.txt")
    for to, suffix in (("faiss", ".faiss"), ("pgvector", ".sql"), ("float", ".npy")):
        with pytest.raises(InputError, match=f"The form {to} has .* only for npy or parquet"):
            export.write(table, to, tmp_path / f"a{suffix}", bit_order="little")
    with pytest.raises(InputError, match="bit_order is one of big, little, not 'middle'"):
        export.write(table, "npy", tmp_path / "a.npy", bit_order="middle")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="There are no codes at"):
        export.read(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", codes=np.zeros((3, 1), np.uint32))
    with pytest.raises(InputError, match="holds no codes as `llc encode` writes them"):
        export.read(tmp_path / "other.npz")
    np.savez(tmp_path / "wrong.npz", codes=np.zeros((3, 2), np.uint32), num_bits=20, paths=PATHS)
    with pytest.raises(InputError, match=r"not uint32\[3, 2\]"):
        export.read(tmp_path / "wrong.npz")
    assert cli.main(["export", "--to=npy", "--out=a.npy", "--run=x"]) == 2
    assert "--to npy needs --codes" in capsys.readouterr().err
    assert cli.main(["export", "--to=torch", "--out=a.pth", "--codes=x"]) == 2
    assert "--to torch needs --run" in capsys.readouterr().err
    torch = ["export", "--to=torch", "--out=a.pth", "--run=x"]
    for arguments, message in [
        ([*torch, "--codes=x"], "writes what --run names: leave --codes out"),
        ([*torch, "--bit-order=big"], "writes weights: --bit-order is for codes"),
        (["export", "--to=npy", "--out=a", "--codes=x", "--run=x"], "leave --run out"),
    ]:
        assert cli.main(arguments) == 2
        assert message in capsys.readouterr().err
