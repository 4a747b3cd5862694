"""Images that show what codes do: both sides of every bit, and what queries find."""

import base64
import dataclasses
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from llc_jax.codes import packing
from llc_jax.evaluation import bits
from llc_jax.search.index import HammingIndex

# The bits that are shown, and the images on each side of them.
_MOST_BITS, _ON_A_SIDE = 64, 8
# The queries, and what is shown of that which they find.
_QUERIES, _FOUND = 12, 10


class Choice(NamedTuple):
    """Which images are shown, of N that were evaluated; an index of -1 is none.

    Attributes:
      sides: int64[b, 2, m], images on the sides -1 and +1 of the first b bits' hyperplanes, the
        most certain first.
      probabilities: float32[b, 2, m], that the bit is on this side.
      balance: float64[b], the share of all images whose bit is +1.
      queries: int64[q], drawn at random.
      found: int64[q, n], the nearest of the other images, by Hamming distance; equally near
        ones in a random order.
      distances: int32[q, n], in bits.
    """

    sides: np.ndarray
    probabilities: np.ndarray
    balance: np.ndarray
    queries: np.ndarray
    found: np.ndarray
    distances: np.ndarray


@dataclasses.dataclass(frozen=True)
class Examples:
    """Images with their codes.

    Attributes:
      choice: what they show; it indexes the images that are here.
      thumbnails: n images, encoded as WebP.
      codes: bool[n, k], True for +1.
      labels: int32[n], the true classes.
      predictions: int32[n], what they are taken for; -1 where that is not known.
      class_names: of the stage's classes.
    """

    choice: Choice
    thumbnails: tuple[bytes, ...]
    codes: np.ndarray
    labels: np.ndarray
    predictions: np.ndarray
    class_names: tuple[str, ...]

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Returns all as arrays by name, for a file."""
        sizes = [len(thumbnail) for thumbnail in self.thumbnails]
        return self.choice._asdict() | {
            "thumbnails": np.frombuffer(b"".join(self.thumbnails), np.uint8),
            "thumbnail_ends": np.cumsum(sizes, dtype=np.int64),
            "codes": self.codes,
            "labels": self.labels,
            "predictions": self.predictions,
            "class_names": np.array(self.class_names, np.str_),
        }

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Examples":
        """Returns what `as_arrays` has described.

        Raises:
          KeyError: if an array is missing.
        """
        ends = arrays["thumbnail_ends"].tolist()
        content, starts = arrays["thumbnails"].tobytes(), [0, *ends[:-1]]
        return cls(
            choice=Choice(**{name: arrays[name] for name in Choice._fields}),
            thumbnails=tuple(content[a:b] for a, b in zip(starts, ends, strict=True)),
            codes=arrays["codes"],
            labels=arrays["labels"],
            predictions=arrays["predictions"],
            class_names=tuple(arrays["class_names"].tolist()),
        )


def choose(code_logits: np.ndarray, seed: int = 0) -> Choice:
    """Chooses the images to show.

    Args:
      code_logits: float32[N, k], of N images, at least one.
      seed: of the queries, and of the order of equally near images.
    """
    num_bits = min(code_logits.shape[1], _MOST_BITS)
    sides = np.full((num_bits, 2, _ON_A_SIDE), -1, np.int64)
    probabilities = np.zeros(sides.shape, np.float32)
    for bit in range(num_bits):
        plane = bits.hyperplane(code_logits, bit, _ON_A_SIDE)
        for index, side in enumerate((plane.negative, plane.positive)):
            count = len(side.indices)
            sides[bit, index, :count] = side.indices
            probabilities[bit, index, :count] = side.probabilities
    balance = (code_logits[:, :num_bits] >= 0).mean(axis=0)
    generator = np.random.default_rng(seed)
    count = len(code_logits)
    queries = generator.choice(count, min(_QUERIES, count), replace=False)
    found, distances = _search(code_logits, queries, generator.permutation(count))
    return Choice(sides, probabilities, balance, queries, found, distances)


def _search(
    code_logits: np.ndarray, queries: np.ndarray, order: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the images that are nearest to each query, and their distances; see `Choice`."""
    codes = packing.pack_on_host(code_logits)
    index = HammingIndex(code_logits.shape[1])
    index.add(codes[order], order)
    count = min(_FOUND + 1, len(codes))
    found, distances = [], []
    for query in queries:
        # Without itself, which may come after others of the same code, or not come at all.
        near, ids = (array[0] for array in index.search(codes[query][None], count))
        others = np.flatnonzero(ids != query)[:_FOUND]
        found.append(ids[others])
        distances.append(near[others])
    return np.stack(found), np.stack(distances)


def shown(choice: Choice) -> tuple[np.ndarray, Choice]:
    """Returns the indices of the images that a choice needs, and the choice among these alone."""
    indexed = ("sides", "queries", "found")
    parts = [getattr(choice, name).ravel() for name in indexed]
    indices = np.unique(np.concatenate(parts))
    indices = indices[indices >= 0]

    def renumbered(old: np.ndarray) -> np.ndarray:
        return np.where(old < 0, -1, np.searchsorted(indices, old))

    return indices, choice._replace(**{name: renumbered(getattr(choice, name)) for name in indexed})


def figures(examples: Examples) -> dict[str, Any]:
    """Returns the images and what they show, as JSON has it; of no image, the index is -1.

    Returns:
      images: for each the name of its class, that of the class it is taken for or None, its
        code of letters 0 and 1, and its WebP in base 64.
      bits: for each `balance`, the share of +1, and `sides`: for -1 and +1, lists of
        [image, probability].
      queries: for each `image`, and `found`: lists of [image, distance].
    """
    choice, names = examples.choice, examples.class_names
    letters = np.where(examples.codes, "1", "0")
    images = [
        [names[label], names[taken] if taken >= 0 else None, "".join(code), _base64(thumbnail)]
        for label, taken, code, thumbnail in zip(
            examples.labels, examples.predictions, letters, examples.thumbnails, strict=True
        )
    ]
    bits_shown = [
        {
            "balance": round(float(balance), 4),
            "sides": [
                [[int(i), round(float(p), 4)] for i, p in zip(*side, strict=True) if i >= 0]
                for side in zip(sides, probabilities, strict=True)
            ],
        }
        for balance, sides, probabilities in zip(
            choice.balance, choice.sides, choice.probabilities, strict=True
        )
    ]
    queries = [
        {"image": int(query), "found": np.stack([found, distances], axis=1).tolist()}
        for query, found, distances in zip(
            choice.queries, choice.found, choice.distances, strict=True
        )
    ]
    return {"images": images, "bits": bits_shown, "queries": queries}


def _base64(content: bytes) -> str:
    return base64.b64encode(content).decode()
