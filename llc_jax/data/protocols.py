"""Retrieval benchmarks: which classes there are, what trains, what is searched, what asks.

A protocol goes by class names and file names alone, so any source of the images will do. The
lists of ImageNet-100 are those published with HashNet (Cao et al., ICCV 2017).
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

# What the lists of ImageNet-100 hold: how many files, and the SHA-256 of their sorted names.
_IMAGENET100 = {
    "train": (13_000, "584cb6039e0d84d4598cc17fa0a21242c0a009151598407ff87dc68fbd0ef8cb"),
    "database": (128_503, "fe40a8a8478f89f3d71cb6b4f0776997dc216af8c21deccc02c3be9c8bd01b9b"),
    "queries": (5_000, "f16d906bd46c90005b49bad5c1b2f8aa0663f515a874b305101105e6c853b257"),
}


def apply(splits: Splits, options: Mapping[str, Any]) -> Splits:
    """Returns what a protocol makes of a dataset's splits.

    Args:
      splits: of the whole dataset.
      options: `name`, "imagenet100", "seeded" or "" for none, and the protocol's options;
        those that are None are as the protocol has them.
    """
    known = {"": lambda splits: splits, "imagenet100": imagenet100, "seeded": seeded}
    protocol = choose(options["name"], known, "config.data.protocol.name")
    given = {key: value for key, value in options.items() if key != "name" and value is not None}
    return bind(protocol, given, f"The protocol {options['name']!r}")(splits)


def imagenet100(splits: Splits) -> Splits:
    """ImageNet-100: 100 classes; 13,000 images train, 5,000 query a database of 128,503.

    The queries are the validation images of the classes, the database are training images
    and hold those that train.

    Raises:
      InputError: if images of the lists are missing.
    """
    lists = read_imagenet100()
    classes = tuple(sorted({file.split("_")[0] for file in lists["database"]}))
    missing = sorted(set(classes) - set(splits.train.class_names))
    if missing:
        raise InputError(
            f"The protocol imagenet100 needs ImageNet, by its wnids: {len(missing)} of the 100 "
            f"classes are missing, {missing[0]} the first."
        )
    database = _pick(splits.train.restrict(classes), lists["database"], "database")
    queries = _pick(splits.evaluation.restrict(classes), lists["queries"], "query")
    return Splits(_pick(database, lists["train"], "training"), queries, database)


def read_imagenet100() -> dict[str, list[str]]:
    """Returns the file names of ImageNet-100's "train", "database" and "queries", sorted.

    Raises:
      InputError: if the package's lists are damaged.
    """
    path = importlib.resources.files("llc_jax.data") / "imagenet100.npz"
    with np.load(io.BytesIO(path.read_bytes())) as packed:
        counts = packed["counts"]
        wnids = np.repeat(packed["classes"], counts)
        # Numbers ascend within a class; the file has the steps between them.
        upto = np.cumsum(packed["steps"], dtype=np.int64)
        before = np.concatenate([[0], upto[np.cumsum(counts)[:-1] - 1]])
        numbers = upto - np.repeat(before, counts)
        trains = np.unpackbits(packed["trains"], count=len(numbers)).astype(bool)
        queries = packed["queries"]
    database = np.array([f"{wnid}_{n}.JPEG" for wnid, n in zip(wnids, numbers, strict=True)])
    lists = {
        "train": sorted(database[trains].tolist()),
        "database": sorted(database.tolist()),
        "queries": [f"ILSVRC2012_val_{number:08}.JPEG" for number in queries],
    }
    for part, files in lists.items():
        digest = hashlib.sha256("\n".join(files).encode()).hexdigest()
        if (len(files), digest) != _IMAGENET100[part]:
            raise InputError(f"The list {part} of {path} is damaged: install llc_jax again.")
    return lists


def _pick(source: Source, files: Sequence[str], what: str) -> Source:
    """Returns the images of a list, whatever their folders and suffixes, in the source's order."""
    wanted = {pathlib.PurePath(file).stem for file in files}
    stems = [pathlib.PurePath(name).stem for name in source.names]
    found = [index for index, stem in enumerate(stems) if stem in wanted]
    if len(found) != len(wanted):
        missing = sorted(wanted - set(stems))
        raise InputError(
            f"The protocol imagenet100 needs {len(wanted):,} {what} images and finds {len(found):,}"
            + (f"; {missing[0]} is the first that is missing." if missing else ", some twice.")
        )
    return source.select(np.array(found))


def seeded(splits: Splits, *, classes: int = 20, per_class: int = 50, seed: int = 0) -> Splits:
    """The like of ImageNet-100 from other datasets: some classes, a few images of each to train.

    Args:
      splits: of the whole dataset. The evaluation images of the classes query a database of
        their training images.
      classes: how many.
      per_class: training images of each.
      seed: of the choice of classes and images; not the run's, so that runs can be compared.
    """
    names, rng = splits.train.class_names, np.random.default_rng(seed)
    if not 2 <= classes <= len(names):
        raise InputError(
            f"The protocol seeded takes 2 to {len(names)} classes of this dataset, not {classes}."
        )
    chosen = np.sort(rng.choice(len(names), classes, replace=False))
    kept = tuple(names[label] for label in chosen)
    database = splits.train.restrict(kept)
    counts = np.bincount(database.labels, minlength=classes)
    if not 1 <= per_class <= counts.min():
        raise InputError(
            f"The protocol seeded takes 1 to {counts.min()} training images of each class here, "
            f"not {per_class}."
        )
    members = [np.flatnonzero(database.labels == label) for label in range(classes)]
    trains = np.sort(
        np.concatenate([rng.choice(some, per_class, replace=False) for some in members])
    )
    return Splits(database.select(trains), splits.evaluation.restrict(kept), database)


def hold_out(splits: Splits, count: int, seed: int) -> Splits:
    """Keeps some classes from training; they are `unseen`, with splits of their own."""
    names = splits.train.class_names
    if not 0 <= count <= len(names) - 2:
        raise InputError(
            f"config.data.held_out_classes is 0 to {len(names) - 2} for {len(names)} classes, "
            f"not {count}."
        )
    if not count:
        return splits
    held = set(np.random.default_rng(seed).choice(len(names), count, replace=False).tolist())
    seen = tuple(name for label, name in enumerate(names) if label not in held)
    unseen = tuple(name for label, name in enumerate(names) if label in held)
    return splits.restrict(seen)._replace(unseen=splits.restrict(unseen))
