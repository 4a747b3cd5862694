"""What a report shows and its run has not kept: the images are encoded once more for it."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping

from llc_jax.data.pipeline import Images, Streamed
from llc_jax.data.splits import Splits, open_source
from llc_jax.data.transforms import Crop
from llc_jax.data.vectors import Vectors, VectorSource
from llc_jax.errors import InputError
from llc_jax.evaluation import ood_scores
from llc_jax.evaluation.classification import Classified
from llc_jax.experiment.data_record import DataRecord, find_images
from llc_jax.experiment.examples import keep_examples
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.figures import classify
from llc_jax.experiment.network import input_size
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import OOD_SCORES_FILE, read_config
from llc_jax.files import write_arrays
from llc_jax.mesh import make_mesh
from llc_jax.report.unknown import OodScores
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest
from llc_jax.training.state import State


class FinishedRun:
    """The stages of a finished run, to encode images with.

    Args:
      workdir: of the run.
      source: where its data are now; None where they are where they were.

    Raises:
      InputError: if there is no run, it is not finished, or its data are not where they were.
    """

    def __init__(self, workdir: str | os.PathLike, source: str | None = None):
        self._workdir = pathlib.Path(workdir).expanduser().absolute()
        config = read_config(self._workdir)
        data = find_images(DataRecord.load(self._workdir), config.data, source, config.seed)
        config = dataclasses.replace(config, data=data)
        self._crop = Crop(input_size(config), data.crop_fraction, data.exif_orientation)
        self._stages = plan_run(config, self._workdir, make_mesh()).stages
        self._log = RunLog(self._workdir)
        for stage in self._stages:
            if not stage.directory.is_finished:
                raise InputError(
                    f"The stage {stage.name!r} of {workdir} is not finished: the command that "
                    "started the run continues it."
                )

    def keep_examples(self) -> None:
        """Writes what the report shows of each network, as a run does at its end."""
        for stage in self._stages:
            classified, weights = self._classify(stage, stage.dataset.evaluation)
            keep_examples(stage, stage.dataset.evaluation, weights, classified)

    def keep_ood_scores(self, sets: Mapping[str, str]) -> None:
        """Writes the scores of the last codes for known and for unknown images.

        Args:
          sets: a dataset by the name of each set of unknown images; of one that is split, the
            evaluation images are taken.

        Raises:
          InputError: if the run has no class codes, or a dataset cannot be opened.
        """
        stage = self._stages[-1]
        if stage.directory.load_codebook() is None:
            raise InputError(
                f"The last stage of {self._workdir}, {stage.name!r}, has no class codes: by the "
                "distance to them unknown images are told."
            )
        known = stage.dataset.evaluation
        unknown = {name: self._open(source, known) for name, source in sets.items()}
        scores = OodScores(
            self._scores(stage, known),
            {name: self._scores(stage, images) for name, images in unknown.items()},
        )
        write_arrays(self._workdir / OOD_SCORES_FILE, scores.as_arrays())

    def _open(self, source: str, known: Images) -> Images:
        images = open_source(source)
        images = images.evaluation if isinstance(images, Splits) else images
        if isinstance(images, VectorSource) != isinstance(known, Vectors):
            raise InputError(f"{source} is of another kind of data than those of the run.")
        return Vectors(images) if isinstance(images, VectorSource) else Streamed(images, self._crop)

    def _scores(self, stage: Stage, images: Images) -> dict:
        classified, _ = self._classify(stage, images)
        codebook = stage.directory.load_codebook()
        return ood_scores.code_scores(classified.code_logits, codebook.packed)

    def _classify(self, stage: Stage, images: Images) -> tuple[Classified, State]:
        """Returns what a stage finds for images, and its weights."""
        dataset = dataclasses.replace(stage.dataset, evaluation=images, unseen=None)
        stage = dataclasses.replace(stage, dataset=dataset)
        if stage.frozen is not None:
            stage = on_features(stage, self._log, StopRequest())
        weights = stage.trained_weights()
        return classify(stage, stage.directory.load_codebook(), weights), weights
