"""The data of the figures of a report, as JSON has them: numbers and names, bounded in size."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llc_jax.codes import packing
from llc_jax.report.clusters import cluster_codes
from llc_jax.report.record import RunRecord
from llc_jax.report.table import decoder_figures, ranking_title

# So many points a curve, and so many pairs of classes that are confused most, are kept.
_POINTS, _PAIRS = 400, 20_000
# What a record of the metrics has besides its figures.
_INDICES = ("stage", "step", "epoch")


def make_figures(record: RunRecord) -> dict[str, Any]:
    """Returns the data of all figures; lists are empty where a run has no such figures.

    Returns:
      names: of the classes; the codebook's come first, in its order.
      bits, codes: k, and a string of L x k letters 0 and 1, row by row.
      order, links: see `clusters.Clusters`.
      confusions: `stage`; `pairs`, each [class, what it was taken for, images]; `most_left_out`,
        the most images of a pair that is not among them; and `totals`, the images of each class.
      training: one entry a stage: `stage`, `epochs`, and `metrics`, lists by name.
      retrieval: one entry a curve: `stage`, `title`, `recall`, `precision`; and `at`, the radius
        or the rank of each point, as `by` says.
      decoders: one entry each: `name`, `accuracy` and `rate`, in codes a second.
    """
    names = _class_names(record)
    return {
        "names": names,
        **_codes(record),
        "confusions": _confusions(record, names),
        "training": _training(record),
        "retrieval": [curve for stage in record.stages for curve in _retrieval(stage)],
        "decoders": [
            {"name": f"{stage}: {name}", "accuracy": accuracy, "rate": rate}
            for stage, name, accuracy, rate in decoder_figures(
                record.results, [stage.name for stage in record.stages], record.unprefixed_stage
            )
        ],
    }


def _class_names(record: RunRecord) -> list[str]:
    """Returns the names of the codebook's classes, and then of those that have no code."""
    names = list(record.codebook.class_names) if record.codebook else []
    confusions = record.confused_stage.confusions if record.confused_stage else ()
    others = dict.fromkeys(name for pair in confusions for name in (pair.true, pair.predicted))
    known = set(names)
    return names + [name for name in others if name not in known]


def _codes(record: RunRecord) -> dict[str, Any]:
    codebook = record.codebook
    if codebook is None:
        return {"bits": 0, "codes": "", "order": [], "links": []}
    signs = packing.unpack(codebook.packed, codebook.num_bits)
    letters = np.where(np.asarray(signs) > 0, "1", "0")
    clusters = cluster_codes(codebook)
    return {
        "bits": codebook.num_bits,
        "codes": "".join(letters.ravel()),
        "order": clusters.order.tolist(),
        "links": [[int(a), int(b), round(d, 3)] for a, b, d, _ in clusters.links.tolist()],
    }


def _confusions(record: RunRecord, names: Sequence[str]) -> dict[str, Any]:
    """Returns the pairs that are confused most, and the images of every class."""
    stage = record.confused_stage
    if stage is None:
        return {"stage": "", "pairs": [], "most_left_out": 0, "totals": []}
    number = {name: index for index, name in reversed(list(enumerate(names)))}
    totals = [0] * len(names)
    for true, _, images in stage.confusions:
        totals[number[true]] += images
    pairs = [[number[true], number[taken], images] for true, taken, images in stage.confusions]
    right = [pair for pair in pairs if pair[0] == pair[1]]
    wrong = sorted((pair for pair in pairs if pair[0] != pair[1]), key=lambda pair: -pair[2])
    return {
        "stage": stage.name,
        "pairs": right + wrong[:_PAIRS],
        "most_left_out": wrong[_PAIRS][2] if len(wrong) > _PAIRS else 0,
        "totals": totals,
    }


def _training(record: RunRecord) -> list[dict[str, Any]]:
    """Returns the metrics of each stage over its epochs, thinned out where there are many."""
    stages = []
    for stage in record.stages:
        records = [entry for entry in record.metrics if entry["stage"] == stage.name]
        records = [records[index] for index in _thinned(len(records))]
        if records:
            names = dict.fromkeys(name for entry in records for name in entry)
            metrics = {
                name: [_finite(entry.get(name)) for entry in records]
                for name in names
                if name not in _INDICES
            }
            epochs = [_finite(entry.get("epoch", entry["step"])) for entry in records]
            stages.append({"stage": stage.name, "epochs": epochs, "metrics": metrics})
    return stages


def _retrieval(stage) -> list[dict[str, Any]]:
    """Returns the curves of a stage's rankings: by rank and, for codes, by radius."""
    curves = []
    for name, precision in stage.curves.items():
        ranking, _, form = name.rpartition("/precision")
        recall = stage.curves.get(f"{ranking}/recall")
        if form or recall is None:
            continue
        prefix, _, by = ranking.rpartition("/")
        kept = _thinned(len(precision))
        first = 0 if by == "radius" else 1
        curves.append(
            {
                "stage": stage.name,
                "title": ranking_title(prefix, stage.name),
                "by": by,
                "at": [index + first for index in kept],
                "recall": [_finite(recall[index]) for index in kept],
                "precision": [_finite(precision[index]) for index in kept],
            }
        )
    return curves


def _thinned(length: int) -> list[int]:
    """Returns the indices of all entries, or of those that are kept; early ones are denser."""
    if length <= _POINTS:
        return list(range(length))
    indices = np.unique(np.geomspace(1, length, _POINTS).round().astype(int)) - 1
    return indices.tolist()


def _finite(value: Any) -> float | None:
    """Returns a number of five digits, None for all that JSON has no number for."""
    is_number = isinstance(value, int | float | np.number) and math.isfinite(value)
    return float(f"{float(value):.5g}") if is_number else None


def class_accuracies(confusions: Mapping[str, Any]) -> list[float | None]:
    """Returns the share of each class's images that is recognised, None where it has none."""
    right = [0] * len(confusions["totals"])
    for true, taken, images in confusions["pairs"]:
        if true == taken:
            right[true] += images
    pairs = zip(right, confusions["totals"], strict=True)
    return [images / total if total else None for images, total in pairs]
