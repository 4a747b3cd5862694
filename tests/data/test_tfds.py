import pathlib
import pickle
import shutil

import cv2
import numpy as np
import pytest

from llc_jax.data import pipeline, splits, stores
from llc_jax.data import tfds as our_tfds
from llc_jax.data.pipeline import ProcessShard, Streamed
from llc_jax.data.transforms import RandomCrop
from llc_jax.errors import InputError
from tests import writing

tfds = pytest.importorskip("tensorflow_datasets")

CLASSES = ("n01", "n02", "n03")
PER_CLASS = {"train": 5, "validation": 2}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The directory of TFDS, with three datasets, and the folder of their images."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for split, count in PER_CLASS.items():
        for name in CLASSES:
            for number in range(count):
                path = root / "files" / split / name / f"{name}_{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                cv2.imwrite(str(path), rng.integers(0, 256, (20, 24, 3), np.uint8))
    image, label = tfds.features.Image(encoding_format="png"), tfds.features.ClassLabel
    all_features = {
        "image": image,
        "label": label(names=CLASSES),
        "file_name": tfds.features.Text(),
    }
    for name, features in (
        ("TinyFiles", all_features),
        ("TinyNameless", {key: all_features[key] for key in ("image", "label")}),
        ("TinyClassless", {"image": image}),
    ):
        builder = writing.tfds_builder(name, features, root / "files", PER_CLASS)
        builder(data_dir=root / "tfds", file_format="array_record").download_and_prepare()
    return root


@pytest.fixture(autouse=True)
def environment(prepared, tmp_path, monkeypatch):
    monkeypatch.setenv("TFDS_DATA_DIR", str(prepared / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    our_tfds._open_records.cache_clear()


def open_splits(source, eval_source=""):
    return splits.open_splits(source, eval_source, holdout=0.2, seed=0)


def batches(source):
    images = Streamed(source, RandomCrop(16))
    shard = ProcessShard(4, np.arange(4))
    return list(pipeline.train_batches(images, shard, range(6), seed=3))


def test_gives_the_batches_of_the_folder(prepared):
    tfds_splits, folder = open_splits("tfds:tiny_files"), open_splits(str(prepared / "files"))
    for ours, other in zip(tfds_splits[:2], folder[:2], strict=True):
        assert ours.class_names == other.class_names == CLASSES
        np.testing.assert_array_equal(ours.labels, other.labels)
        assert list(ours.names) == [pathlib.PurePath(name).name for name in other.names]
    for ours, other in zip(batches(tfds_splits.train), batches(folder.train), strict=True):
        for key, value in other.items():
            np.testing.assert_array_equal(ours[key], value)


def test_a_slice_of_a_split():
    train, evaluation, *_ = open_splits("tfds:tiny_files:train[:10]", "tfds:tiny_files:validation")
    assert (len(train), len(evaluation)) == (10, 6)
    assert pickle.loads(pickle.dumps(train)).read(3) == train.read(3)


def test_a_split_is_divided_at_random():
    train, evaluation, *_ = open_splits("tfds:tiny_files:train")
    assert (len(train), len(evaluation)) == (12, 3)
    assert not set(train.names) & set(evaluation.names)


def test_without_names_of_files():
    train = open_splits("tfds:tiny_nameless").train
    assert train.names[0] == "train[0]"
    np.testing.assert_array_equal(np.bincount(train.labels), [5, 5, 5])


def test_reads_the_labels_once(monkeypatch):
    open_splits("tfds:tiny_files")
    with monkeypatch.context() as patch:
        patch.setattr(our_tfds, "_open_records", None)
        open_splits("tfds:tiny_files")
    assert stores._cache_file("x").parent.is_dir()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tfds:no_such_thing", "TFDS has no dataset 'no_such_thing'"),
        ("tfds:mnist", "The dataset 'mnist' is not prepared: there is no .*mnist"),
        ("tfds:tiny_files:test", "has no split 'test'; it has train, validation"),
        ("tfds:tiny_files:train[:", "has no split"),
        ("tfds:tiny_classless", "has no images with one class each"),
    ],
)
def test_what_cannot_be_opened(source, message):
    with pytest.raises(InputError, match=message):
        open_splits(source)


def test_tfrecord_is_refused(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "tfds", tmp_path / "tfds")
    info = tmp_path / "tfds" / "tiny_files" / "1.0.0" / "dataset_info.json"
    info.write_text(info.read_text().replace("array_record", "tfrecord"))
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(InputError, match="is prepared as tfrecord, which has no random access"):
        open_splits("tfds:tiny_files")


def test_another_version_is_named(prepared, tmp_path, monkeypatch):
    shutil.copytree(prepared / "tfds", tmp_path / "tfds")
    versions = tmp_path / "tfds" / "tiny_files"
    (versions / "1.0.0").rename(versions / "0.9.0")
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    with pytest.raises(InputError, match=r"is prepared as version 0.9.0, and .* makes 1.0.0"):
        open_splits("tfds:tiny_files")
