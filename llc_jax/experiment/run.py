"""A run: a plan's stages in order, each trained, then measured. It continues where it stopped."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from clu import parameter_overview
from jax.experimental import multihost_utils

from llc_jax.codes.codebook import Codebook
from llc_jax.data.dataset import Dataset
from llc_jax.experiment import codebook_sources, image_size
from llc_jax.experiment.config import RunConfig, as_json, parse
from llc_jax.experiment.data_record import DataRecord, check_images, find_images
from llc_jax.experiment.figures import classify, measure
from llc_jax.experiment.plan import Plan, plan_evaluation, plan_run
from llc_jax.experiment.stage import Stage
from llc_jax.experiment.workdir import (
    CODEBOOK_FILE,
    CONFIG_FILE,
    EVALUATION_CONFUSIONS_FILE,
    EVALUATION_CURVES_FILE,
    EVALUATION_FILE,
    RESULTS_FILE,
    StageDirectory,
    check_config,
    locked,
    on_first_process,
    read_config,
    read_results,
    wait_for_all,
)
from llc_jax.files import make_directory, write_arrays, write_json
from llc_jax.mesh import make_mesh
from llc_jax.report.classes import classes_table, read_confusions, write_confusions
from llc_jax.report.table import advice, results_tables
from llc_jax.training import loop
from llc_jax.training.checkpoint import Checkpoints
from llc_jax.training.logging import RunLog
from llc_jax.training.state import State


def run(
    tree: Mapping[str, Any],
    workdir: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Trains and evaluates all stages of a config, or what is left of them.

    Args:
      tree: the config, as in `configs/`.
      workdir: where the run is kept; made if missing.
      devices: which to use; by default all of all processes.

    Returns:
      The final figures by their flat names, as in `results.json`.

    Raises:
      InputError: if the config, the data or the workdir cannot be used, or another run is at
        work there.
      WriteFailed: if the disk is full, or the workdir was removed; checkpoints stay.
      Stopped: if the process was told to stop; progress is saved.
      Diverged: if a loss or a weight is no longer finite.
    """
    workdir = pathlib.Path(workdir).absolute()
    config = image_size.complete(parse(tree), workdir)
    log = RunLog(workdir, primary=jax.process_index() == 0)
    check_config(workdir, config)
    results = read_results(workdir / RESULTS_FILE)
    if results:
        check_images(workdir, config)
        log.say("This run is finished.")
    else:
        plan = plan_run(config, workdir, make_mesh(devices))
        make_directory(workdir)
        with locked(workdir):
            # Another run may have been at work there in the meantime.
            check_config(workdir, config)
            log.say(*plan.summary)
            on_first_process(write_json, workdir / CONFIG_FILE, as_json(config))
            on_first_process(plan.record.save, workdir)
            results = _run_plan(plan, log)
            on_first_process(write_json, workdir / RESULTS_FILE, results)
    last_stage = StageDirectory(workdir / list(config.stages)[-1])
    _show(results, config, last_stage.confusions_file, log)
    log.say(f"Run: {workdir}")
    return results


