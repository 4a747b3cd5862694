"""Scores of known and of unknown images, as figures: ROC curves and histograms."""

from typing import Any

import numpy as np

from llc_jax.evaluation import ood
from llc_jax.evaluation.ood_detection import Detected

# Points of a curve, and bars of a histogram, at most.
_POINTS, _BARS = 160, 40


def curves(scores: Detected) -> list[dict[str, Any]]:
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
