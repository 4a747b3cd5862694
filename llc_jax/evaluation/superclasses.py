"""Classes of a true hierarchy, and how well codes agree with it.

References:
  Heller and Ghahramani, Bayesian hierarchical clustering, ICML 2005, for dendrogram purity.
"""

import csv
import io
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import scipy.spatial.distance

from llc_jax.errors import InputError
from llc_jax.evaluation import wordnet
from llc_jax.options import suggest

# A class -> its superclass, or a superclass -> its classes.
Hierarchy = Mapping[str, str] | Mapping[str, Sequence[str]]

# Classes that an error names.
_SHOWN = 3


def read(source: str | os.PathLike | Hierarchy, class_names: Sequence[str]) -> np.ndarray:
    """Reads the superclass of each class.

    Args:
      source: a JSON file or a dict, of each class to its superclass or of each superclass to
        the list of its classes; or a CSV file of `class,superclass` lines, with or without that
        header; or `data.noun` of WordNet 3.0, for wnids, see `wordnet.superclasses`. It may have
        more classes.
      class_names: L names.

    Returns:
      int32[L], numbers of the superclasses in the order of their names.

    Raises:
      InputError: if it cannot be read, is of another form, a class is in none of the
        superclasses or in two.
    """
    where = "The hierarchy" if isinstance(source, Mapping) else str(source)
    if not isinstance(source, Mapping) and pathlib.Path(source).name == wordnet.FILE:
        source = wordnet.superclasses(source, class_names)
    pairs = _pairs(source, where)
    superclass_of: dict[str, str] = {}
    for name, superclass in pairs:
        if superclass_of.setdefault(name, superclass) != superclass:
            raise InputError(
                f"{where} has the class {name!r} in two superclasses, {superclass_of[name]!r} "
                f"and {superclass!r}: leave it in one."
            )
    missing = [name for name in class_names if name not in superclass_of]
    if missing:
        shown = ", ".join(map(repr, missing[:_SHOWN]))
        more = f" and {len(missing) - _SHOWN} more" if len(missing) > _SHOWN else ""
        raise InputError(
            f"{where} has no superclass for {shown}{more}: add it."
            + suggest(missing[0], superclass_of)
        )
    names = [superclass_of[name] for name in class_names]
    return np.unique(names, return_inverse=True)[1].astype(np.int32)


def dendrogram_purity(linkage: np.ndarray, superclasses: np.ndarray) -> float:
    """Returns the dendrogram purity of a tree.

    Draw a class, and another one of the same superclass; in the smallest subtree with both,
    take the share of the leaves that are of this superclass. The purity is the mean of this
    share over all draws, exactly: 1 where every superclass is a subtree. A class that is alone
    in its superclass is not drawn.

    Args:
      linkage: float64[L - 1, 4], of L classes; see `dendrogram.Dendrogram`.
      superclasses: int[L].

    Raises:
      InputError: if each class is alone in its superclass.
    """
    sizes = _sizes(superclasses, len(linkage) + 1)
    children = linkage[:, :2].astype(int)
    counts = np.zeros((2 * len(linkage) + 1, len(sizes)), np.int32)
    counts[np.arange(len(superclasses)), superclasses] = 1
    shares = np.zeros(len(sizes))
    for node, (left, right) in enumerate(children, start=len(superclasses)):
        counts[node] = counts[left] + counts[right]
        pairs = counts[left].astype(np.int64) * counts[right]
        shares += pairs * counts[node] / counts[node].sum()
    means = shares / np.maximum(sizes * (sizes - 1) / 2, 1)
    return float(np.average(means, weights=np.where(sizes > 1, sizes, 0)))


def nearest_agreement(distances: np.ndarray, superclasses: np.ndarray) -> float:
    """Returns how often the nearest other class is of the same superclass.

    Of classes that are equally near, each counts with the same part. The mean is over the
    classes that are not alone in their superclass.

    Args:
      distances: of all pairs of L classes; see `dendrogram.pairwise_distances`.
      superclasses: int[L].

    Raises:
      InputError: if each class is alone in its superclass.
    """
    square = scipy.spatial.distance.squareform(distances)
    sizes = _sizes(superclasses, len(square))
    np.fill_diagonal(square, np.inf)
    nearest = square == square.min(axis=1, keepdims=True)
    same = superclasses[:, None] == superclasses[None]
    agreement = np.sum(nearest & same, axis=1) / np.sum(nearest, axis=1)
    return float(agreement[sizes[superclasses] > 1].mean())


def _sizes(superclasses: np.ndarray, num_classes: int) -> np.ndarray:
    """Returns how many classes each superclass has, int[S]."""
    if len(superclasses) != num_classes:
        raise InputError(
            f"There is a superclass for each of the {num_classes} classes, not for "
            f"{len(superclasses)}."
        )
    sizes = np.bincount(superclasses)
    if sizes.max() < 2:
        raise InputError(
            "Each class is alone in its superclass: give superclasses that some classes share."
        )
    return sizes


def _pairs(source: str | os.PathLike | Hierarchy, where: str) -> list[tuple[str, str]]:
    """Returns all pairs of a class and its superclass."""
    if isinstance(source, Mapping):
        return list(_mapped_pairs(source, where))
    path = pathlib.Path(source)
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
        if path.suffix != ".json":
            return _csv_pairs(text)
        mapping = json.loads(text)
        if not isinstance(mapping, dict):
            raise ValueError("it has no names at its top")
    except (OSError, ValueError, csv.Error) as error:
        raise InputError(
            f"{where} is no hierarchy of classes ({error}): expected a CSV of class,superclass "
            "lines, or a JSON of names."
        ) from error
    return list(_mapped_pairs(mapping, where))


def _mapped_pairs(mapping: Hierarchy, where: str) -> Iterator[tuple[str, str]]:
    for name, value in mapping.items():
        if isinstance(value, str):
            yield str(name), value
        elif isinstance(value, Sequence) and all(isinstance(item, str) for item in value):
            yield from ((item, str(name)) for item in value)
        else:
            raise InputError(
                f"{where} has {value!r} for {name!r}: expected the name of its superclass, or a "
                "list of the names of its classes."
            )


def _csv_pairs(text: str) -> list[tuple[str, str]]:
    rows = [tuple(row) for row in csv.reader(io.StringIO(text)) if row]
    for row in rows:
        if len(row) != 2:
            raise ValueError(f"a line has {len(row)} columns")
    return rows[rows[:1] == [("class", "superclass")] :]
