import cv2
import numpy as np
import pytest

from llc_jax import arguments
from llc_jax.data import image_list, splits
from llc_jax.data.fingerprint import Fingerprint
from llc_jax.errors import InputError
from llc_jax.experiment.data_record import locate


def write_images(folder, names):
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(folder / name), np.full((5, 6, 3), value, np.uint8))


@pytest.fixture
def openood(tmp_path):
    """A tree as OpenOOD's: lists in one folder, images in another."""
    names = [f"cifar100/train/{name}/{i}.png" for name in ("worm", "ape", "elk") for i in (1, 2)]
    write_images(tmp_path / "images_classic", [*names, "cifar10/test/my cat/1.png"])
    lists = tmp_path / "benchmark_imglist"
    lists.mkdir()
    numbers = (10, 10, 2, 2, 0, 0)
    lines = [f"{name} {number}" for name, number in zip(names, numbers, strict=True)]
    (lists / "train.txt").write_text("\n".join(lines) + "\n")
    (lists / "test.txt").write_text("\n".join(lines[1::2]))
    (lists / "ood.txt").write_text("\n\ncifar10/test/my cat/1.png -1\r\n")
    return tmp_path


def place(openood, name):
    return f"{openood}/benchmark_imglist/{name}.txt:{openood}/images_classic"


def test_classes_are_numbers_in_their_order(openood):
    train, evaluation, *_ = splits.open_splits(
        place(openood, "train"), place(openood, "test"), holdout=0.5, seed=0
    )
    assert train.class_names == evaluation.class_names == ("0", "2", "10")
    assert train.labels.tolist() == [2, 2, 1, 1, 0, 0]
    assert evaluation.names[0] == "cifar100/train/worm/2.png"
    assert evaluation.labels.tolist() == [2, 1, 0]
    root = openood / "images_classic"
    assert evaluation.read(1) == (root / "cifar100/train/ape/2.png").read_bytes()
    assert evaluation.origin == str(root)


def test_unknown_images_have_one_class_and_paths_may_have_spaces(openood):
    source = splits.open_source(place(openood, "ood"))
    assert source.names == ["cifar10/test/my cat/1.png"]
    assert source.class_names == (image_list.UNKNOWN,)
    with pytest.raises(InputError, match="has one class"):
        splits.open_splits(place(openood, "ood"), "", holdout=0.5, seed=0)


def test_without_a_folder_paths_are_relative_to_the_list(tmp_path):
    write_images(tmp_path, ["a/1.png", "b.png"])
    (tmp_path / "LIST.TXT").write_text("a/1.png 1\nb.png 0\n", encoding="utf-8-sig")
    source = splits.open_source(str(tmp_path / "LIST.TXT"))
    assert dict(zip(source.names, source.labels, strict=True)) == {"a/1.png": 1, "b.png": 0}


def test_its_place_and_fingerprint_do_not_depend_on_the_working_directory(openood, monkeypatch):
    monkeypatch.chdir(openood)
    short = "benchmark_imglist/train.txt:images_classic"
    assert locate(short) == locate(place(openood, "train")) == place(openood, "train")
    prints = [
        Fingerprint.of(splits.open_splits(source, "", holdout=0.5, seed=0))
        for source in (short, place(openood, "train"))
    ]
    assert prints[0] == prints[1]


def test_commands_take_lists_of_images(openood):
    paths = arguments.find_files([place(openood, "ood"), place(openood, "test")])
    assert paths[0] == f"{openood}/images_classic/cifar10/test/my cat/1.png"
    assert len(paths) == 4
    with pytest.raises(InputError, match="There is no image .*gone.txt"):
        arguments.find_files(["gone.txt"])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a.png 0\na.png\n", "line 2: expected a path, a space and a class number from 0"),
        (b"a.png 0\n\n3\n", "line 3: expected a path"),
        (b"a.png -2\n", "line 1: expected .*found 'a.png -2'"),
        (b"a.png 1.0\n", "line 1: expected a path"),
        (b"a.png 12345678901\n", "line 1: expected a path"),
        ("a.png ²\n".encode(), "line 1: expected a path"),
        (b"a.png 0\nb.png -1\n", "classes and unknown ones, such as b.png: give each kind"),
        (b"a.png 0\ngone.png 1\n", "names gone.png, but there is no .*gone.png"),
        (b"\n", "There are no images in .*list.txt"),
        (b"a.png \xff\n", "Cannot read .*list.txt"),
        (b"\x00" * 5000 + b" 0", "names .*5,000 characters"),
    ],
)
def test_damage_is_one_clear_error(tmp_path, content, message):
    write_images(tmp_path, ["a.png", "b.png"])
    (tmp_path / "list.txt").write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        splits.open_source(str(tmp_path / "list.txt"))
    assert len(str(error.value)) < 1000


def test_a_list_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match=r"no data at .*none.txt .*a .csv or a .txt"):
        splits.open_source(f"{tmp_path}/none.txt:{tmp_path}")
    (tmp_path / "real.txt").write_text("x.png 0\n")
    with pytest.raises(InputError, match="there is no .*nowhere/x.png"):
        splits.open_source(f"{tmp_path}/real.txt:{tmp_path}/nowhere")
