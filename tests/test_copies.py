"""Copies of what is at URLs: made once, kept while they are used, written back."""

import os
import pickle
import subprocess
import sys

import numpy as np
import pytest

from llc_jax import copies, files, objects
from llc_jax.codes.codebook import Codebook
from llc_jax.copies import as_path, local, named, working_copy
from llc_jax.errors import InputError, WriteFailed
from llc_jax.objects import URL
from llc_jax.search.index import HammingIndex


def put(url, content):
    with files.atomic_write(url) as file:
        file.write_bytes(content)


def entries(tmp_path, kind):
    folder = tmp_path / "cache/objects" / kind
    return sorted(folder.iterdir()) if folder.exists() else []


def test_a_path_stays_what_it_is(tmp_path):
    assert local(tmp_path) == local(str(tmp_path)) == as_path(tmp_path) == tmp_path
    with working_copy(tmp_path) as same:
        assert same == tmp_path
    assert copies.url_of(tmp_path) is None
    copies.publish(tmp_path)


def test_a_copy_is_made_once_for_each_content(bucket, tmp_path, monkeypatch):
    put(bucket / "a/b.txt", b"1")
    first = local(bucket / "a/b.txt")
    assert first.read_bytes() == b"1"
    assert first.name == "b.txt"
    with monkeypatch.context() as patch:
        patch.setattr(objects, "download", None)
        assert local(str(bucket / "a/b.txt")) == first
    put(bucket / "a/b.txt", b"2")
    assert local(bucket / "a/b.txt").read_bytes() == b"2"
    assert first.read_bytes() == b"1"
    assert local(bucket / "a").joinpath("b.txt").read_bytes() == b"2"
    assert len(entries(tmp_path, "copies")) == 3


def test_neighbours_are_copied_where_they_are_there(bucket):
    put(bucket / "x.npy", b"x")
    put(bucket / "x_labels.npy", b"y")
    copy = local(bucket / "x.npy", beside=["x_labels.npy", "labels.npy"])
    assert sorted(path.name for path in copy.parent.iterdir()) == ["x.npy", "x_labels.npy"]


def test_messages_name_the_url(bucket):
    put(bucket / "a/b.txt", b"1")
    copy = local(bucket / "a/b.txt")
    assert named(f"There is no {copy.parent}/c, {copy}.") == (
        "There is no memory://bucket/a/c, memory://bucket/a/b.txt."
    )
    with pytest.raises(InputError, match="There is nothing at memory://bucket/c"):
        local(bucket / "c")


def test_a_failed_download_leaves_nothing(bucket, tmp_path, monkeypatch):
    put(bucket / "a/1", b"1")
    put(bucket / "a/2", b"2")
    download = objects.download

    def fail_at_second(url, file, size):
        if url.name == "2":
            raise InputError("Cannot read.")
        download(url, file, size)

    monkeypatch.setattr(objects, "download", fail_at_second)
    with pytest.raises(InputError):
        local(bucket / "a")
    with pytest.raises(InputError), working_copy(bucket / "a"):
        pass
    assert entries(tmp_path, "copies") == entries(tmp_path, "work") == []


def test_the_oldest_copies_make_room(bucket, tmp_path, monkeypatch):
    monkeypatch.setenv("LLC_CACHE_GB", "2.5e-6")  # 2,500 bytes.
    for name in "abc":
        put(bucket / name, bytes(1000))
    # Another process, which ends and so holds nothing.
    program = """
import fsspec, os, time
from llc_jax import copies
system = fsspec.filesystem("memory")
for number, name in enumerate("ab"):
    system.pipe_file("/bucket/" + name, bytes(1000))
    copy = copies.local("memory://bucket/" + name)
    os.utime(copy.parent.parent.parent, (number, number))
"""
    subprocess.run([sys.executable, "-c", program], check=True)
    before = {path.name for path in entries(tmp_path, "copies")}
    oldest = min(entries(tmp_path, "copies"), key=lambda path: path.stat().st_mtime)
    local(bucket / "c")
    after = {path.name for path in entries(tmp_path, "copies")}
    assert before - after == {oldest.name}
    assert len(after) == 2
    local(bucket / "a")  # Takes the place of the last of the other process.
    with pytest.raises(InputError, match=r"A copy of .*/b needs 1e-06 GB, and .* LLC_CACHE_GB"):
        local(bucket / "b")  # Those of this process are in use.


def test_what_dead_processes_leave_is_removed(bucket, tmp_path):
    dead = tmp_path / "cache/objects/work/.dead"
    (dead / "memory").mkdir(parents=True)
    with working_copy(bucket / "run"), working_copy(bucket / "other"):
        assert not dead.exists()
        assert len(entries(tmp_path, "work")) == 2
    assert entries(tmp_path, "work") == []


def test_what_is_written_in_a_working_copy_is_at_its_url(bucket):
    put(bucket / "run/old.json", b"{}")
    with working_copy(bucket / "run") as copy:
        assert files.read_json(copy / "old.json") == {}
        files.write_json(copy / "stage/new.json", {"a": 1})
        assert objects.read(bucket / "run/stage/new.json") == (copy / "stage/new.json").read_bytes()
        files.write_json(copy / ".hidden/new.json", {})
        (copy / "unpublished").write_text("")
        names = {url.name for url in objects.find(bucket)}
        assert names == {"old.json", "new.json"}
        assert named(copy / "x") == "memory://bucket/run/x"


def test_outputs_go_to_urls(bucket):
    Codebook.random(4, 8).save(bucket / "c/codebook.npz")
    assert Codebook.load(str(bucket / "c/codebook.npz")).num_bits == 8
    index = HammingIndex(8)
    index.add(Codebook.random(4, 8).packed)
    index.save(f"{bucket}/c/photos.index")
    assert len(HammingIndex.load(bucket / "c/photos.index")) == 4


def test_a_failed_output_is_not_there(bucket, monkeypatch):
    with pytest.raises(ZeroDivisionError), files.atomic_write(bucket / "out.npz") as file:
        file.write_bytes(b"half")
        _ = 1 / 0
    assert objects.find(bucket) == {}

    def refuse(*_):
        raise PermissionError("Access Denied")

    import fsspec

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", refuse)
    with pytest.raises(WriteFailed, match=r"Cannot write memory://bucket/out\.npz: Access Denied"):
        files.write_arrays(bucket / "out.npz", {"a": np.zeros(3)})


def test_urls_are_pickled():
    url = URL("s3://bucket/a")
    assert pickle.loads(pickle.dumps(url)) == url
    assert str(pickle.loads(pickle.dumps(url))) == "s3://bucket/a"


def test_the_cache_is_where_the_user_says(monkeypatch, tmp_path):
    monkeypatch.delenv("LLC_CACHE", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert copies.cache_directory() == tmp_path / "llc_jax"
    monkeypatch.setenv("LLC_CACHE", os.fspath(tmp_path / "other"))
    assert copies.cache_directory() == tmp_path / "other"
