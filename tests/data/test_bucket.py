"""Data at URLs are the same as on a disk."""

import pickle
import re
import shutil
import zipfile

import fsspec
import numpy as np
import pytest

from llc_jax import arguments, objects
from llc_jax.data.bucket import Bucket
from llc_jax.data.fingerprint import Fingerprint
from llc_jax.data.splits import open_splits
from llc_jax.data.transforms import Crop
from llc_jax.errors import InputError
from llc_jax.experiment.data_record import locate
from llc_jax.inference import ImageReader
from llc_jax.objects import URL
from tests.writing import jpegs, tar_bytes


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of photos, and the forms of data that are made of it."""
    folder = tmp_path_factory.mktemp("data")
    images = jpegs(8)
    names = [f"{name}/{n}.jpg" for n, name in enumerate(["a-b", "a"] * 4)]
    files = dict(zip(names, images, strict=True))
    for name, content in files.items():
        (folder / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / "photos" / name).write_bytes(content)
    (folder / "photos/.hidden").mkdir()
    (folder / "photos/.hidden/x.jpg").write_bytes(b"")
    (folder / "photos/notes.txt").write_text("")
    lines = [f"photos/{name},{name.split('/')[0]}" for name in names]
    (folder / "list.csv").write_text("\n".join(lines))
    (folder / "photos.tar").write_bytes(tar_bytes(files))
    (folder / "shards").mkdir()
    for part in range(4):
        samples = {f"{n}.jpg": images[n] for n in range(2 * part, 2 * part + 2)}
        samples |= {f"{n}.cls": b"%d" % (n % 3) for n in range(2 * part, 2 * part + 2)}
        (folder / f"shards/{part:03}.tar").write_bytes(tar_bytes(samples))
    with zipfile.ZipFile(folder / "photos.zip", "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    vectors = np.random.default_rng(0).normal(size=(20, 4)).astype(np.float32)
    labels = np.arange(20) % 2
    np.savez(folder / "vectors.npz", embeddings=vectors, labels=labels)
    np.save(folder / "vectors.npy", vectors)
    np.save(folder / "vectors_labels.npy", labels)
    np.save(folder / "other.npy", labels)
    return folder


@pytest.fixture
def bucket(folder, bucket):
    """The URL of a bucket with all of it."""
    objects.upload_folder(folder, bucket)
    return str(bucket)


def contents(splits):
    """Returns what a run sees of its data."""
    found = []
    for source in splits[:2]:
        examples = [source.read(index) for index in range(len(source))]
        found.append((list(source.names), source.class_names, source.labels.tolist(), examples))
    return found


@pytest.mark.parametrize(
    "source",
    [
        *("{}/photos", "{}/list.csv", "{}/photos.tar", "{}/photos.zip"),
        *("{}/shards/{{000..003}}.tar", "{}/shards/*.tar", "webdataset:{}/shards/00[12].tar"),
        *("embeddings:{}/vectors.npz", "embeddings:{}/vectors.npy"),
        *("embeddings:{}/vectors.npy:other.npy", "embeddings:{0}/vectors.npy:{0}/other.npy"),
    ],
)
def test_a_run_sees_the_same(source, folder, bucket):
    expected = open_splits(source.format(folder), "", holdout=0.25, seed=1)
    splits = open_splits(source.format(bucket), "", holdout=0.25, seed=1)
    np.testing.assert_equal(contents(splits), contents(expected))
    assert Fingerprint.of(splits) == Fingerprint.of(expected)
    again = pickle.loads(pickle.dumps(splits))
    np.testing.assert_equal(contents(again), contents(expected))
    assert locate(source.format(bucket)) == source.format(bucket)


def test_parquet_files_of_a_folder(tmp_path, bucket):
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    for number in range(2):
        vectors = pyarrow.array(np.eye(4)[number::2].tolist(), pyarrow.list_(pyarrow.float32()))
        table = pyarrow.table({"embedding": vectors, "label": ["a", "b"]})
        (tmp_path / "shards").mkdir(exist_ok=True)
        parquet.write_table(table, tmp_path / f"shards/{number}.parquet")
    objects.upload_folder(tmp_path / "shards", URL(bucket) / "shards")
    pair = [
        open_splits(f"embeddings:{place}/shards", "", holdout=0.5, seed=0)
        for place in (tmp_path, bucket)
    ]
    assert Fingerprint.of(pair[0]) == Fingerprint.of(pair[1])


def test_an_image_that_is_cut_short_is_named(bucket):
    store = Bucket(URL(bucket) / "photos")
    name = store.files()[0]
    fsspec.filesystem("memory").pipe_file(f"/bucket/photos/{name}", b"short")
    with pytest.raises(InputError, match=rf"Cannot read memory://bucket/photos/{name}: 5 bytes"):
        store.read(name)


def test_what_is_not_there_is_named(bucket):
    for source in ("photo", "nothing.tar", "nothing.csv", "shards/{000..004}.tar"):
        with pytest.raises(InputError, match=f"memory://bucket/{re.escape(source)}"):
            open_splits(f"{bucket}/{source}", "", holdout=0.5, seed=0)
    with pytest.raises(InputError, match="memory://bucket/nothing.npy"):
        open_splits(f"embeddings:{bucket}/nothing.npy", "", holdout=0.5, seed=0)


def test_images_are_named_by_urls(folder, bucket):
    paths = arguments.find_files([f"{bucket}/photos", f"{bucket}/photos/a/1.jpg"])
    assert len(paths) == 9
    files = [path.replace(bucket, str(folder)) for path in paths]
    reader = ImageReader(Crop(16, 0.875, False))
    images, errors = reader.read(paths, slice(None))
    np.testing.assert_array_equal(images, reader.read(files, slice(None))[0])
    assert not errors
    with pytest.raises(InputError, match="There are no images at memory://bucket/nothing"):
        arguments.find_files([f"{bucket}/nothing"])


def test_an_archive_is_copied_once(bucket, tmp_path):
    for _ in range(2):
        open_splits(f"{bucket}/photos.tar", "", holdout=0.5, seed=0)
    (copy,) = (tmp_path / "cache/objects/copies").iterdir()
    assert [path.name for path in copy.rglob("*.tar")] == ["photos.tar"]
    shutil.rmtree(tmp_path / "cache")
    open_splits(f"{bucket}/photos.tar", "", holdout=0.5, seed=0)
    assert copy.exists()
