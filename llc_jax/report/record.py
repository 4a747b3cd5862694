"""What a run has left, as plain values: what its report is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.evaluation.ood_detection import Detected
from llc_jax.report.classes import Confusion
from llc_jax.report.examples import Examples


@dataclasses.dataclass(frozen=True)
class StageRecord:
    """What one stage has left.

    Attributes:
      name: of the stage.
      confusions: how many evaluation images of each class were taken for which; () where that
        was not measured.
      curves: precision and recall by the names of `pr_curve.npz`; {} where retrieval was not
        measured.
      has_class_codes: whether it has a codebook.
      examples: images with their codes; None where there are none.
      class_weights: float32[L, d], of a linear classifier; None where there is none.
    """

    name: str
    confusions: Sequence[Confusion] = ()
    curves: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    has_class_codes: bool = False
    examples: Examples | None = None
    class_weights: np.ndarray | None = None


@dataclasses.dataclass(frozen=True)
class RunRecord:
    """What a run has left.

    Attributes:
      name: of the run, for the title.
      config: the tree of its config.
      is_finished: whether all its stages are.
      results: the final figures by their flat names.
      metrics: the records of every epoch, each with `stage` and `step`.
      stages: in their order.
      unprefixed_stage: the stage of codes whose figures' names do not start with its name.
      codebook: the class codes, None where there are none.
      images: how many images the data have of each class, by its name.
      ood_scores: of known and of unknown images; None where there are none.
    """

    name: str
    config: Mapping[str, Any]
    is_finished: bool
    results: Mapping[str, float]
    metrics: Sequence[Mapping[str, Any]]
    stages: Sequence[StageRecord]
    unprefixed_stage: str
    codebook: Codebook | None
    images: Mapping[str, int]
    ood_scores: Detected | None = None

    @property
    def confused_stage(self) -> StageRecord | None:
        """The last stage whose confusions were counted, None where none were."""
        return next((stage for stage in reversed(self.stages) if stage.confusions), None)

    @property
    def shown_stage(self) -> StageRecord | None:
        """The last stage that has images to show, if it can be one with class codes."""
        stages = [stage for stage in reversed(self.stages) if stage.examples is not None]
        return next((stage for stage in stages if stage.has_class_codes), next(iter(stages), None))
