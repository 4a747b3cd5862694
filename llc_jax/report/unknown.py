"""Scores of known and of unknown images, as figures: ROC curves and histograms."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from llc_jax.evaluation import ood

# Points of a curve, and bars of a histogram, at most.
_POINTS, _BARS = 160, 40
# What is known in `OodScores.as_arrays`, and what is not.
_KNOWN, _UNKNOWN = "known", "unknown"


@dataclasses.dataclass(frozen=True)
class OodScores:
    """Scores of images by their names; the higher, the more an image seems unknown.

    Attributes:
      known: number[N], of the images that the run was evaluated on.
      unknown: number[M] each, by the name of a set of unknown images and that of the score;
        each set has the scores of `known`.
    """

    known: Mapping[str, np.ndarray]
    unknown: Mapping[str, Mapping[str, np.ndarray]]

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Returns all scores by name, for a file."""
        arrays = {f"{_KNOWN}/{score}": values for score, values in self.known.items()}
        for name, scores in self.unknown.items():
            arrays |= {f"{_UNKNOWN}/{name}/{score}": values for score, values in scores.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "OodScores":
        """Returns what `as_arrays` has described."""
        known, unknown = {}, {}
        for key, values in arrays.items():
            kind, _, rest = key.partition("/")
            name, _, score = rest.rpartition("/")
            (known if kind == _KNOWN else unknown.setdefault(name, {}))[score] = values
        return cls(known, unknown)


def curves(scores: OodScores) -> list[dict[str, Any]]:
    """Returns how each score tells each set of unknown images from the known ones.

    Returns:
      For each set and score: `set`, `score`; the figures of `evaluation.ood.measure`; `roc`,
      lists of the same length: `threshold`, `known` and `unknown`, the shares of images that
      score as high or higher; and `histogram`: `at`, `known` and `unknown`, shares of images.

    Raises:
      InputError: if a score is not finite.
    """
    return [
        {
            "set": name,
            "score": score,
            "figures": ood.measure(scores.known[score], values),
            "roc": _roc(scores.known[score], values),
            "histogram": _histogram(scores.known[score], values),
        }
        for name, of_set in scores.unknown.items()
        for score, values in of_set.items()
    ]


def _roc(known: np.ndarray, unknown: np.ndarray) -> dict[str, list[float]]:
    values = np.unique(np.concatenate([known, unknown]))[::-1].astype(float)
    shares = {}
    for kind, scores in (("known", known), ("unknown", unknown)):
        ascending = np.sort(scores.astype(float))
        shares[kind] = 1 - np.searchsorted(ascending, values, side="left") / len(scores)
    kept = np.unique(np.linspace(0, len(values) - 1, _POINTS).astype(int))
    # The curve begins where nothing is called unknown, above the highest score.
    rounded = {kind: [0.0, *share[kept].round(4).tolist()] for kind, share in shares.items()}
    return {"threshold": [None, *map(_rounded, values[kept])], **rounded}


def _histogram(known: np.ndarray, unknown: np.ndarray) -> dict[str, list[float]]:
    both = np.concatenate([known, unknown]).astype(float)
    values = np.unique(both)
    if len(values) <= _BARS:
        at, edges = values, np.append(values, np.inf)
    else:
        low, high = np.quantile(both, [0.001, 0.999])
        edges = np.linspace(low, high, _BARS + 1)
        at = (edges[1:] + edges[:-1]) / 2
    found = {"at": list(map(_rounded, at))}
    for kind, scores in (("known", known), ("unknown", unknown)):
        bars = np.digitize(scores.astype(float), edges[1:-1])
        found[kind] = (np.bincount(bars, minlength=len(at)) / len(scores)).round(5).tolist()
    return found


def _rounded(value: float) -> float:
    return float(f"{value:.5g}")
