"""Objects in a store: whole or absent, asked for again, locked."""

import importlib
import os
import sys
import threading
import time

import fsspec
import pytest

from llc_jax import objects
from llc_jax.errors import InputError, WriteFailed
from llc_jax.objects import URL, Object
from tests.object_stores import KINDS, opened


@pytest.fixture(
    scope="module",
    params=[
        kind if kind == "memory" else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS
    ],
)
def store(request):
    """Yields the URL of an empty bucket, and the proxy before it."""
    with opened(request.param) as (url, proxy):
        yield URL(url), proxy


@pytest.fixture(autouse=True)
def no_pause(monkeypatch):
    monkeypatch.setattr(objects, "_PAUSE", 0.0)


@pytest.fixture
def folder(tmp_path):
    for name, content in {"a": b"", "b.txt": b"12345", "c/d/e": os.urandom(2**19)}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(content)
    return tmp_path


def test_urls_keep_their_form():
    url = URL("gs://bucket/runs") / "a.tar"
    assert (str(url), url.name, url.suffix) == ("gs://bucket/runs/a.tar", "a.tar", ".tar")
    assert os.fspath(url.parent) == str(url.absolute().parent) == "gs://bucket/runs"
    assert [
        objects.is_url(text) for text in ("s3://a", "s3:/a", "a:///b", "embeddings:s3://a")
    ] == [*(True, False, False, False)]


def test_a_folder_comes_back_as_it_was(store, folder, tmp_path_factory):
    url = store[0] / "tree"
    objects.upload_folder(folder, url)
    found = objects.find(url)
    assert {str(name.relative_to(url)): what.size for name, what in found.items()} == {
        "a": 0,
        "b.txt": 5,
        "c/d/e": 2**19,
    }
    back = tmp_path_factory.mktemp("back")
    for name, what in found.items():
        path = back / name.relative_to(url)
        objects.download(name, path, what.size)
        assert path.read_bytes() == (folder / name.relative_to(url)).read_bytes()
    assert objects.read(url / "b.txt", 5) == b"12345"
    assert list(objects.find(url / "b.txt")) == [url / "b.txt"]
    assert objects.find(store[0] / "tre") == {}


def test_another_content_has_another_tag(store, tmp_path):
    file, url = tmp_path / "file", store[0] / "tagged"
    tags = set()
    for content in (b"a", b"b"):
        file.write_bytes(content)
        objects.upload(file, url)
        tags.add(objects.find(url)[url])
        time.sleep(0.01)
    assert len(tags) == 2
    assert all(isinstance(tag, Object) for tag in tags)


def test_a_folder_takes_the_place_of_another(store, folder):
    url = store[0] / "replaced"
    objects.upload_folder(folder, url)
    objects.upload_folder(folder / "c", url)
    assert list(objects.find(url)) == [url / "d/e"]
    objects.remove_folder(url)
    assert objects.find(url) == {}


def test_a_folder_is_not_there_until_it_is_whole(store, folder, monkeypatch):
    url, upload = store[0] / "half", objects.upload
    objects.upload_folder(folder, url)

    def fail_at_last(file, to):
        if file.name == "e":
            raise WriteFailed("Cannot write.")
        upload(file, to)
        assert objects.find(url) == {}

    monkeypatch.setattr(objects, "upload", fail_at_last)
    with pytest.raises(WriteFailed):
        objects.upload_folder(folder, url)
    assert objects.find(url) == {}
    monkeypatch.undo()
    objects.upload_folder(folder, url)
    assert len(objects.find(url)) == 3


def test_what_is_not_there_is_named(store):
    with pytest.raises(InputError, match="There is nothing at .*://bucket/nothing"):
        objects.read(store[0] / "nothing")


@pytest.mark.parametrize("fault", ["503", "cut", "drop"])
def test_faults_are_asked_again(store, fault, folder):
    url, proxy = store
    if proxy is None:
        pytest.skip("There is no connection that could fail.")
    target = url / f"fault_{fault}"
    method = "PUT" if url.parts[0] == "s3:" else "POST"
    if fault != "cut":  # A reply that is cut says nothing of the object.
        proxy.fail(fault, fault, method=method)
    objects.upload(folder / "c/d/e", target)
    proxy.fail(fault, name=target.name)
    assert objects.read(target, 2**19) == (folder / "c/d/e").read_bytes()


