"""What a report shows and its run has not kept: the images are encoded once more for it."""

import dataclasses
import os
import pathlib
from collections.abc import Sequence

from llc_jax.errors import InputError
from llc_jax.experiment.config import UnknownConfig, as_json, parse
from llc_jax.experiment.data_record import DataRecord, find_images
from llc_jax.experiment.examples import keep_examples
from llc_jax.experiment.extraction import on_features
from llc_jax.experiment.figures import classify, detect_ood
from llc_jax.experiment.plan import plan_run
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import OOD_SCORES_FILE, read_config
from llc_jax.files import make_directory, write_arrays
from llc_jax.mesh import make_mesh
from llc_jax.training.logging import RunLog
from llc_jax.training.preemption import StopRequest


class FinishedRun:
    """The stages of a finished run, to encode images with.

    Args:
      workdir: of the run.
      source: where its data are now; None where they are where they were.
      near, far: sets of unknown images, as `config.UnknownConfig`; by default the run's.

    Raises:
      InputError: if there is no run, it is not finished, its data are not where they were, or a
        set of unknown images cannot be opened.
    """

    def __init__(
        self,
        workdir: str | os.PathLike,
        source: str | None = None,
        near: Sequence[str] = (),
        far: Sequence[str] = (),
    ):
        workdir = pathlib.Path(workdir).expanduser().absolute()
        config = read_config(workdir)
        data = find_images(DataRecord.load(workdir), config.data, source, config.seed)
        sets = UnknownConfig(tuple(near), tuple(far)) if near or far else config.ood
        config = parse(as_json(dataclasses.replace(config, data=data, ood=sets)))
        self._stages = plan_run(config, workdir, make_mesh()).stages
        self._log = RunLog(workdir)
        for stage in self._stages:
            if not stage.directory.is_finished:
                raise InputError(
                    f"The stage {stage.name!r} of {workdir} is not finished: the command that "
                    "started the run continues it."
                )

    def keep_examples(self) -> None:
        """Writes what the report shows of each network, as a run does at its end."""
        for stage in self._stages:
            ready, weights = self._ready(stage), stage.trained_weights()
            classified = classify(ready, stage.directory.load_codebook(), weights)
            keep_examples(stage, stage.dataset.evaluation, weights, classified)

    def keep_ood_scores(self) -> None:
        """Writes the scores of each stage for known and for unknown images."""
        for stage in self._stages:
            codebook = stage.directory.load_codebook()
            found = detect_ood(self._ready(stage), stage.trained_weights(), codebook)
            make_directory(stage.directory.ood_directory)
            write_arrays(stage.directory.ood_directory / OOD_SCORES_FILE, found.as_arrays())

    def _ready(self, stage: Stage) -> Stage:
        """Returns a stage that can be evaluated: on features, where its backbone is frozen."""
        return on_features(stage, self._log, StopRequest())
