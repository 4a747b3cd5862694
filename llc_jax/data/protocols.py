"""Protocols of retrieval benchmarks: their classes, training images, database and queries.

A protocol selects images by class names and file names alone, so it applies to any source of
the images. The lists of ImageNet-100 are those published with HashNet (Cao et al., ICCV 2017).
"""

import hashlib
import importlib.resources
import io
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llc_jax.data.sources import Source
from llc_jax.data.splits import Splits
from llc_jax.errors import InputError
from llc_jax.options import bind, choose

# The number of files in each list of ImageNet-100, and the SHA-256 of their sorted names.
_IMAGENET100 = {
    "train": (13_000, "584cb6039e0d84d4598cc17fa0a21242c0a009151598407ff87dc68fbd0ef8cb"),
    "database": (128_503, "fe40a8a8478f89f3d71cb6b4f0776997dc216af8c21deccc02c3be9c8bd01b9b"),
    "queries": (5_000, "f16d906bd46c90005b49bad5c1b2f8aa0663f515a874b305101105e6c853b257"),
}


def apply(splits: Splits, options: Mapping[str, Any]) -> Splits:
    """Returns the splits that a protocol selects of a dataset's splits.

    Args:
      splits: of the whole dataset.
      options: `name`, which is "imagenet100", "seeded" or "" for no protocol, and the
        protocol's options; where one is None, the protocol's default applies.

    Raises:
      InputError: if there is no such protocol or option, or the images do not suit it.
    """
    known = {"": lambda splits: splits, "imagenet100": imagenet100, "seeded": seeded}
    protocol = choose(options["name"], known, "config.data.protocol.name")
    keywords = {key: value for key, value in options.items() if key != "name" and value is not None}
    return bind(protocol, keywords, f"The protocol {options['name']!r}")(splits)


def imagenet100(splits: Splits) -> Splits:
    """ImageNet-100: 100 classes; 13,000 images train, 5,000 query a database of 128,503.

    The queries are validation images of the classes. The database is made of training images
    of ImageNet, and includes the images that train.

    Raises:
      InputError: if classes or images of the lists are missing.
    """
    lists = read_imagenet100()
    classes = tuple(sorted({file.split("_")[0] for file in lists["database"]}))
    missing = sorted(set(classes) - set(splits.train.class_names))
    if missing:
        raise InputError(
            f"The protocol imagenet100 needs ImageNet, by its wnids: {len(missing)} of the 100 "
            f"classes are missing, {missing[0]} the first."
        )
    database = _select_files(splits.train.restrict(classes), lists["database"], "database")
    queries = _select_files(splits.evaluation.restrict(classes), lists["queries"], "query")
    return Splits(_select_files(database, lists["train"], "training"), queries, database)


def read_imagenet100() -> dict[str, list[str]]:
    """Returns the file names of ImageNet-100's "train", "database" and "queries", sorted.

    Raises:
      InputError: if the package's lists are damaged.
    """
    path = importlib.resources.files("llc_jax.data") / "imagenet100.npz"
    with np.load(io.BytesIO(path.read_bytes())) as packed:
        counts = packed["counts"]
        wnids = np.repeat(packed["classes"], counts)
        # The ascending file numbers of each class are stored as the differences between them.
        cumulative = np.cumsum(packed["steps"], dtype=np.int64)
        class_offsets = np.concatenate([[0], cumulative[np.cumsum(counts)[:-1] - 1]])
        numbers = cumulative - np.repeat(class_offsets, counts)
        train_mask = np.unpackbits(packed["trains"], count=len(numbers)).astype(bool)
        queries = packed["queries"]
    database = np.array([f"{wnid}_{n}.JPEG" for wnid, n in zip(wnids, numbers, strict=True)])
    lists = {
        "train": sorted(database[train_mask].tolist()),
        "database": sorted(database.tolist()),
        "queries": [f"ILSVRC2012_val_{number:08}.JPEG" for number in queries],
    }
    for name, files in lists.items():
        digest = hashlib.sha256("\n".join(files).encode()).hexdigest()
        if (len(files), digest) != _IMAGENET100[name]:
            raise InputError(f"The list {name} of {path} is damaged: install llc_jax again.")
    return lists


def _select_files(source: Source, files: Sequence[str], role: str) -> Source:
    """Returns the listed images in the source's order; folders and suffixes are ignored."""
    listed = {pathlib.PurePath(file).stem for file in files}
    stems = [pathlib.PurePath(name).stem for name in source.names]
    indices = [index for index, stem in enumerate(stems) if stem in listed]
    if len(indices) != len(listed):
        missing = sorted(listed - set(stems))
        raise InputError(
            f"The protocol imagenet100 needs {len(listed):,} {role} images and finds "
            f"{len(indices):,}"
            + (f"; {missing[0]} is the first that is missing." if missing else ", some twice.")
        )
    return source.select(np.array(indices))


def seeded(splits: Splits, *, classes: int = 20, per_class: int = 50, seed: int = 0) -> Splits:
    """A protocol as ImageNet-100's for any dataset: random classes, few training images of each.

    The evaluation images of the chosen classes query a database of all their training images.

    Args:
      splits: of the whole dataset.
      classes: the number of classes.
      per_class: the number of training images of each class.
      seed: of the choice of classes and images. It is not the run's seed, so that runs of
        several seeds have the same benchmark.

    Raises:
      InputError: if the dataset has too few classes or training images.
    """
    names, rng = splits.train.class_names, np.random.default_rng(seed)
    if not 2 <= classes <= len(names):
        raise InputError(
            f"The protocol seeded takes 2 to {len(names)} classes of this dataset, not {classes}."
        )
    chosen = np.sort(rng.choice(len(names), classes, replace=False))
    chosen_names = tuple(names[label] for label in chosen)
    database = splits.train.restrict(chosen_names)
    counts = np.bincount(database.labels, minlength=classes)
    if not 1 <= per_class <= counts.min():
        raise InputError(
            f"The protocol seeded takes 1 to {counts.min()} training images of each class here, "
            f"not {per_class}."
        )
    by_class = [np.flatnonzero(database.labels == label) for label in range(classes)]
    train = np.sort(
        np.concatenate([rng.choice(indices, per_class, replace=False) for indices in by_class])
    )
    return Splits(database.select(train), splits.evaluation.restrict(chosen_names), database)


def hold_out(splits: Splits, count: int, seed: int) -> Splits:
    """Holds random classes out of training; `unseen` of the result has splits of them.

    Args:
      splits: of all classes.
      count: the number of classes to hold out.
      seed: of their choice.

    Raises:
      InputError: if fewer than two classes would be left.
    """
    names = splits.train.class_names
    if not 0 <= count <= len(names) - 2:
        raise InputError(
            f"config.data.held_out_classes is 0 to {len(names) - 2} for {len(names)} classes, "
            f"not {count}."
        )
    if not count:
        return splits
    held_out = set(np.random.default_rng(seed).choice(len(names), count, replace=False).tolist())
    seen = tuple(name for label, name in enumerate(names) if label not in held_out)
    unseen = tuple(name for label, name in enumerate(names) if label in held_out)
    return splits.restrict(seen)._replace(unseen=splits.restrict(unseen))
