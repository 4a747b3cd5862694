import errno
import json
import os
import pathlib
import threading
import zipfile

import numpy as np
import pytest

import llc_jax
from llc_jax import inference
from llc_jax.corpus import encoding, inputs
from llc_jax.data import stores
from llc_jax.data.prefetch import ReadersFailed
from llc_jax.errors import InputError
from llc_jax.search import code_shards
from tests.corpora import encode, keys_and_codes, png
from tests.made_runs import make_encoder
from tests.writing import tar_bytes

pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")


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

    pauses = []
    monkeypatch.setattr(encoding.time, "sleep", pauses.append)
    with monkeypatch.context() as patch:
        patch.setattr(stores.os, "pread", fail_sometimes)
        counts = encode(model, f"{tars}/*.tar", out)
        assert (counts.shards, counts.damaged, list(counts.failed)) == (3, 0, ["d-3.tar"])
        assert "Input/output error" in counts.failed["d-3.tar"]
    assert tuple(pauses) == encoding._PAUSES
    assert encode(model, f"{tars}/*.tar", out).items == 41


def test_what_fails_for_a_while_is_tried_again(model, tars, tmp_path, monkeypatch, capsys):
    (tars / "d-1.tar").write_bytes(b"damaged for good")
    read, left = os.pread, [41]

    def fail_at_first(descriptor, size, offset):
        if "d-3" in os.readlink(f"/proc/self/fd/{descriptor}") and left[0]:
            left[0] -= 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return read(descriptor, size, offset)

    monkeypatch.setattr(stores.os, "pread", fail_at_first)
    monkeypatch.setattr(encoding, "_PAUSES", (0.0, 0.0))
    counts = encode(model, f"{tars}/*.tar", tmp_path / "codes")
    assert (counts.shards, counts.items, counts.damaged) == (3, 71, 0)
    assert list(counts.failed) == ["d-1.tar"]
    err = capsys.readouterr().err
    assert err.count("d-1.tar is not a whole") == 1  # It is not tried again.
    assert err.count("1 shards are tried again") == 1


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
