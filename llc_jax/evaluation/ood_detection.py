"""How well a network's scores tell unknown images, of no class, from those of its classes."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import jax
import numpy as np

from llc_jax.evaluation import ood, ood_scores
from llc_jax.evaluation.gathering import embed_images, gather
from llc_jax.models.heads import Output

Batches = Iterable[dict[str, jax.Array]]
# The most training images with which others are compared.
MAX_TRAIN = 2**17
# Which of the nearest training images is the distance to.
_NEIGHBOR = 50


class Classifier(NamedTuple):
    """A linear classifier of features: its weights, float32[d, L], and its biases, float32[L]."""

    weights: np.ndarray
    biases: np.ndarray


class Detected(NamedTuple):
    """The scores of known and of unknown images.

    Attributes:
      known: by score, float[N].
      unknown: by set, `<group>/<name>`, then by score, float[M].
    """

    known: dict[str, np.ndarray]
    unknown: dict[str, dict[str, np.ndarray]]

    def as_arrays(self) -> dict[str, np.ndarray]:
        """Returns all scores by name, for a file: `known/<score>`, `unknown/<set>/<score>`."""
        arrays = {f"known/{score}": values for score, values in self.known.items()}
        for name, scores in self.unknown.items():
            arrays |= {f"unknown/{name}/{score}": values for score, values in scores.items()}
        return arrays

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, np.ndarray]) -> "Detected":
        """Returns what `as_arrays` has described."""
        known, unknown = {}, {}
        for key, values in arrays.items():
            kind, _, rest = key.partition("/")
            name, _, score = rest.rpartition("/")
            (known if kind == "known" else unknown.setdefault(name, {}))[score] = values
        return cls(known, unknown)

    def joined(self, other: "Detected") -> "Detected":
        """Returns the scores of both, of the same images; those of `other` go before."""
        names = dict.fromkeys([*self.unknown, *other.unknown])
        unknown = {n: {**self.unknown.get(n, {}), **other.unknown.get(n, {})} for n in names}
        return Detected({**self.known, **other.known}, unknown)

    def measure(self) -> dict[str, dict[str, dict[str, float]]]:
        """Returns what `ood.measure` finds, by score, then by set.

        After the sets of each group, `<group>` has the plain means over them.
        """
        groups = dict.fromkeys(name.split("/")[0] for name in self.unknown)
        measured = {}
        for score, known in self.known.items():
            rows = measured[score] = {}
            for group in groups:
                sets = [name for name in self.unknown if name.split("/")[0] == group]
                figures = {name: ood.measure(known, self.unknown[name][score]) for name in sets}
                names = figures[sets[0]]
                means = {key: float(np.mean([figures[s][key] for s in sets])) for key in names}
                rows |= figures | {group: means}
        return measured


class OodDetection:
    """Scores of images by the outputs of a network.

    A network whose classes have codes has the scores of codes, another one those of class
    logits. With a linear classifier there are those of its features too.

    Args:
      encode: B inputs, images or vectors -> Output, jitted.
      class_codes: uint32[L, ceil(k / 32)], or None where the classes have no codes.
      classifier: of the network's features, or None where it has none.
    """

    def __init__(
        self,
        encode: Callable[[jax.Array], Output],
        class_codes: np.ndarray | None = None,
        classifier: Classifier | None = None,
    ):
        self._encode = encode
        self._class_codes = class_codes
        self._classifier = classifier

    def run(self, known: Batches, unknown: Mapping[str, Batches], train: Batches) -> Detected:
        """Returns the scores of all images that the batches do not mask.

        Args:
          known: images of the classes, which the network was not trained on.
          unknown: images of no class, by set, `<group>/<name>`.
          train: training images, which are read where there is a classifier.
        """
        trained = None if self._classifier is None else self._outputs(train)
        by_set = {name: self._scores(batches, trained) for name, batches in unknown.items()}
        return Detected(self._scores(known, trained), by_set)

    def _outputs(self, batches: Batches) -> dict[str, np.ndarray]:
        """Returns the parts of the network's outputs that scores are made of, [N, ...] each."""

        def parts(inputs: jax.Array) -> dict[str, jax.Array]:
            output = self._encode(inputs)
            if self._class_codes is not None:
                return {"code_logits": output.code_logits}
            named = {"class_logits": output.class_logits, "features": output.features}
            return {name: part for name, part in named.items() if part is not None}

        found = embed_images(parts, batches)
        return {name: gather(part, found.positions) for name, part in found.embeddings.items()}

    def _scores(
        self, batches: Batches, trained: Mapping[str, np.ndarray] | None
    ) -> dict[str, np.ndarray]:
        outputs = self._outputs(batches)
        if self._class_codes is not None:
            return ood_scores.code_scores(outputs["code_logits"], self._class_codes)
        if "class_logits" not in outputs:  # The codes of images, but none of classes.
            return {}
        class_logits = outputs["class_logits"]
        scores = ood_scores.class_logit_scores(class_logits)
        if trained is None:
            return scores
        features, of_training = outputs["features"], trained["features"]
        neighbor = min(_NEIGHBOR, len(of_training))
        return scores | {
            "neighbor_distance": ood_scores.neighbor_distance(features, of_training, neighbor),
            "virtual_logit": ood_scores.virtual_logit(
                features,
                class_logits,
                train_features=of_training,
                train_class_logits=trained["class_logits"],
                weights=self._classifier.weights,
                biases=self._classifier.biases,
            ),
        }
