import errno
import io
import json
import os
import pathlib
import threading
import zipfile

import cv2
import numpy as np
import pytest

import llc_jax
from llc_jax import cli, inference
from llc_jax.codes import packing
from llc_jax.corpus import encoding, inputs
from llc_jax.data import stores
from llc_jax.data.prefetch import ReadersFailed
from llc_jax.data.sources import load_digits
from llc_jax.errors import InputError
from llc_jax.search import code_shards
from tests.made_runs import make_encoder
from tests.writing import tar_bytes

pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")
COUNTS = (30, 7, 0, 41)


@pytest.fixture(autouse=True, scope="module")
def cache(tmp_path_factory):
    """A cache of their own for these tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run that encodes images of 8 pixels."""
    return make_encoder(tmp_path_factory.mktemp("run") / "run")


@pytest.fixture(scope="module")
def model(run):
    return llc_jax.load(run)


@pytest.fixture(scope="module")
def images():
    """The images of a corpus, a list for each shard."""
    return np.split(load_digits().images[: sum(COUNTS)], np.cumsum(COUNTS)[:-1])


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


@pytest.fixture
def tars(tmp_path, images):
    """The corpus as WebDataset."""
    folder = tmp_path / "tars"
    folder.mkdir()
    for s, of_shard in enumerate(images):
        files = {}
        for i, image in enumerate(of_shard):
            files |= {f"{i:04}.png": png(image), f"{i:04}.cls": b"3", f"{i:04}.json": b"{}"}
        (folder / f"d-{s}.tar").write_bytes(tar_bytes(files))
    return folder


def encode(model, source, out, numbers=None, **options):
    corpus = encoding.Encoding(model, inputs.find([str(source)], model.kind), out, **options)
    numbers = range(corpus.num_shards) if numbers is None else numbers
    return corpus.encode(corpus.missing(numbers))


def keys_and_codes(out):
    shards = list(code_shards.read_all(out, "key"))
    return [key for shard in shards for key in shard.keys], np.concatenate(
        [shard.codes for shard in shards]
    )


def test_a_file_for_each_shard(model, images, tars, tmp_path):
    out = tmp_path / "codes"
    counts = encode(model, f"{tars}/d-{{0..3}}.tar", out, logits=True, decoder="mhd")
    assert (counts.shards, counts.items, counts.damaged, counts.failed) == (4, 78, 0, {})
    assert sorted(path.name for path in out.iterdir()) == [
        *(f"00000{number}.parquet" for number in range(4)),
        "manifest.json",
    ]
    for number, of_shard in enumerate(images):
        found = code_shards.read(
            code_shards.file_of(out, number), "key", "logits", "predicted", "distance"
        )
        assert found.keys == [f"{i:04}" for i in range(len(of_shard))]
        np.testing.assert_array_equal(
            found.ids, number * 2**32 + np.arange(len(of_shard), dtype=np.int64)
        )
        np.testing.assert_array_equal(found.codes, model.encode(of_shard))
        logits = model.code_logits(of_shard)
        np.testing.assert_allclose(found.code_logits, logits, rtol=1e-3, atol=1e-7)
        if len(of_shard):
            labels, distances = model.classify(of_shard)
            assert found.predictions == [model.codebook.class_names[n] for n in labels]
            np.testing.assert_array_equal(found.distances, distances)
    manifest = json.loads((out / "manifest.json").read_text())
    assert [shard["name"] for shard in manifest["shards"]] == [f"d-{s}.tar" for s in range(4)]


