import gzip
import pathlib

import numpy as np
import pytest

from llc_jax.data import protocols
from llc_jax.data.dataset import open_dataset
from llc_jax.data.sources import ArraySource
from llc_jax.data.splits import Splits
from llc_jax.errors import InputError
from tests import tiny

LISTS = pathlib.Path(__file__).parents[3] / "shared/data/imagenet100"

WNIDS = [f"n{number:08}" for number in range(1000)]


def make_source(files, classes, class_names):
    """A source of blank images with given names."""
    label_of = {name: label for label, name in enumerate(class_names)}
    labels = np.array([label_of[name] for name in classes], np.int32)
    images = np.zeros((len(files), 1, 1, 3), np.uint8)
    return ArraySource(images, labels, tuple(class_names), list(files))


def imagenet(change=lambda files: files, suffix=".JPEG"):
    """The listed images and a few others, in folders, with a suffix of choice."""
    lists = protocols.read_imagenet100()
    wnids = sorted({file.split("_")[0] for file in lists["database"]} | set(WNIDS[:5]))
    files = change(lists["database"]) + [f"{wnids[-1]}_{n}.JPEG" for n in range(900_000, 900_007)]
    files += [f"{wnid}_1.JPEG" for wnid in WNIDS[:5]]
    paths = [f"train/{file.split('_')[0]}/{file.removesuffix('.JPEG')}{suffix}" for file in files]
    train = make_source(paths, [file.split("_")[0] for file in files], wnids)
    queries = lists["queries"] + ["ILSVRC2012_val_99999999.JPEG"]
    evaluation = make_source(queries, [wnids[-1]] * len(queries), wnids)
    return Splits(train, evaluation)


def test_the_lists_have_what_they_should():
    lists = protocols.read_imagenet100()
    assert {name: len(files) for name, files in lists.items()} == {
        "train": 13_000,
        "database": 128_503,
        "queries": 5_000,
    }
    assert set(lists["train"]) < set(lists["database"])
    classes, counts = np.unique([file.split("_")[0] for file in lists["train"]], return_counts=True)
    assert len(classes) == 100
    assert set(counts) == {130}
    assert {file.split("_")[0] for file in lists["database"]} == set(classes)


@pytest.mark.skipif(not LISTS.exists(), reason="the published lists are not at hand")
@pytest.mark.parametrize("name", ["train", "database", "queries"])
def test_the_lists_are_the_published_ones(name):
    path = LISTS / {"queries": "query.txt.gz"}.get(name, f"{name}.txt.gz")
    with gzip.open(path, "rt") as lines:
        published = sorted(line.split()[0] for line in lines)
    assert protocols.read_imagenet100()[name] == published


@pytest.mark.parametrize("suffix", [".JPEG", ".jpg"])
def test_imagenet100_selects_by_file_names(suffix):
    splits = protocols.apply(imagenet(suffix=suffix), {"name": "imagenet100"})
    assert [len(source) for source in splits[:3]] == [13_000, 5_000, 128_503]
    assert len(splits.train.class_names) == 100
    assert splits.train.class_names == splits.evaluation.class_names == splits.database.class_names
    wnid = splits.train.class_names[splits.train.labels[7]]
    assert f"/{wnid}_" in splits.train.names[7]
    assert not any("_90000" in name for name in splits.database.names)


def test_images_missing_from_imagenet100_are_named():
    with pytest.raises(InputError, match=r"needs 128,503 database images and finds 128,502; n\d+_"):
        protocols.imagenet100(imagenet(change=lambda files: files[1:]))
    twice = imagenet(change=lambda files: [*files, files[0]])
    with pytest.raises(InputError, match=r"finds 128,504, some twice"):
        protocols.imagenet100(twice)
    with pytest.raises(InputError, match="needs ImageNet, by its wnids: 100 of the 100 classes"):
        protocols.imagenet100(small())


def small(num_classes=10, each=8):
    """Splits of small classes; image n has class n // each."""
    names = [f"class {label}" for label in range(num_classes)]
    classes = [name for name in names for _ in range(each)]
    train = make_source([f"train {n}" for n in range(len(classes))], classes, names)
    evaluation = make_source([f"test {n}" for n in range(len(classes))], classes, names)
    return Splits(train, evaluation)


def test_the_seeded_protocol_is_repeatable():
    options = {"name": "seeded", "classes": 4, "per_class": 3, "seed": None}
    splits, again = (protocols.apply(small(), options) for _ in range(2))
    assert [len(source) for source in splits[:3]] == [12, 32, 32]
    assert np.bincount(splits.train.labels).tolist() == [3] * 4
    assert set(splits.train.names) < set(splits.database.names)
    assert splits.train.names == again.train.names
    other = protocols.apply(small(), options | {"seed": 1})
    assert other.train.class_names != splits.train.class_names
    for source in splits[:3]:
        for name, label in zip(source.names, source.labels, strict=True):
            assert source.class_names[label] == f"class {int(name.split()[1]) // 8}"


def test_held_out_classes_are_unseen():
    seen = protocols.hold_out(small(), 3, seed=0)
    assert len(seen.train.class_names) == 7
    assert len(seen.unseen.train.class_names) == 3
    assert not set(seen.train.class_names) & set(seen.unseen.evaluation.class_names)
    assert len(seen.train) + len(seen.unseen.train) == 80
    assert protocols.hold_out(small(), 0, seed=0).unseen is None
    seen = protocols.hold_out(protocols.seeded(small(), classes=5, per_class=2), 2, seed=1)
    assert [len(source) for source in seen[:3]] == [6, 24, 24]
    assert [len(source) for source in seen.unseen[:3]] == [4, 16, 16]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "seeded", "classes": 11}, "takes 2 to 10 classes of this dataset, not 11"),
        ({"name": "seeded", "classes": 3, "per_class": 9}, "takes 1 to 8 training images"),
        ({"name": "imagenet100", "classes": 3}, "'imagenet100' has no option 'classes'"),
        ({"name": "imagenet-100"}, "protocol.name is one of .* Did you mean 'imagenet100'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        protocols.apply(small(), options)


def test_without_protocol_there_are_all_but_the_held_out_classes():
    def open_data(held_out, **protocol):
        config = tiny.get_config().unlock().data
        config.protocol.update(protocol)
        config.held_out_classes = held_out
        return open_dataset(**config.to_dict() | {"image_size": 8}, without_protocol=True, seed=0)

    data = open_data(2, name="seeded", classes=6, per_class=5)
    assert (len(data.train.labels), len(data.class_names)) == (20, 4)
    held_out = set(data.unseen.class_names)
    assert len(held_out) == 2
    assert data.without_protocol.class_names == tuple(
        name for name in "0123456789" if name not in held_out
    )
    assert len(data.without_protocol.train.labels) > 600
    assert open_data(0).without_protocol is None


def test_too_many_held_out_classes():
    with pytest.raises(InputError, match="held_out_classes is 0 to 8 for 10 classes, not 9"):
        protocols.hold_out(small(), 9, seed=0)
