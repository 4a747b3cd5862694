"""The report of a run, made of the files in its workdir alone."""

import functools
import os
import pathlib
from collections.abc import Sequence

import numpy as np

from llc_jax.codes.codebook import Codebook
from llc_jax.copies import as_path, working_copy
from llc_jax.errors import InputError
from llc_jax.evaluation.ood_detection import Detected
from llc_jax.experiment.config import as_json
from llc_jax.experiment.data_record import DataRecord
from llc_jax.experiment.results import unprefixed_stage
from llc_jax.experiment.workdir import (
    CODEBOOK_FILE,
    FIGURES_DIRECTORY,
    OOD_SCORES_FILE,
    REPORT_FILE,
    RESULTS_FILE,
    StageDirectory,
    read_config,
    read_results,
)
from llc_jax.files import atomic_write, read_arrays
from llc_jax.objects import URL
from llc_jax.report import drawings
from llc_jax.report.classes import read_confusions
from llc_jax.report.examples import Examples
from llc_jax.report.html import render
from llc_jax.report.page import make_page
from llc_jax.report.record import RunRecord, StageRecord
from llc_jax.training.logging import read_metrics


def write_report(workdir: str | os.PathLike) -> pathlib.Path | URL:
    """Writes the report of a run, finished or not, as one HTML file.

    Its figures are also in `figures/`, as PNG and SVG, where matplotlib is installed.

    Args:
      workdir: of the run.

    Returns:
      The file, `report.html` in the workdir.

    Raises:
      InputError: if there is no run, or a file of it is damaged.
      WriteFailed: if the file cannot be written.
    """
    workdir = as_path(workdir).expanduser().absolute()
    with working_copy(workdir) as copy:
        page = make_page(_read_run(copy))
        with atomic_write(copy / REPORT_FILE) as temporary:
            # Names of files that are no text have no letters in UTF-8.
            temporary.write_text(render(page), encoding="utf-8", errors="replace", newline="\n")
        if drawings.is_available():
            drawings.write_figures(copy / FIGURES_DIRECTORY, page.figures)
    return workdir / REPORT_FILE


def report_lines(workdir: pathlib.Path, *, anew: bool) -> list[str]:
    """Returns what to say of the report of a finished run; makes it where it is missing.

    A failure is told and not raised: the run is finished without its report too.

    Args:
      workdir: of the run.
      anew: whether to replace a report that is there already.
    """
    path = workdir / REPORT_FILE
    try:
        return [f"Report: {path if path.exists() and not anew else write_report(workdir)}"]
    except Exception as error:
        return [f"There is no report ({error}): llc report {workdir} makes one."]


def _read_run(workdir: pathlib.Path) -> RunRecord:
    """Reads what a run has left so far."""
    config = read_config(workdir)
    results = read_results(workdir / RESULTS_FILE)
    stages = [StageDirectory(workdir / name) for name in config.stages]
    data = DataRecord.load(workdir)
    return RunRecord(
        name=workdir.name,
        config=as_json(config),
        is_finished=bool(results),
        results=results or _results_so_far(stages),
        metrics=read_metrics(workdir),
        stages=[_read_stage(stage) for stage in stages],
        unprefixed_stage=unprefixed_stage(config),
        codebook=_read_codebook(workdir, stages),
        images={} if data is None else data.fingerprint.images,
        ood_scores=read_ood_scores(stages),
    )


def _results_so_far(stages: list[StageDirectory]) -> dict[str, float]:
    results = {}
    for stage in stages:
        results |= read_results(stage.results_file)
    return results


def read_ood_scores(stages: Sequence[StageDirectory]) -> Detected | None:
    """Returns the scores of unknown images that stages have kept; None where none has.

    Of the scores that several stages have, they are the last one's.

    Raises:
      InputError: if a file is damaged.
    """
    files = [stage.ood_directory / OOD_SCORES_FILE for stage in stages]
    found = [Detected.from_arrays(_read(file, "unknown images")) for file in files if file.exists()]
    return functools.reduce(Detected.joined, found) if found else None


def _read_codebook(workdir: pathlib.Path, stages: list[StageDirectory]) -> Codebook | None:
    """Returns the codebook of a run; until it has one, that of its last stage that has some."""
    files = [workdir / CODEBOOK_FILE, *(stage.codebook_file for stage in reversed(stages))]
    return next((Codebook.load(file) for file in files if file.exists()), None)


def _read_stage(stage: StageDirectory) -> StageRecord:
    kept = _read(stage.examples_file, "images of this stage")
    return StageRecord(
        name=stage.path.name,
        confusions=(
            read_confusions(stage.confusions_file) if stage.confusions_file.exists() else ()
        ),
        curves=_read(stage.curves_file, "curves of this stage"),
        has_class_codes=stage.codebook_file.exists(),
        examples=Examples.from_arrays(kept) if "thumbnails" in kept else None,
        class_weights=kept.get("class_weights"),
    )


def _read(path: pathlib.Path, what: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a file; none where there is no such file."""
    try:
        return read_arrays(path) if path.exists() else {}
    except (OSError, ValueError) as error:
        raise InputError(
            f"{path} is damaged ({error}): remove it, and the report has no {what}."
        ) from error