def evaluate(
    tree: Mapping[str, Any],
    workdir: str | os.PathLike,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Evaluates the last stage of a config without training.

    Args:
      tree: the config. Where the stage has not been trained in the workdir, its
        `init_from` is a file of weights, and of the codebook if that is "learnt".
      workdir: of the run, and where `evaluation.json` is written.
      devices: as in `run`.

    Returns:
      The stage's figures by their flat names.

    Raises:
      InputError: if the config, the data, the workdir or the file cannot be used.
    """
    workdir = pathlib.Path(workdir).absolute()
    config = image_size.complete(parse(tree), workdir)
    log = RunLog(workdir, primary=jax.process_index() == 0)
    check_config(workdir, config, evaluation=True)
    plan = plan_evaluation(config, workdir, make_mesh(devices))
    log.say(*plan.summary)
    make_directory(workdir)
    (stage,) = plan.stages
    weights = jax.device_put(stage.initial_weights(), stage.replicated)
    codebook = stage.initial_codebook() if stage.initial_codebook else None
    curves_file, confusions_file = (
        workdir / name for name in (EVALUATION_CURVES_FILE, EVALUATION_CONFUSIONS_FILE)
    )
    results = _measure(stage, weights, codebook, curves_file, confusions_file)
    on_first_process(write_json, workdir / EVALUATION_FILE, results)
    _show(results, config, confusions_file, log)
    return results


def evaluate_again(
    workdir: str | os.PathLike,
    *,
    source: str | None = None,
    decoders: Sequence[str] = (),
    retrieval: Sequence[int] = (),
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, float]:
    """Evaluates the last stage of a run once more, as the config in its workdir says.

    Args:
      workdir: of the run, and where `evaluation.json` is written.
      source: of other images, as `config.DataConfig.source`, of which all are evaluated, or
        their evaluation images where they are split; or of the run's own, where they have moved.
      decoders: to measure; by default those of the config.
      retrieval: the ranks at which retrieval is measured; by default those of the config.
      devices: as in `run`.

    Returns, Raises: as `evaluate`.
    """
    workdir, mesh = pathlib.Path(workdir).expanduser().absolute(), make_mesh(devices)
    config = read_config(workdir)
    data = find_images(DataRecord.load(workdir), config.data, source, config.seed)
    config = dataclasses.replace(
        config,
        data=data,
        decoders=tuple(decoders) or config.decoders,
        retrieval=tuple(retrieval) or config.retrieval,
        # The devices may be other than those that it was trained on.
        batch_size=-(-config.batch_size // mesh.size) * mesh.size,
    )
    return evaluate(as_json(config), workdir, devices)


def _run_plan(plan: Plan, log: RunLog) -> dict[str, float]:
    results = {}
    for number, stage in enumerate(plan.stages, start=1):
        figures = read_results(stage.directory.results_file)
        if not figures:
            later = [other.training for other in plan.stages[number:]]
            log.expect(sum(training.timetable.num_steps for training in later), stage.batch_size)
            figures = _run_stage(stage, log)
            on_first_process(write_json, stage.directory.results_file, figures)
        results |= figures
    return results | (_count_damaged(plan.dataset) if plan.skips_damaged else {})


def _run_stage(stage: Stage, log: RunLog) -> dict[str, float]:
    """Trains a stage and measures it; leaves its checkpoints and its codebook."""
    codebook = _initial_codebook(stage)
    training, latent = stage.training, None if codebook is None else codebook.latent
    num_weights = parameter_overview.count_parameters(training.abstract_state["params"])
    timetable = training.timetable
    log.say(
        f"{stage.name}: {timetable.epochs} epochs, {timetable.num_steps} steps, "
        f"{num_weights:,} weights"
    )

    def initial_state() -> State:
        weights = stage.initial_weights() if stage.initial_weights else None
        return training.initial_state(weights, latent)

    with Checkpoints(stage.directory.checkpoints, stage.checkpoints_kept) as checkpoints:
        log.say(*checkpoints.remarks)
        state = loop.train(
            training,
            initial_state,
            class_codes=codebook.packed if stage.fixed_codebook else None,
            evaluate=lambda state: classify(stage, codebook, state).figures,
            checkpoints=checkpoints,
            log=log,
        )
    if "latent" in state["params"]["head"]:
        latent = jax.device_get(state["params"]["head"]["latent"])
        names = stage.dataset.class_names
        codebook = Codebook.from_numpy(latent, names, codebook_sources.LEARNT)
    if codebook is not None:
        for path in (stage.directory.codebook_file, stage.workdir / CODEBOOK_FILE):
            on_first_process(codebook.save, path)
    directory = stage.directory
    return _measure(stage, state, codebook, directory.curves_file, directory.confusions_file)


def _initial_codebook(stage: Stage) -> Codebook | None:
    """Returns the codebook that a stage is given; the same when the stage continues."""
    codebook = stage.directory.load_codebook()
    wait_for_all("looked for the codebook")
    if codebook is None and stage.initial_codebook is not None:
        codebook = stage.initial_codebook()
        on_first_process(codebook.save, stage.directory.codebook_file)
    return codebook


def _measure(
    stage: Stage,
    weights: State,
    codebook: Codebook | None,
    curves_file: pathlib.Path,
    confusions_file: pathlib.Path,
) -> dict[str, float]:
    """Returns the figures of a stage; writes its confusions and its curves of retrieval."""
    measured = measure(stage, weights, codebook)
    if measured.confusions is not None:
        on_first_process(write_confusions, confusions_file, measured.confusions)
    if measured.curves is not None:
        on_first_process(write_arrays, curves_file, measured.curves)
    return measured.figures


def _count_damaged(dataset: Dataset) -> dict[str, int]:
    """Returns how many images any process has skipped since the run was started."""
    images = {"train": dataset.train, "evaluation": dataset.evaluation}
    if dataset.without_protocol is not None:
        images["whole_train"] = dataset.without_protocol.train
        images["whole_evaluation"] = dataset.without_protocol.evaluation
    counts = {}
    for name, split in images.items():
        damaged = np.zeros(len(split.labels) + len(split.damaged), bool)
        damaged[list(split.damaged)] = True
        if jax.process_count() > 1:
            damaged = np.any(multihost_utils.process_allgather(damaged), axis=0)
        counts[f"data/damaged_{name}"] = int(damaged.sum())
    return counts


def _show(
    results: Mapping[str, float], config: RunConfig, confusions_file: pathlib.Path, log: RunLog
) -> None:
    """Prints the tables of the results and of the classes, and advice where there is some."""
    coded = (name for name, stage in config.stages.items() if stage.head["name"] == "code")
    for table in results_tables(results, tuple(config.stages), next(coded, "")):
        log.show(table)
    if confusions_file.exists():
        source = "/".join(confusions_file.parts[-2:])
        log.show(classes_table(read_confusions(confusions_file), source))
    log.say(*advice(results))
