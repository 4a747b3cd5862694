"""The data of the figures of a report, as JSON has them: numbers and names, bounded in size."""

import base64
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llc_jax.evaluation import dendrogram, similarity
from llc_jax.report import examples, unknown
from llc_jax.report.record import RunRecord
from llc_jax.report.table import decoder_figures, ranking_title

# So many points a curve, and so many pairs of classes that are confused most, are kept.
_POINTS, _PAIRS = 400, 20_000
# The distances of more classes than the first would not fit in the memory of a small machine, and
# the products of more than the second in a small page.
_CLUSTERED, _PAIRED = 5000, 1500
# What a record of the metrics has besides its figures.
_INDICES = ("stage", "step", "epoch")


def make_figures(record: RunRecord) -> dict[str, Any]:
    """Returns the data of all figures; lists are empty where a run has no such figures.

    Returns:
      names: of the classes; the codebook's come first, in its order.
      bits, codes: k, and a string of L x k letters 0 and 1, row by row.
      order, links: the classes in the order of the dendrogram, and its merges, each [cluster,
        cluster, distance in bits]; where there is one class, or too many, no merges.
      representations: inner products of the classes' real representations, see
        `_representations`; None where there are none.
      confusions: `stage`; `pairs`, each [class, what it was taken for, images]; `most_left_out`,
        the most images of a pair that is not among them; and `totals`, the images of each class.
      training: one entry a stage: `stage`, `epochs`, and `metrics`, lists by name.
      retrieval: one entry a curve: `stage`, `title`, `recall`, `precision`; and `at`, the radius
        or the rank of each point, as `by` says.
      decoders: one entry each: `name`, `accuracy` and `rate`, in codes a second.
      examples: see `examples.figures`, with `stage`, and `explorable`, whether the codes are of
        the codebook; None where there are no images.
      unknown: see `unknown.curves`.
    """
    names = _class_names(record)
    return {
        "names": names,
        **_codes(record),
        "representations": _representations(record),
        "confusions": _confusions(record, names),
        "training": _training(record),
        "retrieval": [curve for stage in record.stages for curve in _retrieval(stage)],
        "decoders": [
            {"name": f"{stage}: {name}", "accuracy": accuracy, "rate": rate}
            for stage, name, accuracy, rate in decoder_figures(
                record.results, [stage.name for stage in record.stages], record.unprefixed_stage
            )
        ],
        "examples": _examples(record),
        "unknown": [] if record.ood_scores is None else unknown.curves(record.ood_scores),
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
    signs = codebook.latent >= 0
    order, links = np.lexsort(signs.T[::-1]), []
    if codebook.num_classes <= _CLUSTERED:
        tree = dendrogram.cluster(codebook)
        order = tree.leaves
        links = [[int(a), int(b), round(d, 3)] for a, b, d, _ in tree.linkage.tolist()]
    return {
        "bits": codebook.num_bits,
        "codes": "".join(np.where(signs, "1", "0").ravel()),
        "order": order.tolist(),
        "links": links,
    }


def _representations(record: RunRecord) -> dict[str, Any] | None:
    """Returns inner products of the classes by the weights of a linear classifier.

    Returns:
      stage: of the classifier.
      products: a byte for each pair of classes a <= b, row by row, in base 64; 0 and 255 are
        the `ends`, two numbers, beyond which some products lie.
      spearman: their rank correlation with the inner products of codes, mean over classes.
    """
    codebook = record.codebook
    if codebook is None or not 3 <= codebook.num_classes <= _PAIRED:
        return None
    stages = (stage for stage in record.stages if stage.class_weights is not None)
    stage = next((s for s in stages if len(s.class_weights) == codebook.num_classes), None)
    if stage is None:
        return None
    products = similarity.inner_products(stage.class_weights)
    of_codes = similarity.inner_products(np.where(codebook.latent >= 0, 1, -1))
    low, high = np.quantile(products, [0.01, 0.99])
    scaled = np.clip((products - low) / max(high - low, 1e-12), 0, 1)
    upper = np.rint(255 * scaled[np.triu_indices(len(scaled))]).astype(np.uint8)
    return {
        "stage": stage.name,
        "products": base64.b64encode(upper.tobytes()).decode(),
        "ends": [_finite(low), _finite(high)],
        "spearman": _finite(similarity.spearman(of_codes, products).mean()),
    }


def _examples(record: RunRecord) -> dict[str, Any] | None:
    stage = record.shown_stage
    if stage is None:
        return None
    codebook, num_bits = record.codebook, stage.examples.codes.shape[1]
    explorable = stage.has_class_codes and codebook is not None and num_bits == codebook.num_bits
    return {"stage": stage.name, "explorable": explorable, **examples.figures(stage.examples)}


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
