"""What is measured of a stage, under the names that `results.json` has for it."""

import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from llc_jax.codes import packing
from llc_jax.codes.codebook import Codebook
from llc_jax.compiling import jit_network
from llc_jax.evaluation.classification import Classification, Classified
from llc_jax.evaluation.decoding import Decoding
from llc_jax.evaluation.ood_detection import MAX_TRAIN, Classifier, Detected, OodDetection
from llc_jax.evaluation.retrieval import Retrieval
from llc_jax.experiment.stage import Stage
from llc_jax.mesh import make_mesh
from llc_jax.report.classes import Confusion, count_confusions
from llc_jax.training.state import State

# The figures of a score in `results.json`: a CSV has those without a bound.
_OOD_FIGURES = ("auroc", "aupr_in", "aupr_out", "fpr95", "fpr95_min")


class Measured(NamedTuple):
    """What is known of a stage once it is trained.

    Attributes:
      figures: by their names in `results.json`.
      curves: of retrieval, float64 arrays by name; None where it is not measured.
      confusions: how often each class was taken for which; None where images get no class.
      classified: what was found for each image.
      detected: the scores of known and unknown images; None where there are no sets of these.
      ood: how well they tell them apart, as `Detected.measure` returns it.
    """

    figures: dict[str, float]
    curves: dict[str, np.ndarray] | None
    confusions: list[Confusion] | None
    classified: Classified
    detected: Detected | None
    ood: dict[str, dict[str, dict[str, float]]]

    @property
    def accuracy(self) -> float:
        """How often an image was taken for its class; NaN where images get no class."""
        if self.classified.predictions is None:
            return math.nan
        return float(np.mean(self.classified.labels == self.classified.predictions))


def measure(stage: Stage, weights: State, codebook: Codebook | None) -> Measured:
    """Measures a stage after its last step.

    Args:
      stage: the stage.
      weights: its `params` and `batch_stats`, on the devices.
      codebook: its class codes, None where it has none.
    """
    names, evaluations, curves = stage.figures, stage.evaluations, None
    found, ood = None, {}
    classified = classify(stage, codebook, weights)
    figures = {
        f"classification/{_classification_name(stage, name)}": value
        for name, value in classified.figures.items()
    }
    confusions = None
    if classified.predictions is not None:
        confusions = count_confusions(
            classified.labels, classified.predictions, stage.dataset.class_names
        )
    if evaluations.cutoffs:
        retrieval, curves = _retrieve(stage, weights)
        figures |= {f"retrieval/{names.retrieval}{name}": v for name, v in retrieval.items()}
    if stage.dataset.unknown:
        found = detect_ood(stage, weights, codebook)
        ood = found.measure()
        figures |= _prefixed(f"ood/{names.codes}", _ood_figures(ood))
    if codebook is None:
        return Measured(figures, curves, confusions, classified, found, ood)
    if evaluations.decoders:
        decoding = Decoding(_encoder(stage, weights), codebook, evaluations.decoders)
        decoded = decoding.run(stage.eval_batches(stage.dataset.evaluation))
        figures |= {f"decoding/{names.codes}{name}": value for name, value in decoded.items()}
    shorter = {f"prefix_{bits}/": codebook.prefix(bits) for bits in evaluations.prefixes}
    for prefix, part in {"": codebook, **shorter}.items():
        figures[f"codebook/{names.codebook}{prefix}unique"] = part.num_unique
        figures[f"codebook/{names.codebook}{prefix}min_distance"] = part.min_distance
    return Measured(figures, curves, confusions, classified, found, ood)


def classify(stage: Stage, codebook: Codebook | None, weights: State) -> Classified:
    """Returns what `Classification` finds after any step of a stage.

    Args:
      stage: the stage.
      codebook: the class codes of a stage that learns none, None where it has none.
      weights: its `params` and `batch_stats`, on the devices.
    """
    class_codes = None if codebook is None else codebook.packed
    if "latent" in weights["params"]["head"]:
        class_codes = packing.pack(weights["params"]["head"]["latent"])
    classification = Classification(
        _encoder(stage, weights), class_codes, stage.evaluations.prefixes
    )
    return classification.run(stage.eval_batches(stage.dataset.evaluation))


def _classification_name(stage: Stage, name: str) -> str:
    if name.startswith("class_logits"):
        return name.replace("class_logits", stage.figures.class_logits)
    return stage.figures.codes + name


def _encoder(stage: Stage, weights: State) -> Callable[[jax.Array], Any]:
    """Returns the function from images to the network's output."""
    return functools.partial(stage.encode, weights["params"], weights["batch_stats"])


def _retrieve(stage: Stage, weights: State) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """Returns the figures and curves of retrieval with the codes, or the features, of a stage.

    What is found among the classes that are held out of training is `unseen/...`.
    """
    network, arguments = stage.network, (weights["params"], weights["batch_stats"])
    output = jax.eval_shape(network.evaluate, *arguments, stage.example)
    has_logits = output.code_logits is not None

    def embed(*inputs: Any) -> jax.Array:
        return network.evaluate(*inputs).code_logits if has_logits else network.features(*inputs)

    shardings = (stage.replicated, stage.replicated, stage.batched)
    retrieval = Retrieval(
        functools.partial(jit_network(embed, in_shardings=shardings), *arguments),
        stage.evaluations.cutoffs,
        codes=has_logits and stage.has_binary_codes,
        prefixes=stage.evaluations.prefixes,
        mesh=None if jax.default_backend() == "cpu" else make_mesh(stage.mesh.local_devices),
    )
    figures, curves = {}, {}
    datasets = {"": stage.dataset, "unseen/": stage.dataset.unseen}
    for prefix, dataset in datasets.items():
        if dataset is not None and len(dataset.evaluation.labels):
            queries, database = map(stage.eval_batches, (dataset.evaluation, dataset.database))
            retrieved = retrieval.run(queries, database, dataset.self_indices)
            figures |= _prefixed(prefix, retrieved.figures)
            curves |= _prefixed(prefix, retrieved.curves)
    return figures, curves


def detect_ood(stage: Stage, weights: State, codebook: Codebook | None) -> Detected:
    """Returns every score of the evaluation images and of the unknown images of a stage.

    Args: as of `measure`; the stage's dataset has sets of unknown images.
    """
    classifier = weights["params"]["head"].get("classifier") if stage.head == "linear" else None
    if classifier is not None:
        classifier = Classifier(*jax.device_get((classifier["kernel"], classifier["bias"])))
    dataset = stage.dataset
    detection = OodDetection(
        _encoder(stage, weights), None if codebook is None else codebook.packed, classifier
    )
    return detection.run(
        stage.eval_batches(dataset.evaluation),
        {name: stage.eval_batches(images) for name, images in dataset.unknown.items()},
        stage.some_batches(dataset.plain, MAX_TRAIN),
    )


def _ood_figures(
    measured: Mapping[str, Mapping[str, Mapping[str, float]]],
) -> dict[str, float]:
    """Returns the figures `<group>/<set>/<score>/auroc` and so on, and the means of each group."""
    return {
        f"{row}/{score}/{name}": found[name]
        for score, rows in measured.items()
        for row, found in rows.items()
        for name in _OOD_FIGURES
    }


def _prefixed(prefix: str, values: Mapping[str, Any]) -> dict[str, Any]:
    return {prefix + name: value for name, value in values.items()}
