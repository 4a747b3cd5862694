import io
import os
import pickle
import tarfile
import time
import tracemalloc
import zipfile

import numpy as np
import pytest

from llc_jax.data import stores
from llc_jax.data.stores import Folder, Tar, Zip
from llc_jax.errors import InputError
from tests.writing import tar_bytes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """An empty cache directory."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def nested(tmp_path):
    """A tar with two tars in it, and the contents of their files."""
    tars = {
        "n02": {"n02_9.JPEG": b"nine", "n02_1.JPEG": b"one" * 1000},
        "n01": {"n01_5.JPEG": b"", "n01_4.JPEG": b"four"},
    }
    path = tmp_path / "all.tar"
    path.write_bytes(tar_bytes({f"{name}.tar": tar_bytes(files) for name, files in tars.items()}))
    return path, {
        f"{name}/{file}": content for name, files in tars.items() for file, content in files.items()
    }


def test_reads_tars_in_a_tar(nested):
    path, expected = nested
    store = Tar(path)
    assert store.files() == sorted(expected)
    assert {name: store.read(name) for name in expected} == expected
    assert pickle.loads(pickle.dumps(store)).read("n02/n02_9.JPEG") == b"nine"
    with pytest.raises(InputError, match=r"There is no n03/x.JPEG in .*all.tar"):
        store.read("n03/x.JPEG")


def test_a_plain_tar_and_long_names(tmp_path):
    long = "a" * 90 + "/" + "b" * 90 + ".png"
    path = tmp_path / "plain.tar"
    path.write_bytes(tar_bytes({long: b"long", "./c/d.jpg": b"d", "c/notes.txt": b""}))
    store = Tar(path)
    assert store.files() == [long, "c/d.jpg"]
    assert (store.read(long), store.read("c/d.jpg")) == (b"long", b"d")


def test_the_index_is_cached_while_the_archive_is_the_same(nested, cache, monkeypatch):
    path, expected = nested
    Tar(path)
    assert len(list(cache.rglob("*.npz"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(stores, "_tar_entries", None)
        assert Tar(path).files() == sorted(expected)
    time.sleep(0.01)
    path.write_bytes(tar_bytes({"x/y.png": b"new"}))
    assert Tar(path).files() == ["x/y.png"]


@pytest.mark.parametrize("content", [b"", b"damaged", b"PK\x03\x04", b"PK\x05\x06" + bytes(18)])
def test_a_damaged_index_is_made_again(nested, cache, content):
    path, expected = nested
    Tar(path)
    [index] = cache.rglob("*.npz")
    index.write_bytes(content)
    assert Tar(path).files() == sorted(expected)


def test_works_where_no_index_can_be_cached(nested, tmp_path, monkeypatch):
    path, expected = nested
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert Tar(path).files() == sorted(expected)


@pytest.mark.parametrize("change", ["truncated", "text", "gzip"])
def test_an_incomplete_or_compressed_tar_is_an_error(nested, change):
    path, _ = nested
    whole = path.read_bytes()
    if change == "truncated":
        path.write_bytes(whole[: whole.index(b"one") + 100])
    elif change == "text":
        path.write_bytes(b"<html>" * 500)
    else:
        with tarfile.open(path, "w:gz") as tar:
            tar.add(__file__, "x.png")
    with pytest.raises(InputError, match="is not a whole, uncompressed tar"):
        Tar(path)


def test_an_archive_that_shrinks_while_it_is_read(nested):
    path, _ = nested
    store = Tar(path)
    os.truncate(path, 600)
    with pytest.raises(InputError, match="has changed while it was read"):
        store.read("n02/n02_1.JPEG")


@pytest.mark.parametrize("name", ["/data/cat/x.png", "./data/cat/x.png", "data//cat/./x.png"])
def test_names_in_an_archive_are_below_its_root(name, tmp_path):
    (tmp_path / "a.tar").write_bytes(tar_bytes({name: b"x"}))
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"x")
    for store in (Tar(tmp_path / "a.tar"), Zip(tmp_path / "a.zip")):
        assert store.files() == ["data/cat/x.png"]
        assert store.read("data/cat/x.png") == b"x"


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_of_a_name_that_is_twice_in_an_archive_the_last_file_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("c/x.png", b"old")
        archive.writestr("c/x.png", b"new")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for content in (b"old", b"new"):
            info = tarfile.TarInfo("c/x.png")
            info.size = 3
            archive.addfile(info, io.BytesIO(content))
    for store in (Tar(tmp_path / "a.tar"), Zip(tmp_path / "a.zip")):
        assert store.files() == ["c/x.png"]
        assert store.read("c/x.png") == b"new"


@pytest.mark.parametrize("method", ["ZIP_STORED", "ZIP_DEFLATED", "ZIP_BZIP2", "ZIP_LZMA"])
def test_a_damaged_member_of_a_zip_is_an_input_error(method, tmp_path):
    content = np.random.default_rng(0).integers(0, 50, 40_000, np.uint8).tobytes()
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", getattr(zipfile, method)) as archive:
        archive.writestr("c/x.png", content)
        archive.writestr("c/y.png", b"whole")
    data = path.read_bytes()
    end = data.index(b"PK\x01\x02")
    assert Zip(path).read("c/x.png") == content
    errors = 0
    for offset in [*range(60), *range(60, len(data), 997), *range(end, len(data))]:
        damaged = bytearray(data)
        damaged[offset] ^= 0xFF
        path.write_bytes(damaged)
        try:
            store = Zip(path)
            for name in store.files():
                store.read(name)
        except InputError:
            errors += 1
    assert errors > 60
    path.write_bytes(data[:20_000] + data[end:])
    with pytest.raises(InputError, match="a.zip"):
        Zip(path).read("c/x.png")


def test_what_is_larger_than_an_image_is_not_read(tmp_path):
    """Files of 1.5 GB that take no room on the disk."""
    size = 1_500_000_000
    (tmp_path / "folder/c").mkdir(parents=True)
    with (tmp_path / "folder/c/x.png").open("wb") as file:
        file.truncate(size)
    header = tarfile.TarInfo("c/x.png")
    header.size = size
    with (tmp_path / "a.tar").open("wb") as file:
        file.write(header.tobuf())
        file.truncate(512 + size + 512 - size % 512 + 1024)
    info = zipfile.ZipInfo("c/x.png")
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, b"x" * 1000, zipfile.ZIP_DEFLATED)
        info.file_size = size
    tracemalloc.start()
    stores = (Folder(tmp_path / "folder"), Tar(tmp_path / "a.tar"), Zip(tmp_path / "a.zip"))
    for store in stores:
        [name] = store.files()
        with pytest.raises(InputError, match=r"x.png.* has 1.5 GB, and an image file has at most"):
            store.read(name)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 10_000_000


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(InputError, match="x.png is not a file that can be read"):
        Folder(tmp_path).read("x.png")


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def link(path, target):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def test_links_that_loop_are_not_followed(tmp_path):
    root = tmp_path / "above" / "root"
    for name in ("cat/1.png", "cat/deep/2.png", "dog/3.png"):
        touch(root / name)
    touch(tmp_path / "above/other/9.png")
    expected = ["cat/1.png", "cat/deep/2.png", "dog/3.png"]
    link(root / "cat/same", ".")
    link(root / "cat/root", root)
    link(root / "cat/deep/up", "..")
    link(root / "dog/above", tmp_path / "above")
    link(root / "dog/itself", "itself")
    link(root / "all", "/")
    assert Folder(root).files() == expected
    # Two that lead to each other: each is followed, once.
    link(root / "cat/dogs", "../dog")
    link(root / "dog/cats", root / "cat")
    through_links = ["cat/dogs/3.png", "dog/cats/1.png", "dog/cats/deep/2.png"]
    assert Folder(root).files() == sorted(expected + through_links)
    link(tmp_path / "linked root", root)
    assert Folder(tmp_path / "linked root").files() == sorted(expected + through_links)


def test_links_to_other_places_are_followed(tmp_path):
    touch(tmp_path / "pool/cats/1.png")
    touch(tmp_path / "pool/cats/more/2.png")
    link(tmp_path / "pool/cats/more/up", "../..")
    link(tmp_path / "root/cat", tmp_path / "pool/cats")
    link(tmp_path / "root/dog/3.png", tmp_path / "pool/cats/1.png")
    store = Folder(tmp_path / "root")
    assert store.files() == ["cat/1.png", "cat/more/2.png", "dog/3.png"]
    pool = os.path.realpath(tmp_path / "pool/cats")
    assert store.real_paths(store.files()) == [
        f"{pool}/1.png",
        f"{pool}/more/2.png",
        f"{pool}/1.png",
    ]


def test_many_links_between_directories_are_refused(tmp_path):
    for name in range(10):
        touch(tmp_path / f"{name}/x.png")
        for other in range(10):
            link(tmp_path / f"{name}/to{other}", f"../{other}")
    with pytest.raises(InputError, match="More than 1,000 paths lead to .*, through links: remove"):
        Folder(tmp_path).files()


def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(InputError, match=f"Cannot read {tmp_path}: Permission denied"):
        Folder(tmp_path).files()
