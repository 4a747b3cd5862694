"""`llc encode` of a corpus and of embeddings, and what `llc` does with the codes."""

import json

import numpy as np
import pytest

import llc_jax
from llc_jax import cli
from llc_jax.codes import packing
from llc_jax.search import code_shards
from tests.corpora import COUNTS, encode, keys_and_codes, png

pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")


@pytest.fixture(scope="module")
def of_embeddings(tmp_path_factory):
    """A run of embeddings of 6 numbers, and 50 of them."""
    X = np.random.default_rng(0).standard_normal((50, 6)).astype(np.float16)
    coder = llc_jax.LLC(num_bits=5, hidden=(), epochs=(1, 1, 1), random_state=0)
    path = tmp_path_factory.mktemp("embeddings") / "run"
    coder.fit(X.astype(np.float32), np.arange(50) % 3).save(path)
    return path, X


def write_embeddings(folder, X):
    """Writes them in all forms; returns the names of the rows by the names of the files."""
    np.save(folder / "a.npy", X)
    np.savez(folder / "b.npz", embeddings=X)
    np.savez_compressed(folder / "c.npz", embeddings=X)
    table = {"vector": list(X.astype(np.float32)), "key": [f"key {n}" for n in range(len(X))]}
    pq.write_table(pa.table(table), folder / "d.parquet")
    del table["key"]
    pq.write_table(pa.table(table), folder / "e.parquet")
    pq.write_table(pa.table(table).slice(0, 0), folder / "f.parquet")
    names = {file: [f"{file}[{row}]" for row in range(50)] for file in ("a.npy", "b.npz", "c.npz")}
    names |= {"d.parquet": table_keys(50), "e.parquet": [f"e.parquet[{n}]" for n in range(50)]}
    return names


def table_keys(count):
    return [f"key {n}" for n in range(count)]


def test_embeddings_become_codes(of_embeddings, tmp_path):
    run, X = of_embeddings
    names, model = write_embeddings(tmp_path, X), llc_jax.load(run)
    assert encode(model, f"{tmp_path}/*.{{npy,npz,parquet}}", tmp_path / "codes").shards == 6
    found_names, found = keys_and_codes(tmp_path / "codes")
    assert found_names == [name for of_file in names.values() for name in of_file]
    np.testing.assert_array_equal(found, np.tile(model.encode(X), (5, 1)))
    # The same, to one file.
    files, out = [str(tmp_path / file) for file in names], tmp_path / "codes.npz"
    assert cli.main(["encode", *files, "--run", str(run), "--out", str(out)]) == 0
    with np.load(out) as arrays:
        assert arrays["paths"].tolist() == found_names
        np.testing.assert_array_equal(arrays["codes"], found)


def test_bad_embeddings(of_embeddings, tmp_path, capsys):
    run, X = of_embeddings
    bad = X.copy()
    bad[4, 2] = np.nan
    np.save(tmp_path / "a.npy", bad)
    model = llc_jax.load(run)
    assert encode(model, tmp_path / "a.npy", tmp_path / "codes").damaged == 1
    assert 4 not in code_shards.read(tmp_path / "codes" / "000000.parquet").ids
    np.save(tmp_path / "b.npy", X[:, :5])
    counts = encode(model, tmp_path / "{a,b}.npy", tmp_path / "others")
    assert (counts.shards, list(counts.failed)) == (1, ["b.npy"])
    (tmp_path / "c.csv").write_text("1,2")
    (tmp_path / "d.npz").write_bytes(b"damaged")
    for name, message in (
        ("a.npy", "not finite"),
        ("b.npy", "Embeddings are float[N, 6], not float16[50, 5]"),
        ("c.csv", "is no file of embeddings, which the run takes: expected .npy, .npz, .parquet"),
        ("d.npz", "is no .npz file"),
    ):
        arguments = [str(tmp_path / name), "--run", str(run), "--out", str(tmp_path / "x.npz")]
        assert cli.main(["encode", *arguments]) == 2
        assert message in capsys.readouterr().err


