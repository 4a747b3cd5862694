import pathlib
import resource

import numpy as np
import pytest

from llc_jax.data import splits, webdataset
from llc_jax.data.stores import Tar
from llc_jax.errors import InputError
from llc_jax.experiment import data_record
from tests.writing import jpegs, tar_bytes


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """A cache of its own for each test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def write_tar(path, files):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(tar_bytes(files))
    return path


@pytest.fixture
def shards(tmp_path):
    """Three tars of four samples each, of classes 0, 2 and 10; sample s/i has image 4 s + i."""
    for s in range(3):
        files = {}
        for i, image in enumerate(jpegs(12)[4 * s : 4 * s + 4]):
            files[f"{i:03}.jpg"] = image
            files[f"{i:03}.cls"] = b"%d\n" % (0, 2, 10, 2)[i]
        write_tar(tmp_path / "data" / f"train-{s:03}.tar", files)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("pattern", "names"),
    [
        ("train-{000..002}.tar", ["train-000", "train-001", "train-002"]),
        ("train-{002,000}.tar", ["train-002", "train-000"]),
        ("train-00[12].tar", ["train-001", "train-002"]),
        ("*.tar", ["train-000", "train-001", "train-002"]),
        ("{train,none}-00?.tar", None),
        ("train-00{0..1}{,}.tar", None),
        ("train-00{0..3}.tar", None),
    ],
)
def test_patterns(shards, pattern, names):
    if names is None:
        with pytest.raises(InputError, match="There is no file|more than once"):
            webdataset.expand(f"{shards}/{pattern}")
        return
    assert [path.stem for path in webdataset.expand(f"{shards}/{pattern}")] == names


def test_a_path_with_braces_is_itself(tmp_path):
    path = tmp_path / "a{1..2}.tar"
    path.write_bytes(b"")
    assert webdataset.expand(str(path)) == [path]


def test_the_key_goes_to_the_first_dot_of_the_base_name(tmp_path):
    files = ["v1.0/cat.left.jpg", "v1.0/cat.right.JPG", "v1.0/cat.JPG", "v1.0/cat.json", ".x.jpg"]
    files += ["dog.jpg", "readme", "b.png", "b.webp"]
    tar = Tar(write_tar(tmp_path / "a.tar", dict.fromkeys(files, b"x")))
    assert webdataset.samples(tar) == {
        "v1.0/cat": {
            ".left.jpg": "v1.0/cat.left.jpg",
            ".right.jpg": "v1.0/cat.right.JPG",
            ".jpg": "v1.0/cat.JPG",
            ".json": "v1.0/cat.json",
        },
        "dog": {".jpg": "dog.jpg"},
        "b": {".png": "b.png", ".webp": "b.webp"},
    }
    assert webdataset.images(tar) == {"v1.0/cat": "v1.0/cat.JPG", "dog": "dog.jpg", "b": "b.png"}
    both = Tar(write_tar(tmp_path / "b.tar", dict.fromkeys(files[:2], b"x")))
    with pytest.raises(InputError, match="has the images .left.jpg and .right.jpg"):
        webdataset.images(both)


@pytest.mark.parametrize("prefix", ["", "webdataset:"])
def test_shards_are_the_images_of_a_run(shards, prefix):
    source = splits.open_source(f"{prefix}{shards}/train-{{000..002}}.tar")
    assert source.class_names == ("0", "2", "10")  # As numbers.
    assert source.labels.tolist() == [0, 1, 2, 1] * 3
    assert source.names[4] == "train-001.tar/000.jpg"
    assert [source.read(index) for index in range(12)] == jpegs(12)
    np.testing.assert_array_equal(source.sizes(), [len(image) for image in jpegs(12)])
    some = source.select(np.array([5, 2]))
    assert [some.read(0), some.read(1)] == [jpegs(12)[5], jpegs(12)[2]]
    split = splits.open_splits(f"{prefix}{shards}/*.tar", "", holdout=0.5, seed=0)
    assert (len(split.train), len(split.evaluation)) == (5, 7)


def test_one_tar_needs_the_prefix(shards):
    source = splits.open_source(f"webdataset:{shards}/train-001.tar")
    assert len(source) == 4
    with pytest.raises(InputError, match="outside any class"):
        splits.open_source(f"{shards}/train-001.tar")


def test_a_run_knows_where_its_shards_are(shards, monkeypatch):
    monkeypatch.chdir(shards)
    located = data_record.locate("train-{000..002}.tar")
    assert located == f"webdataset:{shards}/train-{{000..002}}.tar"
    assert data_record.locate(located) == located
    assert webdataset.exists(located)
    (shards / "train-001.tar").unlink()
    assert not webdataset.exists(located)


@pytest.mark.parametrize(
    ("files", "label"),
    [
        ({"a.jpg": b"", "a.cls": b"cat\n", "a.json": b'{"label": 3}'}, "cat"),
        ({"a.jpg": b"", "a.json": b'{"class": "dog", "width": 3}'}, "dog"),
        ({"a.jpg": b"", "a.txt": b" a fox "}, "a fox"),
        ({"a.jpg": b""}, None),
        ({"a.jpg": b"", "a.cls": b" "}, None),
        ({"a.jpg": b"", "a.json": b'{"width": 3}'}, None),
        ({"a.jpg": b"", "a.json": b"[1"}, None),
        ({"a.jpg": b"", "a.json": b"3"}, None),
        ({"a.jpg": b"", "a.cls": b"\xff"}, None),
        ({"a.cls": b"1"}, None),
    ],
)
def test_labels(tmp_path, files, label):
    path = write_tar(tmp_path / "a.tar", files)
    if label is None:
        with pytest.raises(InputError, match="has no label|cannot be read|no images"):
            webdataset.open_shards(f"webdataset:{path}")
    else:
        for _ in range(2):  # The second time from the cache.
            assert webdataset.open_shards(f"webdataset:{path}").class_names == (label,)


def test_more_tars_than_files_may_be_open(shards, monkeypatch):
    def set_limits(soft, hard):
        monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))

    asked = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    paths = webdataset.expand(f"{shards}/*.tar")
    set_limits(100, 1000)
    webdataset.Shards(paths)
    assert asked == [(259, 1000)]
    set_limits(100, 200)
    with pytest.raises(InputError, match="raise the limit"):
        webdataset.Shards(paths)


def test_other_files_are_refused(tmp_path):
    path = pathlib.Path(tmp_path / "a.tar.gz")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="is no .tar"):
        webdataset.open_shards(f"webdataset:{path}")
