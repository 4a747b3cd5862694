"""A few images of ImageNet in its own form: validation images 1 to 4, and their classes."""

import itertools
import pathlib

import numpy as np
import pytest

from llc_jax.data import imagenet, pipeline, splits
from llc_jax.data import tfds as our_tfds
from llc_jax.data.transforms import Crop, RandomCrop
from llc_jax.errors import InputError
from tests import writing

CLASSES = ("n01751748", "n09193705", "n02105855", "n04263257")
TRAIN, EVALUATION = 8, 4
STEPS, BATCH = 8, 4  # Four epochs.


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """The same images as original tars, as a folder, and prepared by TFDS."""
    root = tmp_path_factory.mktemp("imagenet")
    contents = iter(writing.jpegs(TRAIN + EVALUATION))
    train, evaluation = {}, {}
    for number, name in enumerate(CLASSES, start=1):
        files = {f"{name}_{i}.JPEG": next(contents) for i in (12, 3)}
        train[f"{name}.tar"] = writing.tar_bytes(files)
        eval_files = {f"ILSVRC2012_val_{number:08}.JPEG": next(contents)}
        evaluation |= eval_files
        for split, split_files in (("train", files), ("validation", eval_files)):
            folder = root / "unpacked" / split / name
            folder.mkdir(parents=True)
            for file, content in split_files.items():
                (folder / file).write_bytes(content)
    tars = root / "tars"
    tars.mkdir()
    (tars / imagenet.TRAIN_TAR).write_bytes(writing.tar_bytes(train))
    (tars / imagenet.EVAL_TAR).write_bytes(writing.tar_bytes(evaluation))
    prepare(root)
    return {"tar": str(tars), "folder": str(root / "unpacked"), "tfds": "tfds:tiny_imagenet"}


def prepare(root):
    import tensorflow_datasets as tfds

    features = {
        "image": tfds.features.Image(encoding_format="jpeg"),
        "label": tfds.features.ClassLabel(names=sorted(CLASSES)),
        "file_name": tfds.features.Text(),
    }
    names = ("train", "validation")
    builder = writing.tfds_builder("TinyImagenet", features, root / "unpacked", names)
    builder(data_dir=root / "tfds", file_format="array_record").download_and_prepare()


@pytest.fixture(autouse=True)
def environment(sources, tmp_path, monkeypatch):
    counts = {imagenet.TRAIN_TAR: (TRAIN, 4), imagenet.EVAL_TAR: (EVALUATION, 4)}
    monkeypatch.setattr(imagenet, "COUNTS", counts)
    root = pathlib.Path(sources["folder"]).parent
    monkeypatch.setenv("TFDS_DATA_DIR", str(root / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    our_tfds._open_records.cache_clear()


def open_splits(source):
    return splits.open_splits(source, "", holdout=0.1, seed=0)


def train_batches(source, *, steps=range(STEPS), rows=range(BATCH), workers=0):
    images = pipeline.Streamed(source, RandomCrop(32), workers)
    shard = pipeline.ProcessShard(BATCH, np.array(rows))
    return list(pipeline.train_batches(images, shard, steps, seed=3))


def eval_batches(source):
    images = pipeline.Streamed(source, Crop(32), workers=0)
    return list(pipeline.eval_batches(images, pipeline.ProcessShard(3, np.arange(3))))


def assert_same(batches, expected):
    for batch, other in zip(batches, expected, strict=True):
        for key, value in other.items():
            np.testing.assert_array_equal(batch[key], value)


def file_names(source):
    return [pathlib.PurePath(name).name for name in source.names]


@pytest.mark.slow
def test_all_sources_give_the_same(sources):
    opened = {kind: open_splits(source) for kind, source in sources.items()}
    for split, images in (("train", TRAIN), ("evaluation", EVALUATION)):
        first, *others = [getattr(kind, split) for kind in opened.values()]
        assert first.class_names == tuple(sorted(CLASSES))
        assert len(first) == images
        for other in others:
            assert other.class_names == first.class_names
            assert file_names(other) == file_names(first)
            np.testing.assert_array_equal(other.labels, first.labels)
            assert [other.read(i) for i in range(images)] == [first.read(i) for i in range(images)]
            assert_same(train_batches(other), train_batches(first))
            assert_same(eval_batches(other), eval_batches(first))


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_image_once_an_epoch(sources, processes):
    train = open_splits(sources["tar"]).train
    by_process = [train_batches(train, rows=rows) for rows in np.split(np.arange(BATCH), processes)]
    union = [
        {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        for parts in zip(*by_process, strict=True)
    ]
    assert_same(union, train_batches(train))
    order = pipeline.Shuffled(len(train), seed=3)
    examples = order(np.arange(STEPS * BATCH)).reshape(-1, TRAIN)
    np.testing.assert_array_equal(np.sort(examples), np.tile(np.arange(TRAIN), (4, 1)))
    labels = np.concatenate([batch["label"] for batch in union])
    np.testing.assert_array_equal(labels, train.labels[examples.ravel()])


@pytest.mark.parametrize(("kind", "workers"), [("tar", 0), ("tar", 2), ("tfds", 2)])
def test_an_interrupted_run_continues_with_the_same_batches(sources, kind, workers):
    train = open_splits(sources[kind]).train
    unbroken = train_batches(train)
    starts = range(STEPS) if workers == 0 else [3]
    for start in starts:
        rest = train_batches(train, steps=range(start, STEPS), workers=workers)
        assert_same(rest, itertools.islice(unbroken, start, None))


def test_a_missing_tar(sources, tmp_path):
    (tmp_path / imagenet.TRAIN_TAR).write_bytes(b"")
    with pytest.raises(InputError, match="has no ILSVRC2012_img_val.tar: ImageNet needs both"):
        open_splits(str(tmp_path))


def test_too_few_images(sources, monkeypatch):
    counts = {imagenet.TRAIN_TAR: (1_281_167, 1000), imagenet.EVAL_TAR: (50_000, 1000)}
    monkeypatch.setattr(imagenet, "COUNTS", counts)
    with pytest.raises(InputError, match="holds 8 images of 4 classes, not 1,281,167 of 1,000"):
        open_splits(sources["tar"])


def test_another_validation_tar(sources, tmp_path):
    (tmp_path / imagenet.TRAIN_TAR).symlink_to(pathlib.Path(sources["tar"]) / imagenet.TRAIN_TAR)
    (tmp_path / imagenet.EVAL_TAR).write_bytes(writing.tar_bytes({"cat.JPEG": b""}))
    with pytest.raises(InputError, match=r"is not ImageNet's"):
        open_splits(str(tmp_path))
