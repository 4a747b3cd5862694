import pickle
import zipfile

import cv2
import numpy as np
import pytest
from absl import logging

from llc_jax.data import pipeline, splits
from llc_jax.data.transforms import Crop
from llc_jax.errors import InputError


def write_image(path, value=0, size=(6, 5)):
    path.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(path), np.full((*size, 3), value, np.uint8))


def make_tree(root, layout):
    """Writes one small image for each path of the layout."""
    for value, name in enumerate(layout):
        write_image(root / name, value)


def zip_tree(root, archive):
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(root.rglob("*")):
            if path.is_file():
                file.write(path, path.relative_to(root))
    return archive


def open_splits(source, eval_source="", holdout=0.5):
    return splits.open_splits(str(source), str(eval_source), holdout=holdout, seed=0)


SPLIT_TREE = [
    *("train/cat/a.png", "train/cat/b.png", "train/dog/c.png", "train/dog/deep/d.png"),
    *("val/dog/e.png", "val/cat/f.png"),
]


def describe(source):
    return [
        (name, source.class_names[label])
        for name, label in zip(source.names, source.labels, strict=True)
    ]


def test_a_folder_with_splits(tmp_path):
    make_tree(tmp_path, SPLIT_TREE)
    (tmp_path / "train" / "cat" / ".DS_Store").write_text("")
    (tmp_path / "train" / "cat" / "notes.txt").write_text("")
    train, evaluation, *_ = open_splits(tmp_path)
    assert train.class_names == evaluation.class_names == ("cat", "dog")
    assert describe(train) == [
        ("train/cat/a.png", "cat"),
        ("train/cat/b.png", "cat"),
        ("train/dog/c.png", "dog"),
        ("train/dog/deep/d.png", "dog"),
    ]
    assert describe(evaluation) == [("val/cat/f.png", "cat"), ("val/dog/e.png", "dog")]


@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_a_zip_is_read_as_its_folder(tmp_path, prefix):
    make_tree(tmp_path / "tree", [prefix + name for name in SPLIT_TREE])
    folder = open_splits(tmp_path / "tree")
    archive = open_splits(zip_tree(tmp_path / "tree", tmp_path / "tree.zip"))
    for of_folder, of_zip in zip(folder[:2], archive[:2], strict=True):
        assert describe(of_folder) == describe(of_zip)
        copy = pickle.loads(pickle.dumps(of_zip))
        for index in range(len(of_folder)):
            assert of_folder.read(index) == of_zip.read(index) == copy.read(index)


def test_a_folder_without_splits_keeps_a_fraction_of_each_class(tmp_path):
    make_tree(tmp_path, [f"{name}/{i}.png" for name in ("x", "y", "z") for i in range(8)])
    train, evaluation, *_ = open_splits(tmp_path, holdout=0.25)
    assert np.bincount(train.labels).tolist() == [6, 6, 6]
    assert np.bincount(evaluation.labels).tolist() == [2, 2, 2]
    assert not set(train.names) & set(evaluation.names)
    assert open_splits(tmp_path, holdout=0.25).evaluation.names == evaluation.names


def test_a_csv(tmp_path):
    make_tree(tmp_path, ["images/1.png", "images/2.png", "images/3.png", "other/4.png"])
    (tmp_path / "train.csv").write_text("file,label\nimages/1.png,b\nimages/2.png,a\n")
    (tmp_path / "test.csv").write_text("images/3.png,a\n\nother/4.png,a\n")
    train, evaluation, *_ = open_splits(tmp_path / "train.csv", tmp_path / "test.csv")
    assert describe(train) == [("images/1.png", "b"), ("images/2.png", "a")]
    # The class without evaluation images keeps its label.
    assert evaluation.class_names == ("a", "b")
    assert evaluation.labels.tolist() == [0, 0]


def test_separate_evaluation_folder(tmp_path):
    make_tree(tmp_path / "mine", ["cat/1.png", "dog/2.png"])
    make_tree(tmp_path / "theirs", SPLIT_TREE)
    train, evaluation, *_ = open_splits(tmp_path / "mine", tmp_path / "theirs")
    assert len(train) == 2
    assert evaluation.names == ["val/cat/f.png", "val/dog/e.png"]


def test_digits():
    train, evaluation, *_ = open_splits("digits", holdout=0.25)
    assert len(train) + len(evaluation) == 1797
    assert train.images.shape[1:] == (8, 8, 3)
    assert train.images.dtype == np.uint8
    assert train.images.max() == 255
    assert train.class_names == tuple("0123456789")
    assert len(train.names) == len(train)


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        (["cat/1.png", "cat/2.png"], r"has one class \(cat\)"),
        (["train/cat/1.png", "val/cat/2.png"], "has one class"),
        (["cat/1.png", "dog/2.png", "3.png"], "image 3.png outside any class"),
        (["train/a/1.png", "train/b/1.png", "val/2.png"], "val/2.png outside any class: .*val/<"),
        (["train/a/1.png", "train/b/1.png", "test/c/2.png"], "no training images: c"),
        (["cat/1.png", "dog/2.png"], "leaves no image for evaluation"),
    ],
)
def test_bad_trees_are_one_clear_error(tmp_path, layout, message):
    make_tree(tmp_path, layout)
    with pytest.raises(InputError, match=message):
        open_splits(tmp_path)