def failing(monkeypatch, name, errors):
    """Lets a method of the store in memory raise these errors, one at a call."""
    system = fsspec.get_filesystem_class("memory")
    method, left = getattr(system, name), list(errors)

    def call(*arguments, **options):
        if left:
            raise left.pop(0)
        return method(*arguments, **options)

    monkeypatch.setattr(system, name, call)
    return left


def test_a_request_is_made_three_times(monkeypatch, tmp_path):
    with opened("memory") as (url, _):
        file = tmp_path / "file"
        file.write_bytes(b"content")
        objects.upload(file, f"{url}/file")
        failing(monkeypatch, "cat_file", [OSError("busy"), TimeoutError()])
        assert objects.read(f"{url}/file") == b"content"
        left = failing(monkeypatch, "cat_file", [TimeoutError() for _ in range(4)])
        with pytest.raises(InputError, match=r"Cannot read memory://bucket/file: no answer in"):
            objects.read(f"{url}/file")
        assert len(left) == 1
        left = failing(monkeypatch, "put_file", [PermissionError("Access Denied")] * 2)
        with pytest.raises(WriteFailed, match=r"Cannot write memory://.*/new: Access Denied\."):
            objects.upload(file, f"{url}/new")
        assert len(left) == 1


def test_fewer_bytes_than_there_are_is_an_error(tmp_path):
    with opened("memory") as (url, _):
        (tmp_path / "file").write_bytes(b"content")
        objects.upload(tmp_path / "file", f"{url}/file")
        with pytest.raises(InputError, match="7 bytes came of 8"):
            objects.read(f"{url}/file", 8)
        with pytest.raises(InputError, match="7 bytes came of 8"):
            objects.download(f"{url}/file", tmp_path / "copy", 8)


@pytest.mark.parametrize(
    ("url", "error"),
    [
        ("nosuch://a/b", "is no URL that can be opened"),
        ("s3://b/a", "pip install 'llc_jax.cloud.'"),
    ],
)
def test_what_cannot_be_opened_is_said(url, error, monkeypatch):
    for package in ("s3fs", "botocore"):
        monkeypatch.setitem(sys.modules, package, None)
    opened = importlib.import_module("fsspec.registry")._registry
    monkeypatch.delitem(opened, "s3", raising=False)
    with pytest.raises(InputError, match=error):
        objects.find(url)


def test_a_lock_is_for_one(store, monkeypatch):
    monkeypatch.setattr(objects, "_RENEWAL", 1.0)
    monkeypatch.setattr(objects, "_PATIENCE", 30.0)
    url = store[0] / "run/lock"
    with objects.lock(url, "process 1\n"):
        assert objects.read(url) == b"process 1\n"
        with pytest.raises(objects.Locked, match="process 1"), objects.lock(url, "process 2\n"):
            pass
        assert objects.read(url) == b"process 1\n"
    with objects.lock(url, "process 3\n"):
        assert objects.read(url) == b"process 3\n"
    assert objects.find(url) == {}


def test_the_lock_of_the_dead_is_taken_over(store, monkeypatch, tmp_path):
    monkeypatch.setattr(objects, "_RENEWAL", 0.2)
    monkeypatch.setattr(objects, "_PATIENCE", 1.0)
    url = store[0] / "dead/lock"
    (tmp_path / "lock").write_text("process 1\n")
    objects.upload(tmp_path / "lock", url)
    with objects.lock(url, "process 2\n"):
        assert objects.read(url) == b"process 2\n"


def test_who_has_lost_the_lock_is_told(monkeypatch):
    monkeypatch.setattr(objects, "_RENEWAL", 0.05)
    with opened("memory") as (bucket, _):
        url = URL(bucket) / "lock"
        with pytest.raises(WriteFailed, match="taken over by another process, process 2"):
            with objects.lock(url, "process 1"):
                fsspec.filesystem("memory").pipe_file("/bucket/lock", b"process 2")
                time.sleep(1)
        assert objects.read(url) == b"process 2"


def test_of_many_one_gets_the_lock(store, monkeypatch):
    """Those that start together wait for the first renewal, and are refused."""
    monkeypatch.setattr(objects, "_RENEWAL", 1.0)
    monkeypatch.setattr(objects, "_PATIENCE", 30.0)
    url, entered, refused, over = store[0] / "many/lock", [], [], threading.Event()

    def enter(number):
        try:
            with objects.lock(url, f"process {number}\n"):
                entered.append(number)
                over.wait(30)
        except objects.Locked:
            refused.append(number)
            if len(refused) == 3:
                over.set()

    threads = [threading.Thread(target=enter, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(entered) == 1
    assert len(refused) == 3