def test_llc_from_shards_to_neighbours(run, model, images, tars, tmp_path, capsys):
    out, run_option = str(tmp_path / "codes"), f"--run={run}"
    shards = ["--shards", f"{tars}/d-{{0..3}}.tar", run_option, f"--out={out}", "--logits"]
    assert cli.main(["encode", *shards, "--task", "1/2"]) == 0
    printed = capsys.readouterr().out
    assert "task 1/2: 2 of its 2 shards to do, of 4 in all" in printed
    assert "task 1/2: 48 codes of 8 bits in 2 files" in printed
    index = ["index", "--codes", out, "--out"]
    assert cli.main([*index, str(tmp_path / "all.index")]) == 2
    assert "2 of 4 shards" in capsys.readouterr().err
    assert cli.main(["encode", *shards]) == 0
    assert cli.main([*index, str(tmp_path / "all.index")]) == 0
    assert "78 codes of 8 bits" in capsys.readouterr().out
    for number in range(4):
        some = ["index", "--codes", f"{out}/00000{number}.parquet"]
        assert cli.main([*some, "--out", str(tmp_path / f"{number}.index")]) == 0
    query = tmp_path / "query.png"
    query.write_bytes(png(images[3][5]))
    search = ["search", str(query), run_option, "--codes", out, "--json", "--top", "7"]
    capsys.readouterr()
    results = []
    for options in (
        [f"--index={tmp_path}/all.index"],
        [f"--index={tmp_path}/{{0..3}}.index"],
        [f"--index={tmp_path}/[01].index", f"--index={tmp_path}/[23].index"],
    ):
        assert cli.main([*search, *options]) == 0
        results.append(json.loads(capsys.readouterr().out))
    assert results[0] == results[1] == results[2]
    codes = packing.unpack(model.encode(np.concatenate(images)), 8)
    distances = np.sum(np.asarray(codes) != np.asarray(codes[sum(COUNTS[:3]) + 5]), axis=1)
    nearest = np.argsort(distances, kind="stable")[:7]
    starts = np.cumsum((0, *COUNTS))
    for row, item in zip(results[0], nearest, strict=True):
        shard = int(np.searchsorted(starts, item, side="right")) - 1
        shard = 3 if shard == 2 else shard  # That one is empty.
        assert row["id"] == shard * 2**32 + item - starts[shard]
        assert row["path"] == f"{item - starts[shard]:04}"
        assert row["distance"] == distances[item]
    assert cli.main(["export", "--to=npy", "--codes", out, f"--out={tmp_path}/codes.npy"]) == 0
    assert np.load(tmp_path / "codes.npy").shape == (78, 1)
    twice = [f"--index={tmp_path}/0.index"] * 2
    assert cli.main([*search, *twice]) == 2
    assert "have the same id" in capsys.readouterr().err


def test_llc_says_what_is_wrong(run, tars, tmp_path, capsys, monkeypatch):
    out, run_option = f"--out={tmp_path}/codes", f"--run={run}"
    (tmp_path / "notes.txt").write_text("")
    shards = ["--shards", f"{tars}/*.tar"]
    for arguments, message in (
        ([], "Name what to encode: IMAGES, or --shards"),
        (["x.png", "--task=0/2"], "--task and --decoder are for --shards"),
        ([*shards, "--out=codes.npz"], "With --shards, --out is a folder"),
        ([*shards, "--task=2/2"], "--task is i/n"),
        (["--shards", f"{tars}/x.tar"], "There is no file"),
        (["--shards", str(tmp_path / "notes.txt")], "is no file of images"),
        (["--shards", str(tars)], "There are no images in the folder"),
        ([*shards, "--decoder", "mdh"], "Did you mean 'mhd'"),
    ):
        assert cli.main(["encode", run_option, out, *arguments]) == 2
        assert message in capsys.readouterr().err
    (tars / "d-1.tar").write_bytes(b"damaged")
    assert cli.main(["encode", run_option, out, *shards]) == 2
    err = capsys.readouterr().err
    assert "1 shards could not be read and have no codes, d-1.tar the first" in err
    assert "repair them, and the same command goes on" in err