def test_bad_sources_are_one_clear_error(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "class").mkdir()
    (tmp_path / "no.zip").write_text("not a zip")
    (tmp_path / "data.rar").write_text("")
    (tmp_path / "gone.csv").write_text("gone.png,a\n")
    (tmp_path / "wide.csv").write_text("file,label\nx.png,a,train\n")
    (tmp_path / "none.csv").write_text("file,label\n")
    for source, message in [
        ("", "names no data: .*--config=NAME:PATH"),
        (tmp_path / "absent", "no data at .*absent"),
        (tmp_path / "empty", "no images in .*empty"),
        (tmp_path / "no.zip", "not a readable zip"),
        (tmp_path / "data.rar", "neither a folder nor a .zip nor a .tar nor a .csv"),
        (tmp_path / "gone.csv", "names gone.png, but there is no"),
        (tmp_path / "wide.csv", "entry 1: expected `file,label`"),
        (tmp_path / "none.csv", "no images in"),
    ]:
        with pytest.raises(InputError, match=message):
            open_splits(source)


def test_a_very_long_name_is_one_clear_error(tmp_path):
    long = "x" * 5000
    (tmp_path / "long.csv").write_text(f"{long}.png,a\n")
    with pytest.raises(InputError, match=r"long.csv names x{200}\.\.\. \(5,004 characters\), but"):
        open_splits(tmp_path / "long.csv")
    with pytest.raises(InputError, match="There is no data at x"):
        open_splits(long)


def warnings_of(open_data, caplog):
    caplog.clear()
    with caplog.at_level("WARNING", logger="absl"):
        open_data()
    return caplog.messages


def test_a_file_in_two_classes_is_a_warning_with_counts(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    root = tmp_path / "root"
    make_tree(root, ["cat/1.png", "cat/2.png", "cat/sub/3.png", "dog/4.png", "dog/5.png"])
    assert warnings_of(lambda: open_splits(root), caplog) == []
    (root / "cat/again").symlink_to("sub")
    (root / "dog/one.png").symlink_to("../cat/1.png")
    [message] = warnings_of(lambda: open_splits(root), caplog)
    assert "have more than one name: 2; more than one class or split: 1." in message
    assert "cat/1.png and dog/one.png are the same file" in message
    (root / "all.csv").write_text("cat/1.png,a\n./cat/1.png,b\ncat/2.png,b\ncat/sub/3.png,a\n")
    [message] = warnings_of(lambda: open_splits(root / "all.csv"), caplog)
    assert "have more than one name: 1; more than one class or split: 1." in message


def test_a_file_in_both_splits_is_a_warning(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(logging.get_absl_logger(), "propagate", True)
    make_tree(tmp_path, SPLIT_TREE)
    (tmp_path / "val/dog/more").symlink_to("../../train/dog")
    [message] = warnings_of(lambda: open_splits(tmp_path), caplog)
    assert "have more than one name: 2; more than one class or split: 2." in message
    assert "train/dog/c.png and val/dog/more/c.png" in message


def test_a_damaged_member_of_a_zip_can_be_skipped(tmp_path):
    make_tree(tmp_path / "tree", ["cat/1.png", "cat/2.png", "dog/3.png", "dog/4.png"])
    path = tmp_path / "tree.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted((tmp_path / "tree").rglob("*.png")):
            archive.write(file, file.relative_to(tmp_path / "tree"))
    damaged = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as archive:
        start = archive.getinfo("cat/2.png").header_offset + 30 + len("cat/2.png")
    damaged[start : start + 20] = b"\xff" * 20
    path.write_bytes(damaged)
    source = splits.open_source(str(path))
    with pytest.raises(InputError, match="Cannot read cat/2.png in .*tree.zip: "):
        pipeline.InMemory.load(source, Crop(4))
    images = pipeline.InMemory.load(source, Crop(4), skip=True)
    assert images.damaged == {source.names.index("cat/2.png")}
    assert len(images.images) == 3


def test_a_file_that_vanishes_is_named(tmp_path):
    make_tree(tmp_path, SPLIT_TREE)
    train = open_splits(tmp_path).train
    (tmp_path / "train/cat/b.png").unlink()
    with pytest.raises(InputError, match=r"Cannot read .*train/cat/b\.png: No such file"):
        train.read(1)