def test_shards_are_the_same_whoever_encodes_them(model, tars, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    encode(model, f"{tars}/*.tar", whole)
    assert encode(model, f"{tars}/*.tar", whole).shards == 0  # All is there.
    for numbers in ([3, 1], [1], [0, 2]):
        counts = encode(model, f"{tars}/*.tar", parts, numbers)
        assert counts.shards == (0 if numbers == [1] else 2)
    for path in whole.iterdir():
        assert path.read_bytes() == (parts / path.name).read_bytes()


def test_what_is_not_whole_is_encoded_again(model, tars, tmp_path):
    out = tmp_path / "codes"
    encode(model, f"{tars}/*.tar", out)
    before = {path: path.read_bytes() for path in out.iterdir()}
    cut, gone = code_shards.file_of(out, 0), code_shards.file_of(out, 3)
    cut.write_bytes(cut.read_bytes()[:-9])
    gone.unlink()
    dead, new = (out / f".00000{n}.x.partial.parquet" for n in (3, 4))
    for path in (dead, new):
        path.write_bytes(b"of a worker that is dead, or has just begun")
    os.utime(dead, (0, 0))
    assert encode(model, f"{tars}/*.tar", out).shards == 2
    assert not dead.exists()
    new.unlink()
    assert {path: path.read_bytes() for path in out.iterdir()} == before


def test_a_folder_a_zip_and_parquet_of_paths(model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_FOLDER_SHARD", 30)
    photos = tmp_path / "photos"
    (photos / "b").mkdir(parents=True)
    for i, image in enumerate(np.concatenate(images)):
        (photos / ("b" if i % 2 else "") / f"{i:03}.png").write_bytes(png(image))
    files = stores.Folder(photos).files()
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for file in files:
            archive.write(photos / file, file)
    pq.write_table(pa.table({"path": files, "x": range(len(files))}), photos / "list.parquet")
    codes = model.encode([photos / file for file in files])
    for source, keys, shards in (
        (photos, [str(photos / file) for file in files], 3),
        (tmp_path / "photos.zip", files, 1),
        (photos / "list.parquet", files, 1),
    ):
        out = tmp_path / f"codes_{source.name}"
        assert encode(model, source, out).shards == shards
        found_keys, found = keys_and_codes(out)
        assert found_keys == keys
        np.testing.assert_array_equal(found, codes)
    (photos / "new.png").write_bytes(png(images[0][0]))
    with pytest.raises(InputError, match=r"begun with other shards: .*60:78.* is now .*60:79"):
        encode(model, photos, tmp_path / "codes_photos")


def test_damaged_images_are_counted_and_named(model, images, tmp_path):
    files = {f"{i}.png": png(image) for i, image in enumerate(images[0])}
    files |= {"3.png": b"broken", "7.png": b"", "12.png": files["12.png"][:40]}
    (tmp_path / "a.tar").write_bytes(tar_bytes(files))
    with pytest.raises(InputError, match="With --on-error skip it is left out"):
        encode(model, tmp_path / "a.tar", tmp_path / "strict", skip=False)
    assert not code_shards.file_of(tmp_path / "strict", 0).exists()
    counts = encode(model, tmp_path / "a.tar", tmp_path / "codes", logits=True, decoder="ed")
    assert (counts.items, counts.damaged) == (27, 3)
    path = code_shards.file_of(tmp_path / "codes", 0)
    found = code_shards.read(path, "key", "predicted")
    good = [i for i in range(30) if i not in (3, 7, 12)]
    assert found.ids.tolist() == good
    assert found.keys == [str(i) for i in good]
    np.testing.assert_array_equal(found.codes, model.encode(images[0][good]))
    metadata = code_shards.read_metadata(path)
    assert metadata["items"] == 30
    assert [(item["row"], item["key"]) for item in metadata["damaged"]] == [
        (3, "3"),
        (7, "7"),
        (12, "12"),
    ]
    assert "is not an image that can be decoded" in metadata["damaged"][0]["error"]


def test_a_shard_that_cannot_be_read_is_left_for_later(model, tars, tmp_path):
    path, out = tars / "d-1.tar", tmp_path / "codes"
    content = path.read_bytes()
    path.write_bytes(content[:5000])
    cut = encode(model, f"{tars}/*.tar", out)
    assert (cut.shards, list(cut.failed)) == (3, ["d-1.tar"])
    assert "not a whole, uncompressed tar" in cut.failed["d-1.tar"]
    with pytest.raises(InputError, match="not a whole"):
        encode(model, f"{tars}/*.tar", out, skip=False)


def test_storage_that_fails_is_not_damage(model, tars, tmp_path, monkeypatch):
    out, read = tmp_path / "codes", os.pread

    def fail_sometimes(descriptor, size, offset):
        if "d-3" in os.readlink(f"/proc/self/fd/{descriptor}") and offset > 40_000:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size, offset)

    with monkeypatch.context() as patch:
        patch.setattr(stores.os, "pread", fail_sometimes)
        counts = encode(model, f"{tars}/*.tar", out)
        assert (counts.shards, counts.damaged, list(counts.failed)) == (3, 0, ["d-3.tar"])
        assert "Input/output error" in counts.failed["d-3.tar"]
    assert encode(model, f"{tars}/*.tar", out).items == 41


def test_other_options_or_models_are_refused(model, run, tars, tmp_path):
    out = tmp_path / "codes"
    encode(model, f"{tars}/*.tar", out, decoder="mhd")
    other = llc_jax.load(make_encoder(tmp_path / "other", num_bits=9))
    for changed, source, options, message in (
        (model, f"{tars}/*.tar", {}, "with --decoder mhd: name another folder"),
        (model, f"{tars}/*.tar", {"decoder": "mhd", "logits": True}, "with no --logits"),
        (model, f"{tars}/d-{{0..2}}.tar", {"decoder": "mhd"}, "4 shards, and now there are 3"),
        (other, f"{tars}/*.tar", {"decoder": "mhd"}, "another num_bits"),
    ):
        with pytest.raises(InputError, match=message):
            encode(changed, source, out, **options)
    again = llc_jax.load(run)
    assert encode(again, f"{tars}/*.tar", out, decoder="mhd").shards == 0


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


def test_a_terminal_gets_a_bar_and_others_lines(monkeypatch, capsys):
    from llc_jax.corpus import progress

    monkeypatch.setattr(progress, "_INTERVAL", 0.0)
    with progress.show("images", 1000.0) as shown:
        shown.add(100, 250.0)
        shown.say("skipped: one")
    err = capsys.readouterr().err
    assert "25%, 100 images, " in err
    assert " left\nskipped: one" in err
    terminal = io.StringIO()
    monkeypatch.setattr(
        progress,
        "Console",
        lambda stderr: progress_console(terminal),
    )
    with progress.show("images", 1000.0) as shown:
        shown.add(100, 250.0)
        shown.say("skipped: [red]one")
    assert "25%" in terminal.getvalue()
    assert "100 images" in terminal.getvalue()
    assert "skipped: [red]one" in terminal.getvalue()


def progress_console(file):
    from rich.console import Console

    return Console(file=file, force_terminal=True, width=100)


def test_keys_that_are_no_text(model, images, tmp_path):
    """Names of files are bytes, and not always UTF-8."""
    name = os.fsdecode(b"caf\xe9.png")
    folder = pathlib.Path(tmp_path / "photos")
    folder.mkdir()
    try:
        (folder / name).write_bytes(png(images[0][0]))
    except OSError:
        pytest.skip("this file system has names of UTF-8 alone")
    assert encode(model, folder, tmp_path / "codes").items == 1
    keys, _ = keys_and_codes(tmp_path / "codes")
    assert keys[0].startswith(str(folder))


def test_storage_that_hangs_is_an_error(model, images, monkeypatch):
    class Hanging:
        def read_bytes(self):
            released.wait(60)
            return png(images[0][0])

        def __str__(self):
            return "hanging.png"

    released = threading.Event()
    monkeypatch.setattr(inference, "_PATIENCE", 0.2)
    try:
        with pytest.raises(ReadersFailed, match=r"from hanging.png on have not come within 0 s"):
            model.encode([Hanging()])
    finally:
        released.set()


def test_groups_are_taken_when_their_turn_comes(model, images):
    taken, seen = [], []

    def groups():
        for number in range(40):
            taken.append(number)
            yield number, images[0]

    for part in model.stream(groups()):
        seen.append(part.group)
        assert len(taken) <= len(seen) + 5
    assert seen == list(range(40))
