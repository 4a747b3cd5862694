import os
import pickle
import tarfile
import time

import pytest

from llc_jax.data import stores
from llc_jax.data.stores import Folder, Tar
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


@pytest.mark.parametrize("content", [b"", b"damaged", b"PK\x03\x04"])
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


def test_an_unreadable_folder_is_an_error(tmp_path, monkeypatch):
    def deny(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", deny)
    with pytest.raises(InputError, match=f"Cannot read {tmp_path}: Permission denied"):
        Folder(tmp_path).files()
