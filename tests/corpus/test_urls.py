"""A corpus in an object store, and its codes there: as on a disk."""

import json
import os
import random
import subprocess
import sys
import time

import fsspec
import numpy as np
import pytest

from llc_jax import cli, objects
from llc_jax.corpus import encoding, inputs
from llc_jax.errors import InputError
from llc_jax.objects import URL
from llc_jax.search import code_shards
from tests.corpora import encode, keys_and_codes, png
from tests.object_stores import KINDS, opened
from tests.processes import ROOT

pa = pytest.importorskip("pyarrow", reason="pip install pyarrow")
pq = pytest.importorskip("pyarrow.parquet", reason="pip install pyarrow")


@pytest.fixture(
    params=[
        kind if kind == "memory" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS
    ]
)
def store(request, tmp_path, monkeypatch):
    """Yields the URL of an empty bucket, and the proxy before it."""
    monkeypatch.setenv("LLC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(objects, "_PAUSE", 0.0)
    monkeypatch.setattr(encoding, "_PAUSES", (0.0, 0.0))
    with opened(request.param) as (url, proxy):
        yield URL(url), proxy


def contents(folder):
    """Returns the bytes of the files in a folder, or of the objects, by their names."""
    if isinstance(folder, URL):
        return {url.name: objects.read(url) for url in objects.find(folder)}
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_bytes_are_those_of_a_disk(store, model, tars, tmp_path):
    url, disk = store[0], tmp_path / "codes"
    objects.upload_folder(tars, url / "tars")
    options = {"logits": True, "decoder": "mhd"}
    encode(model, f"{tars}/d-{{0..3}}.tar", disk, **options)
    out = url / "codes"
    for numbers in ([2], [0, 1], [1, 2, 3]):
        counts = encode(model, f"{url}/tars/d-{{0..3}}.tar", out, numbers, **options)
        assert counts.failed == {}
    assert contents(out) == contents(disk)
    assert encode(model, f"{url}/tars/*.tar", out, **options).shards == 0
    # What somebody has cut off or removed is made again, and nothing else.
    (tmp_path / "cut").write_bytes(contents(disk)["000000.parquet"][:-9])
    objects.upload(tmp_path / "cut", out / "000000.parquet")
    objects._remove(out / "000003.parquet")
    assert encode(model, f"{url}/tars/d-[0-3].tar", out, **options).shards == 2
    assert contents(out) == contents(disk)
    with pytest.raises(InputError, match=rf"^{out} was begun with --decoder mhd: name another"):
        encode(model, f"{url}/tars/*.tar", out, logits=True)


def test_llc_from_a_bucket_to_neighbours(store, run, model, images, tars, tmp_path, capsys):
    url = store[0]
    objects.upload_folder(tars, url / "tars")
    shards = ["--shards", f"{url}/tars/d-{{0..3}}.tar", f"--run={run}", f"--out={url}/codes"]
    assert cli.main(["encode", *shards, "--task=1/2"]) == 0
    assert f"48 codes of 8 bits in 2 files: {url}/codes" in capsys.readouterr().out
    index = ["index", f"--codes={url}/codes", f"--out={url}/all.index"]
    assert cli.main(index) == 2
    assert f"2 of 4 shards in {url}/codes are not encoded yet" in capsys.readouterr().err
    assert cli.main(["encode", *shards]) == cli.main(index) == 0
    assert f"78 codes of 8 bits: {url}/all.index" in capsys.readouterr().out
    some = ["index", f"--codes={url}/codes/00000[13].parquet", f"--out={tmp_path}/some.index"]
    assert cli.main(some) == 0
    query = tmp_path / "query.png"
    query.write_bytes(png(images[3][5]))
    search = ["search", str(query), f"--run={run}", f"--codes={url}/codes", "--json", "--top=3"]
    for path in (f"{url}/all.index", f"{url}/*.index", f"{tmp_path}/some.index"):
        capsys.readouterr()
        assert cli.main([*search, f"--index={path}"]) == 0
        (nearest, *_) = json.loads(capsys.readouterr().out)
        found = code_shards.read(url / f"codes/{nearest['id'] // 2**32:06}.parquet", "key")
        row = found.ids.tolist().index(nearest["id"])
        assert (nearest["distance"], nearest["path"]) == (0, found.keys[row])
        np.testing.assert_array_equal(found.codes[row], model.encode(images[3][5:6])[0])
    exported = ["export", "--to=npy", f"--codes={url}/codes", f"--out={tmp_path}/codes.npy"]
    assert cli.main(exported) == 0
    assert np.load(tmp_path / "codes.npy").shape == (78, 1)
    for codes in ("nothing", "tars", "nothing/*.parquet", "nothing.parquet"):
        assert cli.main(["index", f"--codes={url}/{codes}", "--out=x.index"]) == 2
        err = capsys.readouterr().err
        assert f"{url}/{codes}" in err
        assert err.count("\n") == 1


def test_images_in_folders_and_tables(store, model, images, tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "_FOLDER_SHARD", 50)
    url, photos = store[0], tmp_path / "photos"
    (photos / "b").mkdir(parents=True)
    names = [f"{'b/' if i % 2 else ''}{i:03}.png" for i in range(78)]
    for name, image in zip(names, np.concatenate(images), strict=True):
        (photos / name).write_bytes(png(image))
    paths = [name if i % 3 else f"{url}/photos/{name}" for i, name in enumerate(names)]
    pq.write_table(pa.table({"path": paths}), photos / "list.parquet")
    objects.upload_folder(photos, url / "photos")
    codes = model.encode(np.concatenate(images))
    assert encode(model, url / "photos/list.parquet", tmp_path / "listed").damaged == 0
    np.testing.assert_array_equal(keys_and_codes(tmp_path / "listed")[1], codes)
    assert encode(model, url / "photos", url / "codes").shards == 2
    keys, found = keys_and_codes(url / "codes")
    assert keys == sorted(f"{url}/photos/{name}" for name in names)
    order = [names.index(key.removeprefix(f"{url}/photos/")) for key in keys]
    np.testing.assert_array_equal(found, codes[order])


def test_what_is_not_there_is_named(store, model, tars):
    url = store[0]
    objects.upload(tars / "d-0.tar", url / "tars/d-0.tar")
    objects.upload(tars / "d-0.tar", url / "tars/.d-1.tar")
    assert [shard.name for shard in inputs.find([f"{url}/tars/*"], "images")] == ["d-0.tar"]
    for pattern, message in (
        ("tars/d-{0..2}.tar", f"There is no file {url}/tars/d-1.tar, which {url}/tars/d-"),
        ("tars/x*.tar", f"There is no file {url}/tars/x"),
        ("tars/{d-0,d-0}.tar", "more than once"),
        ("none.tar", f"There is no file {url}/none.tar"),
    ):
        with pytest.raises(InputError) as error:
            inputs.find([f"{url}/{pattern}"], "images")
        assert message in str(error.value)


def test_copies_make_room_for_others(store, model, tars, tmp_path, monkeypatch):
    sizes = [path.stat().st_size for path in sorted(tars.iterdir())]
    monkeypatch.setenv("LLC_CACHE_GB", str((sum(sizes[1:]) + 1000) / 1e9))
    objects.upload_folder(tars, store[0] / "tars")
    assert encode(model, store[0] / "tars/*.tar", tmp_path / "codes").shards == 4
    assert len(list((tmp_path / "cache/objects/copies").iterdir())) < 4


def test_a_store_that_fails_is_not_damage(bucket, model, tars, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(encoding, "_PAUSES", (0.0, 0.0))
    objects.upload_folder(tars, bucket / "tars")
    (tmp_path / "photos").mkdir()
    for number in range(3):
        (tmp_path / f"photos/{number}.png").write_bytes(png(np.zeros((8, 8, 3), np.uint8)))
    objects.upload_folder(tmp_path / "photos", bucket / "photos")
    system = fsspec.get_filesystem_class("memory")
    failing = {"d-1.tar": 1000, "d-3.tar": 7, "2.png": 4}

    def fail(method):
        def call(self, path, *arguments, **options):
            name = path.rpartition("/")[2]
            if failing.get(name, 0):
                failing[name] -= 1
                raise OSError("Service Unavailable")
            return method(self, path, *arguments, **options)

        return call

    monkeypatch.setattr(system, "get_file", fail(system.get_file))
    monkeypatch.setattr(system, "cat_file", fail(system.cat_file))
    counts = encode(model, bucket / "tars/*.tar", bucket / "codes")
    assert (counts.shards, counts.damaged, list(counts.failed)) == (3, 0, ["d-1.tar"])
    url = f"{bucket}/tars/d-1.tar"
    assert counts.failed["d-1.tar"] == f"Cannot read {url}: Service Unavailable."
    assert "2 shards are tried again" in capsys.readouterr().err
    counts = encode(model, bucket / "photos", bucket / "codes of photos")
    assert (counts.shards, counts.items, counts.damaged, counts.failed) == (1, 3, 0, {})
    failing["d-1.tar"] = 0
    assert encode(model, bucket / "tars/*.tar", bucket / "codes").shards == 1


PROGRAM = "import sys; from llc_jax.cli import main; sys.exit(main())"


@pytest.mark.slow
def test_kills_lose_and_double_nothing(run, model, tars, tmp_path, monkeypatch):
    monkeypatch.setenv("LLC_CACHE", str(tmp_path / "cache"))
    encode(model, tars / "*.tar", tmp_path / "codes")
    with opened("s3") as (url, proxy):
        objects.upload_folder(tars, URL(url) / "tars")
        command = [sys.executable, "-c", PROGRAM, "encode", f"--run={run}", f"--out={url}/codes"]
        command += ["--shards", f"{url}/tars/*.tar", "--task=0/1"]
        environment = os.environ | {"PYTHONPATH": str(ROOT), "XLA_FLAGS": ""}
        whole, kills = contents(tmp_path / "codes"), 0
        while kills < 5:
            asked = len(proxy.requests)
            with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL) as worker:
                # It is killed when it writes, or has just written, some object.
                while not any(method == "PUT" for method, _ in proxy.requests[asked:]):
                    assert worker.poll() is None
                    time.sleep(0.001)
                time.sleep(random.uniform(0.0, 0.1))
                worker.kill()
                kills += 1
            for name, content in contents(URL(url) / "codes").items():
                assert content == whole[name]
            if contents(URL(url) / "codes") == whole:
                objects.remove_folder(URL(url) / "codes")
        subprocess.run(command, env=environment, check=True)
        assert contents(URL(url) / "codes") == whole
