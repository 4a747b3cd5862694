"""Search in several indexes as in one that has the items of all, one index after the other."""

import os
from collections.abc import Sequence

import numpy as np

from llc_jax.errors import InputError
from llc_jax.search.index import HammingIndex

# Beyond every distance: where an index has no more items.
_NONE = np.iinfo(np.int32).max


class SeveralIndexes:
    """Indexes of codes of the same bits, which are mapped and searched one by one.

    Attributes:
      num_bits: k, the bits of a code.
    """

    def __init__(self, indexes: Sequence[HammingIndex]):
        self._indexes = indexes
        self.num_bits = indexes[0].num_bits

    @classmethod
    def load(cls, paths: Sequence[str | os.PathLike]) -> "SeveralIndexes":
        """Opens saved indexes.

        Raises:
          InputError: as `HammingIndex.load`, and if their codes are of different sizes.
        """
        indexes = [HammingIndex.load(path) for path in paths]
        for path, index in zip(paths, indexes, strict=True):
            if index.num_bits != indexes[0].num_bits:
                raise InputError(
                    f"The index {path} has codes of {index.num_bits} bits, but {paths[0]} of "
                    f"{indexes[0].num_bits}: search them apart."
                )
        return cls(indexes)

    def __len__(self) -> int:
        """The number of items."""
        return sum(map(len, self._indexes))

    @property
    def ids(self) -> np.ndarray:
        """The ids of all items, int64[N]; indexes may share some."""
        return np.concatenate([index.ids for index in self._indexes])

    def search(self, queries: np.ndarray, k: int = 10) -> tuple[np.ndarray, np.ndarray]:
        """Finds the nearest items of each query, as `HammingIndex.search` does."""
        distances, ids = _side_by_side(index.search(queries, k) for index in self._indexes)
        order = np.argsort(_or_none(distances), axis=1, kind="stable")[:, :k]
        return tuple(np.take_along_axis(values, order, axis=1) for values in (distances, ids))

    def rescore(
        self, code_logits: np.ndarray, k: int = 10, oversample: int = 4
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Finds items by bits, and orders them by inner products, as `HammingIndex.rescore` does.

        Each index has a shortlist of k * oversample items of its own, so together there are at
        least those of one index.
        """
        found = _side_by_side(index.rescore(code_logits, k, oversample) for index in self._indexes)
        distances, _, scores = found
        by_distance = np.argsort(_or_none(distances), axis=1, kind="stable")
        scores = np.take_along_axis(scores, by_distance, axis=1)
        by_score = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        order = np.take_along_axis(by_distance, by_score, axis=1)
        return tuple(np.take_along_axis(values, order, axis=1) for values in found)


def _side_by_side(results) -> list[np.ndarray]:
    """Puts the results of indexes beside each other, a row for each query."""
    return [np.concatenate(arrays, axis=1) for arrays in zip(*results, strict=True)]


def _or_none(distances: np.ndarray) -> np.ndarray:
    return np.where(distances < 0, _NONE, distances)
