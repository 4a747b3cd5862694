"""The figures of a stage and the files beside them: made, written and shown."""

import pathlib
from collections.abc import Mapping

from llc_jax.codes.codebook import Codebook
from llc_jax.experiment.config import RunConfig
from llc_jax.experiment.figures import Measured, measure
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import OOD_SCORES_FILE, on_first_process
from llc_jax.files import write_arrays
from llc_jax.report.classes import classes_table, read_confusions, write_confusions
from llc_jax.report.ood import write_ood_tables
from llc_jax.report.table import remarks, results_tables
from llc_jax.training.logging import RunLog
from llc_jax.training.state import State


def measure_stage(
    stage: Stage,
    weights: State,
    codebook: Codebook | None,
    curves_file: pathlib.Path,
    confusions_file: pathlib.Path,
    ood_directory: pathlib.Path,
) -> Measured:
    """Measures a stage; writes its confusions, curves and tables of scores."""
    measured = measure(stage, weights, codebook)
    if measured.confusions is not None:
        on_first_process(write_confusions, confusions_file, measured.confusions)
    if measured.curves is not None:
        on_first_process(write_arrays, curves_file, measured.curves)
    if measured.detected is not None:
        on_first_process(write_ood_tables, ood_directory, measured.ood, measured.accuracy)
        scores = measured.detected.as_arrays()
        on_first_process(write_arrays, ood_directory / OOD_SCORES_FILE, scores)
    return measured


def unprefixed_stage(config: RunConfig) -> str:
    """Returns the stage of codes whose figures' names do not start with its name; "" if none."""
    coded = (name for name, stage in config.stages.items() if stage.head["name"] == "code")
    return next(coded, "")


def show_results(
    results: Mapping[str, float], config: RunConfig, confusions_file: pathlib.Path, log: RunLog
) -> None:
    """Prints the tables of the results and of the classes, and remarks where there are some."""
    for table in results_tables(results, tuple(config.stages), unprefixed_stage(config)):
        log.show(table)
    if confusions_file.exists():
        source = "/".join(confusions_file.parts[-2:])
        log.show(classes_table(read_confusions(confusions_file), source))
    log.say(*remarks(results))
